"""``efface init`` says of every value where it comes from and whether it fits; the verbs follow its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from efface.errors import EffaceError
from efface.interop.model_file import read_model_file
from efface.runs import train
from efface.runs.embed import embed_checkpoint
from efface.runs.model_description import describe_model, use_model_file, use_model_to_embed
from tests.runs.test_adoption import FEW, SPLIT, as_arrays, as_classifier, as_pictures, colored, learned

HALF = {"mean": 0.5, "std": 0.5}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A classifier that was trained with another normalization than is assumed, and its data."""
    home = tmp_path_factory.mktemp("theirs")
    return as_classifier(learned(*colored(), **HALF), home), as_arrays(*colored(), home)


def test_every_value_has_its_source(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    settings = {"data": data, "split": SPLIT, "recipe": HALF, "device": "cpu"}
    made = describe_model(path, tmp_path / "model.yaml", settings)
    assert made.exit_code == 0
    read = read_model_file(tmp_path / "model.yaml")
    assert read == made.content and read.is_checked
    sources = {name: str(one.source) for name, one in read.values.items()}
    assert sources["mean"] == sources["std"] == "stated"
    assert sources["backbone"] == "sniffed" and sources["parts"] == "file"
    assert {sources[name] for name in ("objective", "classes", "order", "trained", "views")} == {"assumed"}
    assert read.value("classes") == ["0", "1", "2"] and read.value("mean") == 0.5
    topics = {one.topic: one for one in read.checks}
    assert {"objective", "normalization", "stem", "classes"} <= topics.keys()
    assert all(one.word == "passed" for one in topics.values())
    assert len(topics["normalization"].tried) > 8
    assert "ImageNet, blue first" in topics["normalization"].tried


def test_what_does_not_fit_is_written_down_refused_and_mended(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    file = tmp_path / "model.yaml"
    made = describe_model(path, file, {"data": data, "split": SPLIT, "device": "cpu"})
    assert made.exit_code == 3
    first = made.content.checks[0]
    assert (first.topic, first.word) == ("normalization", "failed")
    assert "--set recipe.mean=0.5 --set recipe.std=0.5" in first.remedy
    settings = {"data": data, "forget": "@random:9", "method": FEW, "split": SPLIT, "device": "cpu"}
    with pytest.raises(EffaceError, match=r"does not fit the training images: normalization.*recipe\.mean=0\.5"):
        use_model_file(settings, file, path)
    with pytest.raises(EffaceError, match="exists already"):
        describe_model(path, file, {"data": data})
    describe_model(path, file, {"data": data, "split": SPLIT, "recipe": HALF, "device": "cpu"}, force=True)
    for start, model in ((path, file), (file, None)):
        found, merged, notes = use_model_file(settings, model, start)
        assert found == path and not notes
        assert merged["recipe"]["mean"] == 0.5 and merged["data"]["classes"] == ["0", "1", "2"]
    train.unlearn_run(found, tmp_path / "out", merged)


def test_values_that_were_corrected_by_hand_are_checked_by_the_verb(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    file = tmp_path / "model.yaml"
    describe_model(path, file, {"data": data, "split": SPLIT, "device": "cpu"})
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["values"]["mean"] = content["values"]["std"] = {"value": 0.5, "source": "stated"}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    _, merged, notes = use_model_file({"data": data}, file, path)
    assert merged["recipe"]["mean"] == 0.5
    assert any("changed after they were checked" in note for note in notes)


def test_what_the_user_says_wins(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    file = tmp_path / "model.yaml"
    describe_model(path, file, {"data": data, "split": SPLIT, "recipe": HALF, "device": "cpu"})
    given = {"data": {"source": data, "classes": "text"}, "recipe": {"mean": 0.4}, "objective": "simclr"}
    _, merged, _ = use_model_file(given, file, path)
    assert merged["recipe"]["mean"] == 0.4 and merged["recipe"]["std"] == 0.5
    assert merged["data"]["classes"] == "text" and merged["objective"] == "simclr"


def test_pictures_are_embedded_as_it_says(tmp_path: Path) -> None:
    x, y = colored()
    path = as_classifier(learned(x, y), tmp_path)
    data = as_pictures(x, y, tmp_path) | {"preprocessing": {"resize": 16, "mode": "exact"}}
    file = tmp_path / "model.yaml"
    made = describe_model(path, file, {"data": data, "split": SPLIT, "device": "cpu"})
    assert str(made.content.values["preprocessing"].source) == "stated"
    start, settings, _ = use_model_to_embed({"data": data["source"]}, file, path)
    assert "split" not in settings
    settings["data"]["cache"] = data["cache"]
    embed_checkpoint(start, tmp_path / "a.npz", settings | {"device": "cpu"})
    embed_checkpoint(path, tmp_path / "b.npz", {"data": data, "device": "cpu"})
    a, b = (np.load(tmp_path / name)["embeddings"] for name in ("a.npz", "b.npz"))
    assert (a == b).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sha256": "0" * 64}, "describes another checkpoint"),
        ({"format": 2}, "format"),
        ({"values": {}}, "values"),
        ({"checkpoint": 5}, "checkpoint"),
    ],
)
def test_a_file_that_does_not_belong_is_refused(
    theirs: tuple[Path, str], tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    path, data = theirs
    file = tmp_path / "model.yaml"
    describe_model(path, file, {"data": data, "split": SPLIT, "check": False})
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump(content | change), encoding="utf-8")
    with pytest.raises(EffaceError, match=word):
        use_model_file({}, file, path)


def test_what_failed_first_is_mended_first(theirs: tuple[Path, str], tmp_path: Path) -> None:
    """Pictures that are normalized wrongly make later checks fail as well; their remedies would do harm."""
    path, data = theirs
    made = describe_model(path, tmp_path / "model.yaml", {"data": data, "split": SPLIT})
    (failed,) = [one for one in made.content.checks if one.word == "failed"]
    assert failed.topic == "normalization" and not any("Mend" in line for line in made.lines())
    twice = made.content.model_copy(update={"checks": [failed, failed.model_copy(update={"topic": "pictures"})]})
    lines = replace(made, content=twice).lines()
    assert lines[-2].startswith("Mend normalization first") and lines[-3].startswith("head, kNN: ")


def test_the_command_line(theirs: tuple[Path, str], tmp_path: Path, efface) -> None:
    path, data = theirs
    file = tmp_path / "model.yaml"
    code, out, err = efface("init", path, "--data", data, "--out", file, "--set", "device=cpu", "--json")
    assert code == 3, err
    assert json.loads(out.splitlines()[-1])["checks"][0]["topic"] == "normalization"
    assert "recipe.mean=0.5" in out
    code, _, err = efface("unlearn", file, "--forget", "@random:9", "--method", "finetune", "--out", tmp_path / "o")
    assert code == 2 and "does not fit the training images" in err
    code, _, err = efface("embed", path, "--model", tmp_path / "no.yaml", "--out", tmp_path / "v.npz")
    assert code == 2 and "There is no model file" in err
    code, _, err = efface("init", tmp_path / "no.pth", "--data", data)
    assert code == 2 and "There is no checkpoint" in err


def test_all_that_was_stated_comes_back(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    file = tmp_path / "model.yaml"
    recipe = {**HALF, "views": {"shift": 0}, "micro_batch": 16, "epochs": 7, "optim": {"lr": 0.02}}
    describe_model(path, file, {"data": data, "split": SPLIT, "recipe": recipe, "device": "cpu"})
    found = use_model_file({}, file, path)[1]["recipe"]
    assert found["views"]["shift"] == 0 and found["micro_batch"] == 16
    assert found["epochs"] == 7 and found["optim"] == {"lr": 0.02}
    describe_model(path, tmp_path / "plain.yaml", {"data": data, "split": SPLIT, "recipe": HALF, "device": "cpu"})
    assert "views" not in use_model_file({}, tmp_path / "plain.yaml", path)[1]["recipe"]  # assumed: by the objective


def test_what_init_has_tried_is_not_tried_again(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    file = tmp_path / "model.yaml"
    describe_model(path, file, {"data": data, "split": SPLIT, "recipe": HALF, "device": "cpu"})
    assert use_model_file({}, file, path)[1]["checked"]
    for changed in ({"data": data}, {"recipe": {"mean": 0.4}}, {"objective": "simclr"}, {"split": {"trained": "x"}}):
        assert "checked" not in use_model_file(changed, file, path)[1]
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["values"]["mean"] |= {"value": 0.45}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert "checked" not in use_model_file({}, file, path)[1]


def test_every_verb_for_a_run_takes_it(theirs: tuple[Path, str], tmp_path: Path, efface) -> None:
    path, data = theirs
    file, out = tmp_path / "model.yaml", tmp_path / "out"
    settings = {"data": data, "split": SPLIT, "recipe": HALF, "device": "cpu"}
    describe_model(path, file, settings)
    train.unlearn_run(path, out, settings | {"forget": "@random:12", "method": FEW})
    start, merged, said = use_model_file({"device": "cpu"}, file, out)
    assert (start, merged, said) == (out, {"device": "cpu"}, [])
    shown = {"convert": ("--out", tmp_path / "back"), "onnx": ("--out", tmp_path / "a.onnx"), "inspect": ()}
    for verb, words in shown.items():
        code, text, err = efface(verb, path if verb == "inspect" else out, "--model", file, *words)
        assert code == 0, err
    assert f"described in {file}" in text and "normalization: passed" in text
    other = tmp_path / "other.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    other.write_text(yaml.safe_dump(content | {"sha256": "0" * 64}), encoding="utf-8")
    verbs = {
        "audit": (), "rehearse": (), "references": (), "relearn": (), "convert": ("--out", tmp_path / "c"),
        "onnx": ("--out", tmp_path / "b.onnx"), "embed": ("--out", tmp_path / "v.npz"),
        "unlearn": ("--out", tmp_path / "d", "--forget", "@random:3", "--method", "finetune"),
        "canaries guess": ("--plan", tmp_path),
    }  # fmt: skip
    for verb, words in verbs.items():
        code, _, err = efface(*verb.split(), out, "--model", other, *words)
        assert code == 2 and "describes another checkpoint" in err, verb
        code, _, err = efface(*verb.split(), out, "--model", tmp_path / "no.yaml", *words)
        assert code == 2 and "There is no model file" in err, verb
