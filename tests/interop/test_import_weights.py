"""Import of foreign encoders: the model computes the same function, and no file is loaded only in part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.interop.architecture import guess_architecture
from efface.interop.checkpoint_file import read_foreign
from efface.interop.recipe import infer_projector
from efface.training.networks.backbones import Backbone
from efface.training.objectives.shared import ProjectorLayer, build_projector
from tests import checkpoints, foreign
from tests.adoption import (
    BIASED,
    CASES,
    DEEP,
    LIGHTLY,
    UNSHOWN,
    classifier_folder,
    drawn,
    efface_file,
    half_file,
    imported,
    moco_file,
    trained,
    unlearn,
)
from tests.foreign import Owner


@pytest.mark.parametrize("case", list(CASES))
def test_an_imported_model_computes_what_was_trained(pictures: Path, tmp_path: Path, case: str):
    make, name, options, objective = CASES[case]
    original, x = trained(name, **options), torch.rand(5, 3, 8, 8)
    path = make(original, tmp_path)
    model = imported(path, pictures, objective, **UNSHOWN.get(case, {})).model.eval()
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if make is half_file else {}
    torch.testing.assert_close(model(x), original(x), **tolerance)
    if model.momentum_encoder is not None:
        torch.testing.assert_close(
            model(x, model.momentum_encoder.eval()), original(x, original.momentum_encoder.eval())
        )
    if model.queue is not None:
        assert torch.equal(model.queue, original.queue)
    if make is efface_file:
        assert model.digest() == original.digest()


# ---- the same function as the library's own network ----


def normalized(x: Tensor) -> Tensor:
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def test_torchvisions_resnet18_with_its_normalization(pictures: Path, tmp_path: Path):
    from torchvision.models import resnet18

    net = resnet18(num_classes=3).eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    model = imported(tmp_path / "resnet18.pth", pictures).model.eval()
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(model(x), net(normalized(x)))


def test_timms_vit_with_the_normalization_of_its_configuration(tmp_path: Path):

    net = foreign.vit(num_classes=3).eval()
    checkpoints.save_timm_folder(net, tmp_path / "vit")
    x, y = np.random.default_rng(0).integers(0, 255, (180, 3, 16, 16), dtype=np.uint8), np.arange(180) % 3
    np.savez(tmp_path / "large.npz", x=x, y=y)
    model = imported(tmp_path / "vit", tmp_path / "large.npz").model.eval()
    seen = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(model(seen), net((seen - 0.5) / 0.5))


def test_solo_learns_stem_for_cifar_has_padding_two(pictures: Path, tmp_path: Path):
    from torchvision.models import resnet18

    net = resnet18()
    net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
    net.maxpool, net.fc = nn.Identity(), nn.Identity()
    head = build_projector(512, 16, 8)
    both = Owner(backbone=net, classifier=nn.Linear(512, 3), projector=head)
    torch.save(foreign.lightning(both), tmp_path / "solo.ckpt")
    (tmp_path / "args.json").write_text(json.dumps({"method": "simclr", "data": {"dataset": "cifar10"}}))
    model = imported(tmp_path / "solo.ckpt", pictures).model.eval()
    x = torch.rand(3, 3, 8, 8)
    mean, std = torch.tensor((0.4914, 0.4822, 0.4465)), torch.tensor((0.2470, 0.2435, 0.2616))
    torch.testing.assert_close(model(x), head(net.eval()((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))))


def test_dinos_head_has_gelus(tmp_path: Path):
    x, y = np.random.default_rng(0).integers(0, 255, (180, 3, 16, 16), dtype=np.uint8), np.arange(180) % 3
    np.savez(tmp_path / "large.npz", x=x, y=y)
    path = foreign.dino(tmp_path).path
    refused(path, tmp_path / "large.npz", r"do not show num_heads.*backbone.options.num_heads=N", "simclr")
    model = imported(path, tmp_path / "large.npz", "simclr", backbone={"options": {"num_heads": 2}}).model
    assert model.get_submodule("backbone.blocks.0.attn").num_heads == 2
    assert [type(layer).__name__ for layer in model.head] == ["Linear", "GELU", "Linear", "GELU", "Linear"]  # pyright: ignore


def test_files_of_efface_have_its_stem_by_default(tmp_path: Path):
    path = efface_file(trained("moco", queue=24), tmp_path)
    found = guess_architecture(read_foreign(path))
    assert found.backbone == Backbone(name="resnet8", width=8) and any("stride 2" in note for note in found.notes)


@pytest.mark.parametrize(
    ("layers", "activation"),
    [
        (BIASED, ProjectorLayer.RELU),
        (LIGHTLY, ProjectorLayer.RELU),
        (DEEP, ProjectorLayer.RELU),
        (
            (
                ProjectorLayer.LINEAR,
                ProjectorLayer.GELU,
                ProjectorLayer.LINEAR,
                ProjectorLayer.GELU,
                ProjectorLayer.PLAIN,
            ),
            ProjectorLayer.GELU,
        ),
        ((ProjectorLayer.LINEAR,), ProjectorLayer.RELU),
    ],
)
def test_projectors_are_inferred_from_their_shapes(layers: tuple[ProjectorLayer, ...], activation: ProjectorLayer):
    made = build_projector(9, 7, 5, layers=layers)
    found = infer_projector(made.state_dict(), activation)
    assert found == (
        layers,
        7 if len([x for x in layers if x in (ProjectorLayer.LINEAR, ProjectorLayer.PLAIN)]) > 1 else None,
        5,
    )


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Conv2d(3, 3, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6)),
        nn.Sequential(nn.Sequential(nn.Linear(3, 4))),
        nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4)),
        nn.Linear(3, 4),
        nn.Identity(),
    ],
)
def test_other_heads_are_not_projectors(head: nn.Module):
    assert infer_projector(head.state_dict()) is None


# ---- refusals ----


def refused(path: Path, pictures: Path, said: str, objective: str | None = None, **recipe: Any) -> None:
    with pytest.raises(EffaceError, match=said):
        imported(path, pictures, objective, **recipe)


def test_a_wrong_architecture_is_refused_with_a_table(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    shapes = r"(?s)another architecture.*Of another shape: \d+: conv1.weight: \(8, 3, 3, 3\) in the file, \(16, 3, 3"
    refused(path, pictures, shapes, backbone={"width": 16})
    refused(
        path, pictures, r"(?s)another architecture.*Missing: \d+: layer4", backbone={"name": "resnet10", "width": 8}
    )
    refused(path, pictures, r"(?s)another architecture.*Unexpected: ", backbone={"name": "timm:resnet10t"})


def test_one_missing_tensor_is_refused(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    content = torch.load(path, weights_only=True)
    content["state_dict"].pop("module.encoder_q.layer2.0.bn1.running_var")
    torch.save(content, path)
    refused(path, pictures, r"Missing: 1: layer2.0.bn1.running_var. ?\n?Unexpected: 0")


def test_batch_counters_of_old_files_may_be_missing(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    content = torch.load(path, weights_only=True)
    for name in [name for name in content["state_dict"] if name.endswith("num_batches_tracked")]:
        content["state_dict"].pop(name)
    torch.save(content, path)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(imported(path, pictures).model.eval()(x), trained("moco", queue=24)(x))


def test_a_backbone_without_a_head_is_refused(pictures: Path, tmp_path: Path):
    torch.save(foreign.resnet().state_dict(), tmp_path / "body.pth")
    refused(tmp_path / "body.pth", pictures, "has a backbone but no head.*projector.*before its head was taken off")


def test_a_head_of_another_objective_is_refused(pictures: Path, tmp_path: Path):
    folder = classifier_folder(trained("cross_entropy"), tmp_path)
    x, y = drawn()
    np.savez(tmp_path / "two.npz", x=x, y=y % 2)
    refused(folder, tmp_path / "two.npz", r"(?s)head in .*not one.*'cross_entropy'.*weight \(3, 32\).*the classes")
    path = moco_file(trained("moco", queue=24), tmp_path)
    refused(path, pictures, "'cross_entropy'", "cross_entropy")
    refused(path, pictures, r"predictor in .*It has: nothing", "byol")


def test_images_of_another_shape_are_refused(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    np.savez(tmp_path / "gray.npz", x=drawn(channels=1)[0])
    refused(path, tmp_path / "gray.npz", r"looks at 3 channels.*have 1.*data.channels=3")
    refused(checkpoints.timm_vit(tmp_path).path, pictures, r"looks at 16x16.*8x8.*data.size=16")


def test_unknown_networks_are_refused(pictures: Path, tmp_path: Path):
    refused(checkpoints.torchvision_vgg(tmp_path).path, pictures, r"cannot be told.*recipe.backbone.name")


def test_nan_and_quantized_weights_are_refused(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    for value, said in ((torch.full((8, 3, 3, 3), torch.nan), "not all finite.*encoder_q.conv1"),
                        (torch.zeros(8, 3, 3, 3, dtype=torch.int8), "quantized.*int8")):  # fmt: skip
        content = torch.load(path, weights_only=True)
        content["state_dict"]["module.encoder_q.conv1.weight"] = value
        torch.save(content, path)
        refused(path, pictures, said)


def test_retraining_needs_a_recipe_that_foreign_files_do_not_have(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    with pytest.raises(EffaceError, match="recipe"):
        unlearn(path, pictures, tmp_path / "out", method="retrain")
    assert not (tmp_path / "out").exists()
