"""Where the experiments keep their models and results, and where the pages made from them lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "research" / "results"
"""One JSON file for each experiment; committed, and read by ``docs/generate``."""
RUNS = ROOT / "research" / "runs"
"""Models and observations of the experiments; ignored by git."""
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
"""Grids of ``efface bench``."""
