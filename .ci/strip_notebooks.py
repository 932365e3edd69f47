"""Remove outputs and counts from notebooks: ``python .ci/strip_notebooks.py examples/*.ipynb``; exit code 1 if any had some."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def strip(path: Path) -> bool:
    """Strip one notebook; whether it changed."""
    before = path.read_text(encoding="utf-8")
    notebook = json.loads(before)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if json.loads(before) == notebook:
        return False
    path.write_text(after, encoding="utf-8")
    return True


if __name__ == "__main__":
    raise SystemExit(int(any([strip(Path(name)) for name in sys.argv[1:]])))
