"""Ranges hold in Python too, files are checked on the way in, and what is written for others is safe to open."""

from __future__ import annotations

import csv
import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

from efface import config
from efface.bench.grid import build_grid, folder_name
from efface.bench.outcome import StoredOutcome
from efface.bench.tables import _csv
from efface.bench.worker import read_outcome
from efface.data.decoded_pixels import load_pixels
from efface.data.image_files import ImageFile, ImageOptions
from efface.errors import EffaceError
from efface.runs.embed import _write_keys
from efface.schema import Count, check_value, describe_type, parse_record
from efface.training.checkpoint import EpochStore
from efface.training.loop import TrainingCost
from efface.training.objectives import CHOICES
from efface.training.optim import Optim
from efface.training.recipe import Recipe
from efface.unlearning.methods import METHODS
from tests import tiny

NONSENSE = [{"epochs": 0}, {"epochs": -3}, {"epochs": True}, {"batch_size": 1}, {"std": 0}, {"mean": math.nan}]
NONSENSE += [{"std": (0.1, math.inf)}, {"size": (0, 8)}, {"channels": 10**12}, {"epochs": 2.5}, {"epochs": None}]


@pytest.mark.parametrize("changed", NONSENSE)
def test_a_recipe_is_checked_in_python_as_in_yaml(changed):
    with pytest.raises(EffaceError, match="cannot be"):
        tiny.recipe(**changed)
    plain = config.dump(tiny.recipe(), CHOICES) | changed
    with pytest.raises(EffaceError, match=r"recipe\.\w+'? cannot be"):
        config.build(Recipe, plain, CHOICES, "recipe.")


def test_only_yaml_may_spell_a_whole_number_otherwise():
    for spelt in (2.0, "2"):
        plain = config.dump(tiny.recipe(), CHOICES) | {"epochs": spelt}
        assert config.build(Recipe, plain, CHOICES).epochs == 2
        with pytest.raises(EffaceError, match="of type int"):
            tiny.recipe(epochs=spelt)


def test_numbers_of_numpy_and_a_batch_of_one_where_nothing_is_compared():
    assert tiny.recipe(epochs=np.int64(3), optim=Optim(lr=np.float32(0.1))).epochs == 3
    assert tiny.recipe("moco", batch_size=1).batch_size == tiny.recipe("cross_entropy", batch_size=1).batch_size == 1
    for name in ("simclr", "vicreg", "barlow", "byol", "simsiam", "clip"):
        with pytest.raises(EffaceError, match="examples of a batch"):
            tiny.recipe(name, batch_size=1)


def test_infinity_is_lawful_where_the_docs_say_so():
    assert METHODS["ssd"](alpha=math.inf).alpha == math.inf
    with pytest.raises(EffaceError, match="alpha"):
        METHODS["ssd"](alpha=math.nan)


def test_the_docs_show_the_range():
    rows = {name: kind for name, kind, *_ in config.describe_fields(Optim)}
    assert rows["lr"] == "float > 0" and rows["momentum"] == "float >= 0 and < 1"
    assert describe_type("Count | None") == "int >= 1 | None"
    with pytest.raises(ValueError, match="true or false"):
        check_value(Count, True)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "[" * 5000, "a: " + "9" * 5000, "a: 1\na: 2"])
