"""Embeddings for a search index, from runs and foreign files: right rows, right keys, and no forgotten images."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from efface.cli import app
from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.runs import train
from efface.runs.embed import _stream, check_compatibility, embed_checkpoint, open_encoder
from efface.training.checkpoint import Checkpoint
from tests import foreign
from tests.adoption import classifier_folder, drawn, moco_file, trained, unlearn

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A foreign MoCo file and the run that forgot twelve images."""
    home = tmp_path_factory.mktemp("made")
    path = moco_file(trained("moco", queue=24), home)
    unlearn(path, pictures, home / "out")
    return path, home / "out"


def images(model: Any, rows: np.ndarray, *, projected: bool = False) -> np.ndarray:
    x = torch.from_numpy(drawn()[0][rows]).float() / 255
    with torch.no_grad():
        z = model.eval().features(x)
        return (model.project(z) if projected else z).numpy()


def forgotten(run: Path) -> list[str]:
    return json.loads((run / "split.json").read_text())["parts"]["forget"]


def test_rows_match_keys_and_forgotten_images_are_left_out(made: tuple[Path, Path], tmp_path: Path):
    _, run = made
    written = embed_checkpoint(run, tmp_path / "v.npz", CPU)
    keys = Data.from_arrays(*drawn()).keys
    with np.load(tmp_path / "v.npz", allow_pickle=False) as file:
        assert set(file.files) == {"embeddings", "keys", "model", "space"}
        seen, listed = file["embeddings"], file["keys"]
        assert str(file["model"]) == written.model == Checkpoint.load(run).model.digest()
    assert listed.tolist() == [key for key in keys.tolist() if key not in forgotten(run)]
    assert (written.rows, written.forgotten, written.copies) == (168, 12, 0)
    rows = np.flatnonzero(np.isin(keys, listed))
    np.testing.assert_allclose(seen, images(Checkpoint.load(run).model, rows), rtol=1e-4, atol=1e-5)
    assert seen.dtype == np.float32


def test_all_images_are_embedded_on_request_and_the_batch_size_changes_nothing(made: tuple[Path, Path], tmp_path: Path):
    _, run = made
    embed_checkpoint(run, tmp_path / "a.npy", CPU | {"batch_size": 7}, everything=True)
    embed_checkpoint(run, tmp_path / "b.npy", CPU | {"batch_size": 500}, everything=True)
    a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert a.shape == (180, 32)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "a.keys.txt").read_text().splitlines() == Data.from_arrays(*drawn()).keys.tolist()


def test_the_projector_is_another_space(made: tuple[Path, Path], tmp_path: Path):
    _, run = made
    embed_checkpoint(run, tmp_path / "p.npy", CPU | {"space": "projector"}, everything=True)
    expected = images(Checkpoint.load(run).model, np.arange(180), projected=True)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), expected, rtol=1e-4, atol=1e-5)


def test_a_foreign_file_is_embedded_as_it_is(made: tuple[Path, Path], pictures: Path, tmp_path: Path):
    path, _ = made
    settings = CPU | {"data": {"source": str(pictures)}}
    for space in ("backbone", "projector"):
        written = embed_checkpoint(path, tmp_path / f"{space}.npy", settings | {"space": space})
        assert written.forgotten == 0 and written.rows == 180
        expected = images(trained("moco", queue=24), np.arange(180), projected=space == "projector")
        np.testing.assert_allclose(np.load(tmp_path / f"{space}.npy"), expected, rtol=1e-4, atol=1e-5)


def test_a_file_exported_by_a_run_belongs_to_the_run(made: tuple[Path, Path], pictures: Path, tmp_path: Path):
    path, run = made
    settings = CPU | {"data": {"source": str(pictures)}}
    embed_checkpoint(run / "foreign" / path.name, tmp_path / "theirs.npz", settings)
    embed_checkpoint(run, tmp_path / "ours.npz", settings)
    theirs, ours = np.load(tmp_path / "theirs.npz"), np.load(tmp_path / "ours.npz")
    assert np.array_equal(theirs["keys"], ours["keys"]) and np.array_equal(theirs["embeddings"], ours["embeddings"])


