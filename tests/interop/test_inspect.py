"""Inspection of checkpoints: the architecture from its shapes, personal data, and what is not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from efface.cli import app
from efface.errors import EffaceError
from efface.interop.architecture import CIFAR, IMAGENET, guess_architecture
from efface.interop.checkpoint_file import read_foreign
from efface.interop.inspect import inspect_checkpoint
from efface.interop.layouts import Role
from efface.training.checkpoint import Checkpoint
from efface.training.networks.backbones import Backbone
from tests import checkpoints, foreign, tiny


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def rebuilt(path: Path) -> dict[str, torch.Size]:
    """Names and shapes of the guessed backbone, built on the meta device."""
    found = guess_architecture(read_foreign(path))
    assert found.backbone is not None
    library, _, name = found.backbone.name.partition(":")
    with torch.device("meta"):
        if library == "timm":
            import timm

            return shapes(timm.create_model(name, num_classes=0, in_chans=found.channels, **found.backbone.options))
        return shapes(found.backbone.build(found.channels, (32, 32)))


RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d", "resnext101_32x8d"]


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_of_torchvision_are_recognized_by_their_shapes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    from torchvision import models

    with torch.device("meta"):
        net = models.get_model(name)
    found = guess_architecture(_read(net, tmp_path, monkeypatch))
    assert found.backbone == Backbone(name=f"torchvision:{name}") and found.channels == 3


VITS: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4}),
    ("vit_small_patch16_224", {}),
    ("vit_base_patch32_224", {}),
    ("vit_large_patch16_224", {}),
    ("vit_small_patch14_dinov2", {"img_size": 28}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "mlp_ratio": 2, "qkv_bias": False, "in_chans": 1}),
]


@pytest.mark.parametrize(("name", "options"), VITS)
def test_vits_are_rebuilt_from_their_shapes(
    tmp_path: Path, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    import timm

    with torch.device("meta"):
        net = timm.create_model(name, num_classes=3, **options)
    found = _read(net, tmp_path, monkeypatch)
    monkeypatch.setattr("tests.interop.test_inspect.read_foreign", lambda path: found)
    original = shapes(net)
    for classifier in ("head.weight", "head.bias"):
        original.pop(classifier)
    assert rebuilt(tmp_path) == original
    side = options.get("img_size", 224)
    assert guess_architecture(found).size == (side, side)


def _read(net: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A checkpoint whose tensors are on the meta device: they have only shapes."""
    path = folder / "meta.pth"
    path.write_bytes(b"x")
    monkeypatch.setattr("efface.interop.containers.load_torch", lambda path, trust_pickle: dict(net.state_dict()))
    return read_foreign(path)


@pytest.mark.parametrize("make", [foreign.moco_v2, foreign.solo_moco, foreign.lightly_moco_example, foreign.barlow])
def test_small_resnets_are_efface_backbones(tmp_path: Path, make: Any):
    if make is foreign.lightly_moco_example:
        pytest.importorskip("lightly", reason="lightly is not installed")
    case = make(tmp_path)
    assert rebuilt(case.path) == {name: value.shape for name, value in case.backbone.items()}


@pytest.mark.parametrize(("dataset", "padding"), [("cifar10", 2), ("cifar100", 2), ("stl10", 1), ("imagenet100", 1)])
def test_only_args_json_tells_the_stem_for_cifar(tmp_path: Path, dataset: str, padding: int):
    found = guess_architecture(read_foreign(foreign.solo_moco(tmp_path, dataset).path))
    assert found.backbone is not None and found.backbone.options.get("padding", 1) == padding
    assert (found.mean, found.std) == CIFAR.get(dataset, IMAGENET)
    stem = found.backbone.build(3, (32, 32)).get_submodule("conv1")
    assert stem(torch.zeros(1, 3, 32, 32)).shape[-1] == 32 + 2 * (padding - 1)


def test_without_args_json_the_padding_is_reported_as_unknown(tmp_path: Path):
    case = foreign.solo_moco(tmp_path)
    (tmp_path / "args.json").unlink()
    assert any("padding cannot be known" in note for note in inspect_checkpoint(case.path).notes)


def test_normalization_comes_from_the_configuration(tmp_path: Path):
    case = checkpoints.timm_folder(tmp_path)
    assert guess_architecture(read_foreign(case.path)).mean == (0.5, 0.5, 0.5)
    config = json.loads((case.path / "config.json").read_text())
    assert (
        guess_architecture(read_foreign(case.path)).backbone.options["num_heads"]
        == config["model_args"]["num_heads"]
        == 2
    )  # pyright: ignore


