"""Bad input of every kind to every verb: exit code 2, at most three labelled lines, no traceback, nothing changed.

The tables hold options with nonsense values, settings with values that their types forbid, and run folders whose files
are cut, emptied, replaced, or hold a field that is missing, of another type or out of range.
"""

# ruff: noqa: E501  (tables)

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import yaml

from efface.auditing.compatibility import CompatibilityCriteria
from efface.auditing.criteria import Criteria
from efface.auditing.observers.relearn import RelearnSettings
from efface.auditing.observers.settings import ObservationSettings
from efface.runs import references
from efface.training.augment import Views
from efface.training.networks.backbones import Backbone
from efface.training.objectives import OBJECTIVES
from efface.training.optim import Optim
from efface.training.recipe import Recipe
from efface.unlearning.early_stopping import StoppingRule
from efface.unlearning.methods import METHODS
from tests.commands import JUDGED, TINY, call

Answer = tuple[int, str, str]
Case = tuple[str, list[str]]
"""What is wrong, and the words of the command."""
LABELS = ("error: ", "why:   ", "do:    ")
WATCH = ["--set", "watch={views: 2, gradient: false}"]
"""How the runs of these tests are observed: what is stored is used again."""
COUNTED: dict[str, int] = {}
"""Number of cases of each group that ran."""


