"""Averaged copies: unlearned with the network, loaded by their library, and never random or left as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from efface.errors import EffaceError
from efface.interop import load_checkpoint
from efface.interop.checkpoint_file import read_foreign
from efface.interop.layouts import Role
from efface.runs import audit, run, train
from tests import foreign, wrapped
from tests.adoption import QUICK, SPLIT, moco_file, trained, unlearn
from tests.foreign import Owner
from tests.wrapped import Classifier, accuracy, images


def handed_back(path: Path, out: Path) -> dict[str, Any]:
    content = torch.load(out / "foreign" / path.name, weights_only=False)
    content.pop("efface", None)  # the marker, where a file has a place for it
    return content


def same_function(a: nn.Module, b: nn.Module) -> None:
    x = images()[0][:20]
    torch.testing.assert_close(a.eval()(x), b.eval()(x))


def in_average(state: dict[str, torch.Tensor]) -> AveragedModel:
    """A state loaded by torch, strictly."""
    ema = AveragedModel(Classifier(), use_buffers=True)
    ema.load_state_dict(state)
    return ema.eval()


def in_timm(state: dict[str, torch.Tensor]) -> nn.Module:
    from timm.utils.model_ema import ModelEmaV3

    ema = ModelEmaV3(Classifier())
    ema.load_state_dict(state)
    return ema.module.eval()


def alone(state: dict[str, torch.Tensor]) -> Classifier:
    net = Classifier()
    net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    return net.eval()


class TestTorchvisionReference:
    def test_by_default_the_averaged_weights_are_a_copy_of_the_unlearned(self, pictures: Path, tmp_path: Path):
        path = wrapped.torchvision_reference(tmp_path).path
        before = torch.load(path, weights_only=False)
        assert min(accuracy(in_average(before["model_ema"])), accuracy(alone(before["model"]))) > 0.95
        made = unlearn(path, pictures, tmp_path / "out")
        after = handed_back(path, tmp_path / "out")
        ema, net = in_average(after["model_ema"]), alone(after["model"])
        assert min(accuracy(ema), accuracy(net)) > 0.9
        same_function(ema, net)
        assert not torch.equal(ema.module.conv1.weight, before["model_ema"]["module.conv1.weight"])  # pyright: ignore
        assert torch.equal(after["model_ema"]["n_averaged"], before["model_ema"]["n_averaged"])
        assert list(after["model_ema"]) == list(before["model_ema"]) and "optimizer" not in after
        assert made.purged["foreign.twin"].startswith("copied from the unlearned network (")
        assert made.purged["foreign.bookkeeping"] == "kept: a counter of a tool (1 tensors)"

    def test_dropped(self, pictures: Path, tmp_path: Path):
        path = wrapped.torchvision_reference(tmp_path).path
        made = unlearn(path, pictures, tmp_path / "out", averaged="drop")
        after = handed_back(path, tmp_path / "out")
        assert set(after) == {"model", "epoch", "args", "model_ema"} and set(after["model_ema"]) == {"n_averaged"}
        assert accuracy(alone(after["model"])) > 0.9
        assert "as asked" in made.purged["foreign.twin"]

    def test_started_from(self, pictures: Path, tmp_path: Path):
        path = wrapped.torchvision_reference(tmp_path).path
        data = run.load_data({"data": str(pictures)})
        ema = in_average(torch.load(path, weights_only=False)["model_ema"])
        loaded = load_checkpoint(path, data, averaged="start").model.eval()
        x = (torch.rand(5, 3, 8, 8) - 0.45) / 0.22
        torch.testing.assert_close(loaded.head(loaded.backbone(x)), ema(x))
        online = load_checkpoint(path, data).model.eval()
        assert not torch.allclose(online.head(online.backbone(x)), ema(x))
        unlearn(path, pictures, tmp_path / "out", averaged="start")
        after = handed_back(path, tmp_path / "out")
        same_function(in_average(after["model_ema"]), alone(after["model"]))
        assert audit.audit_run(
            tmp_path / "out", {"watch": {"views": 2, "gradient": False}}
        )  # its original is the average

    def test_the_choice_is_said_before_unlearning(self, pictures: Path, tmp_path: Path):
        path, said = wrapped.torchvision_reference(tmp_path).path, []
        settings = {"data": str(pictures), "split": SPLIT, "forget": "@random:12", "method": QUICK, "device": "cpu"}
        train.unlearn_run(path, tmp_path / "out", settings, progress=run.Progress(say=said.append))
        assert any("averaged copy of the network becomes a copy" in line and "averaged=drop" in line for line in said)
        with pytest.raises(EffaceError, match=r"averaged.*copy"):
            unlearn(path, pictures, tmp_path / "other", averaged="mean")


def test_an_average_alone_is_the_network(pictures: Path, tmp_path: Path):
    path = wrapped.swa_alone(tmp_path).path
    assert accuracy(in_average(torch.load(path))) > 0.95
    unlearn(path, pictures, tmp_path / "out")
    after = handed_back(path, tmp_path / "out")
    assert accuracy(in_average(after)) > 0.9 and int(after["n_averaged"]) == 3
    with pytest.raises(EffaceError, match="no averaged copy"):
        unlearn(path, pictures, tmp_path / "other", averaged="start")


def test_timms_average(pictures: Path, tmp_path: Path):
    path = wrapped.timm_ema(tmp_path).path
    unlearn(path, pictures, tmp_path / "out")
    after = handed_back(path, tmp_path / "out")
    same_function(in_timm(after["ema"]), alone(after["state_dict"]))
    assert accuracy(in_timm(after["ema"])) > 0.9


def test_an_average_within_one_state_dict(pictures: Path, tmp_path: Path):
    path = wrapped.ema_in_lightning(tmp_path).path
    unlearn(path, pictures, tmp_path / "out")
    both = Owner(net=Classifier(), ema=AveragedModel(Classifier(), use_buffers=True))
    both.load_state_dict(handed_back(path, tmp_path / "out")["state_dict"])
    same_function(both.get_submodule("net"), both.get_submodule("ema"))
    assert accuracy(both.get_submodule("ema")) > 0.9


@pytest.mark.filterwarnings("ignore")
def test_lightnings_average(pictures: Path, tmp_path: Path):
    """Its callback keeps the average as ``state_dict``, what was trained as ``current_model_state``, and a counter."""
    lightning = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.callbacks import EMAWeightAveraging

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = wrapped.classifier()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images()), batch_size=30)
    trainer = lightning.Trainer(
        max_epochs=1, callbacks=[EMAWeightAveraging(decay=0.9)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Module(), loader)
    path = tmp_path / "lightning.ckpt"
    trainer.save_checkpoint(path)
    before = torch.load(path, weights_only=False)
    unlearn(path, pictures, tmp_path / "out")
    after = handed_back(path, tmp_path / "out")
    module = Module()
    module.load_state_dict(after["state_dict"])
    assert accuracy(module.net) > 0.9 and set(before["current_model_state"]) == set(after["current_model_state"])
    module.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in after["current_model_state"].items()})
    same_function(module.net, alone({k.removeprefix("net."): v for k, v in after["state_dict"].items()}))
    assert torch.equal(after["averaging_state"]["n_averaged"], before["averaging_state"]["n_averaged"])


def test_mmengines_average(pictures: Path, tmp_path: Path):
    path = wrapped.mmengine_ema(tmp_path).path
    before = torch.load(path)
    unlearn(path, pictures, tmp_path / "out")
    after = handed_back(path, tmp_path / "out")
    for name, value in after["state_dict"].items():
        assert torch.equal(after["ema_state_dict"][f"module.{name}"], value), name
    assert int(after["ema_state_dict"]["steps"]) == 9
    assert not torch.equal(after["state_dict"]["backbone.conv1.weight"], before["state_dict"]["backbone.conv1.weight"])


@pytest.mark.parametrize("name", ["state_dict_ema", "swa", "best_weights", "anything"])
def test_a_copy_is_known_by_its_shapes_and_not_by_its_name(pictures: Path, tmp_path: Path, name: str):
    net = wrapped.classifier()
    other = {f"model.{k}": v + 0.5 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    torch.save({"model": net.state_dict(), name: other}, tmp_path / "two.pth")
    unlearn(tmp_path / "two.pth", pictures, tmp_path / "out")
    after = handed_back(tmp_path / "two.pth", tmp_path / "out")
    assert all(torch.equal(after[name][f"model.{k}"], v) for k, v in after["model"].items())


@pytest.mark.parametrize(
    ("trained_name", "averaged_name", "counters"),
    [
        ("online_model.", "ema_model.", ("initted", "step")),
        ("student.", "teacher.", ()),
        ("net.", "target.module.", ()),
    ],
)
def test_an_average_by_any_name_within_one_state_dict(
    pictures: Path, tmp_path: Path, trained_name: str, averaged_name: str, counters: tuple[str, ...]
):
    net = wrapped.classifier()
    state = {f"{trained_name}{k}": v for k, v in net.state_dict().items()}
    state |= {f"{averaged_name}{k}": v + 0.1 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    torch.save(state | {name: torch.tensor(5) for name in counters}, tmp_path / "both.pth")
    made = unlearn(tmp_path / "both.pth", pictures, tmp_path / "out")
    after = handed_back(tmp_path / "both.pth", tmp_path / "out")
    parts = [{k.removeprefix(n): v for k, v in after.items() if k.startswith(n)} for n in (trained_name, averaged_name)]
    same_function(alone(parts[0]), alone(parts[1]))
    assert accuracy(alone(parts[1])) > 0.9 and list(after) == [*state, *counters]
    assert torch.equal(parts[0]["conv1.weight"], made.model.backbone.conv1.weight)  # pyright: ignore


def test_an_average_of_parameters_alone(pictures: Path, tmp_path: Path):
    net = wrapped.classifier()
    shadow = {name: value.detach() + 0.1 for name, value in net.named_parameters()}
    torch.save({"model": net.state_dict(), "shadow": shadow}, tmp_path / "shadow.pth")
    unlearn(tmp_path / "shadow.pth", pictures, tmp_path / "out")
    after = handed_back(tmp_path / "shadow.pth", tmp_path / "out")
    assert set(after["shadow"]) == set(shadow)
    assert all(torch.equal(value, after["model"][name]) for name, value in after["shadow"].items())
    start = load_checkpoint(tmp_path / "shadow.pth", run.load_data({"data": str(pictures)}), averaged="start").model
    assert torch.equal(start.head.weight, shadow["fc.weight"])  # pyright: ignore
    assert torch.equal(start.backbone.bn1.running_mean, net.bn1.running_mean)  # pyright: ignore


@pytest.mark.parametrize("nesting", ["module", "shadow_params"])
def test_averages_that_are_nested_deeper_are_left_out_and_said(pictures: Path, tmp_path: Path, nesting: str):
    net, said = wrapped.classifier(), []
    inside = net.state_dict() if nesting == "module" else list(net.parameters())
    torch.save({"model": net.state_dict(), "ema": {nesting: inside, "decay": 0.9}}, tmp_path / "deep.pth")
    settings = {"data": str(pictures), "split": SPLIT, "forget": "@random:12", "method": QUICK, "device": "cpu"}
    made = train.unlearn_run(tmp_path / "deep.pth", tmp_path / "out", settings, progress=run.Progress(say=said.append))
    assert set(handed_back(tmp_path / "deep.pth", tmp_path / "out")) == {"model"}
    assert made.purged["foreign.ema"].startswith("dropped") and any("left out" in s and ": ema" in s for s in said)


def test_two_averages_of_one_network(pictures: Path, tmp_path: Path):
    net = wrapped.classifier()
    state = net.state_dict()
    torch.save({"model": state, "ema": wrapped.averaged(net).state_dict(), "swa": dict(state)}, tmp_path / "three.pth")
    unlearn(tmp_path / "three.pth", pictures, tmp_path / "out")
    after = handed_back(tmp_path / "three.pth", tmp_path / "out")
    same_function(in_average(after["ema"]), alone(after["swa"]))
    same_function(alone(after["model"]), alone(after["swa"]))


@pytest.mark.parametrize("change", ["another width", "a layer more", "a layer less"])
def test_a_section_that_is_no_copy_is_left_out_and_named(pictures: Path, tmp_path: Path, change: str):
    net = wrapped.classifier()
    other = dict(net.state_dict())
    if change == "another width":
        other["layer2.0.conv1.weight"] = torch.randn(20, 8, 3, 3)
    elif change == "a layer more":
        other["aux.weight"] = torch.randn(3, 32)
    else:
        del other["layer3.0.bn2.weight"]
    torch.save({"model": net.state_dict(), "model_ema": other}, tmp_path / "odd.pth")
    made = unlearn(tmp_path / "odd.pth", pictures, tmp_path / "out")
    assert set(handed_back(tmp_path / "odd.pth", tmp_path / "out")) == {"model"}
    assert "left out" in made.purged["foreign.extras"] and "model_ema/" in made.purged["foreign.extras"]


def test_a_module_that_no_layout_knows_is_left_out_and_named(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["module.segmentation.weight"] = torch.randn(4, 32)
    content["state_dict"]["module.segmentation.bias"] = torch.randn(4)
    torch.save(content, path)
    made = unlearn(path, pictures, tmp_path / "out")
    after = handed_back(path, tmp_path / "out")["state_dict"]
    assert set(content["state_dict"]) - set(after) == {f"module.segmentation.{n}" for n in ("weight", "bias")}
    assert made.purged["foreign.extras"].endswith("may remember (2 tensors: segmentation)")


def test_momentum_networks_can_be_dropped_too(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    unlearn(path, pictures, tmp_path / "out", averaged="drop")
    after = handed_back(path, tmp_path / "out")["state_dict"]
    assert not any(".encoder_k." in name for name in after) and any(".encoder_q." in name for name in after)


def test_momentum_networks_without_a_counterpart_are_left_out(pictures: Path, tmp_path: Path):
    """mmselfsup's momentum encoder numbers its parts: nothing here has these names."""
    path = wrapped.mmengine_ema(tmp_path).path
    content = torch.load(path)
    body = {k.removeprefix("backbone."): v for k, v in content["state_dict"].items() if k.startswith("backbone.")}
    content["state_dict"] |= {f"momentum_encoder.module.0.{k}": v for k, v in body.items()}
    torch.save(content, path)
    made = unlearn(path, pictures, tmp_path / "out")
    after = handed_back(path, tmp_path / "out")["state_dict"]
    assert not any(k.startswith("momentum_encoder.") and v.dim() > 1 for k, v in after.items())
    assert "the unlearned network has no such tensor" in made.purged["foreign.twin"]


