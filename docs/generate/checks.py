"""The common checks as a matrix of method × objective × check, from pytest's report of a run.

    PYTEST_ADDOPTS=--junitxml=checks.xml make test
    python -m docs.generate.checks checks.xml       research/results/checks.json
    make docs                                       docs/checks.md

All tests run; only the common checks are read. Several files (of runs with ``-k``) may be arguments.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.machine import machine, read_json, write_json
from docs.generate.markdown import table_head, table_row
from research.paths import RESULTS

from efface.training.objectives import OBJECTIVES
from efface.unlearning.methods import METHODS
from efface.unlearning.protocol import Needs

RESULT = RESULTS / "checks.json"
EACH = {
    "test_same_seed_same_weights_and_the_global_generator_is_untouched": "S",
    "test_the_sets_that_are_declared_matter_and_the_others_do_not": "D",
    "test_the_log_has_every_term_by_name_and_each_is_finite": "L",
    "test_the_twin_follows": "T",
    "test_a_checkpoint_of_the_wrong_kind_is_refused_with_the_methods_that_fit": "R",
}
"""Checks of a method on an objective, and the letter that stands for each."""
QUEUE = "test_no_key_of_a_forgotten_example_enters_the_queue"
ONCE = {
    "test_what_was_not_declared_is_unreachable": "undeclared is unreachable",
    "test_no_field_is_dead": "every field alive",
    "test_the_run_counts_what_it_cost": "cost is counted",
    "test_defaults_cost_at_most_a_twentieth_of_the_oracle_s_steps": "a twentieth of the oracle",
    "test_a_loss_that_is_not_finite_stops_and_names_its_term": "not finite stops",
    "test_config_round_trip": "settings round trip",
    "test_the_file_explains_itself": "file explains itself",
    "test_a_backbone_without_attention_is_refused_and_a_transformer_is_not": "attention asked for",
}
"""Checks of a method on one objective."""
REASONS = {
    "every field alive": "it has no fields",
    "a twentieth of the oracle": "retraining is the oracle; gradient_ascent counts passes over F",
    "attention asked for": "works without attention",
}
"""Why a cell of the second table is empty."""


def read(files: list[Path]) -> dict[str, Any]:
    """Every common check in the reports: name to outcome and seconds."""
    tests: dict[str, Any] = {}
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):
            if not str(case.get("classname")).endswith("test_common_checks"):
                continue
            ended = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
            tests[str(case.get("name"))] = {"ended": ended, "seconds": float(case.get("time", 0))}
    return tests


def of(tests: dict[str, Any], check: str, *about: str) -> list[dict[str, Any]]:
    """The tests of a check for a method, or for a method and an objective."""
    exact, begin = f"{check}[{'-'.join(about)}]", f"{check}[{'-'.join(about)}-"
    return [one for name, one in tests.items() if name == exact or name.startswith(begin)]


def marks(found: list[dict[str, Any]], letter: str) -> str:
    """The letter of a check; in bold with the outcome if a test did not pass."""
    bad = [one["ended"] for one in found if one["ended"] != "passed"]
    return f"**{letter} {bad[0]}**" if bad else letter if found else ""


def why_not(method: str, objective: str) -> str:
    """What a method needs that an objective lacks; empty if it applies."""
    needs, trained = METHODS[method].needs, OBJECTIVES[objective]
    if Needs.LABELS in needs and not trained.needs_labels:
        return "labels"
    return "pairs" if Needs.PAIRS in needs and not trained.contrasts_pairs else ""


def page() -> list[str]:
    """Both tables, with counts and times, as Markdown lines."""
    result = read_json(RESULT)
    tests = result["tests"]
    ended = [one["ended"] for one in tests.values()]
    counts = ", ".join(f"{ended.count(word)} {word}" for word in dict.fromkeys(ended))
    cores = f"in {result['processes']} processes" if result["processes"] > 1 else "in one process"
    lines = [
        f"**{len(tests)} tests: {counts}.** {sum(one['seconds'] for one in tests.values()) / 60:.1f} minutes added up "
        f"over the tests, {cores}{result['note'] and '; ' + result['note']}.",
        "",
        "## On every objective",
        "",
        *table_head("method", *OBJECTIVES),
    ]
    for method in METHODS:
        cells = []
        for objective in OBJECTIVES:
            found = [marks(of(tests, check, method, objective), letter) for check, letter in EACH.items()]
            found += [marks(of(tests, QUEUE, method), "Q")] if objective == "moco" else []
            reason = why_not(method, objective)
            cells.append(" ".join(x for x in found if x) + (f" (needs {reason})" if reason else ""))
        lines.append(table_row(f"`{method}`", *cells))
    lines += ["", "## Once for each method", "", *table_head("method", *ONCE.values())]
    for method in METHODS:
        cells = []
        for check, title in ONCE.items():
            found = of(tests, check, method)
            passed = sum(one["ended"] == "passed" for one in found)
            cells.append(REASONS.get(title, "not run yet") if not found else f"{passed} of {len(found)}")
        lines.append(table_row(f"`{method}`", *cells))
    lines += ["", "## Each check", "", *table_head("check", "tests", "passed", "seconds")]
    for check in dict.fromkeys(name.partition("[")[0] for name in tests):
        found = [one for name, one in tests.items() if name.partition("[")[0] == check]
        good, spent = sum(one["ended"] == "passed" for one in found), sum(one["seconds"] for one in found)
        lines.append(table_row(f"`{check}`", len(found), good, f"{spent:.1f}"))
    made = result["machine"]
    return [*lines, "", f"From `{result['command']}` on {result['date']}; {made['cpu']}, torch {made['torch']}."]


def main() -> None:
    """Write ``research/results/checks.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="what pytest wrote with --junitxml")
    parser.add_argument("--processes", type=int, default=2, help="number of processes the tests ran in")
    parser.add_argument("--note", default="", help="anything else to know about the times")
    arguments = parser.parse_args()
    suites = [suite for file in arguments.files for suite in ElementTree.parse(file).iter("testsuite")]
    result = {
        "command": "PYTEST_ADDOPTS=--junitxml=checks.xml make test",
        "date": min(str(suite.get("timestamp"))[:10] for suite in suites),
        "processes": arguments.processes,
        "note": arguments.note,
        "machine": machine(),
        "tests": read(arguments.files),
    }
    write_json(RESULT, result, indent=0)
    bad = {name: one["ended"] for name, one in result["tests"].items() if one["ended"] != "passed"}
    print(len(result["tests"]), "tests;", bad or "all passed")


if __name__ == "__main__":
    main()