@pytest.fixture(scope="module")
def home(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, plans and data to be damaged: ``original``, ``tuned`` (audited), ``oracle``, ``refs``, ``coins`` ..."""
    here = tmp_path_factory.mktemp("bad")
    for name in ("original", "oracle", "tuned"):
        shutil.copytree(made / name, here / name)
    config = here / "tuned" / "config.yaml"
    for path in (config, here / "oracle" / "config.yaml"):
        path.write_text(path.read_text(encoding="utf-8").replace(str(made), str(here)), encoding="utf-8")
    assert call("audit", here / "tuned", "--oracle", here / "oracle", *WATCH, "--quiet") in JUDGED
    plan = references.plan_references(here / "tuned", here / "refs", 1, 1)
    references.write_reference_plan(here / "tuned", plan)
    words = ["--data", "digits", "--set", "data.limit=300", "--count", "20", "--quiet"]
    assert call("canaries", "plan", "--out", here / "coins", *words) == 0
    (here / "binary").write_bytes(bytes(range(256)) * 8)
    (here / "nothing").write_bytes(b"")
    (here / "folder").mkdir()
    (here / "folder" / "note.txt").write_text("a note")
    (here / "list.yaml").write_text("- 1\n- 2\n")
    (here / "grid.yaml").write_text("families: {a: {recipe: {objective: simclr}}}\ndata: digits\n")
    np.savez(here / "vectors.npz", forget=np.ones((4, 2, 3), np.float32) * np.arange(1, 5)[:, None, None])
    return here


def digest_of(folder: Path) -> str:
    """A digest of the names and contents of everything in a folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        sha.update(str(path.relative_to(folder)).encode())
        sha.update(path.read_bytes() if path.is_file() else b"/")
    return sha.hexdigest()


@contextmanager
def limited(seconds: int = 5) -> Iterator[None]:
    """Raise an error where a command that should be refused begins to work."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError("it was not refused")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def what_is_wrong(answer: Answer) -> str:
    """How an answer to bad input differs from a refusal; empty if it does not."""
    code, _, err = answer
    lines = err.splitlines()
    if code != 2:
        return f"exit code {code}"
    if "Traceback" in err:
        return "a traceback"
    if not 1 <= len(lines) <= 3 or not lines[0].startswith(LABELS[0]):
        return f"{len(lines)} lines"
    if not all(line.startswith(LABELS) for line in lines) or len({line[:6] for line in lines}) < len(lines):
        return "lines without labels"
    return ""


def check(group: str, efface: Callable[..., Answer], folder: Path, cases: Iterator[Case] | list[Case]) -> None:
    """Run all cases of a group; every one must be refused, and leave the folder as it was."""
    before, failed, cases = digest_of(folder), [], list(cases)
    assert cases
    for name, words in cases:
        try:
            with limited():
                answer = efface(*words, *([] if words[0] in ("methods", "audits", "data", "inspect") else ["--quiet"]))
            problem = what_is_wrong(answer)
        except Exception as error:  # what a user would see as a traceback
            answer, problem = (1, "", ""), f"{type(error).__name__}: {str(error)[:200]}"
        after = digest_of(folder)
        if after != before:
            problem, before = f"{problem} the folder changed", after
        if problem:
            failed.append(f"{name}: {problem}: {answer[2][:300]}")
    COUNTED[group] = len(cases)
    assert not failed, f"{len(failed)} of {len(cases)}:\n" + "\n".join(failed)


# ---- settings: values that their types forbid ----

NUMBERS = (".nan", ".inf", "many", "true", "[1, 2]", "{a: 1}", "1" + "0" * 40, "''", "-.inf", "1_0_x")
OTHERS = {"bool": ("many", "7", "[1]"), "str": ("[1]", "{a: 1}"), "enum": ("many", "3", "[1]", "''")}
ALLOWED = {("alpha", ".inf"), ("mean", "[1, 2]"), ("std", "[1, 2]")}
"""Infinity is lawful for ssd.alpha; one number per channel is refused for another reason."""


def kind_of(hint: Any) -> str | None:
    """What nonsense a field is tried with; None for fields that are groups of settings."""
    text = str(hint)
    if "Enum" in str(type(hint)):
        return "enum"
    if "int" in text or "float" in text:
        return "number"
    if hint is bool or hint == bool | None:
        return "bool"
    return "str" if hint is str else None


def settings_cases(cls: type, prefix: str, words: list[str], values: slice = slice(None)) -> Iterator[Case]:
    """Every field of a dataclass, set to each nonsense value of its kind."""
    hints = get_type_hints(cls)
    for one in fields(cls):
        kind = kind_of(hints[one.name])
        if kind is None or not one.init or is_dataclass(hints[one.name]):
            continue
        for value in (NUMBERS if kind == "number" else OTHERS[kind])[values]:
            if (one.name, value) not in ALLOWED and not (kind == "str" and one.name == "name"):
                setting = f"{prefix}{one.name}={value}"
                yield setting[:60], [*words, "--set", setting]


def test_recipes(efface, home):
    words = ["pretrain", "--data", "digits", *TINY, "--out", str(home / "out")]
    groups = [(Recipe, "recipe."), (Optim, "recipe.optim."), (Views, "recipe.views."), (Backbone, "recipe.backbone.")]
    cases = [case for cls, prefix in groups for case in settings_cases(cls, prefix, words, slice(0, 4))]
    check("recipes", efface, home, cases)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"clip"}))
def test_objectives(efface, home, name):
    words = ["pretrain", "--data", "digits", "--objective", name, *TINY, "--out", str(home / "out")]
    check(
        f"objective {name}",
        efface,
        home,
        settings_cases(OBJECTIVES[name], "recipe.objective.", words, slice(0, 4)) if fields(OBJECTIVES[name]) else [],
    )


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"retrain", "shards"}))
def test_methods(efface, home, name):
    words = ["unlearn", str(home / "original"), "--forget", "@random:5", "--method", name, "--out", str(home / "out")]
    cases = list(settings_cases(METHODS[name], "method.", words, slice(0, 5)))
    cases += [
        (f"{field}={value}", [*words, "--set", f"method.{field}={value}"])
        for field in ("epochs", "batch_size", "optim.lr", "optim.momentum")
        for value in ("0", "-3", "1.5")
        if not (field.startswith("optim.m") and value == "0")
        and not (field == "optim.lr" and value == "1.5")
        and field.split(".")[0] in {one.name for one in fields(METHODS[name])}
    ]
    check(f"method {name}", efface, home, cases)


def test_stopping_and_audits(efface, home):
    unlearn = [
        "unlearn",
        str(home / "original"),
        "--forget",
        "@random:5",
        "--method",
        "finetune",
        "--out",
        str(home / "out"),
    ]
    audit, relearn = ["audit", str(home / "tuned")], ["relearn", str(home / "tuned")]
    compat = ["compat", str(home / "original"), str(home / "tuned")]
    cases = [
        *settings_cases(StoppingRule, "stop.", unlearn, slice(0, 4)),
        *settings_cases(Criteria, "criteria.", audit, slice(0, 4)),
        *settings_cases(ObservationSettings, "watch.", audit, slice(0, 4)),
        *settings_cases(RelearnSettings, "relearn.", relearn, slice(0, 4)),
        *settings_cases(CompatibilityCriteria, "rule.", compat, slice(0, 4)),
    ]
    out_of_range = {
        "audit": ["criteria.max_utility_drop=9", "criteria.max_utility_drop=-1", "criteria.delta=0", "criteria.delta=0.5",
                  "criteria.alpha=1", "watch.views=1", "watch.temperature=0", "watch.temperature=-1", "watch.cap=0",
                  "criteria.signals=[]", "criteria.signals=7", "criteria=3", "watch=[1]", "goal=[1]", "watch.prompt=x"],
        "relearn": ["relearn.steps=0", "relearn.every=0", "relearn.every=1000", "relearn.on=test", "seed=-1",
                    "relearn.optim.lr=-1", "relearn.batch_size=1", "relearn=5"],
    }  # fmt: skip
    cases += [(s, [verb, str(home / "tuned"), "--set", s]) for verb, settings in out_of_range.items() for s in settings]
    check("stopping and audits", efface, home, cases)


def test_numbers_out_of_range(efface, home):
    words = ["pretrain", "--data", "digits", "--objective", "simclr", *TINY, "--out", str(home / "out")]
    settings = [
        "recipe.epochs=0", "recipe.epochs=-3", "recipe.epochs=2.5", "recipe.batch_size=0", "recipe.batch_size=1",
        "recipe.batch_size=-8", "recipe.optim.lr=0", "recipe.optim.lr=-1", "recipe.optim.momentum=1",
        "recipe.optim.momentum=-0.1", "recipe.optim.weight_decay=-1", "recipe.optim.warmup=1", "recipe.optim.clip=0",
        "recipe.objective.temperature=0", "recipe.objective.temperature=-0.5", "recipe.objective.dim=0",
        "recipe.objective.hidden=-1", "recipe.views.flip=maybe", "recipe.views.grayscale=1.5", "recipe.views.blur=-1",
        "recipe.views.crop=[0.5]", "recipe.views.crop=[0.9, 0.1]", "recipe.views.crop=[0, 1]", "recipe.views.hue=0.6",
        "recipe.views.shift=-1", "recipe.views.sigma=[0, 1]", "recipe.backbone.width=0", "recipe.backbone.stride=3",
        "recipe.backbone.name=resnet9", "recipe.backbone.name=timm:nothing", "recipe.std=0", "recipe.std=-1",
        "recipe.mean=[0.1, 0.2]", "recipe.size=[8]", "recipe.size=[0, 8]", "recipe.classes=-1", "recipe.channels=0",
        "seed=-1", "seed=1.5", "seed=true", "seed=.nan", "seed=99999999999999999999", "seed=" + "9" * 5000,
        "bf16=maybe", "device=7", "device=tpu", "device=''", "device=cpu:x:y", "split.train=-5", "split.train=.nan",
        "split.train=true", "split.train=100000", "split.test=1.5", "split.valid=many", "split.holdout=[1]",
        "split.other=5", "split=7", "split=[1]", "split.canaries=nowhere", "split.trained=nowhere", "data.limit=0",
        "data.limit=-1", "data.limit=many", "data.limit=1.5", "data.limit=true", "data.limit_seed=-1",
        "data.limit_seed=x", "data.other=1", "data=[1]", "data=7", "data={}", "data={source: 3}", "recipe=7", "recipe=[1]", "recipe.optim=7",
        "recipe.objective=7", "recipe.objective=[simclr]", "recipe.views=[1]", "recipe.views=5",
        "recipe.backbone=x", "recipe.optim.rule=adam", "recipe.optim.schedule=1", "objective=[1]", "objective=3",
        "a: b", "=", "=1", "seed", ".=1", "..=1", "seed.x=1", "recipe.=1", "x=[", "x={", "x='", "x=!!python/object:os.x 1",
        "recipe=" + "[" * 100 + "]" * 100, "recipe={a: &a {b: 1}, c: *a}", "x=*a", "seed=2024-13-45", "recipe.epochs=0x" + "f" * 6000,
    ]  # fmt: skip
    check("numbers out of range", efface, home, [(s[:60], [*words, "--set", s]) for s in settings])


# ---- options and paths ----


def test_options(efface, home):
    out, original, tuned = str(home / "out"), str(home / "original"), str(home / "tuned")
    pretrain = ["pretrain", "--data", "digits", *TINY, "--out", out]
    unlearn = ["unlearn", original, "--out", out]
    forget = [*unlearn, "--method", "finetune", "--forget"]
    tried: list[list[str]] = [
        *([*pretrain, "--seed", value] for value in ("-1", "x", "1.5", "", "nan", "1" + "0" * 30, "9" * 5000)),
        *([*pretrain, "--device", value] for value in ("tpu9", "", "cuda:x", "cpu:-1:2", "\u0000x", "é")),
        *([*pretrain, "--objective", value] for value in ("", "sim", "SimClr", "ö", "[simclr]", "{a: b}")),
        *(["pretrain", "--out", out, "--data", value] for value in ("", "digit", "nowhere/at/all", "é" * 200, "x" * 5000, str(home / "binary"), str(home / "nothing"), str(home / "folder"), str(home / "vectors.npz"), str(home / "list.yaml"))),
        *([*forget, value] for value in ("", "@", "@random", "@random:", "@random:0", "@random:-1", "@random:nan", "@random:inf", "@random:1e9", "@random:x", "@random:1.5", "@class:", "@class:77", "@class:-1", "@class:cat", "@group:x", "@group:", "@keys:", "@keys:,", "@keys:nobody", "@klass:1", "nowhere.txt", str(home / "binary"), str(home / "nothing"), str(home / "folder"), str(home / "list.yaml"), "x" * 5000, "\u2028")),
        *([*unlearn, "--forget", "@random:5", "--method", value] for value in ("", "scrubb", "SCRUB", "ü", "retrain ", "['a']")),
        *([*forget, "@random:5", "--budget", value] for value in ("0", "-1", "-5%", "nan", "inf%", "5%%", "x", "1e400", "%", "0%", "2.5")),
        *([*forget, "@random:5", "--set", value] for value in ("forget_seed=-1", "forget_seed=x", "forget_seed=.nan", "forget_seed=1.5", "forget_seed=true", "stop=5", "stop=[1]", "budget=[1]", "budget=true", "budget={a: 1}", "method=[1]", "method=7", "method={}", "check=maybe", "forget={a: 1}", "seed=-1", "recipe.epochs=3")),
        *(["embed", tuned, "--out", str(home / "e.npz"), *value] for value in (["--batch-size", "0"], ["--batch-size", "-1"], ["--batch-size", "x"], ["--space", "x"], ["--space", ""], ["--without", "nowhere.txt"], ["--without", "@random:-1"], ["--device", "x"], ["--data", "nowhere"], ["--set", "batch_size=.nan"], ["--set", "batch_size=true"], ["--set", "space=[1]"])),
        *(["embed", tuned, "--out", value] for value in ("e.txt", "", str(home / "nothing"), str(home / "folder"), str(home / "vectors.npz"), str(home / "nothing" / "e.npz"), "/proc/x/e.npz")),
        *(["compat", original, tuned, *value] for value in (["--min-cosine", "nan"], ["--min-cosine", "2"], ["--min-overlap", "-0.1"], ["--min-overlap", "inf"], ["--neighbors", "0"], ["--neighbors", "-1"], ["--neighbors", "1.5"], ["--space", "x"], ["--batch-size", "0"])),
        *(["relearn", tuned, *value] for value in (["--steps", "0"], ["--steps", "-1"], ["--steps", "x"], ["--every", "0"], ["--every", "-5"], ["--every", "500"], ["--on", "test"], ["--on", ""], ["--seed", "-1"], ["--device", "x"])),
        *(["references", tuned, "--out", str(home / "r"), *value] for value in (["--count", "-1"], ["--count", "0"], ["--count", "x"], ["--pairs", "-1"], ["--count", "nan"], ["--jobs", "0"], ["--jobs", "-2"], ["--jobs", "x"], ["--task", "out-1"], ["--task", "../../x"], ["--count", "100000000"], ["--on", ""], ["--on", "cloud"], ["--on", "local:4"], ["--on", "dask://"])),
        *(["references", "--out", value] for value in ("", "nowhere", str(home / "folder"), str(home / "nothing"))),
        *(["audit", "--embeddings", str(home / "vectors.npz"), str(home / "vectors.npz"), "--out", str(home / "a"), *value] for value in (["--views", "0"], ["--views", "-1"], ["--views", "x"], ["--views", "7"], ["--set", "criteria.delta=.nan"], ["--set", "watch.views=4"], ["--set", "criteria=7"], ["--control", str(home / "binary"), str(home / "nothing")])),
        *(["audit", "--embeddings", value, str(home / "vectors.npz"), "--out", str(home / "a")] for value in ("", "nowhere.npy", str(home / "binary"), str(home / "nothing"), str(home / "folder"), str(home / "tuned" / "observations.npz"))),
        *(["canaries", "plan", "--out", str(home / "c"), "--data", "digits", *value] for value in ([], ["--count", "0"], ["--count", "-1"], ["--count", "5"], ["--count", "x"], ["--count", "99999"], ["--count", "20", "--guesses", "0"], ["--count", "20", "--guesses", "3"], ["--count", "20", "--guesses", "-2"], ["--count", "20", "--guesses", "40"], ["--count", "20", "--seed", "-1"], ["--keys", "nowhere"], ["--keys", str(home / "binary")], ["--keys", str(home / "folder")], ["--count", "20", "--set", "seed=3"], ["--count", "20", "--set", "data.limit=-1"])),
        *(["canaries", "guess", tuned, "--plan", str(home / "coins"), *WATCH, *value] for value in (["--signal", "x"], ["--set", "level=0"], ["--set", "level=1"], ["--set", "level=.nan"], ["--set", "delta=-1"], ["--set", "delta=1"], ["--set", "delta=true"], ["--device", "x"])),
        *(["methods", value] for value in ("", "scrubb", "é", "../x")),
        *(["audits", value] for value in ("", "x", "é", "../x")),
        *(["data", value] for value in ("", "digit", "é", "../x")),
        *(["inspect", value] for value in ("", "nowhere", str(home / "binary"), str(home / "nothing"), str(home / "folder"), str(home / "list.yaml"), "x" * 5000)),
        *(["demo", "--out", str(home / "d"), *value] for value in (["--data", "x"], ["--data", ""], ["--seed", "-1"], ["--seed", "x"], ["--device", "x"])),
        ["nonsense"], ["--nonsense"], ["pretrain"], ["unlearn"], ["audit"], ["report"], ["bench"], ["embed"], ["compat", tuned],
        ["audit", tuned, "--views", "3"], ["pretrain", "--out"], ["canaries", "x"], ["audit", tuned, "extra"],
    ]  # fmt: skip
    check("options", efface, home, [(" ".join(words[-2:])[:60], words) for words in tried])


def test_run_folders_and_files_that_are_none(efface, home):
    tuned = str(home / "tuned")
    wrong = ["", "nowhere", "/", "x" * 300, "x" * 5000, "naïve/ü", str(home / "binary"), str(home / "nothing"), str(home / "folder"), str(home / "nothing" / "x"), str(home / "refs")]  # fmt: skip
    verbs: dict[str, Callable[[str], list[str]]] = {
        "unlearn": lambda path: ["unlearn", path, "--forget", "@random:5", "--method", "finetune", "--out", str(home / "o")],
        "audit": lambda path: ["audit", path],
        "report": lambda path: ["report", path],
        "relearn": lambda path: ["relearn", path],
        "references": lambda path: ["references", path, "--out", str(home / "r")],
        "embed": lambda path: ["embed", path, "--out", str(home / "e.npz"), "--data", "digits"],
        "compat": lambda path: ["compat", path, tuned],
        "guess": lambda path: ["canaries", "guess", path, "--plan", str(home / "coins")],
        "plan": lambda path: ["canaries", "guess", tuned, "--plan", path],
        "bench": lambda path: ["bench", path, "--out", str(home / "b")],
        "original": lambda path: ["audit", tuned, "--original", path],
        "oracle": lambda path: ["audit", tuned, "--oracle", path],
        "refs": lambda path: ["audit", tuned, "--references", path],
        "config": lambda path: ["pretrain", "--data", "digits", "--out", str(home / "o"), "--config", path],
    }  # fmt: skip
    cases = [(f"{verb} {path[:40]}", words(path)) for verb, words in verbs.items() for path in wrong]
    lawful = {("config", str(home / "nothing"))}
    cases = [case for case in cases if not any(case[0] == f"{verb} {path[:40]}" for verb, path in lawful)]
    check("paths", efface, home, cases)


GRIDS = (
    "", "[]", "3", "families:", "families: 3", "families: []", "families: {a: 3}", "families: {a: []}", "families: {a: {recipe: 3}}",
    "families: {a: {recipe: {epochs: 0}}}", "families: {a: {recipe: {objective: x}}}", "jobs: 0", "jobs: -1", "jobs: x", "jobs: .nan",
    "jobs: true", "jobs: 99999", "seeds: 3", "seeds: {selection: [0], reporting: [0]}", "seeds: {reporting: []}", "seeds: {reporting: [-1]}",
    "seeds: {reporting: [x]}", "seeds: {reporting: [1.5]}", "seeds: {selection: 5}", "oracles: 3", "oracles: {reporting: -1}",
    "oracles: {selection: .nan}", "watch: 3", "watch: {views: 1}", "watch: {temperature: 0}", "criteria: {delta: 9}", "criteria: 3",
    "methods: 3", "methods: [finetune]", "methods: {finetune: 3}", "methods: {finetune: {epochs: 0}}", "methods: {scrubb: {}}",
    "methods: {finetune: [{epochs: .nan}]}", "methods: {finetune: [[1]]}", "forget: 3", "forget: {a: '@random:-1'}", "forget: {a: nowhere.txt}",
    "forget: {a: [1]}", "data: 3", "data: {}", "data: nowhere", "split: 3", "split: {train: -1}", "split: {train: true}", "device: 3",
    "bf16: maybe", "keep_weights: maybe", "name: [1]", "device: tpu9", "jobs: 2\njobs: 3", "a: &a [*a]", "x: " + "9" * 5000, "x: " + "[" * 200,
)  # fmt: skip


def test_grids(efface, home, tmp_path):
    base = {
        "families": {"a": {"recipe": {"objective": {"name": "simclr"}, "batch_size": 20, "epochs": 1}}}, "data": {"source": "digits", "limit": 300},
        "split": {"train": 60, "valid": 60, "holdout": 100, "test": 60}, "forget": {"some": "@random:0.2"}, "methods": {"finetune": {"epochs": 1}},
    }  # fmt: skip
    cases = []
    for number, text in enumerate(GRIDS):
        path = tmp_path / f"g{number}.yaml"
        try:
            changed = yaml.safe_load(text) if len(text) < 200 and "&" not in text and text.count("\n") == 0 else None
        except ValueError:
            changed = None
        path.write_text(yaml.safe_dump({**base, **changed}) if isinstance(changed, dict) else text, encoding="utf-8")
        cases.append((text[:60], ["bench", str(path), "--out", str(home / "bench"), "--dry-run"]))
    check("grids", efface, home, cases)


# ---- damaged files ----

WRONG = {
    "text": "x",
    "number": -1,
    "list": [1],
    "null": None,
    "nan": float("nan"),
    "true": True,
    "mapping": {"a": 1},
    "huge": 10**40,
}
CUT: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another mapping": lambda content: b'{"a": 1}',
    "a list": lambda content: b"[1, 2]",
    "a number": lambda content: b"7",
    "noise": lambda content: bytes(range(128, 256)) * 8,
    "deep": lambda content: b"[" * 5000,
    "digits": lambda content: b'{"format": ' + b"9" * 5000 + b"}",
}
FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "meta.json": {
        "format": (), "digest": (), "recipe": ("mapping",), "seed": (), "split": (), "cost": (), "cost.steps": (), "cost.seconds": (), "cost.examples": (),
        "recipe.epochs": ("missing",), "recipe.batch_size": ("missing",), "recipe.optim.lr": ("missing",), "recipe.objective": (), "recipe.size": ("missing",),
        "exact": ("missing", "true"), "trained": ("missing", "true"), "parent": ("missing", "null"), "method": ("missing", "null"), "stopped": ("missing", "null"),
        "search": ("missing", "null"), "purged": ("missing",), "origin": ("missing", "text"),
    },
    "config.yaml": {
        "verb": (), "data": ("text", "mapping"), "seed": (), "from": ("text",), "parent": ("missing", "null"), "forget_seed": ("missing", "null"),
        "method": ("missing", "null", "mapping"), "device": ("missing", "text"), "bf16": ("missing", "null", "true"),
    },
    "split.json": {
        "parts": (), "parts.forget": (), "parts.retain": (), "parts.test": (), "parts.holdout": (), "provenance": ("missing", "mapping"),
        "provenance.seed": ("missing", "null"), "provenance.random": ("missing", "null", "true"), "provenance.sizes": ("missing", "mapping"), "provenance.matched": ("missing", "null"),
        "provenance.warnings": ("missing",),
    },
    "record.json": {"schema_version": (), "verdict": ("null", "missing"), "checkpoints": ("missing",), "findings": ("missing",), "items": ("missing",), "request": (), "split": ()},
    "plan.json": {"format": (), "data": ("text", "mapping"), "recipe": ("mapping",), "method": ("mapping",), "parent": (), "split": (), "seed": ()},
    "canaries.json": {"format": (), "keys": (), "guesses": (), "commitment": (), "data": ("missing",)},
    "coins.json": {"format": (), "included": ()},
    "findings-x.json": {"model": ("text",), "split": ("text",), "findings": (), "claims": ("missing",), "findings.0.name": ("text",), "findings.0.value": ("number", "null", "huge")},
}  # fmt: skip
"""The fields of each file, and the kinds of damage that are lawful there."""


def damaged(content: Any, place: str, kind: str) -> Any:
    """A copy of the content with a field removed or replaced."""
    copy = json.loads(json.dumps(content))
    *parents, last = place.split(".")
    inner = copy
    for parent in parents:
        inner = inner[int(parent)] if isinstance(inner, list) else inner[parent]
    if kind == "missing":
        inner.pop(last)
    else:
        inner[last] = WRONG[kind]
    return copy


READERS = {
    "meta.json": ("tuned", ["relearn", "{tuned}"]),
    "config.yaml": ("tuned", ["references", "{tuned}", "--dry-run"]),
    "split.json": ("tuned", ["references", "{tuned}", "--dry-run"]),
    "record.json": ("tuned", ["report", "{tuned}"]),
    "plan.json": ("refs", ["references", "--out", "{home}/refs", "--dry-run"]),
    "tasks.jsonl": ("refs", ["references", "--out", "{home}/refs", "--dry-run"]),
    "canaries.json": ("coins", ["pretrain", "--data", "digits", *TINY, "--set", "split.canaries={home}/coins", "--out", "{home}/o"]),
    "coins.json": ("coins", ["pretrain", "--data", "digits", *TINY, "--set", "split.canaries={home}/coins", "--out", "{home}/o"]),
    "findings-x.json": ("tuned", ["audit", "{tuned}", "--oracle", "{home}/oracle", *WATCH]),
    "observations.npz": ("tuned", ["report", "{tuned}"]),
    "checkpoint.safetensors": ("tuned", ["embed", "{tuned}", "--out", "{home}/e.npz"]),
}  # fmt: skip
"""The folder of each file, and a command that reads it."""


def reading(name: str, home: Path) -> tuple[Path, list[str]]:
    """A file, and the words of a command that reads it."""
    folder, words = READERS[name]
    path = home / folder / name
    if name == "findings-x.json" and not path.exists():
        seen = json.loads(str(np.load(home / "tuned" / "observations.npz")["__header__"]))
        one = {"name": "x", "value": 0.5, "note": "made for this test"}
        path.write_text(json.dumps({"model": seen["model"], "split": seen["split"], "findings": [one]}))
    return path, [
        word if word in TINY or word in WATCH else word.format(home=home, tuned=home / "tuned") for word in words
    ]


def check_damage(efface, home: Path, name: str, versions: list[tuple[str, bytes]]) -> None:
    """Write each damaged version of a file, and run the command that reads it; then put the file back."""
    path, words = reading(name, home)
    whole, failed = path.read_bytes(), []
    for damage, content in versions:
        path.write_bytes(content)
        before = digest_of(home)
        try:
            with limited():
                answer = efface(*words, "--quiet")
            problem = what_is_wrong(answer)
            if not problem and not re.search(re.escape(str(path)), answer[2]):
                problem = "the file is not named"
        except Exception as error:  # what a user would see as a traceback
            answer, problem = (1, "", ""), f"{type(error).__name__}: {str(error)[:200]}"
        if digest_of(home) != before:
            problem += " the folder changed"
        if problem:
            failed.append(f"{damage}: {problem}: {answer[2][:300]}")
    path.write_bytes(whole)
    COUNTED[name] = COUNTED.get(name, 0) + len(versions)
    assert not failed, f"{len(failed)} of {len(versions)}:\n" + "\n".join(failed)


@pytest.mark.parametrize("name", sorted(READERS))
def test_files_that_are_cut_or_replaced(efface, home, name):
    path, _ = reading(name, home)
    versions = [(kind, change(path.read_bytes())) for kind, change in CUT.items()]
    check_damage(efface, home, name, versions)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_fields_that_are_missing_or_wrong(efface, home, name):
    path, _ = reading(name, home)
    is_yaml = path.suffix == ".yaml"
    content = yaml.safe_load(path.read_text()) if is_yaml else json.loads(path.read_text())
    versions = []
    for place, lawful in FIELDS[name].items():
        for kind in ("missing", *WRONG):
            if kind not in lawful:
                made = damaged(content, place, kind)
                text = yaml.safe_dump(made) if is_yaml else json.dumps(made)
                versions.append((f"{place} {kind}", text.encode()))
    check_damage(efface, home, name, versions)


def test_observations_with_wrong_arrays(efface, home, tmp_path):
    path, _ = reading("observations.npz", home)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays["__header__"]))
    first = next(name for name in arrays if name.startswith("forget/") and arrays[name].dtype.kind == "f")
    changes: dict[str, dict[str, Any]] = {
        "no header": {"__header__": None},
        "header": {"__header__": np.array("[1]")},
        "header without meta": {"__header__": np.array(json.dumps({"model": "a", "split": "b"}))},
        "views": {"__header__": np.array(json.dumps(header | {"meta": header["meta"] | {"views": -1}}))},
        "NaN in the header": {"__header__": np.array(json.dumps(header | {"meta": {"temperature": float("nan")}}))},
        "spaces": {"__header__": np.array(json.dumps(header | {"meta": header["meta"] | {"spaces": ["x"]}}))},
        "NaN": {first: np.full_like(arrays[first], np.nan)},
        "infinite": {first: np.full_like(arrays[first], np.inf)},
        "text": {first: np.full(len(arrays[first]), "x")},
        "short": {first: arrays[first][1:]},
        "deep": {first: np.zeros((len(arrays[first]), 2, 2, 2), np.float32)},
        "no keys": {"forget/keys": None},
        "keys twice": {"forget/keys": np.full_like(arrays["forget/keys"], "0")},
        "keys as numbers": {"forget/keys": np.arange(len(arrays["forget/keys"]))},
        "labels as text": {"forget/labels": np.full(len(arrays["forget/keys"]), "x")},
        "another part": {"elsewhere/features": arrays["forget/features"]},
        "no part": {"features": arrays["forget/features"]},
        "width": {"forget/features": arrays["forget/features"][:, :1]},
        "nothing": dict.fromkeys(arrays),
    }  # fmt: skip
    versions = []
    for kind, change in changes.items():
        kept = {name: value for name, value in (arrays | change).items() if value is not None}
        np.savez(tmp_path / "o.npz", **kept)
        versions.append((kind, (tmp_path / "o.npz").read_bytes()))
    check_damage(efface, home, "observations.npz", versions)


def test_tasks_that_are_wrong(efface, home):
    path, _ = reading("tasks.jsonl", home)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    wrong = [{"name": "../../x"}, {"name": 3}, {"kind": "x"}, {"seed": -1}, {"seed": "1"}, {"needs": ["in-000000000000"]}, {"needs": 3}, {"bytes": -1}, {"seconds": float("nan")}]  # fmt: skip
    versions = [
        (str(one), "".join(json.dumps(line) + "\n" for line in [{**lines[0], **one}, *lines[1:]]).encode())
        for one in wrong
    ]
    versions += [("twice", (path.read_text() * 2).encode())]
    check_damage(efface, home, "tasks.jsonl", versions)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_files_that_cannot_be_read(efface, home):
    for name in READERS:
        path, words = reading(name, home)
        mode = path.stat().st_mode
        path.chmod(0)
        answer = efface(*words, "--quiet")
        path.chmod(mode)
        assert not what_is_wrong(answer), (name, answer)
    COUNTED["unreadable"] = len(READERS)


def test_there_are_many_cases():
    """Runs last: the tables have not shrunk."""
    if len(COUNTED) < 30:
        pytest.skip("only a part of this file was run")
    assert sum(COUNTED.values()) >= 480, COUNTED
