"""Retraining: fine-tuning from a fresh start instead of from the trained weights."""

from tests.reference.finetune import steps

__all__ = ["steps"]
