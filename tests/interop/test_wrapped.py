"""Files that tools and tutorials leave behind go in, compute what they did, and are loaded again by what wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.interop import load_checkpoint
from efface.interop.architecture import IMAGENET, guess_architecture
from efface.interop.checkpoint_file import read_foreign
from efface.interop.inspect import inspect_checkpoint
from efface.interop.layouts import Role
from efface.interop.recipe import require_stated
from efface.runs.run import load_data
from tests import foreign, wrapped
from tests.adoption import drawn, imported, moco_file, trained, unlearn
from tests.foreign import Owner, own
from tests.wrapped import Classifier, Normalized, accuracy, classifier


def after(path: Path, out: Path) -> Any:
    content = torch.load(out / "foreign" / path.name, weights_only=False)
    content.pop("efface", None)  # the marker, where a file has a place for it
    return content


class TestSalUn:
    def test_its_layer_is_the_normalization(self, pictures: Path, tmp_path: Path):
        mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
        net = classifier(Normalized)
        net.normalize = Owner(mean=torch.tensor(mean).view(3, 1, 1), std=torch.tensor(std).view(3, 1, 1))
        torch.save({"state_dict": net.state_dict()}, tmp_path / "salun.pth.tar")
        made = imported(tmp_path / "salun.pth.tar", pictures)
        x = torch.rand(4, 3, 8, 8)
        torch.testing.assert_close(made.model.eval()(x), net(x))
        assert made.recipe.mean == pytest.approx(mean)

    def test_back_in_its_own_network(self, pictures: Path, tmp_path: Path):
        path = wrapped.salun(tmp_path).path
        unlearn(path, pictures, tmp_path / "out")
        net = Normalized((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        net.load_state_dict(after(path, tmp_path / "out")["state_dict"])
        x, y = (torch.from_numpy(part) for part in drawn())
        assert torch.equal(net.normalize.mean.flatten(), torch.tensor(IMAGENET[0]))  # pyright: ignore
        assert float((net.eval()(x.float() / 255).argmax(1) == y).float().mean()) > 0.9

    def test_in_an_average_and_in_momentum_encoders_too(self, pictures: Path, tmp_path: Path):
        net = classifier(Normalized)
        content = {"model": net.state_dict(), "model_ema": wrapped.averaged(net).state_dict()}
        torch.save(content, tmp_path / "both.pth")
        unlearn(tmp_path / "both.pth", pictures, tmp_path / "out")
        state = after(tmp_path / "both.pth", tmp_path / "out")
        again = torch.optim.swa_utils.AveragedModel(Normalized(), use_buffers=True)
        again.load_state_dict(state["model_ema"])
        assert torch.equal(again.module.conv1.weight, state["model"]["conv1.weight"])  # pyright: ignore
        moco = torch.load(moco_file(trained("moco", queue=24), tmp_path), weights_only=True)
        for part in ("encoder_q", "encoder_k"):
            moco["state_dict"] |= {f"module.{part}.normalize.{k}": v for k, v in own(net.normalize).items()}  # pyright: ignore
        torch.save(moco, tmp_path / "moco.pth.tar")
        unlearn(tmp_path / "moco.pth.tar", pictures, tmp_path / "moco")
        assert list(after(tmp_path / "moco.pth.tar", tmp_path / "moco")["state_dict"]) == list(moco["state_dict"])

    @pytest.mark.parametrize(
        ("names", "scale"),
        [(("normalizer.new_mean", "normalizer.new_std"), 1), (("mu", "sigma"), 1), (("mean", "std"), 1),
         (("pixel_mean", "pixel_std"), 255), (("data_preprocessor.mean", "data_preprocessor.std"), 255)],
    )  # fmt: skip
    def test_by_other_names(self, pictures: Path, tmp_path: Path, names: tuple[str, str], scale: int):
        state = classifier().state_dict()
        buffers = (torch.tensor(row).view(1, 3, 1, 1) * scale for row in IMAGENET)
        torch.save(state | dict(zip(names, buffers, strict=True)), tmp_path / "named.pth")
        found = guess_architecture(read_foreign(tmp_path / "named.pth"))
        assert found.mean == pytest.approx(IMAGENET[0]) and found.std == pytest.approx(IMAGENET[1])
        assert imported(tmp_path / "named.pth", pictures).model.digest()


def test_counters_of_a_profiler_are_kept(pictures: Path, tmp_path: Path):
    path = wrapped.profiled(tmp_path).path
    before = torch.load(path)
    unlearn(path, pictures, tmp_path / "out")
    state = after(path, tmp_path / "out")
    net = Classifier()
    assert not net.load_state_dict(state, strict=False).missing_keys and accuracy(net) > 0.9
    assert all(torch.equal(state[name], before[name]) for name in before if "total_" in name)
    assert list(state) == list(before)


@pytest.mark.parametrize("make", [wrapped.compiled_inside, wrapped.wrapped_inside])
def test_words_of_tools_within_names(pictures: Path, tmp_path: Path, make: Any):
    plain = moco_file(trained("moco", queue=24), tmp_path)
    content = torch.load(plain, weights_only=True)
    word = "_orig_mod" if make is wrapped.compiled_inside else "module"
    top = "module." if make is wrapped.compiled_inside else ""
    content["state_dict"] = {
        top
        + k.removeprefix("module.")
        .replace("encoder_q.", f"encoder_q.{word}.")
        .replace("encoder_k.", f"encoder_k.{word}."): v
        for k, v in content["state_dict"].items()
    }
    torch.save(content, tmp_path / "named.pth")
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(
        imported(tmp_path / "named.pth", pictures).model.eval()(x), imported(plain, pictures).model.eval()(x)
    )
    unlearn(tmp_path / "named.pth", pictures, tmp_path / "out")
    assert list(after(tmp_path / "named.pth", tmp_path / "out")["state_dict"]) == list(content["state_dict"])


def test_torch_compiles_own_names(pictures: Path, tmp_path: Path):
    net = nn.Module()
    net.backbone = torch.compile(wrapped.sequential(classifier()))  # pyright: ignore
    net.fc = classifier().fc
    assert any("._orig_mod." in name for name in net.state_dict())
    torch.save(net.state_dict(), tmp_path / "compiled.pth")
    unlearn(tmp_path / "compiled.pth", pictures, tmp_path / "out")
    net.load_state_dict(after(tmp_path / "compiled.pth", tmp_path / "out"))
    assert accuracy(nn.Sequential(net.backbone._orig_mod, nn.Flatten(), net.fc)) > 0.9  # pyright: ignore


class TestLightly:
    def test_split_batch_norm_and_its_tutorials_file(self, pictures: Path, tmp_path: Path):
        from lightly.models import ResNetGenerator

        net = ResNetGenerator("resnet-9", width=1 / 8, num_splits=4)
        body = nn.Sequential(*list(net.children())[:-1], nn.AdaptiveAvgPool2d(1))
        with torch.no_grad():
            for _ in range(3):
                body.train()(torch.rand(16, 3, 8, 8))
        trained_state = {name: value.clone() for name, value in body.state_dict().items()}
        torch.save({"resnet18_parameters": trained_state}, tmp_path / "model.pth")
        data = load_data({"data": str(pictures)})
        loaded = load_checkpoint(tmp_path / "model.pth", data, fresh_head=True)
        x = torch.rand(4, 3, 8, 8)
        expected = body.eval()(x).flatten(1)
        torch.testing.assert_close(loaded.model.eval().backbone(x), expected)
        options = {"fresh_head": True, "objective": "simclr", "check": False}
        made = unlearn(tmp_path / "model.pth", pictures, tmp_path / "out", **options)
        again = ResNetGenerator("resnet-9", width=1 / 8, num_splits=4)
        theirs = nn.Sequential(*list(again.children())[:-1], nn.AdaptiveAvgPool2d(1))
        theirs.load_state_dict(after(tmp_path / "model.pth", tmp_path / "out")["resnet18_parameters"])
        torch.testing.assert_close(theirs.eval()(x).flatten(1), made.model.eval().backbone(x))
        assert not torch.allclose(theirs(x).flatten(1), expected)

    def test_moco_with_split_batch_norm(self, pictures: Path, tmp_path: Path):
        from lightly.models import ResNetGenerator
        from lightly.models.modules.heads import MoCoProjectionHead

        def build() -> nn.Module:
            nets = [ResNetGenerator("resnet-9", width=1 / 8, num_splits=2) for _ in "qk"]
            bodies = [nn.Sequential(*list(net.children())[:-1], nn.AdaptiveAvgPool2d(1)) for net in nets]
            heads = [MoCoProjectionHead(64, 16, 8) for _ in "qk"]
            return Owner(
                backbone=bodies[0], projection_head=heads[0],
                backbone_momentum=bodies[1], projection_head_momentum=heads[1],
            )  # fmt: skip

        net, x = build(), torch.rand(16, 3, 8, 8)
        net.get_submodule("backbone").train()(x)
        torch.save(foreign.lightning(net), tmp_path / "moco.ckpt")
        made = unlearn(tmp_path / "moco.ckpt", pictures, tmp_path / "out", check=False)
        again = build()
        again.load_state_dict(after(tmp_path / "moco.ckpt", tmp_path / "out")["state_dict"])
        for name in ("backbone", "backbone_momentum"):
            theirs = again.eval().get_submodule(name)(x).flatten(1)
            torch.testing.assert_close(theirs, made.model.eval().backbone(x))

    def test_its_classifier(self, pictures: Path, tmp_path: Path):
        path = wrapped.sequential_classifier(tmp_path).path
        unlearn(path, pictures, tmp_path / "out")
        net = Owner(backbone=wrapped.sequential(Classifier()), fc=nn.Linear(32, 3))
        net.load_state_dict(after(path, tmp_path / "out")["state_dict"])
        assert accuracy(nn.Sequential(net.get_submodule("backbone"), nn.Flatten(), net.get_submodule("fc"))) > 0.9

    @pytest.mark.parametrize("owner", ["", "backbone.", "encoder.", "model.", "feature_extractor.", "module.features."])
    def test_children_under_any_owner(self, pictures: Path, tmp_path: Path, owner: str):
        net = classifier()
        state = {f"{owner}{k}": v for k, v in wrapped.sequential(net).state_dict().items()}
        if owner.endswith("features."):
            state |= {f"module.fc.{k}": v for k, v in net.fc.state_dict().items()}
        torch.save(state, tmp_path / "children.pth")
        model = load_checkpoint(tmp_path / "children.pth", load_data({"data": str(pictures)}), backbone_only=True).model
        x = torch.rand(4, 3, 8, 8)
        torch.testing.assert_close(model.eval().backbone(x), wrapped.sequential(net).eval()(x).flatten(1))


class TestHeads:
    def test_a_classifier_with_an_mlp(self, pictures: Path, tmp_path: Path):
        path = wrapped.mlp_head(tmp_path).path
        head = nn.Sequential(nn.Dropout(), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3))
        net = Classifier(head)
        net.load_state_dict(torch.load(path))
        assert accuracy(net) > 0.95
        loaded = load_checkpoint(path, load_data({"data": str(pictures)}))
        assert loaded.objective == "cross_entropy"
        assert any("head assumed: none, linear, relu, none, linear" in note for note in loaded.notes)
        x = torch.rand(4, 3, 8, 8)
        torch.testing.assert_close(loaded.model.eval().head(loaded.model.backbone(x)), net(x))
        unlearn(path, pictures, tmp_path / "out")
        net.load_state_dict(after(path, tmp_path / "out"))
        assert accuracy(net) > 0.9

    def test_beside_its_owner_with_normalization(self, pictures: Path, tmp_path: Path):
        body = classifier()
        head = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
        state = {f"backbone.{k}": v for k, v in wrapped.split(body)[0].items()}
        torch.save(state | {f"classifier.{k}": v for k, v in head.state_dict().items()}, tmp_path / "two.pth")
        loaded = load_checkpoint(tmp_path / "two.pth", load_data({"data": str(pictures)}))
        x = torch.rand(4, 3, 8, 8)
        body.fc = nn.Identity()
        torch.testing.assert_close(loaded.model.eval().head(loaded.model.backbone(x)), head(body(x)))

    @pytest.mark.parametrize("name", ["linear", "clf", "model.logits"])
    def test_by_any_name_beside_its_owner(self, pictures: Path, tmp_path: Path, name: str):
        net = classifier()
        top = "model." if name.startswith("model.") else ""
        state = {f"{top}backbone.{k}": v for k, v in wrapped.split(net)[0].items()}
        torch.save(state | {f"{name}.{k}": v for k, v in own(net.fc).items()}, tmp_path / "named.pth")
        model = imported(tmp_path / "named.pth", pictures).model.eval()
        x = torch.rand(4, 3, 8, 8)
        torch.testing.assert_close(model.head(model.backbone(x)), net(x))

    def test_other_activations_can_be_stated(self, pictures: Path, tmp_path: Path):
        path = wrapped.mlp_head(tmp_path).path
        layers = ["none", "linear", "gelu", "none", "linear"]
        loaded = load_checkpoint(
            path, load_data({"data": str(pictures)}), recipe={"objective": {"name": "cross_entropy", "layers": layers}}
        )
        assert type(loaded.model.head[2]) is nn.GELU and not any("head assumed" in n for n in loaded.notes)  # pyright: ignore

    def test_with_other_widths_is_refused(self, pictures: Path, tmp_path: Path):
        head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        torch.save(Classifier(head).state_dict(), tmp_path / "narrowing.pth")
        with pytest.raises(EffaceError, match=r"(?s)head in .*not one that the objective"):
            load_checkpoint(tmp_path / "narrowing.pth", load_data({"data": str(pictures)}), objective="cross_entropy")


# ---- heads of attention, which no weight shows ----


def large(folder: Path, side: int = 16) -> Path:
    import numpy as np

    x = np.random.default_rng(0).integers(0, 255, (180, 3, side, side), dtype=np.uint8)
    np.savez(folder / "large.npz", x=x, y=np.arange(180) % 3)
    return folder / "large.npz"


def normalized(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in IMAGENET)
    return (x - mean) / std


def test_torchvisions_vit(tmp_path: Path):
    from torchvision.models import vit_b_32

    net = vit_b_32(num_classes=3, image_size=32).eval()
    nn.init.normal_(net.heads.head.weight)  # pyright: ignore
    torch.save(net.state_dict(), tmp_path / "vit_b_32.pth")
    found = guess_architecture(read_foreign(tmp_path / "vit_b_32.pth"))
    assert found.size == (32, 32) and found.backbone is not None and found.backbone.name == "torchvision:vit_b_32"
    model = imported(tmp_path / "vit_b_32.pth", large(tmp_path, 32)).model.eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), net(normalized(x)), rtol=1e-4, atol=1e-4)


def test_timms_vit_of_a_known_width(tmp_path: Path):
    net = foreign.vit(num_classes=3, embed_dim=192, num_heads=3).eval()
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    model = imported(tmp_path / "vit.pth", large(tmp_path)).model.eval()
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(x), net(normalized(x)), rtol=1e-4, atol=1e-4)


def test_timms_vit_of_another_width_is_asked_for(tmp_path: Path):
    net = foreign.vit(num_classes=3).eval()
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(EffaceError, match=r"do not show num_heads.*--set recipe.backbone.options.num_heads=N"):
        imported(tmp_path / "vit.pth", large(tmp_path))
    assert any("set recipe.backbone.options.num_heads" in n for n in inspect_checkpoint(tmp_path / "vit.pth").notes)
    model = imported(tmp_path / "vit.pth", large(tmp_path), backbone={"options": {"num_heads": 2}}).model.eval()
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(x), net(normalized(x)), rtol=1e-4, atol=1e-4)


class TestOpenClip:
    def test_the_names_with_these_shapes_are_listed(self, tmp_path: Path):
        library = pytest.importorskip("open_clip", reason="open_clip is not installed")
        from efface.interop.architecture import _guess_open_clip
        from efface.interop.checkpoint_file import ForeignCheckpoint, recognize_names

        with torch.device("meta"):
            net = library.CLIP(**{k: v for k, v in library.get_model_config("ViT-B-32").items() if k != "custom_text"})
        state = dict(net.state_dict())
        names, layout = recognize_names(state, {})
        path = tmp_path / "x.pt"
        path.write_bytes(b"x")
        container: Any = type("Shapes", (), {"state": state, "meta": {}, "path": path})()
        seen = ForeignCheckpoint(container, layout, layout.table(names.values()))
        shapes = {name: tuple(value.shape) for name, value in seen.part(Role.BACKBONE).items()}
        found = _guess_open_clip(shapes, seen)
        assert found is not None and {"open_clip:ViT-B-32", "open_clip:ViT-B-32-quickgelu"} <= set(found.alternatives)
        assert not any("B-16" in name or "256" in name for name in found.alternatives)
        asked = "options.head_width", "options.quick_gelu"
        assert {f"backbone.{one}" for one in asked} < set(found.unshown) and len(found.unshown) == 4
        with pytest.raises(EffaceError, match=r"ViT-B-32.*recipe.backbone.name=\S+ --set recipe.objective.text.name="):
            require_stated(seen, found, "clip", {})
        named = {"backbone": {"name": "open_clip:ViT-B-32"}, "objective": {"text": {"name": "open_clip:ViT-B-32"}}}
        require_stated(seen, found, "clip", named)
