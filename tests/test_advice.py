"""Advice exists: every option, setting, verb, suffix, selector and module that a message or a page names is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import advice
from tests.advice import ROOT, Message

EVERYTHING = [one for one in advice.messages() if " " in one.text.strip()]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if page.name not in ("CHANGELOG.md", "cli.md")  # what was before; generated from help texts, which are messages
    and "faults" not in page.relative_to(ROOT).as_posix()
)


def test_what_a_message_names_is_there():
    found = {one.where: advice.unreal(one) for one in EVERYTHING}
    assert {where: names for where, names in found.items() if names} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path):
    names: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        names += [f"line {number}: {name}" for name in advice.unreal(Message("", line.replace("**", "")), pages=True)]
    assert names == []


def test_there_is_something_to_check():
    """The patterns find what there is in the messages: none of them has stopped matching."""
    texts = "\n".join(one.text for one in EVERYTHING)
    assert len(EVERYTHING) > 1000
    least = {"option": 60, "setting": 25, "assignment": 5, "suffix": 20, "selector": 4, "module": 1}
    counts = dict.fromkeys(least, 0)
    for kind, pattern, _ in advice.CHECKS:
        if kind in counts:
            counts[kind] += len(pattern.findall(texts))
    assert {kind: count for kind, count in counts.items() if count < least[kind]} == {}
    assert len(advice.VERB.findall(texts)) > 10


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Add --forgte IDS.", "option --forgte"),
        ("Run `efface unlern RUN`.", "verb unlern"),
        ("Run `efface audit RUN --budget 5`.", "option --budget of audit"),
        ("Run `efface canaries guess RUN --count 3`.", "option --count of canaries guess"),
        ("Keep them with allow_copies=true.", "assignment allow_copies"),
        ("Add --set data.limits=5.", "setting data.limits"),
        ("Add --set backbone.width=5.", "setting backbone.width"),
        ("Raise data.limits if it is set.", "setting data.limits"),
        ("Set recipe.backbone.widht.", "setting recipe.backbone.widht"),
        ("Set recipe.objective.temprature.", "setting recipe.objective.temprature"),
        ("Lower method.optim.rate.", "setting method.optim.rate"),
        ("Raise criteria.max_drop.", "setting criteria.max_drop"),
        ("Set watch.caps higher.", "setting watch.caps"),
        ("See efface.methods.METHOD.", "name efface.methods.METHOD"),
        ("Write an .xlsx with a column key.", "suffix xlsx"),
        ("Write @classes:cat.", "selector classes"),
        ("Join it: python -m torch.distributed.checkpoint.format DIR", "module torch.distributed.checkpoint.format"),
        ("Run pip install 'efface[huggingface]'.", "extra huggingface"),
    ],
)
def test_a_planted_name_is_found(text: str, missing: str):
    assert missing in advice.unreal(Message("planted", text))


@pytest.mark.parametrize(
    "text",
    [
        "Run `efface unlearn RUN --forget IDS --method retrain --out OUT`.",
        "Train:  efface pretrain ... --set split.canaries=*   ",
        "Add --set data.*=PATH.",
        "Set recipe.objective.text.width, method.optim.lr, method.base.alpha, criteria.delta or watch.cap.",
        "The scores backbone.margin and projector.margin; split.json; views.shift; 0.5 of it. Then e.g. so.",
        "Write numpy.savez(path, x=..., y=..., keys=...) as an .npz.",
    ],
)
def test_what_is_there_is_not_reported(text: str):
    assert advice.unreal(Message("planted", text)) == []


def test_messages_are_found_in_every_form():
    source = (
        '"""Docstring --no."""\nX = "a --one"\n\n\ndef f(y):\n    """Doc --no."""\n'
        '    raise EffaceError(f"b {y} --two", "c" if y else "d --three", say(f"{y}" "e --four"))\n'
    )
    texts = " ".join(one.text for one in advice.messages_of(source, "m.py"))
    assert sorted(advice.OPTION.findall(texts)) == ["--four", "--one", "--three", "--two"]
    assert "b * --two" in texts
