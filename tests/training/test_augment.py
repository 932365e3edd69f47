"""Random views against a reference implementation, against torchvision, and their documented properties."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from efface.config import build, describe_fields, dump
from efface.errors import EffaceError
from efface.training import augment
from efface.training.augment import ViewParams, Views
from tests.reference import views as reference

QUIET = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "grayscale": 0}
STILL = {"crop": None, "flip": False}
WILD = Views(shift=2, grayscale=0.4, blur=0.5, hue=0.3, brightness=0.8)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, channels: int = 3, height: int = 9, width: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=rng(seed))


def fixed(count: int, height: int, width: int, **changed: object) -> ViewParams:
    """Parameters that change nothing, but for those given."""
    values: dict[str, object] = {
        "top": 0, "left": 0, "height": height, "width": width, "down": 0, "right": 0, "flip": False,
        "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "gray": False, "sigma": 0.0,
    } | changed  # fmt: skip
    made = {name: torch.as_tensor(value).expand(count).clone() for name, value in values.items()}
    return ViewParams(**{n: t if t.dtype == torch.bool else t.float() for n, t in made.items()})


@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_equal_the_reference(channels: int, exact_hue: bool):
    spec = dataclasses.replace(WILD, exact_hue=exact_hue, sigma=(0.3, 0.9))
    x = images(24, channels).double()
    drawn = spec.draw_params(len(x), x.shape[1:], rng(1))
    seen = spec.apply(x, drawn)
    for i, image in enumerate(x.numpy()):
        one = {f.name: getattr(drawn, f.name)[i].item() for f in dataclasses.fields(drawn)}
        expected = reference.view(image, one, exact_hue, blur_radius=3)
        np.testing.assert_allclose(seen[i].numpy(), expected, atol=1e-7, err_msg=str(one))
    assert 0 < drawn.gray.sum() < 24 and 0 < drawn.flip.sum() < 24 and 0 < (drawn.sigma > 0).sum() < 24
    assert drawn.down.abs().max() == 2 and drawn.right.abs().max() == 2


def test_crops_are_torchvisions_resized_crops():
    x = images(200, height=12, width=10)
    spec = Views(flip=False, **QUIET)
    drawn = spec.draw_params(len(x), x.shape[1:], rng(2))
    seen = spec.apply(x, drawn)
    for i in range(len(x)):
        box = [int(getattr(drawn, name)[i]) for name in ("top", "left", "height", "width")]
        expected = TF.resized_crop(x[i], *box, size=[12, 10], antialias=False)
        torch.testing.assert_close(seen[i], expected, atol=2e-5, rtol=0)


def test_flips_and_shifts_are_torchvisions():
    x = images(40, height=8, width=8)
    spec = Views(crop=None, shift=3, **QUIET)
    drawn = spec.draw_params(len(x), x.shape[1:], rng(3))
    seen = spec.apply(x, drawn)
    for i in range(len(x)):
        expected = TF.crop(TF.pad(x[i], [3, 3, 3, 3]), 3 + int(drawn.down[i]), 3 + int(drawn.right[i]), 8, 8)
        expected = TF.horizontal_flip(expected) if drawn.flip[i] else expected
        torch.testing.assert_close(seen[i], expected, atol=1e-5, rtol=0)
    assert len(set(drawn.down.tolist())) == 7 and 0 < drawn.flip.sum() < 40


@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_color_change_is_torchvisions(channels: int, exact_hue: bool):
    x = images(6, channels)
    spec = Views(**STILL, exact_hue=exact_hue)
    for factor in (0.0, 0.3, 0.9, 1.7):
        for name in ("brightness", "contrast", "saturation"):
            seen = spec.apply(x, fixed(6, 9, 11, **{name: factor}))
            expected = torch.stack([getattr(TF, f"adjust_{name}")(one, factor) for one in x])
            torch.testing.assert_close(seen, expected, atol=2e-6, rtol=0, msg=f"{name} {factor}")
    seen = spec.apply(x, fixed(6, 9, 11, gray=True))
    torch.testing.assert_close(seen, TF.rgb_to_grayscale(x, channels), atol=2e-6, rtol=0)


def test_the_exact_form_is_torchvisions_jitter_one_change_after_the_other():
    x = images(30)
    x[:3] = x[:3, :1]  # gray pixels have no hue
    x[3, :, 0] = torch.tensor([0.0, 1.0, 0.5])[:, None]
    spec = Views(**STILL, hue=0.5, brightness=0.8, exact_hue=True)
    drawn = spec.draw_params(len(x), x.shape[1:], rng(4))
    seen = spec.apply(x, drawn)
    for i in range(len(x)):
        one = TF.adjust_brightness(x[i], float(drawn.brightness[i]))
        one = TF.adjust_contrast(one, float(drawn.contrast[i]))
        one = TF.adjust_saturation(one, float(drawn.saturation[i]))
        one = TF.adjust_hue(one, float(drawn.hue[i]))
        one = TF.rgb_to_grayscale(one, 3) if drawn.gray[i] else one
        torch.testing.assert_close(seen[i], one, atol=1e-5, rtol=0)


def test_fast_and_exact_form_agree_where_nothing_is_clamped_and_hue_rests():
    x = 0.4 + 0.1 * images(50)
    drawn = Views(hue=0).draw_params(len(x), x.shape[1:], rng(5))
    fast, exact = (Views(hue=0, exact_hue=flag).apply(x, drawn) for flag in (False, True))
    torch.testing.assert_close(fast, exact, atol=1e-5, rtol=0)


def test_fast_hue_turns_colors_the_same_way_and_about_as_far():
    colors = [[0.7, 0.4, 0.4], [0.4, 0.7, 0.4], [0.4, 0.4, 0.7], [0.6, 0.5, 0.4], [0.4, 0.6, 0.6]]
    x = torch.tensor(colors)[:, :, None, None].expand(-1, 3, 8, 8)
    chroma = torch.from_numpy(reference.YIQ[1:]).float()
    for turn in (-0.1, -0.05, 0.05, 0.1):
        drawn = fixed(5, 8, 8, hue=turn)
        seen = [Views(**STILL, exact_hue=flag).apply(x, drawn) for flag in (False, True)]
        fast, exact = [(after - x)[:, :, 0, 0] @ chroma.T for after in seen]
        assert torch.nn.functional.cosine_similarity(fast, exact).min() > 0.75, turn
        ratio = fast.norm(dim=1) / exact.norm(dim=1)
        assert ratio.min() > 0.7 and ratio.max() < 1.5, turn
    red = torch.tensor([0.6, 0.4, 0.4])[None, :, None, None].expand(1, 3, 8, 8)
    seen = Views(**STILL).apply(red, fixed(1, 8, 8, hue=1 / 3))[0, :, 0, 0]
    assert seen.argmax() == 1  # a third of a turn from red is green, not blue


def test_fast_and_exact_form_agree_statistically():
    x = images(400, height=8, width=8)
    drawn = Views().draw_params(400, x.shape[1:], rng(2))
    fast, exact = (Views(exact_hue=flag).apply(x, drawn) for flag in (False, True))
    torch.testing.assert_close(fast.mean((0, 2, 3)), exact.mean((0, 2, 3)), atol=0.01, rtol=0)
    torch.testing.assert_close(fast.std((0, 2, 3)), exact.std((0, 2, 3)), atol=0.015, rtol=0)
    assert np.corrcoef(fast.flatten(), exact.flatten())[0, 1] > 0.96
    assert 0.01 < (fast - exact).abs().mean() < 0.04  # they are two forms, and the flag is read


def test_the_hue_rotation_keeps_luma_and_gray_and_composes():
    y, i, q = reference.YIQ
    quarter = np.linalg.inv(reference.YIQ) @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ reference.YIQ
    np.testing.assert_allclose(np.array(augment.HUE_ROTATION), quarter, atol=1e-8)
    assert np.array(augment.LUMA) == pytest.approx(y)
    assert i.sum() == pytest.approx(0) and q.sum() == pytest.approx(0)
    x = 0.4 + 0.2 * images(1).double()
    there = Views(**STILL).apply(x, fixed(1, 9, 11, hue=0.1))
    back = Views(**STILL).apply(there, fixed(1, 9, 11, hue=-0.1))
    torch.testing.assert_close(back, x, atol=1e-6, rtol=0)


def test_the_blur_is_torchvisions():
    x = images(5, height=16, width=14)
    spec = Views(**STILL, **QUIET, blur=1.0, sigma=(0.5, 1.5))
    drawn = spec.draw_params(5, x.shape[1:], rng(6))
    seen = spec.apply(x, drawn)
    for i in range(5):
        expected = TF.gaussian_blur(x[i], kernel_size=[11, 11], sigma=[float(drawn.sigma[i])] * 2)
        torch.testing.assert_close(seen[i], expected, atol=1e-5, rtol=0)


BOXES = [((3, 28, 28), (0.2, 1.0)), ((1, 24, 40), (0.08, 1.0)), ((1, 8, 33), (0.5, 1.0))]


@pytest.mark.parametrize(("shape", "crop"), BOXES)
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int, int], crop: tuple[float, float]):
    """Two-sample tests on 3000 boxes each; the last shape is so wide that many are the central crop."""
    drawn = Views(crop=crop).draw_params(3000, shape, rng(7))
    blank = torch.zeros(shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = v2.RandomResizedCrop(shape[1:], scale=crop)
        boxes = [theirs.make_params([blank]) for _ in range(3000)]
    for name in ("top", "left", "height", "width"):
        ours = getattr(drawn, name).numpy()
        assert stats.ks_2samp(ours, [box[name] for box in boxes]).pvalue > 1e-3, name
    assert (drawn.top + drawn.height <= shape[1]).all() and (drawn.left + drawn.width <= shape[2]).all()
    assert drawn.top.min() >= 0 and drawn.left.min() >= 0 and drawn.height.min() >= 1


def test_color_draws_have_the_declared_ranges_and_frequencies():
    spec = Views(contrast=0.2, saturation=1.5, blur=0.3, shift=2)
    drawn = spec.draw_params(20_000, (3, 16, 16), rng(8))
    hit = drawn.brightness != 1
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.8, 1.2), "saturation": (0, 2.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        values = getattr(drawn, name)[hit].numpy()
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
        assert (getattr(drawn, name)[~hit] == (0 if name == "hue" else 1)).all()
    for found, expected in [(hit, 0.8), (drawn.gray, 0.2), (drawn.flip, 0.5), (drawn.sigma > 0, 0.3)]:
        assert float(found.float().mean()) == pytest.approx(expected, abs=0.015)
    for moved in (drawn.down, drawn.right):
        assert stats.chisquare(np.unique(moved.numpy(), return_counts=True)[1]).pvalue > 1e-3
    together = [getattr(drawn, name)[hit].numpy() for name in ("brightness", "contrast", "saturation", "hue")]
    assert np.abs(np.corrcoef(together) - np.eye(4)).max() < 0.03


def test_every_sample_has_parameters_of_its_own():
    x = images(1, height=16, width=16).expand(64, -1, -1, -1)
    seen = Views()(x, rng(9))
    assert len({row.numpy().tobytes() for row in seen}) == 64


def test_a_view_depends_on_its_own_image_and_draw_alone():
    x = images(300, height=20, width=20)  # several pieces
    drawn = WILD.draw_params(300, x.shape[1:], rng(10))
    whole = WILD.apply(x, drawn)
    some = torch.tensor([299, 3, 150, 77])
    few = ViewParams(**{f.name: getattr(drawn, f.name)[some] for f in dataclasses.fields(drawn)})
    torch.testing.assert_close(WILD.apply(x[some], few), whole[some], atol=1e-6, rtol=0)


def test_small_draws_joined_are_the_draw_of_joined_numbers():
    generators = [rng(seed) for seed in range(5)]
    one_by_one = [WILD.draw_params(3, (3, 9, 9), generator) for generator in generators]
    together = WILD.params(torch.cat([augment.uniform(3, rng(seed)) for seed in range(5)]), (3, 9, 9))
    for f in dataclasses.fields(ViewParams):
        joined = torch.cat([getattr(one, f.name) for one in one_by_one])
        assert torch.equal(joined, getattr(together, f.name)), f.name
    assert len(together) == 15 and together.to("cpu").top.device.type == "cpu"


def test_the_same_generator_gives_the_same_views_and_the_global_one_is_left_alone():
    x = images(20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = WILD(x, rng(11))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(WILD(x, rng(11)), first)
    generator = rng(11)
    again, another = WILD(x, generator), WILD(x, generator)
    assert torch.equal(again, first) and not torch.equal(another, first)


def test_turning_one_knob_off_leaves_the_other_draws_as_they_were():
    box = {"top", "left", "height", "width"}
    touched = {
        "crop": box,
        "shift": {"down", "right"},
        "flip": {"flip"},
        "hue": {"hue"},
        "grayscale": {"gray"},
    }
    names = [f.name for f in dataclasses.fields(ViewParams)]
    before = WILD.draw_params(50, (3, 9, 9), rng(12))
    for knob, expected in (touched | {"blur": {"sigma"}}).items():
        off = dataclasses.replace(WILD, **{knob: None if knob == "crop" else 0})
        after = off.draw_params(50, (3, 9, 9), rng(12))
        assert {name for name in names if not torch.equal(getattr(after, name), getattr(before, name))} == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_output_has_shape_type_and_range_of_the_input_which_is_left_alone(channels: int, dtype: torch.dtype):
    x = (images(30, channels) > 0.5).to(dtype)
    for spec in (Views(), WILD, Views(exact_hue=True), Views.none()):
        kept = x.clone()
        seen = spec(x, rng(13))
        assert seen.shape == x.shape and seen.dtype == x.dtype and torch.equal(x, kept)
        assert seen.min() >= 0 and seen.max() <= 1 and seen.isfinite().all()
        assert seen.data_ptr() != x.data_ptr()


def test_no_augmentation_is_the_identity_and_flip_alone_mirrors():
    x = images(20)
    assert torch.equal(Views.none()(x, rng(14)), x)
    spec = dataclasses.replace(Views.none(), flip=True)
    drawn = spec.draw_params(20, x.shape[1:], rng(14))
    expected = torch.where(drawn.flip[:, None, None, None], x.flip(-1), x)
    torch.testing.assert_close(spec.apply(x, drawn), expected, atol=2e-6, rtol=0)


def test_memory_layout_of_the_input_changes_nothing():
    x = images(20)
    assert torch.equal(Views()(x.contiguous(memory_format=torch.channels_last), rng(15)), Views()(x, rng(15)))
    assert len(Views()(x[:0], rng(15))) == 0


def test_views_pass_gradients_back_to_the_images():
    x = (0.4 + 0.2 * images(2, height=4, width=4)).double().requires_grad_()
    spec = Views(brightness=0.1, contrast=0.1)
    drawn = spec.draw_params(2, x.shape[1:], rng(16))
    assert torch.autograd.gradcheck(lambda image: spec.apply(image, drawn), x, atol=1e-4)


@pytest.mark.parametrize(
    ("knob", "value", "says"),
    [
        ("crop", (0.0, 1.0), "above 0"),
        ("crop", (0.8, 0.2), "in this order"),
        ("crop", (0.2, 1.5), "at most 1"),
        ("ratio", (0.0, 1.0), "above 0"),
        ("ratio", (1.0, math.inf), "finite"),
        ("sigma", (2.0, 1.0), "in this order"),
        ("brightness", -0.1, "at least 0"),
        ("contrast", math.nan, "finite"),
        ("saturation", math.inf, "finite"),
        ("hue", 0.6, "at most 0.5"),
        ("jitter_prob", 1.1, "at most 1"),
        ("grayscale", -0.1, "at least 0"),
        ("blur", 2, "at most 1"),
        ("shift", -1, "at least 0"),
        ("shift", 1.5, "an integer"),
    ],
)
def test_impossible_settings_are_refused_by_name(knob: str, value: object, says: str):
    with pytest.raises(EffaceError, match=rf"(?i)views\.{knob}'? cannot be .*{says}"):
        Views(**{knob: value})


def test_images_that_cannot_be_viewed_are_refused():
    with pytest.raises(EffaceError, match="uint8"):
        Views()((images(2) * 255).byte(), rng())
    with pytest.raises(EffaceError, match="3 draws"):
        Views().apply(images(2), Views().draw_params(3, (3, 9, 11), rng()))
    with pytest.raises(EffaceError, match="shift = 9 can move a 9x11 image"):
        Views(shift=9)(images(2), rng())


def test_views_survive_the_round_trip_through_plain_values_and_every_knob_is_documented():
    spec = Views(crop=(0.3, 0.9), shift=2, exact_hue=True)
    plain = dump(spec)
    assert build(Views, plain) == spec and plain["crop"] == [0.3, 0.9]
    assert build(Views, dump(Views.none())) == Views.none()
    assert all(text for _, _, _, text in describe_fields(Views))