def test_the_stated_name_is_used_where_shapes_do_not_tell(tmp_path: Path):
    import timm

    net = timm.create_model("convnext_atto", num_classes=3)
    checkpoints.save_timm_folder(net, tmp_path / "folder")
    found = guess_architecture(read_foreign(tmp_path / "folder"))
    assert found.backbone is not None and found.backbone.name == "timm:convnext_atto"
    body = read_foreign(tmp_path / "folder").part(Role.BACKBONE)
    assert body.keys() == shapes(found.backbone.build(3, (32, 32))).keys()


def test_a_network_that_is_not_known(tmp_path: Path):
    found = guess_architecture(read_foreign(checkpoints.torchvision_vgg(tmp_path).path))
    assert found.backbone is None and "name the network: --set recipe.backbone.name=timm:NAME" in found.notes


def test_the_output_shows_personal_data_and_what_is_dropped(tmp_path: Path):
    case = foreign.solo_moco(tmp_path)
    (tmp_path / "last.ckpt").write_bytes(b"x")
    found = inspect_checkpoint(case.path)
    page = "\n".join(found.lines())
    for said in (
        "layout  solo",
        "literal embeddings of training images",
        "momentum copy",
        "optimizer_states: drop",
        "recipe.backbone.name=resnet10",
        "/runs/best.ckpt",
        str(tmp_path / "last.ckpt"),
        "float32, int64",
        "pads by 2",
        "without running anything",
    ):
        assert said in page
    assert found.parts["queue"] == {
        "tensors": 1,
        "numbers": 2 * foreign.OUT * foreign.KEYS,
        "types": ["float32"],
        "personal": found.parts["queue"]["personal"],
    }
    json.dumps(found.as_dict())


def test_numbers_that_are_not_finite_are_reported(tmp_path: Path):
    state = foreign.resnet().state_dict()
    state["bn1.weight"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    found = inspect_checkpoint(tmp_path / "nan.pth")
    assert not found.finite and "finite  NO" in "\n".join(found.lines())


def test_a_trusted_pickle_is_not_called_safe(tmp_path: Path):
    case = foreign.moco_v2(tmp_path)
    assert "safe    NOT KNOWN" in inspect_checkpoint(case.path, trust_pickle=True).lines()[5]


def test_a_run_folder(tmp_path: Path):
    recipe = tiny.recipe("moco")
    Checkpoint(recipe.start(0), recipe).save(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert found.layout == "efface" and set(found.parts) == {"backbone", "head", "twin", "queue", "mean", "std"}
    assert "trained moco on resnet8, 2 epochs" in found.lines()


def test_on_the_command_line(tmp_path: Path):
    case = foreign.moco_v2(tmp_path)
    done = CliRunner().invoke(app, ["inspect", str(case.path), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["layout"] == "moco"
    torch.save({"state_dict": foreign.resnet().state_dict(), "x": Path("/")}, tmp_path / "paths.pth")
    with pytest.raises(EffaceError, match=r"pathlib"):
        inspect_checkpoint(tmp_path / "paths.pth")
    assert CliRunner().invoke(app, ["inspect", str(tmp_path / "paths.pth"), "--trust-pickle"]).exit_code == 0


class TestSmallStem:
    @pytest.mark.parametrize("padding", [1, 2])
    def test_is_torchvisions_with_another_stem(self, padding: int):
        from torchvision import models

        with torch.random.fork_rng():
            torch.manual_seed(0)
            ours = Backbone(name="torchvision:resnet50", options={"small_stem": padding}).build(3, (32, 32)).eval()
        theirs = models.resnet50()
        theirs.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
        theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
        theirs.load_state_dict(ours.state_dict())
        x = torch.rand(2, 3, 8, 8)
        torch.testing.assert_close(ours(x), theirs.eval()(x))

    def test_with_one_channel(self):
        made = Backbone(name="torchvision:resnet18", options={"small_stem": 2}).build(1, (8, 8))
        assert made.get_submodule("conv1").weight.shape == (64, 1, 3, 3)  # pyright: ignore
        assert made.get_submodule("conv1").padding == (2, 2)

    def test_of_others_is_an_error(self):
        with pytest.raises(EffaceError, match="small_stem is an option of ResNets only"):
            Backbone(name="torchvision:mobilenet_v3_small", options={"small_stem": 1}).build(3, (32, 32))

    def test_of_the_small_resnets_equals_solo_learns(self):
        from torchvision import models

        ours = Backbone(name="resnet18", width=64, stride=1, options={"padding": 2}).build(3, (32, 32)).eval()
        theirs = models.resnet18()
        theirs.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
        theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
        theirs.load_state_dict(ours.state_dict())
        x = torch.rand(2, 3, 9, 9)
        torch.testing.assert_close(ours(x), theirs.eval()(x))
