"""LetheViT: masks, targets and loss against their reference implementations; each stage alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from efface.errors import EffaceError
from efface.training.loop import Run, frozen_copy
from efface.training.optim import Optim
from efface.unlearning.methods import Finetune, LetheVit
from efface.unlearning.methods import lethevit as module
from efface.unlearning.methods.lethevit import PatchMask, lethe_loss, mask_patches
from tests import tiny
from tests.reference import lethevit as reference

CUTS = {"forget": (4, 16), "retain": (16, 60)}
OPTIM = Optim(lr=0.05, clip=5.0)
FINE = replace(tiny.VIT, options=tiny.VIT.options | {"patch_size": 2})
"""A transformer of sixteen patches."""


def world(backbone=FINE):
    x, y = tiny.images(60)
    recipe = tiny.recipe("cross_entropy", backbone=backbone, epochs=40, batch_size=16)
    model = recipe.start(0)
    with torch.no_grad():
        for name, weight in model.backbone.named_parameters():
            if "qkv" in name:
                weight.mul_(20)  # far from uniform attention
    return model, tiny.parts(x, y, CUTS, tiny.blurred), recipe


def unlearn(method, seed=5):
    model, parts, recipe = world()
    records = []
    model = method.unlearn(model, tiny.given(method, parts, recipe), Run(seed=seed, log=records.append))
    return model, [record for record in records if "lr" in record]


@pytest.mark.parametrize(("grid", "ratio", "patches"), [((4, 4), 0.05, 1), ((4, 4), 0.2, 3), ((2, 4), 0.5, 4)])
def test_masks_match_the_reference_implementation(grid, ratio, patches):
    generator = torch.Generator().manual_seed(0)
    x, score = torch.rand(3, 2, 8, 8, generator=generator) + 0.1, torch.rand(3, *grid, generator=generator)
    ours = mask_patches(x, score, ratio)
    expected = [reference.masked(image.tolist(), s.tolist(), ratio) for image, s in zip(x, score, strict=True)]
    assert torch.equal(ours, torch.tensor(expected))
    assert ((ours == 0).flatten(1).sum(1) == patches * 2 * 64 // (grid[0] * grid[1])).all()


def swapped(z, positive, negative, tau):
    """Planted: Z⁺ and Z⁻ swapped."""
    return lethe_loss(z, negative, positive, tau)


def test_the_loss_matches_the_reference_implementation_and_passes_gradcheck():
    generator = torch.Generator().manual_seed(0)
    z, positive, negative = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    ours = module.lethe_loss(z, positive, negative, 0.3)
    expected = torch.tensor(reference.loss(z.tolist(), positive.tolist(), negative.tolist(), 0.3), dtype=torch.float64)
    torch.testing.assert_close(ours, expected)
    assert torch.autograd.gradcheck(lambda row: lethe_loss(row, positive, negative, 0.3), (z.requires_grad_(),))


def test_swapped_targets_are_seen(monkeypatch):
    monkeypatch.setattr(module, "lethe_loss", swapped)
    with pytest.raises(AssertionError):
        test_the_loss_matches_the_reference_implementation_and_passes_gradcheck()


@pytest.mark.parametrize("mask", list(PatchMask))
def test_targets_are_the_originals_answers_to_masked_and_whole_images(mask):
    model, parts, _ = world()
    method, run, original = LetheVit(mask=mask, ratio=0.25), Run(seed=5), frozen_copy(model)
    targets, place = method.targets(original, parts["forget"], 5, run)
    x = parts["forget"].x[4:16].float() / 255
    maps = original.attention(x)
    score = {PatchMask.ATTENTION: maps, PatchMask.LOW: -maps, PatchMask.RANDOM: None}[mask]
    if score is None:
        rng = run.rng("mask")
        score = torch.cat([torch.rand(n, 4, 4, generator=rng) for n in (5, 5, 2)])
    masked = torch.tensor([reference.masked(i.tolist(), s.tolist(), 0.25) for i, s in zip(x, score, strict=True)])
    torch.testing.assert_close(targets[0], original(masked), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(targets[1], original(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(place[4:16], torch.arange(12))
    assert (targets[0] - targets[1]).abs().min() > 0


def test_the_first_step_of_forgetting_has_the_loss_of_the_reference_implementation():
    """The student is still the original: its answer to the whole image against that to the masked one."""
    model, parts, _ = world()
    original = frozen_copy(model)
    method = LetheVit(forget_epochs=1, retain_epochs=0, batch_size=12, tau=0.3, ratio=0.25, optim=OPTIM)
    _, records = unlearn(method)
    x = parts["forget"].x[4:16].float() / 255
    whole, masked = original(x), original(mask_patches(x, original.attention(x), 0.25))
    expected = reference.loss(whole.tolist(), masked.tolist(), whole.tolist(), 0.3)
    assert [record["phase"] for record in records] == ["forget"]
    assert records[0]["total"] == pytest.approx(sum(expected) / 12, abs=1e-5)


def test_the_attention_is_the_originals_throughout(monkeypatch):
    """All of it is read before the first update, from a copy in evaluation mode."""
    seen = []
    attention = module.Model.attention

    def recording(self, x):
        seen.append((self.digest(), self.training, self.backbone.pos_embed.requires_grad))
        return attention(self, x)

    monkeypatch.setattr(module.Model, "attention", recording)
    start = world()[0].digest()
    unlearn(LetheVit(forget_epochs=2, retain_epochs=1, batch_size=6, optim=OPTIM))
    assert seen == [(start, False, False)] * 2


def test_without_a_forget_stage_it_is_fine_tuning():
    tuned, _ = unlearn(Finetune(epochs=2, batch_size=16, optim=OPTIM))
    alone, records = unlearn(LetheVit(forget_epochs=0, retain_epochs=2, batch_size=16, optim=OPTIM))
    assert alone.digest() == tuned.digest()
    assert {record["phase"] for record in records} == {"retain"}


def test_without_a_retain_stage_only_the_forgotten_examples_are_shown():
    _, records = unlearn(LetheVit(forget_epochs=2, retain_epochs=0, batch_size=6, optim=OPTIM))
    assert [record["phase"] for record in records] == ["forget"] * 4


def test_without_any_stage_nothing_moves():
    model, records = unlearn(LetheVit(forget_epochs=0, retain_epochs=0))
    assert model.digest() == world()[0].digest() and not records


def test_forgetting_brings_the_answer_towards_the_masked_images():
    _, records = unlearn(LetheVit(forget_epochs=20, retain_epochs=0, batch_size=12, ratio=0.25, optim=OPTIM))
    assert records[-1]["total"] < records[0]["total"] - 0.02


def test_the_controls_mask_an_equal_area_elsewhere():
    answers = {
        mask: unlearn(LetheVit(mask=mask, ratio=0.25, retain_epochs=0, optim=OPTIM))[0].digest() for mask in PatchMask
    }
    assert len(set(answers.values())) == 3
    maps, x = torch.rand(2, 4, 4), torch.ones(2, 1, 8, 8)
    top, low = mask_patches(x, maps, 0.25), mask_patches(x, -maps, 0.25)
    assert top.sum() == low.sum() and ((top == 0) & (low == 0)).sum() == 0


def test_the_default_length_is_the_papers_for_200_epochs_and_a_twentieth_of_any_others():
    for epochs, retained in ((200, 8), (60, 1), (400, 18)):
        model, parts, recipe = world()
        method, records = LetheVit(batch_size=44), []
        given = tiny.given(method, parts, replace(recipe, epochs=epochs))
        method.unlearn(model, given, Run(log=records.append))
        phases = [record["phase"] for record in records if "lr" in record]
        assert (phases.count("forget"), phases.count("retain")) == (2, retained)
        assert len(phases) <= 0.05 * epochs


@pytest.mark.parametrize("wrong", [{"ratio": 0.0}, {"ratio": 1.5}, {"tau": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(EffaceError, match=r"LetheVit\.\w+' cannot be"):
        LetheVit(**wrong)