def test_a_backbone_needs_no_head(pictures: Path, tmp_path: Path):
    torch.save(foreign.resnet().state_dict(), tmp_path / "body.pth")
    settings = CPU | {"data": {"source": str(pictures)}}
    assert embed_checkpoint(tmp_path / "body.pth", tmp_path / "v.npy", settings).width == 32
    with pytest.raises(EffaceError, match="no head"):
        embed_checkpoint(tmp_path / "body.pth", tmp_path / "p.npy", settings | {"space": "projector"})


def test_a_classifier_has_no_projector(pictures: Path, tmp_path: Path):
    folder = classifier_folder(trained("cross_entropy"), tmp_path)
    settings = CPU | {"data": {"source": str(pictures)}}
    assert embed_checkpoint(folder, tmp_path / "v.npy", settings).rows == 180
    with pytest.raises(EffaceError, match="classifier: it has no projector"):
        embed_checkpoint(folder, tmp_path / "p.npy", settings | {"space": "projector"})


def test_earlier_requests_and_exact_copies_stay_out_too(made: tuple[Path, Path], pictures: Path, tmp_path: Path):
    _, run = made
    settings = {"forget": "@random:5", "method": {"name": "finetune", "epochs": 1, "batch_size": 30}, "device": "cpu"}
    train.unlearn_run(run, tmp_path / "again", settings)
    both = set(forgotten(run)) | set(forgotten(tmp_path / "again"))
    assert len(both) == 17 and open_encoder(tmp_path / "again", Data.from_arrays(*drawn()), CPU).forgotten == both
    x, y = drawn()
    keys = Data.from_arrays(x, y).keys.tolist()
    row = keys.index(forgotten(run)[0])
    more = tmp_path / "more.npz"
    np.savez(more, x=np.concatenate([x, x[row : row + 1]]), y=np.append(y, y[row]), keys=[*keys, "the same again"])
    written = embed_checkpoint(tmp_path / "again", tmp_path / "v.npz", CPU | {"data": {"source": str(more)}})
    assert (written.rows, written.forgotten, written.copies) == (163, 17, 1)
    assert "the same again" not in np.load(tmp_path / "v.npz")["keys"]
    request = tmp_path / "again" / "config.yaml"
    request.write_text(request.read_text().replace(str(run), str(tmp_path / "gone")))
    assert str(tmp_path / "gone") in request.read_text()
    assert open_encoder(tmp_path / "again", Data.from_arrays(x, y), CPU).forgotten == both


def test_further_rows_can_be_left_out(made: tuple[Path, Path], pictures: Path, tmp_path: Path):
    path, _ = made
    keys = Data.from_arrays(*drawn()).keys.tolist()
    (tmp_path / "ids.txt").write_text("\n".join(keys[:4]))
    settings = CPU | {"data": {"source": str(pictures)}}
    embed_checkpoint(path, tmp_path / "v.npz", settings, without=str(tmp_path / "ids.txt"))
    assert np.load(tmp_path / "v.npz")["keys"].tolist() == keys[4:]


def test_keys_with_line_breaks_go_into_a_table(made: tuple[Path, Path], tmp_path: Path):
    import csv

    x, y = drawn()
    keys = [f"a\n{n}" if n == 3 else f"k{n}" for n in range(180)]
    np.savez(tmp_path / "d.npz", x=x, y=y, keys=keys)
    written = embed_checkpoint(made[1], tmp_path / "v.npy", CPU | {"data": {"source": str(tmp_path / "d.npz")}})
    assert written.keys.endswith("v.keys.csv")
    with Path(written.keys).open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["key", *keys]


def test_files_are_replaced_only_on_request_and_old_keys_are_removed(made: tuple[Path, Path], tmp_path: Path):
    _, run = made
    (tmp_path / "v.keys.csv").write_text("old")
    with pytest.raises(EffaceError, match=r"v.keys.csv exists already.*--force"):
        embed_checkpoint(run, tmp_path / "v.npy", CPU)
    assert not (tmp_path / "v.npy").exists()
    embed_checkpoint(run, tmp_path / "v.npy", CPU, force=True)
    assert {item.name for item in tmp_path.iterdir()} == {"v.npy", "v.keys.txt"}
    with pytest.raises(EffaceError, match=r"exists already"):
        embed_checkpoint(run, tmp_path / "v.npy", CPU)


