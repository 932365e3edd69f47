"""--model of the desk's verbs: a chain's name, a model.yaml, or consent to a function; sorted out by what it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efface.cli.chains import choose_chain, require_chain
from efface.errors import EffaceError, unknown_name_error
from efface.runs import model_description
from efface.training.networks import own_module

FOREIGN = {"faces": "theirs.pth", "texts": "other.pth"}


class FewChains:
    """A desk with two chains; what their first models were made from is in ``FOREIGN``."""

    def models(self) -> list[Any]:
        return [SimpleNamespace(name=name, original=f"runs/{name}", head=f"runs/{name}-2") for name in FOREIGN]

    def model(self, name: str) -> Any:
        found = [one for one in self.models() if one.name == name]
        if not found:
            raise unknown_name_error("model", name, FOREIGN)
        return found[0]

    def request(self, id: str) -> Any:
        return SimpleNamespace(model={"R1": "faces", "R2": "texts"}[id])


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Any:
    def compare(file: Path, run: Path) -> list[str]:
        if FOREIGN[run.name.removesuffix("-2")] not in file.read_text(encoding="utf-8"):
            raise EffaceError(f"{file} describes another checkpoint than that of {run}.")
        return []

    monkeypatch.setattr(model_description, "use_model_of_run", compare)
    monkeypatch.setattr(own_module, "_allowed", set())
    return FewChains()


@pytest.fixture
def described(tmp_path: Path) -> dict[str, str]:
    """One model.yaml for each chain, and one of neither."""
    made = dict[str, str]()
    for name, weights in {**FOREIGN, "nobody": "lost.pth"}.items():
        (tmp_path / f"{name}.yaml").write_text(f"checkpoint: {weights}\n", encoding="utf-8")
        made[name] = str(tmp_path / f"{name}.yaml")
    return made


def test_a_name_a_file_and_a_function_are_told_apart(desk: Any, described: dict[str, str]) -> None:
    assert choose_chain(desk, None) is None
    assert choose_chain(desk, ["texts"]) == "texts"
    assert choose_chain(desk, [described["faces"]]) == "faces"
    assert choose_chain(desk, ["faces", described["faces"]]) == "faces"
    assert choose_chain(desk, ["their_net:build"]) is None and own_module._allowed == {"their_net:build"}
    assert choose_chain(desk, ["other_net:build", "texts"]) == "texts"
    assert own_module._allowed == {"their_net:build", "other_net:build"}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (["faces", "texts"], "Several models were named"),
        (["face"], "no model called 'face'"),
        (["their net:build"], "names no function"),
    ],
)
def test_what_fits_nothing_is_refused(desk: Any, values: list[str], what: str) -> None:
    with pytest.raises(EffaceError, match=what):
        choose_chain(desk, values)
    assert not own_module._allowed


def test_a_file_of_another_model_is_refused(desk: Any, described: dict[str, str]) -> None:
    for values in (["faces", described["texts"]], ["texts", described["nobody"]]):
        with pytest.raises(EffaceError, match="describes another checkpoint"):
            choose_chain(desk, values)
    with pytest.raises(EffaceError, match="No chain of this desk goes back to"):
        choose_chain(desk, [described["nobody"]])


def test_requests_about_another_model_are_refused(desk: Any) -> None:
    require_chain(desk, ["R1", "R2"], None)
    require_chain(desk, ["R1"], "faces")
    with pytest.raises(EffaceError, match="R2 is about the model 'texts'"):
        require_chain(desk, ["R1", "R2"], "faces")
