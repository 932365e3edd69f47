"""Every run of a chain hands a file back, marked and with its digest; what was forgotten is not trained on again."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from efface.data.split import SPLIT_PARTS
from efface.errors import EffaceError
from efface.files import file_digest
from efface.interop.checkpoint_file import read_foreign
from efface.interop.unlearned_marker import list_path, read_marker
from efface.runs import audit, run, train
from efface.runs.conversion import convert_run
from efface.runs.foreign import adopt_foreign
from efface.runs.handover import find_handed_back
from efface.runs.task_utility import select_unseen
from efface.training.checkpoint import read_meta
from tests.adoption import QUICK, SPLIT, backbone, classifier_folder, drawn, moco_file, trained
from tests.foreign import own


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    x, y = drawn()
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> list[Path]:
    """Three requests, one after the other, that begin with a MoCo file."""
    home = tmp_path_factory.mktemp("chain")
    start: Path = moco_file(trained("moco", queue=24), home)
    first = {"data": str(pictures), "split": SPLIT, "check": False}
    runs = []
    for number in range(3):
        out = home / f"run{number}"
        settings = {"forget": "@random:9", "forget_seed": number, "method": QUICK, "device": "cpu"}
        train.unlearn_run(start, out, settings | (first if number == 0 else {}))
        runs.append(out)
        start = out
    return runs


def test_every_run_of_a_chain_hands_the_file_back(chain: list[Path]) -> None:
    for number, folder in enumerate(chain, 1):
        file = find_handed_back(folder)
        assert file is not None and file.name == "moco.pth.tar"
        meta = read_meta(folder)
        assert meta["handed_back"] == {"foreign/moco.pth.tar": file_digest(file)}
        opened = read_foreign(file)
        marker = read_marker(file, opened.meta)
        assert marker is not None and marker.listed is not None
        assert (marker.model, marker.requests) == (meta["digest"], number)
        assert len(marker.listed.forgotten) == 9 * number
        assert "marked as unlearned" in meta["purged"]["foreign.marker"]
        model = run.StoredRun(folder, meta).checkpoint().model
        body = {name.removeprefix("module.encoder_q."): v for name, v in opened.container.state.items()}
        for name, value in own(model.backbone).items():
            assert torch.equal(body[name], value.cpu()), name


def test_the_list_beside_it_names_nobody_and_is_private(chain: list[Path]) -> None:
    file = find_handed_back(chain[-1])
    assert file is not None
    path = list_path(file)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text(encoding="utf-8")
    keys = json.loads((chain[-1] / "split.json").read_text(encoding="utf-8"))["parts"]["forget"]
    assert keys and not any(f'"{key}"' in text for key in keys)


def trained_list(chain: list[Path], home: Path) -> Path:
    """What the original was trained on, as its owner has it: all of it, also what was forgotten."""
    parts = json.loads((chain[0] / "split.json").read_text(encoding="utf-8"))["parts"]
    (home / "trained.txt").write_text("\n".join([*parts["retain"], *parts["forget"]]), encoding="utf-8")
    return home / "trained.txt"


def test_a_handed_back_file_does_not_train_on_what_it_has_forgotten(
    chain: list[Path], pictures: Path, tmp_path: Path
) -> None:
    file = find_handed_back(chain[-1])
    assert file is not None
    split = {"trained": str(trained_list(chain, tmp_path)), "valid": 20, "holdout": 20, "test": 20}
    parts = json.loads((chain[-1] / "split.json").read_text(encoding="utf-8"))["parts"]
    gone = {*parts["forget"], *parts["earlier"]}
    assert len(gone) == 27
    one = adopt_foreign(file, {"data": str(pictures), "split": split}, 0, "cpu")
    for part in ("retain", "valid", "holdout", "test"):
        assert not gone & set(one.split.keys(one.data, part)), part
    assert any("27 examples that it was made to forget before" in note for note in one.preparation)
    settings = {"data": str(pictures), "split": split, "method": QUICK, "device": "cpu", "check": False}
    wanted = min(gone)
    with pytest.raises(EffaceError, match=wanted):
        train.unlearn_run(file, tmp_path / "again", settings | {"forget": f"@keys:{wanted}"})
    train.unlearn_run(file, tmp_path / "next", settings | {"forget": "@random:5"})
    again = find_handed_back(tmp_path / "next")
    assert again is not None
    marker = read_marker(again, read_foreign(again).meta)
    assert marker is not None and marker.requests == 4 and marker.listed is not None
    assert len(marker.listed.forgotten) == 32


def test_what_was_forgotten_is_refused_at_each_step(chain: list[Path], pictures: Path, tmp_path: Path) -> None:
    """From the run folder and from the file that it handed back: what this request forgot, and each one before it."""
    split = {"trained": str(trained_list(chain, tmp_path)), "valid": 20, "holdout": 20, "test": 20}
    foreign = {"data": str(pictures), "split": split, "check": False}
    asked = [json.loads((one / "split.json").read_text(encoding="utf-8"))["parts"]["forget"][0] for one in chain]
    for number, folder in enumerate(chain):
        file = find_handed_back(folder)
        assert file is not None
        for key in asked[: number + 1]:
            for start, more in ((folder, {}), (file, foreign)):
                settings = {"forget": f"@keys:{key}", "method": QUICK, "device": "cpu", **more}
                with pytest.raises(EffaceError, match=key) as refused:
                    train.unlearn_run(start, tmp_path / "again", settings)
                assert "has forgotten them already" in str(refused.value)  # and not: was never trained on them
                assert not (tmp_path / "again").exists()


def test_a_third_request_starts_from_the_second_file(chain: list[Path], pictures: Path, tmp_path: Path) -> None:
    """The digest of each deployed file is in its record, and no two are the same."""
    split = {"trained": str(trained_list(chain, tmp_path)), "valid": 20, "holdout": 20, "test": 20}
    file = find_handed_back(chain[1])
    assert file is not None
    settings = {"data": str(pictures), "split": split, "check": False, "forget": "@random:9", "method": QUICK}
    train.unlearn_run(file, tmp_path / "third", settings | {"device": "cpu"})
    runs = [*chain[:2], tmp_path / "third"]
    for folder in runs:
        audit.audit_run(folder, {"watch": {"views": 2, "gradient": False}, "device": "cpu"})
    files = [find_handed_back(one) for one in runs]
    records = [json.loads((one / "record.json").read_text(encoding="utf-8")) for one in runs]
    digests = [file_digest(one) for one in files if one is not None]
    assert len(set(digests)) == 3
    held = [[sha for name, sha in one["files"].items() if name.startswith("foreign/")] for one in records]
    assert held == [[one] for one in digests]
    opened = read_foreign(files[-1]) if files[-1] is not None else None
    marker = read_marker(files[-1], opened.meta) if files[-1] is not None and opened is not None else None
    assert marker is not None and marker.listed is not None
    assert marker.requests == 3 and len(marker.listed.forgotten) == 27


def test_what_was_forgotten_before_is_not_measured_as_unseen(chain: list[Path], pictures: Path, tmp_path: Path) -> None:
    """It is in no part of the split any more, and yet it was trained on once."""
    split = {"trained": str(trained_list(chain, tmp_path)), "valid": 20, "holdout": 20, "test": 20}
    file = find_handed_back(chain[-1])
    assert file is not None
    one = adopt_foreign(file, {"data": str(pictures), "split": split}, 0, "cpu")
    parts = json.loads((chain[-1] / "split.json").read_text(encoding="utf-8"))["parts"]
    gone = {*parts["forget"], *parts["earlier"]}
    found = one.data.keys[select_unseen(one.data, one.split)].tolist()
    assert len(gone) == 27 and not gone & set(found)
    assert set(found) == {*one.split.keys(one.data, "valid"), *one.split.keys(one.data, "test")} | (
        set(one.data.keys.tolist()) - gone - {key for part in SPLIT_PARTS for key in one.split.keys(one.data, part)}
    )


def test_without_its_list_a_handed_back_file_is_refused(chain: list[Path], pictures: Path, tmp_path: Path) -> None:
    file = find_handed_back(chain[0])
    assert file is not None
    shutil.copyfile(file, tmp_path / file.name)
    with pytest.raises(EffaceError, match=r"unlearned before.*split\.forgotten=FILE"):
        adopt_foreign(tmp_path / file.name, {"data": str(pictures), "split": SPLIT}, 0, "cpu")
    keys = json.loads((chain[0] / "split.json").read_text(encoding="utf-8"))["parts"]["forget"]
    (tmp_path / "gone.txt").write_text("\n".join(keys), encoding="utf-8")
    split = {**SPLIT, "forgotten": str(tmp_path / "gone.txt"), "train": 80}
    one = adopt_foreign(tmp_path / file.name, {"data": str(pictures), "split": split}, 0, "cpu")
    assert not set(keys) & set(one.split.keys(one.data, "retain"))


def test_the_list_of_another_file_is_refused(chain: list[Path], pictures: Path, tmp_path: Path) -> None:
    first, second = (find_handed_back(one) for one in chain[:2])
    assert first is not None and second is not None
    shutil.copyfile(first, tmp_path / first.name)
    shutil.copyfile(list_path(second), list_path(tmp_path / first.name))
    with pytest.raises(EffaceError, match="list of another checkpoint"):
        adopt_foreign(tmp_path / first.name, {"data": str(pictures), "split": SPLIT}, 0, "cpu")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    home = tmp_path_factory.mktemp("classifier")
    settings = {"data": str(pictures), "split": SPLIT, "forget": "@random:9", "method": QUICK, "device": "cpu"}
    train.unlearn_run(classifier_folder(backbone(), home), home / "run", settings)
    return home / "run"


def test_safetensors_are_marked_in_their_header(classifier: Path) -> None:
    folder = find_handed_back(classifier)
    assert folder is not None
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["efface"])["requests"] == 1
        assert file.get_tensor("fc.weight").shape == (3, 32)


def test_converted_as_the_original(classifier: Path, chain: list[Path], tmp_path: Path) -> None:
    made = convert_run(chain[1], tmp_path / "out", {})
    assert Path(made.path).name == "moco.pth.tar"
    theirs, ours = (read_foreign(path).container.state for path in (find_handed_back(chain[1]) or "", Path(made.path)))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs if "encoder_q" in name)
    with pytest.raises(EffaceError, match="exists already"):
        convert_run(chain[1], tmp_path / "out", {})
    assert convert_run(chain[1], tmp_path / "out", {}, force=True).sha256
    folder = convert_run(classifier, tmp_path / "folder", {})
    assert (Path(folder.path) / "config.json").is_file()


def test_converted_as_a_state_dict(classifier: Path, tmp_path: Path) -> None:
    made = convert_run(classifier, tmp_path / "plain.pth", {"layout": "plain"})
    state = torch.load(made.path, weights_only=True)
    assert "fc.weight" in state and "conv1.weight" in state
    assert list(made.sha256.values()) == [file_digest(Path(made.path))]


def test_converted_to_timm(tmp_path: Path) -> None:
    import timm

    pretrained = {
        "data": {"source": "digits", "limit": 60}, "split": {"valid": 5, "holdout": 5, "test": 5},
        "objective": "cross_entropy", "device": "cpu",
        "recipe": {"epochs": 1, "batch_size": 15, "backbone": {"name": "timm:resnet10t"}},
    }  # fmt: skip
    train.pretrain_run(tmp_path / "run", pretrained)
    made = convert_run(tmp_path / "run", tmp_path / "timm", {"layout": "timm"})
    net = timm.create_model(f"local-dir:{made.path}", pretrained=True).eval()
    model = run.StoredRun(tmp_path / "run", read_meta(tmp_path / "run")).checkpoint().model.eval()
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(net((x - model.mean) / model.std), model(x), atol=1e-5)


def test_what_cannot_be_converted_is_refused(tmp_path: Path, classifier: Path) -> None:
    for layout, word in (("onnx", "no layout called"), ("timm", "cannot be written as timm's")):
        with pytest.raises(EffaceError, match=word):
            convert_run(classifier, tmp_path / "out", {"layout": layout})
    assert not (tmp_path / "out").exists()
    with pytest.raises(EffaceError, match="Its name ends in"):
        convert_run(classifier, tmp_path / "out.txt", {"layout": "plain"})


@pytest.mark.parametrize("marker", [{"unlearned": 5, "requests": 1}, {"unlearned": "0" * 64, "requests": "x"}])
def test_a_damaged_marker_is_refused(chain: list[Path], tmp_path: Path, marker: dict) -> None:
    file = find_handed_back(chain[0])
    assert file is not None
    content = torch.load(file, weights_only=False)
    torch.save({**content, "efface": marker}, tmp_path / file.name)
    with pytest.raises(EffaceError, match="marker of an unlearned checkpoint"):
        read_marker(tmp_path / file.name, read_foreign(tmp_path / file.name).meta)
