"""open_clip: towers by name and by configuration, and its checkpoints unlearned and handed back to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from efface import api
from efface.auditing.observers.observe import observe_model
from efface.auditing.observers.settings import ObservationSettings
from efface.errors import EffaceError
from efface.interop.architecture import guess_architecture
from efface.interop.checkpoint_file import read_foreign
from efface.interop.layouts import Role
from efface.interop.load import load_checkpoint
from efface.interop.text_towers import read_text_tower
from efface.runs import run, train
from efface.runs.foreign import load_foreign
from efface.training import defaults
from efface.training.networks.backbones import Backbone
from efface.training.networks.text import TextEncoder
from efface.training.objectives import Clip
from tests import tiny
from tests.adoption import SPLIT, drawn

OPEN_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of open_clip's models."""
open_clip = pytest.importorskip("open_clip", reason="the extra clip is not installed")
VISION = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
CONFIG: dict[str, Any] = {"embed_dim": 6, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture(scope="module")
def library_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**CONFIG).eval()
    open_clip.model.set_model_preprocess_cfg(model, dict(zip(("mean", "std"), OPEN_CLIP, strict=True)))
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Colored pictures with a caption each, as arrays."""
    x, y = drawn()
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez(path, x=x, y=y, text=np.array(tiny.captions(y)), classes=np.array(["low", "middle", "high"]))
    return path


def folder_of(model, home: Path) -> Path:
    """As open_clip writes a model for the hub."""
    from open_clip.push_to_hf_hub import save_config_for_hf

    home.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, home / "open_clip_model.safetensors")
    save_config_for_hf(model, home / "open_clip_config.json", model_config=CONFIG)
    return home


def file_of(model, home: Path) -> Path:
    """As its trainer does: no configuration, names as in parallel training, an optimizer."""
    home.mkdir()
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    moments = torch.optim.AdamW(model.parameters()).state_dict()
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": moments}, home / "epoch_3.pt")
    return home / "epoch_3.pt"


def settings(pictures, method=None, **more):
    method = method or {"name": "finetune", "epochs": 1, "batch_size": 30}
    return {"data": str(pictures), "split": SPLIT, "forget": "@random:12", "method": method, "device": "cpu"} | more


def compared(theirs, ours, x, captions):
    """Largest difference of both towers' features, in their units."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in OPEN_CLIP)
    tokens = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])(list(captions))
    with torch.no_grad():
        apart = [
            theirs.encode_image((x - mean) / std) - ours(x),
            theirs.encode_text(tokens) - ours.encode_text(captions),
        ]
    return max(float(one.abs().max()) for one in apart)


def shown(capsys, what, apart):
    """Print a difference past pytest's capture."""
    with capsys.disabled():
        sys.stdout.write(f" [{what}: largest difference {apart:.1e}]")


def inputs():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)), list(tiny.captions(np.arange(5) % 3))


def test_a_folder_is_adopted_with_the_same_features(library_model, pictures, tmp_path, capsys):
    path = folder_of(library_model, tmp_path / "clip")
    start = load_foreign(path, run.load_data({"data": str(pictures)}), {}, 0)
    apart = compared(library_model, start.model.eval(), *inputs())
    shown(capsys, "adopted from open_clip", apart)
    assert apart < 1e-5
    assert float(start.model.scale.detach()) == float(library_model.logit_scale.detach())
    assert start.recipe.mean == pytest.approx(OPEN_CLIP[0]) and not start.trained


@pytest.mark.parametrize("method", ["finetune", "alignment_calibration"])
def test_what_was_unlearned_is_loaded_by_open_clip_with_the_same_features(
    library_model, pictures, tmp_path, capsys, method
):
    path = folder_of(library_model, tmp_path / "clip")
    how = {"name": method, "epochs": 1, "batch_size": 30, "optim": {"lr": 0.05}}
    made = train.unlearn_run(path, tmp_path / "out", settings(pictures, how, check=False))
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out' / 'foreign' / 'clip'}", pretrained="").eval()
    x, captions = inputs()
    apart = compared(theirs, made.model.eval(), x, captions)
    shown(capsys, f"{method}, handed back to open_clip", apart)
    assert apart < 1e-5
    assert float(theirs.logit_scale.detach()) == float(made.model.scale.detach())
    assert compared(library_model, made.model, x, captions) > 1e-3, "nothing was unlearned"
    moved = [k for k, v in theirs.state_dict().items() if not torch.equal(v, library_model.state_dict()[k])]
    assert {"logit_scale", "text_projection", "visual.proj", "visual.conv1.weight"} <= set(moved)
    purged = json.loads((tmp_path / "out" / "meta.json").read_text())["purged"]
    assert purged["foreign.text"].startswith("unlearned") and purged["foreign.scale"].startswith("unlearned")
    assert not any("afresh" in fate for fate in purged.values())


def test_its_trainers_file_goes_the_same_way_once_heads_are_said(library_model, pictures, tmp_path):
    path = file_of(library_model, tmp_path / "run")
    heads = {"backbone": {"options": {"head_width": 8}}, "objective": {"text": {"options": {"heads": 2}}}}
    made = train.unlearn_run(path, tmp_path / "out", settings(pictures, check=False, recipe=heads))
    back = read_foreign(tmp_path / "out" / "foreign" / "epoch_3.pt")
    assert back.layout == read_foreign(path).layout and "optimizer" not in back.container.content
    with torch.random.fork_rng():
        theirs = open_clip.CLIP(**CONFIG).eval()
    theirs.load_state_dict({k.removeprefix("module."): v for k, v in back.container.state.items()})
    assert compared(theirs, made.model.eval(), *inputs()) < 1e-5


