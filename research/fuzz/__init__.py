"""Fuzzing of everything that is read: ``python -m research.fuzz TARGET``."""
