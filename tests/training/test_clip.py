"""Image-text models: the loss against a reference implementation and open_clip, the text tower, and all methods."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from efface import api, config
from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.training import defaults, optim
from efface.training.checkpoint import Checkpoint
from efface.training.loop import Run
from efface.training.networks.text import PAD, START_TOKEN, HashingTokenizer, TextEncoder
from efface.training.objectives import CHOICES, OBJECTIVES, Clip
from efface.training.objectives.clip import clip_repulsion
from efface.unlearning.methods import Finetune, GradientConstraint
from tests import tiny
from tests.reference import clip as reference


def batch_of(n=10, augment=tiny.blurred):
    x, y = tiny.images(48)
    return next(tiny.parts(x, y, {"all": (0, n)}, augment)["all"].ordered_batches(n))


@pytest.fixture(scope="module")
def model():
    """A few steps from the start, so that the towers differ and the scale has moved."""
    recipe = tiny.recipe("clip", epochs=4)
    x, y = tiny.images(48)
    return Finetune(epochs=4, batch_size=12, optim=optim.Optim(lr=0.1)).unlearn(
        recipe.start(0), tiny.given(Finetune(), tiny.parts(x, y, {"retain": (0, 48)})), Run(seed=1)
    ).eval()  # fmt: skip


def embeddings(model, batch):
    return model(batch.view(0)).tolist(), model.encode_text(batch.text).tolist(), float(model.scale.detach().exp())


def test_the_loss_equals_the_reference(model):
    batch = batch_of()
    ours = model.objective.loss(model, batch).per_example
    expected = torch.tensor(reference.loss(*embeddings(model, batch)))
    assert ours.shape == (10,)
    torch.testing.assert_close(ours.detach(), expected, atol=1e-5, rtol=1e-5)


def test_the_loss_equals_open_clips(model):
    library = pytest.importorskip("open_clip", reason="open_clip is not installed")
    batch = batch_of()
    u, v = (functional.normalize(z, dim=1) for z in (model(batch.view(0)), model.encode_text(batch.text)))
    theirs = library.ClipLoss()(u, v, model.scale.exp())
    ours = model.objective.loss(model, batch).per_example.mean()
    torch.testing.assert_close(ours, theirs)
    mine, their = (
        torch.autograd.grad(loss, model.trainable_parameters(), retain_graph=True) for loss in (ours, theirs)
    )
    for a, b in zip(mine, their, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_planted_slips_are_far_from_the_reference(model):
    batch = batch_of()
    with torch.no_grad():
        u, v = (functional.normalize(z, dim=1) for z in (model(batch.view(0)), model.encode_text(batch.text)))
        right, logits = model.objective.loss(model, batch).per_example, model.scale.exp() * u @ v.T
    own = logits.diagonal()
    slips = {
        "one direction": logits.logsumexp(1) - own,
        "no scale": clip_repulsion(u @ v.T) - (u @ v.T).diagonal(),
        "own pair left out": clip_repulsion(logits.clone().fill_diagonal_(-torch.inf)) - own,
        "one mean for all": right.mean().expand(10),
    }
    for name, slip in slips.items():
        assert float((slip - right).abs().max()) > 1e-3, name


def test_the_loss_passes_gradcheck():
    u, v = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def loss(a, b, s):
        logits = s.exp() * functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T
        return clip_repulsion(logits) - logits.diagonal()

    assert torch.autograd.gradcheck(loss, (u, v, scale))
    assert torch.autograd.gradgradcheck(loss, (u, v, scale))


def test_both_towers_pass_gradcheck_in_double_precision():
    model = tiny.recipe("clip").start(0).double().eval()
    tokens = model.text.tokenizer(["low stripe", "a b c d e f", ""])
    weights = [model.text.network.words.weight, model.text.network.proj, model.text.network.blocks[0].qkv.weight]

    def read(*values):
        state = dict(zip(("words.weight", "proj", "blocks.0.qkv.weight"), values, strict=True))
        return torch.func.functional_call(model.text.network, state, tokens)

    assert torch.autograd.gradcheck(read, [w.detach().requires_grad_() for w in weights], fast_mode=True)


def test_the_scale_is_learned_and_bounded(model):
    fresh = copy.deepcopy(model)
    batch = batch_of()
    fresh.objective.loss(fresh, batch).per_example.mean().backward()
    assert fresh.scale.grad is not None and fresh.scale.grad != 0
    assert float(tiny.recipe("clip").start(0).scale.detach()) == pytest.approx(math.log(1 / 0.2))
    with torch.no_grad():
        fresh.scale.fill_(50.0)
    fresh.objective.after_step(fresh, None)
    assert float(fresh.scale.detach().exp()) == pytest.approx(fresh.objective.most)


def test_an_anchor_replaces_its_own_image_and_nothing_else(model):
    batch = batch_of()
    x = batch.view(0) * 0.9
    with torch.no_grad():
        ours = model.objective.anchor_loss(model, batch)(x)
        u, v, scale = embeddings(model, batch)
        expected = torch.tensor(reference.anchored(model(x).tolist(), u, v, scale))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_gradient_constraint_cannot_be_met_by_captions_or_by_the_scale(model):
    norms = GradientConstraint().norms(model, batch_of(), graph=True)
    others = [model.scale, *model.text.parameters()]
    found = torch.autograd.grad(norms.sum(), [*model.backbone.parameters(), *others], allow_unused=True)
    inside = len(list(model.backbone.parameters()))
    assert any(g is not None and g.abs().sum() > 0 for g in found[:inside])
    assert all(g is None for g in found[inside:])


def test_a_scrambled_caption_is_never_the_own_one_and_none_is_lost():
    batch = batch_of()
    wrong = tiny.SMALL["clip"].corrupt_targets(batch, torch.Generator().manual_seed(1))
    assert all(a != b for a, b in zip(wrong.text, batch.text, strict=True))
    assert sorted(wrong.text) == sorted(batch.text)
    assert torch.equal(wrong.view(0), batch.view(0))


def test_disagreement_sees_both_towers(model):
    batch, moved = batch_of(), copy.deepcopy(model)
    with torch.no_grad():
        a = model.outputs(batch)
        for parameter in moved.text.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        b = moved.outputs(batch)
    apart = model.objective.distance(a, b)
    torch.testing.assert_close(apart, torch.tensor(reference.distance(a.tolist(), b.tolist())), atol=1e-5, rtol=1e-5)
    assert (apart > 1e-3).all(), "a text tower that moved goes unseen"
    torch.testing.assert_close(model.objective.distance(a, a), torch.zeros(10), atol=1e-6, rtol=0)


# ---- the text tower ----


def test_padding_changes_no_embedding(model):
    captions = ["low stripe", "a very much longer caption of seven"]
    with torch.no_grad():
        together = model.encode_text(captions)
        alone = torch.cat([model.encode_text([caption]) for caption in captions])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_words_are_hashed_the_same_everywhere_and_read_without_case():
    words = HashingTokenizer(context=4, buckets=1000)
    tokens = words(["Flag, of ÅLAND", "flag , of åland", "", "旗 flag"])
    assert tokens.dtype == torch.int64 and tokens.shape == (4, 5)
    assert torch.equal(tokens[0], tokens[1])
    assert tokens[0].tolist() == [START_TOKEN, 691, 210, 456, 544]
    assert tokens[2].tolist() == [START_TOKEN, PAD, PAD, PAD, PAD]
    assert (tokens[3] != PAD).sum() == 3
    assert words(["a b c d e f"]).shape == (1, 5), "a long caption is cut"
    assert (tokens < 1000 + 2).all()


def test_word_order_and_every_word_matter(model):
    with torch.no_grad():
        z = model.encode_text(["one two", "two one", "one", "one three"])
    assert torch.pdist(z).min() > 1e-4


def test_an_empty_caption_is_finite(model):
    assert model.encode_text([""]).isfinite().all()


def test_a_checkpoint_holds_no_caption_and_no_word(tmp_path, model):
    recipe = tiny.recipe("clip")
    Checkpoint(model, recipe).save(tmp_path)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"stripe" not in written and b"middle" not in written
    assert Checkpoint.load(tmp_path).model.digest() == model.digest()


def test_the_text_tower_round_trips_and_says_what_is_wrong():
    chosen = Clip(dim=5, text=TextEncoder(width=6, heads=3, depth=1, buckets=7, context=3))
    plain = config.dump(chosen, CHOICES)
    assert config.parse_choice(OBJECTIVES, plain, "objective", CHOICES) == chosen
    assert tiny.recipe("clip", objective=chosen).start(0).encode_text(["a b"]).shape == (1, 5)
    with pytest.raises(EffaceError, match="cannot have 7 heads"):
        TextEncoder(width=16, heads=7)
    with pytest.raises(EffaceError, match=r"TextEncoder\.depth' cannot be 0"):
        TextEncoder(depth=0)
    with pytest.raises(EffaceError, match="no text tower called 'bert'"):
        TextEncoder(name="bert").build(4)


# ---- captions that are not there ----


def world(text):
    x, y = tiny.images(60)
    data = Data.from_arrays(x, y, text=text, name="tiny")
    return data, api.split(data, train=30, valid=10, holdout=10, test=10, forget="@random:6")


def test_data_without_captions_is_refused_before_anything_is_trained():
    x, y = tiny.images(60)
    data, split = world(None)
    with pytest.raises(EffaceError, match=r"'clip' needs captions, and the data has none.*manifest"):
        defaults.default_recipe(data, "clip")
    with pytest.raises(EffaceError, match="needs captions"):
        api.pretrain(data, split, recipe=tiny.recipe("clip"), device="cpu")
    recipe = tiny.recipe("clip")
    with pytest.raises(EffaceError, match="finetune on a 'clip' checkpoint needs captions"):
        api.unlearn(Checkpoint(recipe.start(0), recipe), data, split, "finetune", device="cpu")
    text = list(tiny.captions(y))
    text[7] = "  "
    with pytest.raises(EffaceError, match=r"1 have none.*'00007'"):
        defaults.default_recipe(world(text)[0], "clip")
    batch = dataclasses.replace(tiny.parts(x, y, {"a": (0, 4)})["a"], text=None)
    with pytest.raises(EffaceError, match="column 'caption'"):
        recipe.start(0).objective.loss(recipe.start(0), next(batch.ordered_batches(4)))


def test_a_caption_may_speak_of_sides_and_colors_so_views_are_crops_alone():
    data, _ = world(tiny.captions(tiny.images(60)[1]))
    views = defaults.default_recipe(data, "clip").views
    assert views.crop == (0.8, 1.0) and not views.flip
    assert views.hue == views.grayscale == views.brightness == views.saturation == views.contrast == 0


def test_a_model_without_a_text_tower_cannot_read():
    with pytest.raises(EffaceError, match="no text tower"):
        tiny.recipe("simclr").start(0).encode_text(["a"])
