"""Benchmarks of speed and memory, and the description of the machine that every result carries."""