def test_yaml_that_expands_or_repeats_itself_is_refused_at_once(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(EffaceError, match=r"c\.yaml"):
        config.read(tmp_path / "c.yaml")


def test_a_few_aliases_and_merged_keys_are_fine():
    assert config.parse_yaml("a: &x {b: 1, c: 1}\nd: {<<: *x, b: 2}\ne: *x") == {
        "a": {"b": 1, "c": 1}, "d": {"b": 2, "c": 1}, "e": {"b": 1, "c": 1},
    }  # fmt: skip


def saved_state(path):
    """An epoch's state of a tiny model, and a fresh model and optimizer to restore it into."""
    recipe = tiny.recipe()
    model = recipe.start(0)
    optimizer = recipe.optim.build(model, 10)
    optimizer.taken = 3
    EpochStore(path).save(model, optimizer, 1, TrainingCost(3, 30, 0.5))
    fresh = recipe.start(1)
    return fresh, recipe.optim.build(fresh, 10)


def test_a_whole_epoch_is_restored(tmp_path):
    model, optimizer = saved_state(tmp_path / "epoch.pt")
    restored = EpochStore(tmp_path / "epoch.pt").restore(model, optimizer)
    assert restored is not None and restored[0] == 1 and optimizer.taken == 3
    assert model.digest() == tiny.recipe().start(0).digest()


@pytest.mark.parametrize(
    "damage",
    ["cut", "empty", "noise", "list", "no epoch", "negative epoch", "NaN cost", "NaN weight", "shape", "no optimizer"],
)
def test_a_damaged_epoch_is_named(tmp_path, damage):
    path = tmp_path / "epoch.pt"
    model, optimizer = saved_state(path)
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    first = next(name for name, value in state["model"].items() if value.dim() > 1)
    if damage in ("cut", "empty", "noise"):
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": bytes(range(256)) * 9}[damage])
    else:
        if damage == "no epoch":
            del state["epoch"]
        if damage == "negative epoch":
            state["epoch"] = -1
        if damage == "NaN cost":
            state["tally"]["seconds"] = math.nan
        if damage == "NaN weight":
            state["model"][first].fill_(math.nan)
        if damage == "shape":
            state["model"][first] = torch.zeros(1)
        if damage == "no optimizer":
            state["optimizer"] = {}
        torch.save([1] if damage == "list" else state, path)
    with pytest.raises(EffaceError, match=r"epoch\.pt") as caught:
        EpochStore(path).restore(model, optimizer)
    assert caught.value.remedy


COST = {"steps": 1, "examples": 1, "seconds": 1}
OUTCOMES = [{}, {"cost": 3}, {"cost": COST | {"steps": -1}}, {"cost": COST | {"seconds": math.nan}}, {"error": 3}, [1]]
OUTCOMES += [{"error": None}, {"cost": COST, "findings": []}, {"cost": {"steps": 1}}]


@pytest.mark.parametrize("content", OUTCOMES)
def test_outcomes_of_a_bench_are_checked(tmp_path, content):
    (tmp_path / "outcome.json").write_text(json.dumps(content))
    with pytest.raises(EffaceError, match=r"outcome\.json"):
        read_outcome(tmp_path)


def test_a_failed_task_is_an_outcome(tmp_path):
    (tmp_path / "outcome.json").write_text(json.dumps({"error": "it diverged"}))
    assert read_outcome(tmp_path) == {"error": "it diverged"}
    assert parse_record(StoredOutcome, {"error": "x"}, "a", "b", "c").error == "x"


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", ".", "a/b", "a\\b", "\n", "x" * 500, "SimCLR / MoCo"])
def test_a_grid_names_a_folder_inside_runs(tmp_path, name):
    grid = build_grid({"families": {"a": {"recipe": {}}}, "name": name})
    folder = folder_name(grid, "..")
    assert (tmp_path / folder).resolve().parent == tmp_path.resolve() and 0 < len(folder) <= 100


def test_cells_that_a_spreadsheet_would_run_are_quoted():
    cells = ["=1+1", "+1", "-x", "@sum", "\t=1", "plain", -0.5, None, 3]
    rows = list(csv.reader(_csv([{"a": cell} for cell in cells]).splitlines()))
    assert [row[0] if row else "" for row in rows[1:]] == [
        "'=1+1",
        "'+1",
        "'-x",
        "'@sum",
        "'\t=1",
        "plain",
        "-0.5",
        "",
        "3",
    ]


@pytest.mark.parametrize("odd", ["a\n", "\na", "a\r\n", "a\u2028", "a\x85b", "a\x0b"])
def test_a_key_with_a_line_break_keeps_its_row(tmp_path, odd):
    keys = np.array(["first", odd, "last"])
    path = _write_keys(tmp_path / "v.npy", keys)
    with path.open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)][1:] == keys.tolist()


def test_pixels_are_decoded_again_when_size_and_time_are_the_same(tmp_path):
    path = tmp_path / "a.bmp"
    options = ImageOptions(cache=str(tmp_path / "cache"))

    def look(value: int) -> int:
        Image.new("L", (4, 4), value).save(path)
        os.utime(path, ns=(10**18, 10**18))
        return int(load_pixels([ImageFile("a", path)], options)[0][0, 0, 0, 0])

    assert [look(value) for value in (10, 200, 30)] == [10, 200, 30]
