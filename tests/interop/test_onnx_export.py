"""ONNX export: the file computes what the network computes, or is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from efface.errors import EffaceError
from efface.interop import onnx_export
from efface.interop.onnx_export import export_onnx
from efface.training.checkpoint import Checkpoint
from efface.training.networks.backbones import Backbone
from efface.training.objectives import OBJECTIVES
from efface.training.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
VIT = "timm:vit_tiny_patch16_224"
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def checkpoint(objective: str, backbone: Backbone | None = None, size: int = 16) -> Checkpoint:
    """A model whose normalization has statistics of its own."""
    recipe = Recipe(
        objective=OBJECTIVES[objective](), backbone=backbone or Backbone(width=8), channels=3, size=(size, size),
        classes=5, epochs=1, batch_size=8,
    )  # fmt: skip
    model = recipe.start(3)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(8, 3, size, size))
    return Checkpoint(model.eval(), recipe, seed=3)


@pytest.mark.parametrize(
    ("objective", "space", "backbone"),
    [
        ("simclr", None, None),
        ("simclr", "projector", None),
        ("cross_entropy", None, Backbone(name="resnet10", width=8, stride=2)),
        ("cross_entropy", "backbone", None),
        ("simclr", "backbone", Backbone(name=VIT, options=SMALL)),
    ],
)
def test_onnxruntime_computes_the_same(objective: str, space: str | None, backbone: Backbone | None, tmp_path: Path):
    one = checkpoint(objective, backbone)
    made = export_onnx(one, tmp_path / "net.onnx", space=space)
    assert made.space == (space or ("logits" if objective == "cross_entropy" else "backbone"))
    session: Any = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            wanted = one.model.features(images)
            wanted = wanted if made.space == "backbone" else one.model.project(wanted)
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * float(wanted.abs().max()))
        assert found.shape == (count, made.width)
    facts = {one.key: one.value for one in onnx.load(made.path).metadata_props}
    assert facts["efface_digest"] == one.model.digest()


def test_the_checkpoint_is_untouched(tmp_path: Path):
    one = checkpoint("simclr")
    before, mode = one.model.digest(), one.model.training
    export_onnx(one, tmp_path / "net.onnx")
    assert (one.model.digest(), one.model.training) == (before, mode)


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The comparison is between the file and the network: a network that moved by a hundredth is noticed."""
    compare = onnx_export._compare

    def moved(runtime: Any, path: Path, network: Any, images: torch.Tensor) -> Any:
        with torch.no_grad():
            next(network.parameters()).mul_(1.01)
        return compare(runtime, path, network, images)

    monkeypatch.setattr(onnx_export, "_compare", moved)
    with pytest.raises(EffaceError, match="not kept"):
        export_onnx(checkpoint("simclr"), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_spaces_and_existing_files_are_refused(tmp_path: Path):
    one = checkpoint("simclr")
    with pytest.raises(EffaceError, match="no logits"):
        export_onnx(one, tmp_path / "net.onnx", space="logits")
    with pytest.raises(EffaceError, match="no projector"):
        export_onnx(checkpoint("cross_entropy"), tmp_path / "net.onnx", space="projector")
    with pytest.raises(EffaceError, match="no space called"):
        export_onnx(one, tmp_path / "net.onnx", space="backbon")
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(EffaceError, match="exists already"):
        export_onnx(one, tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_text() == "mine"


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(module: str) -> Any:
        raise ImportError(f"No module named '{module}'")

    monkeypatch.setattr(onnx_export, "import_module", missing)
    with pytest.raises(EffaceError) as refusal:
        export_onnx(checkpoint("simclr"), tmp_path / "net.onnx")
    assert "efface[onnx]" in refusal.value.remedy
