"""The base of everything that is written as JSON and read back: frozen, strict, without NaN."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RecordModel(BaseModel):
    """What every part of a record is: frozen, without unknown fields, without NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