def test_wrong_input_is_refused(made: tuple[Path, Path], pictures: Path, tmp_path: Path):
    path, run = made
    for wrong, settings, said in (
        (tmp_path / "v.csv", {}, "npz or .npy"),
        (tmp_path / "v.npy", {"space": "nowhere"}, "nowhere"),
        (tmp_path / "v.npy", {"batch_size": 0}, "batch_size' cannot be 0"),
        (tmp_path / "v.npy", {"nonsense": 1}, "no setting 'nonsense'"),
    ):
        with pytest.raises(EffaceError, match=said):
            embed_checkpoint(run, wrong, CPU | settings)
    with pytest.raises(EffaceError, match="Nothing was said about the data"):
        embed_checkpoint(path, tmp_path / "v.npy", CPU)
    with pytest.raises(EffaceError, match="no checkpoint"):
        embed_checkpoint(tmp_path / "no", tmp_path / "v.npy", CPU | {"data": {"source": str(pictures)}})
    np.savez(tmp_path / "gray.npz", x=drawn(channels=1)[0])
    with pytest.raises(EffaceError, match="takes images of 3x8x8"):
        embed_checkpoint(run, tmp_path / "v.npy", CPU | {"data": {"source": str(tmp_path / "gray.npz")}})
    assert not list(tmp_path.glob("*v.np*"))


def test_old_and_new_are_compared_on_what_is_kept(made: tuple[Path, Path], pictures: Path):
    path, run = made
    found, gone = check_compatibility(path, run, CPU)
    assert (found.images, gone) == (168, 12)
    same, gone = check_compatibility(run, run / "foreign" / path.name, CPU | {"data": {"source": str(pictures)}})
    assert same.keep and same.cosine is not None and same.cosine["least"] > 0.9999 and gone == 12
    few, _ = check_compatibility(path, run, CPU | {"rule": {"rows": 50, "queries": 9, "neighbors": 4}})
    assert few.images == 50


def test_batches_are_written_and_released_one_by_one(tmp_path: Path):
    last: list[Any] = []

    def batches() -> Iterator[np.ndarray]:
        for n in range(5):
            assert n < 2 or last[n - 2]() is None  # the newest may still have a name
            made = np.full((3, 4), n, np.float32)
            last.append(weakref.ref(made))
            yield made
            del made

    with (tmp_path / "v.npy").open("wb") as file:
        assert _stream(file, batches(), 15) == 4
    assert np.load(tmp_path / "v.npy")[:, 0].tolist() == [n // 3 for n in range(15)]


# ---- on the command line ----


def efface(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_embed_on_the_command_line(made: tuple[Path, Path], tmp_path: Path):
    _, run = made
    done = efface("embed", run, "--out", tmp_path / "v.npy", "--device", "cpu", "--batch-size", 50, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["rows"] == 168 and told["forgotten"] == 12 and told["space"] == "backbone"
    assert "168 embeddings of 32 numbers" in done.stdout and "v.keys.txt" in done.stdout
    more = efface("embed", run, "--out", tmp_path / "w.npz", "--all", "--device", "cpu", "--quiet")
    assert more.exit_code == 0 and more.stdout == "" and len(np.load(tmp_path / "w.npz")["keys"]) == 180


def test_compat_on_the_command_line(made: tuple[Path, Path]):
    path, run = made
    strict = efface("compat", path, run, "--device", "cpu", "--min-cosine", 1, "--min-overlap", 1, "--json")
    assert strict.exit_code == 3, strict.output
    told = json.loads(strict.stdout.splitlines()[-1])
    assert told["keep"] is False and told["forgotten"] == 12 and told["rule"]["min_cosine"] == 1
    assert "must be REBUILT" in strict.stdout and "12 of these images were forgotten" in strict.stdout
    loose = efface("compat", path, run, "--device", "cpu", "--min-cosine", -1, "--min-overlap", 0)
    assert loose.exit_code == 0 and "may be kept" in loose.stdout and "must be removed" in loose.stdout
