"""Export of unlearned encoders: the layout is the same, and no part still remembers the forgotten images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from efface.cli import app
from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.interop.checkpoint_file import ForeignCheckpoint, read_foreign
from efface.interop.consent import Consent
from efface.interop.export_weights import reinitialize_tensor
from efface.interop.layouts import Role, TensorPlace
from efface.runs import run, train
from efface.runs.foreign import load_foreign
from efface.training import batch as training_batch
from efface.training.checkpoint import Checkpoint
from efface.training.loop import Run
from tests import foreign
from tests.adoption import (
    CASES,
    DEEP,
    QUICK,
    SPLIT,
    UNSHOWN,
    classifier_folder,
    drawn,
    half_file,
    moco_file,
    scrambled,
    swav_file,
    trained,
    unlearn,
)
from tests.commands import JUDGED


def fingerprint(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(params=list(CASES))
def done(request: pytest.FixtureRequest, pictures: Path, tmp_path: Path) -> tuple[Any, ...]:
    """The original model, its file, the unlearned checkpoint, the exported file, and the run folder."""
    make, name, options, objective = CASES[request.param]
    original = trained(name, **options)
    path = make(original, tmp_path)
    before = fingerprint(path)
    made = unlearn(path, pictures, tmp_path / "out", objective, recipe=UNSHOWN.get(request.param, {}))
    assert fingerprint(path) == before, "the original file was touched"
    return original, read_foreign(path), made, read_foreign(tmp_path / "out" / "foreign" / path.name), tmp_path / "out"


def test_every_tensor_is_exported(done: tuple[Any, ...]):
    _, before, made, after, out = done
    assert after.layout == before.layout and list(after.table.items()) == list(before.table.items())
    for name, value in after.container.state.items():
        assert value.dtype == before.container.state[name].dtype and value.shape == before.container.state[name].shape
    body, head = after.part(Role.BACKBONE), after.part(Role.HEAD)
    for name, value in made.model.backbone.state_dict().items():
        assert torch.equal(body[name], value.to(body[name].dtype)), name
    for name, value in made.model.head.state_dict().items():
        assert torch.equal(head[name], value.to(head[name].dtype)), name
    assert not torch.equal(body["conv1.weight"], before.part(Role.BACKBONE)["conv1.weight"])
    purged = json.loads((out / "meta.json").read_text())["purged"]
    assert {f"foreign.{place.role}" for place in before.table.values()} <= set(purged)
    assert Checkpoint.load(out).model.digest() == made.model.digest()


def test_nothing_that_remembers_is_exported(done: tuple[Any, ...]):
    _, before, made, after, out = done
    kept = {Role.BUFFERS, Role.BACKBONE, Role.HEAD} | ({Role.PREDICTOR} if made.model.predictor is not None else set())
    for name, place in before.table.items():
        old, new = before.container.state[name], after.container.state[name]
        if place.role in kept or not old.is_floating_point() or old.numel() < 2:
            continue
        if torch.equal(old, torch.zeros_like(old)) or torch.equal(old, torch.ones_like(old)):
            continue  # what a fresh layer starts with
        assert not torch.equal(old, new), f"{name} is as it was"
    notes = json.loads((out / "meta.json").read_text())["purged"]
    for entry in {"optimizer", "optimizer_states", "callbacks", "loops", "amp", "optimizer.pt"}:
        if entry in before.container.entries():
            assert notes[f"foreign.{entry}"].startswith(("dropped", "left behind"))
            assert entry not in after.container.entries()


def test_momentum_encoder_and_queue_come_from_the_unlearned_model(done: tuple[Any, ...]):
    _, before, made, after, _ = done
    momentum = after.part(Role.MOMENTUM_ENCODER)
    for name, value in momentum.items():
        part, _, own = name.partition(".")
        module = {"backbone": made.model.backbone, "head": made.model.head}[part]
        assert torch.equal(value, module.state_dict()[own]), name
    queue = after.part(Role.QUEUE).get("queue")
    if queue is None:
        return
    rows = queue if after.layout.name == "efface" else queue.transpose(-1, -2).reshape(-1, 8)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))
    old = before.part(Role.QUEUE)["queue"]
    old = old if after.layout.name == "efface" else old.transpose(-1, -2).reshape(-1, 8)
    assert float((rows @ old.T).max(dim=1).values.min()) < 0.999999
    assert all(int(value) == 0 for name, value in after.part(Role.BUFFERS).items() if name.endswith("ptr"))


def test_a_queue_is_refilled_with_keys_of_retained_images_only(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    made = unlearn(path, pictures, tmp_path / "out", "simclr")
    queue = read_foreign(tmp_path / "out" / "foreign" / path.name).part(Role.QUEUE)["queue"].T
    assert made.purged["foreign.queue"] == "refilled with keys of retained examples (1 tensors)"
    split = run.open_run(tmp_path / "out").split
    seen = {}
    for name in ("retain", "forget"):
        part = training_batch.Subset.of(
            Data.from_arrays(*drawn()), getattr(split, name), made.recipe.views, name, torch.device("cpu")
        )
        batches = part.batches(256, Run(seed=0).rng("purge"))
        with torch.no_grad():
            seen[name] = torch.cat([F.normalize(made.model.eval()(batch.view(1)), dim=-1) for batch in batches])
    assert float((queue @ seen["retain"].T).max(1).values.min()) > 0.99999
    assert float((queue @ seen["forget"].T).max(1).values.min()) < 0.99999


def test_rounding_and_other_copies_are_noted(pictures: Path, tmp_path: Path):
    path = half_file(trained("simclr"), tmp_path)
    earlier = moco_file(trained("moco", queue=24), tmp_path)  # another layout around the same backbone
    torch.save(foreign.vit().state_dict(), tmp_path / "another_project.pth")
    (tmp_path / "last.ckpt").write_bytes(b"x")
    purged = unlearn(path, pictures, tmp_path / "out").purged
    assert purged["foreign.precision"] == "rounded to float16, as the file has it"
    assert purged["foreign.copies"] == f"not touched: {tmp_path / 'last.ckpt'} (not readable here), {earlier}"


def test_assumptions_are_reported(pictures: Path, tmp_path: Path):
    path = swav_file(trained("simclr", layers=DEEP), tmp_path)
    said: list[str] = []
    settings = {"data": str(pictures), "split": SPLIT, "forget": "@random:12", "method": QUICK, "device": "cpu"}
    train.unlearn_run(path, tmp_path / "out", settings, progress=run.Progress(say=said.append))
    for words in ("taken to be simclr", "stem assumed: stride 1, padding 1", "ImageNet's mean"):
        assert any(words in sentence and "swav.pth" in sentence for sentence in said), said


# ---- initial values ----


@pytest.mark.parametrize(
    ("name", "shape", "value"),
    [("a.running_var", (4,), 1), ("a.running_mean", (4,), 0), ("a.weight", (4,), 1), ("a.bias", (4,), 0),
     ("center", (1, 9), 0), ("last.weight_g", (5, 1), 1), ("mask_token", (1, 1, 4), 0)],
)  # fmt: skip
def test_reset_values_are_the_initial_values_of_a_layer(name: str, shape: tuple[int, ...], value: float):
    assert torch.equal(
        reinitialize_tensor(name, torch.randn(shape), torch.Generator()), torch.full(shape, float(value))
    )


def test_reset_weights_are_as_large_as_those_of_torch():
    made = reinitialize_tensor("fc.weight", torch.zeros(64, 100), torch.Generator().manual_seed(0))
    assert 0.095 < float(made.abs().max()) <= 0.1
    directions = reinitialize_tensor("weight", torch.zeros(7, 5), torch.Generator().manual_seed(0), directions=True)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(7))


def test_a_mean_over_training_images_is_reset(tmp_path: Path):
    found: ForeignCheckpoint = read_foreign(foreign.dino(tmp_path).path)
    assert found.table["dino_loss/center"] == TensorPlace(Role.EXTRAS, "dino_loss/center")
    assert torch.equal(
        reinitialize_tensor("dino_loss/center", torch.ones(1, 24), torch.Generator()), torch.zeros(1, 24)
    )


def test_weights_in_the_wrong_order_are_refused_unless_the_check_is_off(pictures: Path, tmp_path: Path):
    path = scrambled(moco_file(trained("moco", queue=24), tmp_path))
    with pytest.raises(EffaceError, match="sees no more"):
        unlearn(path, pictures, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    unlearn(path, pictures, tmp_path / "out", check=False)
    assert (tmp_path / "out" / "foreign" / path.name).exists()


# ---- on the command line ----


def efface(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_unlearn_and_audit_on_the_command_line(pictures: Path, tmp_path: Path, kind: str):
    make, name, options = (
        (moco_file, "moco", {"queue": 24}) if kind == "file" else (classifier_folder, "cross_entropy", {})
    )
    path = make(trained(name, **options), tmp_path)
    words = ["--data", pictures, "--forget", "@random:12", "--method", "finetune", "--set", "method.epochs=1"]
    words += ["--set", f"split={json.dumps(SPLIT)}", "--device", "cpu", "--out", tmp_path / "out", "--quiet"]
    done = efface("unlearn", path, *words)
    assert done.exit_code == 0, done.output
    assert efface("inspect", tmp_path / "out" / "foreign" / path.name).exit_code == 0
    watch = ["--set", "watch={views: 2, gradient: false}"]
    judged = efface("audit", tmp_path / "out", *watch, "--quiet", "--json")
    assert judged.exit_code in JUDGED, judged.output
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert "foreign.backbone" in record["checkpoints"]["subject"]["purged"]
    if kind == "file":
        path.write_bytes(path.read_bytes() + b"x")
        scrambled(path)
        changed = efface("audit", tmp_path / "out", *watch)
        assert isinstance(changed.exception, EffaceError) and "has changed since" in str(changed.exception)


def test_a_pickle_needs_trust(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    content = torch.load(path, weights_only=True) | {"best": tmp_path}
    torch.save(content, path)
    words = ["--data", pictures, "--forget", "@random:12", "--method", "finetune", "--set", "method.epochs=1"]
    words += ["--set", f"split={json.dumps(SPLIT)}", "--device", "cpu", "--out", tmp_path / "out", "--quiet"]
    refusal = efface("unlearn", path, *words)
    assert isinstance(refusal.exception, EffaceError) and "pathlib" in str(refusal.exception)
    assert efface("unlearn", path, *words, "--trust-pickle").exit_code == 0
    made = run.open_run(tmp_path / "out")
    with pytest.raises(EffaceError, match="pathlib"):
        load_foreign(path, made.data, made.request, 0)
    assert load_foreign(path, made.data, made.request, 0, Consent(named=True)).model.digest()
    after = read_foreign(tmp_path / "out" / "foreign" / path.name)
    assert "best" not in after.container.entries() and after.container.entries()["epoch"] == "kept: 9"


def test_run_folders_do_not_take_settings_of_foreign_checkpoints(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    unlearn(path, pictures, tmp_path / "out")
    with pytest.raises(EffaceError, match="no setting 'recipe'"):
        train.unlearn_run(tmp_path / "out", tmp_path / "again", {"forget": "@random:3", "method": QUICK, "recipe": {}})
    again = train.unlearn_run(
        tmp_path / "out", tmp_path / "again", {"forget": "@random:3", "method": QUICK, "device": "cpu"}
    )
    assert again.parent == Checkpoint.load(tmp_path / "out").model.digest()
    assert (tmp_path / "again" / "foreign" / path.name).exists()
