"""What ``examples/half-hour.yaml`` gave: of a bench's results what ``docs/bench.md`` shows, and what it was chosen by.

efface bench examples/half-hour.yaml --jobs 1 --out FOLDER
python -m benchmarks.half_hour FOLDER
make docs
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "half_hour.json"
COMMAND = "efface bench examples/half-hour.yaml --jobs 1"
KEPT = ("format", "efface", "created", "name", "machine", "grid", "ranking", "picks", "unfit")


def reduced(results: dict[str, Any]) -> dict[str, Any]:
    """Without the rows of single models: their findings and curves are in the bench's own files."""
    settings = {
        name: {label: entry["settings"] for label, entry in family["methods"].items()}
        for name, family in results["families"].items()
    }
    failed = [row["label"] for row in results["rows"] if row["status"] != "done"]
    return {key: results[key] for key in KEPT} | {"command": COMMAND, "settings": settings, "failed": failed}


def main() -> None:
    """Write ``results/half_hour.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the bench wrote")
    results = json.loads((parser.parse_args().folder / "results.json").read_text(encoding="utf-8"))
    RESULT.write_text(json.dumps(reduced(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
