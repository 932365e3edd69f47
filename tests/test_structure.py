"""The structure of the package: no import circle, few root files, unique public names, contracts on packages."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp", reason="import-linter is not installed")
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "efface"
PACKAGES = {
    "auditing", "bench", "cli", "data", "desk", "interop", "reporting", "runs", "tasks", "training", "unlearning",
}  # fmt: skip


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module to the modules that it imports, anywhere in its text: at the top, in functions, for type checkers."""
    graph = grimp.build_graph("efface", exclude_type_checking_imports=False, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; empty if there are none."""
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except ValueError as error:  # graphlib.CycleError
        return list(error.args[1])
    return []


def package_of(module: str) -> str:
    """The package that a module belongs to; a root module is its own."""
    return ".".join(module.split(".")[:2])


def test_no_module_imports_itself_over_others(imports):
    assert circle(imports) == []


def test_no_package_imports_itself_over_others(imports):
    packages: dict[str, set[str]] = defaultdict(set)
    for module, seen in imports.items():
        packages[package_of(module)] |= {package_of(one) for one in seen} - {package_of(module)}
    assert circle(packages) == []


def test_a_planted_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


def test_the_root_holds_few_files_and_the_packages():
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == PACKAGES


def public_names(path: Path) -> set[str]:
    """Functions, classes and constants that a module defines at its top, without the private ones."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_a_public_name_is_defined_once():
    places: dict[str, list[str]] = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for name in public_names(path):
            places[name].append(str(path.relative_to(PACKAGE)))
    assert {name: sorted(where) for name, where in places.items() if len(where) > 1} == {}


def test_contracts_name_packages_not_long_lists_of_modules():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    assert len(contracts) >= 10
    for contract in contracts:
        named = [len(value) for value in contract.values() if isinstance(value, list)]
        assert max(named) <= 12, contract["name"]


def test_every_package_says_what_it_is_for():
    for init in PACKAGE.rglob("__init__.py"):
        doc = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))
        assert doc and doc.splitlines()[0].endswith((".", ",")), init