def test_an_audit_reads_the_foreign_original_again(library_model, pictures, tmp_path):
    from efface.runs import audit

    path = folder_of(library_model, tmp_path / "clip")
    train.unlearn_run(path, tmp_path / "out", settings(pictures, check=False))
    watch = {"views": 2, "bank": 20}
    result = audit.audit_run(tmp_path / "out", {"watch": watch, "device": "cpu"})
    assert {one.signal for one in result.verdict.signals} == {"backbone.margin", "pair.margin"}
    assert any(finding.name == "retrieval.test.zero_shot" for finding in result.findings)


def test_shapes_alone_show_both_towers_but_not_the_heads(library_model, tmp_path):
    seen = read_foreign(file_of(library_model, tmp_path / "run"))
    found, text = guess_architecture(seen), read_text_tower(seen)
    assert found.size == (8, 8) and found.backbone.options["width"] == 16 and found.backbone.options["layers"] == 1
    assert found.unshown == ("backbone.options.head_width", "objective.text.options.heads")
    assert text["dim"] == 6 and text["text"]["options"]["context_length"] == 8
    assert not seen.part(Role.EXTRAS)


def test_heads_that_no_weight_shows_must_be_stated(pictures, library_model, tmp_path):
    path = file_of(library_model, tmp_path / "run")
    data = run.load_data({"data": str(pictures)})
    with pytest.raises(EffaceError, match=r"do not show head_width and heads.*options.head_width=N.*options.heads=N"):
        load_checkpoint(path, data)
    with pytest.raises(EffaceError, match="do not show heads"):
        load_checkpoint(path, data, recipe={"backbone": {"options": {"head_width": 8}}})
    text = {"name": "clip", "text": {"options": {"heads": 2}}}
    model = load_checkpoint(path, data, recipe={"backbone": {"options": {"head_width": 8}}, "objective": text}).model
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(model.eval()(x), library_model.encode_image((x - model.mean) / model.std))


def test_a_bias_beside_the_scale_is_said(library_model, tmp_path):
    home = tmp_path / "siglip"
    home.mkdir()
    torch.save({**library_model.state_dict(), "logit_bias": torch.tensor(-10.0)}, home / "model.pt")
    assert any("SigLIP" in note for note in read_foreign(home / "model.pt").layout.notes)


@pytest.mark.parametrize(("name", "options"), [("ViT-B-32", {**VISION, "mlp_ratio": 2.0}), ("RN50", {"width": 8})])
def test_towers_by_name_learn(name, options):
    """A model of open_clip's, made small: both towers and the scale receive a gradient."""
    size = 32 if name == "RN50" else 8
    sized = {k: v for k, v in options.items() if k != "image_size"}
    text = TextEncoder(name=f"open_clip:{name}", options={"width": 8, "heads": 2, "layers": 1, "context_length": 8})
    recipe = tiny.recipe(
        "clip", objective=Clip(dim=6, text=text), channels=3, size=(size, size),
        backbone=Backbone(name=f"open_clip:{name}", options=sized),
    )  # fmt: skip
    model = recipe.start(0)
    x = torch.rand(4, 3, size, size)
    batch = next(tiny.parts((255 * x).byte().numpy(), np.arange(4) % 3, {"all": (0, 4)})["all"].ordered_batches(4))
    model.objective.loss(model, batch).per_example.mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert not silent and model(batch.view(0)).shape == (4, 6) and model.encode_text(batch.text).shape == (4, 6)


def test_a_pretrained_recipe_starts_the_same_twice(pictures):
    data = run.load_data({"data": str(pictures)})
    split = api.split(data, forget="@random:12", **SPLIT)
    recipe = defaults.default_recipe(
        data,
        Clip(dim=6, text=TextEncoder(name="open_clip:custom", options=TEXT)),
        backbone=Backbone(name="open_clip:custom", options=VISION),
        epochs=1,
        batch_size=30,
    )
    first, second = (api.pretrain(data, split, recipe=recipe, device="cpu") for _ in range(2))
    assert first.model.digest() == second.model.digest()
    seen = observe_model(first.model, data, split, recipe.views, ObservationSettings(views=2, bank=10))
    assert np.isfinite(seen.of("forget", "pair.margin")).all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Backbone(name="open_clip:ViT-B-33").build(3, (8, 8)), "no model called 'ViT-B-33'.*Did you mean"),
        (lambda: Backbone(name="open_clip:custom", options=VISION).build(1, (8, 8)), "3 channels, and these .* 1"),
        (lambda: Backbone(name="open_clip:custom", options={"wide": 3}).build(3, (8, 8)), "cannot build custom.*wide"),
        (
            lambda: TextEncoder(name="open_clip:custom", options={**TEXT, "vocab_size": 9}).build(4),
            "vocabulary of 9 is too small.*49408",
        ),
        (lambda: TextEncoder(name="open_clip:xlm-roberta-base-ViT-B-32").build(4), "have to be downloaded"),
    ],
)
def test_what_cannot_be_built_is_said(made, message):
    with pytest.raises(EffaceError, match=message):
        made()
