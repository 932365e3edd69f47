"""The lowest versions that pyproject.toml promises, as constraints for pip; with ``--tests``, the tests that need no extra.

python .ci/lowest.py > lowest.txt
pip install --constraint lowest.txt --editable . pytest hypothesis jsonschema
pytest $(python .ci/lowest.py --tests)
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/test_api.py", "tests/test_config.py", "tests/test_stats.py", "tests/test_schema.py", "tests/test_structure.py",
    "tests/data", "tests/training/test_loop.py", "tests/training/test_objectives.py", "tests/training/test_augment.py",
    "tests/training/test_backbones.py", "tests/training/test_state.py", "tests/unlearning/test_methods.py",
    "tests/unlearning/test_common_checks.py", "tests/auditing/test_audits.py", "tests/auditing/test_verdict.py",
    "tests/auditing/test_membership.py", "tests/interop/test_safe_load.py", "tests/interop/test_inspect.py",
    "tests/reporting/test_record.py", "tests/reporting/test_report.py", "tests/runs/test_sequence.py", "tests/cli/test_cli.py",
)  # fmt: skip
"""A core subset: every package, and nothing of an extra."""


BROUGHT = ("huggingface_hub",)
"""What the lowest timm needs but does not work with in the newest version; the bound is that of our extra."""


def lowest() -> list[str]:
    """``name==version`` of every dependency, from its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {one for many in project["optional-dependencies"].values() for one in many if one.startswith(BROUGHT)}
    found = []
    for one in (*project["dependencies"], *sorted(extras)):
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", one)
        if match is None:
            raise SystemExit(f"{one} has no lower bound")
        found.append(f"{match[1]}=={match[2]}")
    return found


if __name__ == "__main__":
    sys.stdout.write("\n".join(TESTS if "--tests" in sys.argv else lowest()) + "\n")