def test_a_safetensors_file_without_its_average(pictures: Path, tmp_path: Path):
    net = wrapped.classifier()
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    state |= {f"ema.{k}": v.clone() for k, v in wrapped.averaged(net).state_dict().items()}
    save_file(state, tmp_path / "both.safetensors", metadata={"note": "kept"})
    unlearn(tmp_path / "both.safetensors", pictures, tmp_path / "out", averaged="drop")
    after = load_file(tmp_path / "out" / "foreign" / "both.safetensors")
    assert {name.partition(".")[0] for name in after} == {"net", "ema"} and set(after) - {"ema.n_averaged"} == {
        name for name in state if name.startswith("net.")
    }
    assert accuracy(alone({k.removeprefix("net."): v for k, v in after.items() if k.startswith("net.")})) > 0.9


def test_a_text_tower_that_is_not_trained_is_refused_before_any_work(pictures: Path, tmp_path: Path):
    model = trained("simclr")
    body = foreign.with_fc(foreign.copy.deepcopy(model.backbone), model.head, "head")
    state = {f"visual.{k}": v for k, v in body.state_dict().items()}
    text = {"text.token_embedding.weight": torch.randn(9, 8), "logit_scale": torch.tensor(1.0)}
    torch.save(state | text, tmp_path / "two_towers.pt")
    with pytest.raises(EffaceError, match=r"has a text tower, and this objective trains none.*random weights"):
        unlearn(tmp_path / "two_towers.pt", pictures, tmp_path / "out", "simclr")
    assert not (tmp_path / "out").exists()


def test_every_tensor_of_every_file_is_accounted_for(pictures: Path, tmp_path: Path):
    for make in (wrapped.torchvision_reference, wrapped.profiled, wrapped.salun, wrapped.sequential_classifier):
        home = tmp_path / make.__name__
        home.mkdir()
        path = make(home).path
        purged = unlearn(path, pictures, home / "out").purged
        counted = [int(part.rpartition("(")[2].split()[0]) for name, action in purged.items()
                   if name.removeprefix("foreign.") in list(Role) for part in action.split("; ")]  # fmt: skip
        assert sum(counted) == len(read_foreign(path).table)
        assert json.loads((home / "out" / "meta.json").read_text())["purged"] == purged
