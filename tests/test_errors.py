"""What is said of a library of an extra that is missing, is there and does not load, or is fine."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest

from efface.errors import EffaceError, optional_imports
from tests import advice


def test_a_missing_library_is_named_with_its_purpose_and_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "colorsys", None)
    with pytest.raises(EffaceError) as refusal, optional_imports("colors", "export", "Or print in gray."):
        import_module("colorsys")
    assert refusal.value.what == "The library colorsys is not installed."
    assert refusal.value.why == "It is needed for colors."
    assert refusal.value.remedy == "Install it: pip install 'efface[export]'. Or print in gray."


def test_what_a_library_itself_lacks_is_named_and_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "needs_more.py").write_text("import something_undeclared.deep\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EffaceError, match="library something_undeclared is not installed"), optional_imports("a", "b"):
        import_module("needs_more")


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("from json import no_such_name", "The library json cannot be loaded."),
        ("raise ImportError('libGL.so.1: cannot open shared object file')", "A library cannot be loaded."),
    ],
)
def test_a_library_that_is_installed_and_does_not_load_is_not_called_missing(
    code: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken_library.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_library", raising=False)
    with pytest.raises(EffaceError) as refusal, optional_imports("drawing", "export"):
        import_module("broken_library")
    assert refusal.value.what == what
    assert "It says:" in refusal.value.why
    assert "pip install -U 'efface[export]'" in refusal.value.remedy


def test_a_fault_of_our_own_is_not_called_a_missing_library():
    with pytest.raises(ModuleNotFoundError, match="efface"), optional_imports("nothing", "export"):
        import_module("efface.no_such_module")


def test_every_extra_that_is_named_exists():
    named: dict[str, list[str]] = {}
    for path in advice.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "optional_imports":
                named.setdefault(ast.unparse(node.args[1]), []).append(path.name)
    literal = {name for text in named if text.startswith("'") for name in ast.literal_eval(text).split(",")}
    assert len(named) > 12 and literal <= advice.extras(), literal - advice.extras()
    assert {text for text in named if not text.startswith("'")} == {"extra"}, "of trackers, whose tests name each"


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), optional_imports("nothing", "export"):
        raise ZeroDivisionError
