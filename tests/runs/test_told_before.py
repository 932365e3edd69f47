"""What the commands say before anything changes: how data and selectors were understood, and what was not read."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from efface.data.sources import load
from efface.runs.canary_plan import plan_canaries
from efface.runs.embed import _write_keys
from efface.runs.run import Progress
from efface.runs.train import pretrain_run, unlearn_run
from tests.commands import refused
from tests.pictures import picture, raises

SETTINGS = {
    "split": {"valid": 8, "holdout": 16, "test": 8},
    "recipe": {"backbone": {"width": 8, "stride": 1}, "batch_size": 16, "epochs": 1},
    "device": "cpu",
}
METHOD = {"method": {"name": "finetune", "epochs": 1}, "device": "cpu"}


def listener() -> tuple[list[str], Progress]:
    said: list[str] = []
    return said, Progress(say=said.append)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of classes 01 to 03 with a file that is not read and two copies, and a run that was trained on it."""
    home = tmp_path_factory.mktemp("told")
    for number in range(72):
        picture(home / "p" / f"{number % 3 + 1:02d}" / f"{number:02d}.png", number)
    (home / "p" / "01" / "a.heic").write_bytes(b"?")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        said, progress = listener()
        pretrain_run(home / "run", {"data": str(home / "p"), **SETTINGS}, progress=progress)
        (home / "said.json").write_text(json.dumps(said))
        yield home


def test_pretraining_says_what_was_not_read(home):
    assert json.loads((home / "said.json").read_text()) == [
        "1 file in p was not read: 1 .heic (in 01 1). To read .heic: pip install pillow-heif."
    ]


def test_unlearning_says_what_it_forgets_by_name(home, tmp_path):
    said, progress = listener()
    unlearn_run(home / "run", tmp_path / "u", {"forget": "@class:2", **METHOD}, progress=progress)
    parts = json.loads((tmp_path / "u" / "split.json").read_text())
    count = len(parts["parts"]["forget"])
    assert all(key.startswith("02/") for key in parts["parts"]["forget"])
    assert said[1:3] == [
        "'2' is read as the class '02', which is the same number.",
        f"Forgets {count} training examples of class '02'.",
    ]
    assert parts["provenance"]["resolved"]["names"] == {"02": count}


def test_a_list_with_semicolons_is_read_and_said(home, tmp_path):
    keys = json.loads((home / "run" / "split.json").read_text())["parts"]["retain"][:3]
    (tmp_path / "ids.csv").write_text("name;key\n" + "".join(f"x;{key}\n" for key in keys), encoding="utf-16")
    said, progress = listener()
    unlearn_run(home / "run", tmp_path / "u", {"forget": str(tmp_path / "ids.csv"), **METHOD}, progress=progress)
    assert json.loads((tmp_path / "u" / "split.json").read_text())["parts"]["forget"] == keys
    assert {"ids.csv was read as UTF-16.", "ids.csv was read with semicolons between its columns."} <= set(said)
    assert any(line.startswith("Forgets 3 training examples listed by id, by class: ") for line in said)


def test_copies_may_stay_if_that_is_said(home, tmp_path):
    copied = tmp_path / "p"
    shutil.copytree(home / "p", copied)
    for number in range(0, 72, 3):  # every picture of class 01 is there twice
        shutil.copyfile(copied / "01" / f"{number:02d}.png", copied / "01" / f"copy{number:02d}.png")
    pretrain_run(tmp_path / "run", {"data": str(copied), **SETTINGS})
    trained = json.loads((tmp_path / "run" / "split.json").read_text())["parts"]["retain"]
    key = next(key for key in trained if key.startswith("01/copy") and key.replace("copy", "") in trained)
    asked = {"forget": f"@keys:{key}", **METHOD}
    raises(lambda: unlearn_run(tmp_path / "run", tmp_path / "u", asked), "identical", "--set allow_duplicates=true")
    raises(
        lambda: unlearn_run(tmp_path / "run", tmp_path / "u", asked | {"allow_duplicates": "false"}), "true or false"
    )
    said, progress = listener()
    unlearn_run(tmp_path / "run", tmp_path / "u", asked | {"allow_duplicates": True}, progress=progress)
    assert any("1 example in retain is an exact copy" in line for line in said)
    assert yaml.safe_load((tmp_path / "u" / "config.yaml").read_text())["allow_duplicates"] is True


def test_the_data_command_describes_a_path(efface, home):
    code, out, _ = efface("data", home / "p", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["examples"] == 72 and found["classes"] == {"01": 24, "02": 24, "03": 24}
    assert found["unread"] == [{"folder": "01", "kind": ".heic", "count": 1}]
    code, out, _ = efface("data", home / "p", "--set", "data.size=4")
    assert code == 0 and "72 examples, 3 x 4 x 4" in out and "'02' 24" in out and "1 .heic (in 01 1)" in out
    refused(efface("data", home / "p", "--set", "data.sizes=4"), "no option 'sizes'")
    assert efface("data", "digits")[0] == 0
    refused(efface("data", home / "nowhere"), "no data source called")


@pytest.mark.parametrize("key", ["a\n", "\na", "a\nb", "a\r", "plain", "a\u2028b", " a "])
def test_keys_beside_embeddings_have_as_many_rows_as_keys(tmp_path, key):
    keys = np.array(["k0", key, "k2"])
    path = _write_keys(tmp_path / "v.npy", keys)
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            assert [row[0] for row in csv.reader(file)] == ["key", *keys.tolist()]
    else:
        assert path.read_bytes().decode().split("\n") == [*keys.tolist(), ""]


def test_canaries_are_found_as_a_forget_list_is(home, tmp_path):
    keys = load(str(home / "p")).keys[:12].tolist()
    (tmp_path / "ids.csv").write_text("key;x\n" + "".join(f"{key};1\n" for key in keys))
    made = plan_canaries(tmp_path / "c", {"data": {"source": str(home / "p")}}, keys=str(tmp_path / "ids.csv"))
    assert made.coins == 12
    (tmp_path / "bad.txt").write_text("\n".join([f" {keys[0]}", *keys[1:]]))
    raises(
        lambda: plan_canaries(tmp_path / "d", {"data": {"source": str(home / "p")}}, keys=str(tmp_path / "bad.txt")),
        "U+0020",
    )
