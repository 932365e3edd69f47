"""Folders of transformers: loaded with the library's own classes, and exported so that the library loads them again."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.errors import EffaceError
from efface.interop.architecture import guess_architecture
from efface.interop.checkpoint_file import read_foreign
from efface.interop.layouts import Role
from efface.runs import foreign, run
from efface.training.checkpoint import Checkpoint
from efface.training.networks import huggingface
from efface.training.networks.backbones import Backbone
from tests.adoption import QUICK, imported, unlearn
from tests.checkpoints import SMALL

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
DINO = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
CONV = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "patch_size": 1}
KINDS: dict[str, dict[str, Any]] = {
    "vit": SMALL,
    "deit": SMALL,
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
    "convnext": CONV,
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def saved(kind: str, folder: Path, *, classifier: bool, **changed: Any) -> Any:
    """A network of the library, random, saved in its own way; in evaluation mode."""
    auto = transformers.AutoModelForImageClassification if classifier else transformers.AutoModel
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind] | {"num_labels": 3} | changed)
    if kind == "deit" and classifier:
        config.architectures = ["DeiTForImageClassification"]  # it has another with two heads
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        net = auto.from_config(config).eval()
        with torch.no_grad():
            for value in net.parameters():
                value += 0.1 * torch.randn(value.shape)  # zeros and ones would not tell one place from another
        net.save_pretrained(folder)
    stated = {"image_mean": MEAN, "image_std": STD, "image_processor_type": "ViTImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return net


def loaded(folder: Path, *, classifier: bool) -> Any:
    auto = transformers.AutoModelForImageClassification if classifier else transformers.AutoModel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return auto.from_pretrained(folder).eval()


def normalized(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_classifier_computes_what_the_library_computes(pictures: Path, tmp_path: Path, kind: str):
    net = saved(kind, tmp_path / "net", classifier=True)
    model = imported(tmp_path / "net", pictures).model.eval()
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(model(x), net(normalized(x)).logits)
    assert set(model.backbone.state_dict()) == set(read_foreign(tmp_path / "net").part(Role.BACKBONE))


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_encoder_computes_what_the_library_pools(pictures: Path, tmp_path: Path, kind: str):
    net = saved(kind, tmp_path / "net", classifier=False)
    model = imported_without_head(tmp_path / "net", pictures).model.eval()
    x = torch.rand(4, 3, 8, 8)
    out = net(pixel_values=normalized(x))
    torch.testing.assert_close(model.features(x), out.pooler_output.flatten(1))


def imported_without_head(path: Path, pictures: Path) -> Checkpoint:
    settings = {"objective": "simclr", "fresh_head": True}
    return foreign.load_foreign(path, run.load_data({"data": str(pictures)}), settings, 0)


@pytest.mark.parametrize(("kind", "classifier"), [("vit", True), ("vit", False), ("dinov2", True), ("dinov2", False)])
def test_what_comes_back_is_loaded_by_the_library_with_the_same_features(
    pictures: Path, tmp_path: Path, kind: str, classifier: bool
):
    saved(kind, tmp_path / "net", classifier=classifier)
    more: dict[str, Any] = {} if classifier else {"fresh_head": True, "objective": "simclr"}
    made = unlearn(tmp_path / "net", pictures, tmp_path / "out", check=False, **more)
    home = tmp_path / "out" / "foreign" / "net"
    net, before = loaded(home, classifier=classifier), loaded(tmp_path / "net", classifier=classifier)
    x = torch.rand(4, 3, 8, 8)
    model = made.model.eval().requires_grad_(False)
    for one in (net, before):
        one.requires_grad_(False)
    if classifier:
        ours, theirs, old = model(x), net(normalized(x)).logits, before(normalized(x)).logits
    else:
        ours = model.features(x)
        theirs, old = (one(pixel_values=normalized(x)).pooler_output for one in (net, before))
    assert float((ours - theirs).abs().max()) < 1e-5
    assert float((ours - old).abs().max()) > 1e-4
    assert Checkpoint.load(tmp_path / "out").model.digest() == made.model.digest()
    assert (home / "preprocessor_config.json").read_text() == (tmp_path / "net/preprocessor_config.json").read_text()


def test_a_folder_without_a_head_says_what_can_be_done(pictures: Path, tmp_path: Path):
    saved("dinov2", tmp_path / "net", classifier=False)
    with pytest.raises(EffaceError, match=r"no head.*fresh_head=true"):
        unlearn(tmp_path / "net", pictures, tmp_path / "out", "simclr", check=False)


def test_normalization_and_size_are_those_that_the_folder_states(pictures: Path, tmp_path: Path):
    saved("vit", tmp_path / "net", classifier=True)
    found = guess_architecture(read_foreign(tmp_path / "net"))
    assert (found.mean, found.std, found.size, found.channels) == (MEAN, STD, (8, 8), 3)
    (tmp_path / "net" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert guess_architecture(read_foreign(tmp_path / "net")).mean == (0.0, 0.0, 0.0)
    np.savez(tmp_path / "large.npz", x=np.zeros((180, 3, 16, 16), np.uint8), y=np.arange(180) % 3)
    with pytest.raises(EffaceError, match=r"looks at 8x8.*16x16.*data.size=8"):
        imported(tmp_path / "net", tmp_path / "large.npz")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EffaceError, match=r"library transformers is not installed.*needed for hf:vit.*efface\[hf\]"):
        Backbone(name="hf:vit").build(3, (8, 8))


def test_unsupported_model_types_and_options_are_refused(pictures: Path, tmp_path: Path):
    with pytest.raises(EffaceError, match=r"the type 'swin' are not supported.*vit, deit"):
        Backbone(name="hf:swin").build(3, (8, 8))
    with pytest.raises(EffaceError, match=r"hf:vit cannot be built with these options"):
        Backbone(name="hf:vit", options={"take": "last"}).build(3, (8, 8))


def test_a_version_that_does_not_save_tensors_as_they_are_is_refused(monkeypatch: pytest.MonkeyPatch):
    net = transformers.AutoModel.from_config(transformers.ViTConfig(**SMALL))
    real = net.save_pretrained

    def merged(folder: Any, state_dict: Any) -> None:
        rest = list(state_dict)[1:]
        return real(folder, state_dict={name: state_dict[name] for name in rest})

    monkeypatch.setattr(net, "save_pretrained", merged)
    with pytest.raises(EffaceError, match="as they are"):
        huggingface._find_file_names(net)


def test_copies_and_reloads_bear_the_names_of_the_files(tmp_path: Path):
    import copy

    net = Backbone(name="hf:vit", options={k: v for k, v in SMALL.items() if k != "image_size"}).build(3, (8, 8)).eval()
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for value in copied.parameters():
            value.zero_()
    assert list(copied.state_dict()) == list(net.state_dict())
    assert "encoder.layer.0.attention.attention.query.weight" in net.state_dict()
    copied.load_state_dict(net.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(x), copied(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        copied.load_state_dict({name: value for name, value in net.state_dict().items() if "cls_token" not in name})


def test_every_kind_is_tested():
    alone = {huggingface.CLIP_VISION}  # the image tower of a whole CLIP: tests/interop/test_transformers_clip.py
    assert set(KINDS) | alone == set(huggingface.SUPPORTED_MODEL_TYPES)
    assert QUICK["epochs"] == 1
