"""Random augmentations of a whole batch of images at once, with separate parameters for each image.

    draw_params    count, image shape, generator       ->  ViewParams      (all of the randomness)
    apply          images [B, C, H, W], ViewParams     ->  [B, C, H, W]    (deterministic)

Order: crop and resize, shift, flip (one sampling grid) -> color jitter, grayscale -> clamp to [0, 1] -> blur.

The default color jitter is one 3x3 matrix and one offset per image: brightness, contrast and saturation are linear, and
hue rotates the chroma plane of YIQ. It clamps once, at the end. ``exact_hue`` is the textbook form: the same changes
one after the other, each clamped, hue in HSV. Both agree if nothing is clamped and hue is 0.

Images are resampled by ``grid_sample``. Two batched matrix products with bilinear weights would give the same images,
but are not faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import HalfTurn, NotNegative, Positive, Share, SomeShare, Whole

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in gray, as in torchvision (they sum to 0.9999)."""
HUE_ROTATION = (
    (-0.167720019, -0.329301077, 0.497021095),
    (0.328114042, -0.035553859, -0.292560183),
    (-1.249749378, 1.046475500, 0.203273878),
)
"""Derivative of the hue rotation at angle 0: a quarter turn of the YIQ chroma plane, from red towards green."""
CROP_ATTEMPTS = 10
"""Number of crops drawn for an image; the first that fits is used, and a central one if none does."""
DRAWS_PER_IMAGE = 2 * CROP_ATTEMPTS + 13
"""Uniform numbers per image. Each setting has its own columns, so changing one leaves the other draws as they are."""
CHUNK_BYTES = 2**20
"""Bytes of images and grid processed at a time; small chunks reuse memory, and new pages cost as much as the work."""


@dataclass(frozen=True, kw_only=True)
class Views(Settings):
    """Settings of random views, and the function that makes them; the defaults are SimCLR's for small images.

    Saturation, hue and grayscale apply to images with three channels only.

    Example:
        >>> views = Views(crop=(0.2, 1.0), blur=0.5)
        >>> first = views(images, torch.Generator().manual_seed(0))  # images [B, C, H, W] in [0, 1]

    """

    crop: tuple[SomeShare, SomeShare] | None = (0.2, 1.0)
    """Smallest and largest fraction of the area that a random crop keeps, before it is resized; ``None``: no crop."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width / height) of a crop."""
    shift: Whole = 0
    """Largest shift in pixels in each direction, filled with black: the usual pad-and-crop of classifiers."""
    flip: bool = True
    """Flip images horizontally with probability 1/2."""
    brightness: NotNegative = 0.4
    """The brightness factor is drawn from [1 - b, 1 + b], but is at least 0."""
    contrast: NotNegative = 0.4
    """The contrast factor is drawn from [1 - c, 1 + c], but is at least 0."""
    saturation: NotNegative = 0.4
    """The saturation factor is drawn from [1 - s, 1 + s], but is at least 0."""
    hue: HalfTurn = 0.1
    """Hue is rotated by up to this fraction of a full turn in each direction; at most 0.5."""
    jitter_prob: Share = 0.8
    """Probability of color jitter (the four settings above)."""
    grayscale: Share = 0.2
    """Probability of conversion to grayscale."""
    blur: Share = 0.0
    """Probability of a Gaussian blur."""
    sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""
    exact_hue: bool = False
    """Jitter colors step by step, each step clamped, hue in HSV: the textbook form, several times slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("crop", self.crop or (1.0, 1.0), most=1.0)
        _check_range("ratio", self.ratio)
        _check_range("sigma", self.sigma)

    @classmethod
    def none(cls) -> Views:
        """Make settings without augmentation: every view is the image itself."""
        return cls(crop=None, flip=False, brightness=0, contrast=0, saturation=0, hue=0, jitter_prob=0, grayscale=0)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Make one random view of each image, [B, C, H, W] in [0, 1]."""
        return self.apply(x, self.draw_params(len(x), x.shape[1:], generator).to(x.device))

    def draw_params(self, count: int, shape: Sequence[int], generator: torch.Generator) -> ViewParams:
        """Draw the parameters of ``count`` views of images of ``shape`` (C, H, W), on the generator's device."""
        return self.params(uniform(count, generator), shape)

    def params(self, u: Tensor, shape: Sequence[int]) -> ViewParams:
        """Compute parameters from uniform numbers ``u``, [B, DRAWS_PER_IMAGE] in [0, 1): see :func:`uniform`."""
        height, width = int(shape[-2]), int(shape[-1])
        if self.shift >= min(height, width):
            raise EffaceError(
                f"views.shift = {self.shift} can move a {height}x{width} image out of view.",
                remedy=f"Set it below {min(height, width)}; an eighth of the size is usual.",
            )
        attempts, place, shift, coins, amounts = u.split((2 * CROP_ATTEMPTS, 2, 2, 4, 5), 1)
        top, left, tall, wide = self._boxes(attempts.unflatten(1, (2, CROP_ATTEMPTS)), place, height, width).unbind(1)
        span = 2 * self.shift + 1
        down, right = ((shift * span).floor().clamp(max=span - 1) - self.shift).unbind(1)
        probabilities = (0.5 if self.flip else 0.0, self.jitter_prob, self.grayscale, self.blur)
        flip, jitter, gray, blur = (coins < coins.new_tensor(probabilities)).unbind(1)
        ranges = [(max(0.0, 1 - most), 1 + most) for most in (self.brightness, self.contrast, self.saturation)]
        low, high = u.new_tensor([*ranges, (-self.hue, self.hue), self.sigma]).unbind(1)
        drawn = torch.lerp(low, high, amounts)
        applied = torch.stack((jitter, jitter, jitter, jitter, blur), 1)
        changed = torch.where(applied, drawn, drawn.new_tensor((1, 1, 1, 0, 0)))
        brightness, contrast, saturation, hue, sigma = changed.unbind(1)
        return ViewParams(
            *(top, left, tall, wide, down, right, flip),
            *(brightness, contrast, saturation, hue, gray, sigma),
        )

    def _boxes(self, attempts: Tensor, place: Tensor, height: int, width: int) -> Tensor:
        """Compute top, left, height and width of each crop, [B, 4], as torchvision's RandomResizedCrop does."""
        size = attempts.new_tensor((height, width))
        if self.crop is None:
            return torch.cat((torch.zeros_like(place), size.expand_as(place)), 1)
        area = height * width * (self.crop[0] + (self.crop[1] - self.crop[0]) * attempts[:, 0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspect = (low + (high - low) * attempts[:, 1]).exp()
        sides = torch.stack((area / aspect, area * aspect), 1).sqrt_().round_()  # [B, 2, CROP_ATTEMPTS]
        fits = ((sides > 0) & (sides <= size[:, None])).all(1)
        left_over = fits.byte().cummax(1).values.sum(1)  # attempts from the first that fits on
        index = (CROP_ATTEMPTS - left_over).clamp_(max=CROP_ATTEMPTS - 1)
        sides = sides.gather(2, index[:, None, None].expand(-1, 2, 1))[:, :, 0]
        room = size - sides
        corner = torch.minimum((place * (room + 1)).floor_(), room)
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        fitted = min(height, round(width / aspect)), min(width, round(height * aspect))
        central = attempts.new_tensor(((height - fitted[0]) // 2, (width - fitted[1]) // 2, *fitted))
        return torch.where(left_over[:, None] > 0, torch.cat((corner, sides), 1), central)

    def apply(self, x: Tensor, params: ViewParams) -> Tensor:
        """Make the views of images that ``params`` describe.

        Args:
            x: Images, [B, C, H, W] in [0, 1], float32 or float64; the result is differentiable in them.
            params: One draw per image.

        Returns:
            The views, of the same shape.

        Raises:
            EffaceError: If the images have another type or number than expected.

        """
        if x.dim() != 4 or x.dtype not in (torch.float32, torch.float64) or len(x) != len(params):
            raise EffaceError(
                f"Cannot make views of a {x.dtype} tensor of shape {tuple(x.shape)} from {len(params)} draws.",
                "Expected: float32 [B, C, H, W] in [0, 1], and one draw per image.",
            )
        channels, height, width = x.shape[1:]
        steps: list[Callable[[Tensor, slice], Tensor]] = []
        if self.crop is not None or self.shift or self.flip:
            steps.append(_sampler(params, height, width, x.dtype, self.shift > 0))
        jitter = self.jitter_prob > 0 and (self.brightness or self.contrast or self.saturation or self.hue)
        if jitter or self.grayscale:
            form = _stepwise if self.exact_hue else _linear if channels == 3 else _linear_gray
            steps.append(form(params, x.dtype))
        size = max(1, CHUNK_BYTES // ((channels + 2) * height * width * x.element_size()))
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            chunk = x[rows]
            for step in steps:
                chunk = step(chunk, rows)
            result[rows] = chunk
        result.clamp_(0, 1)
        return _blur(result, params.sigma, self.sigma[1]) if self.blur else result


@dataclass(frozen=True, eq=False)
class ViewParams:
    """Parameters drawn for each image; every field is a tensor [B]."""

    top: Tensor
    """First row of the crop, in pixels (an integer, as the next three)."""
    left: Tensor
    height: Tensor
    width: Tensor
    down: Tensor
    """Rows by which the window moves down over the image, -shift .. shift; pixels outside are black."""
    right: Tensor
    """Columns by which the window moves right."""
    flip: Tensor
    """Whether the image is flipped horizontally."""
    brightness: Tensor
    """Factor; 1 changes nothing."""
    contrast: Tensor
    """Factor on the difference from the mean gray; 1 changes nothing."""
    saturation: Tensor
    """Factor on the difference from the pixel's own gray; 1 changes nothing, 0 gives gray."""
    hue: Tensor
    """Fraction of a full turn, -0.5 .. 0.5; red moves towards green."""
    gray: Tensor
    """Whether the image is converted to grayscale."""
    sigma: Tensor
    """Standard deviation of the blur in pixels; 0: no blur."""

    def __len__(self) -> int:
        return len(self.top)

    def to(self, device: torch.device | str) -> ViewParams:
        """Move all fields to another device."""
        return ViewParams(*(getattr(self, f.name).to(device) for f in fields(self)))

    def rows(self, positions: Tensor) -> ViewParams:
        """Take the draws of some images, given by their positions, int64 [n]."""
        positions = positions.to(self.top.device)
        return ViewParams(*(getattr(self, f.name)[positions] for f in fields(self)))


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """Draw the uniform numbers of ``count`` views, [count, DRAWS_PER_IMAGE], on the generator's device.

    Many small draws are faster if their uniform numbers are joined and passed to :meth:`Views.params` in one call.
    """
    return torch.rand(count, DRAWS_PER_IMAGE, generator=generator, device=generator.device)


def _sampler(
    p: ViewParams, height: int, width: int, dtype: torch.dtype, shifted: bool
) -> Callable[[Tensor, slice], Tensor]:
    """Build the step that crops, shifts (if ``shifted``) and flips."""
    mirror = p.flip.to(dtype)
    rows = _source(p.top, p.height, p.down, torch.zeros_like(mirror), height, shifted)
    columns = _source(p.left, p.width, p.right, mirror, width, shifted)

    def sample(x: Tensor, chosen: slice) -> Tensor:
        # A complex number is a pair (x, y) in memory: broadcasting writes the whole grid in one pass.
        grid = torch.view_as_real(torch.complex(columns[chosen, None, :], rows[chosen, :, None]))
        return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)

    return sample


def _source(first: Tensor, length: Tensor, shift: Tensor, mirror: Tensor, size: int, shifted: bool) -> Tensor:
    """Compute which coordinate each of ``size`` output pixels reads along one axis, [B, size]; the image is -1 .. 1.

    Coordinates are clamped to the crop, so that no pixel outside it leaks in, as if it were cut out and then resized.
    """
    first, length, shift = (value.to(mirror.dtype) for value in (first, length, shift))
    output = torch.arange(size, device=first.device, dtype=first.dtype)[:, None]
    place = torch.addcmul(shift + mirror * (size - 1), output, 1 - 2 * mirror)  # [size, B]: long rows are faster
    pixel, scale = 2 / size, length / size
    low = first * pixel + (1 / size - 1)  # the center of the crop's first pixel
    at = torch.addcmul(low + (0.5 * scale - 0.5) * pixel, place, scale * pixel)
    at = at.clamp(low, low + (length - 1) * pixel)
    if shifted:
        at = torch.where((place < 0) | (place >= size), -3.0, at)
    return at.T.contiguous()


def _linear(p: ViewParams, dtype: torch.dtype) -> Callable[[Tensor, slice], Tensor]:
    """Build the step for color jitter and grayscale as one matrix and one offset per image; it does not clamp."""
    device, turns = p.hue.device, (2 * math.pi * p.hue).to(dtype)[:, None, None]
    luma, turn = (torch.tensor(values, dtype=dtype, device=device) for values in (LUMA, HUE_ROTATION))
    one, to_gray = torch.eye(3, dtype=dtype, device=device), luma.expand(3, 3)
    saturation = _column(p.saturation, dtype, 3)
    luminance = to_gray / luma.sum()
    color = luminance + turns.cos() * (one - luminance) + turns.sin() * turn
    color = color @ (saturation * one + (1 - saturation) * to_gray)
    color = torch.where(p.gray[:, None, None], to_gray @ color, color)
    matrix = color * _column(p.brightness * p.contrast, dtype, 3)
    # Contrast moves colors towards the mean gray of the brightened image: an offset, linear in the mean color.
    offset = color.sum(2, keepdim=True) * _column(p.brightness * (1 - p.contrast), dtype, 3) * luma

    def change(x: Tensor, rows: slice) -> Tensor:
        flat = x.flatten(2)
        return torch.baddbmm(offset[rows] @ flat.mean(2, keepdim=True), matrix[rows], flat).view_as(x)

    return change


def _linear_gray(p: ViewParams, dtype: torch.dtype) -> Callable[[Tensor, slice], Tensor]:
    """Build the step for brightness and contrast of images without three channels; it does not clamp."""
    gain, pull = _column(p.brightness * p.contrast, dtype), _column(p.brightness * (1 - p.contrast), dtype)

    def change(x: Tensor, rows: slice) -> Tensor:
        return torch.addcmul(pull[rows] * x.mean((1, 2, 3), keepdim=True), x, gain[rows])

    return change


def _stepwise(p: ViewParams, dtype: torch.dtype) -> Callable[[Tensor, slice], Tensor]:
    """Build the textbook step: brightness, contrast, saturation, hue, grayscale, each of them clamped."""
    drawn = [_column(value, dtype) for value in (p.brightness, p.contrast, p.saturation, p.hue)]

    def change(x: Tensor, rows: slice) -> Tensor:
        brightness, contrast, saturation, hue = (value[rows] for value in drawn)
        x = (x * brightness).clamp(0, 1)
        x = (contrast * x + (1 - contrast) * _gray(x).mean((1, 2, 3), keepdim=True)).clamp(0, 1)
        if x.shape[1] != 3:
            return x
        x = (saturation * x + (1 - saturation) * _gray(x)).clamp(0, 1)
        x = torch.where(hue != 0, _rotate_hue(x, hue), x)
        return torch.where(p.gray[rows, None, None, None], _gray(x), x)

    return change


def _column(value: Tensor, dtype: torch.dtype, dim: int = 4) -> Tensor:
    """Reshape one number per image to [B, 1, ...] with ``dim`` dimensions."""
    return value.to(dtype).view(-1, *[1] * (dim - 1))


def _gray(x: Tensor) -> Tensor:
    """Compute the luma of three channels, [B, 1, H, W]; images with any other number of channels are returned as is."""
    if x.shape[1] != 3:
        return x
    return (x * torch.tensor(LUMA, dtype=x.dtype, device=x.device)[:, None, None]).sum(1, keepdim=True)


def _rotate_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate hue in HSV: the largest and smallest channel value of a pixel stay the same."""
    red, green, blue = x.unbind(1)
    value, spread = x.amax(1), x.amax(1) - x.amin(1)
    safe = torch.where(spread > 0, spread, 1)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    offsets = torch.tensor((5.0, 3.0, 1.0), dtype=x.dtype, device=x.device)[:, None, None]
    k = (sextant[:, None] + 6 * turns + offsets) % 6
    return value[:, None] - spread[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur the images with ``sigma`` > 0 by a Gaussian, reflected at the border, truncated at 3 times ``largest``."""
    chosen = sigma.nonzero()[:, 0]
    if not len(chosen):
        return x
    radius = min(math.ceil(3 * largest), x.shape[-2] - 1, x.shape[-1] - 1)
    steps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = (-0.5 * (steps / sigma[chosen, None].to(x.dtype)) ** 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)
    blurred = F.pad(x[chosen], (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    blurred = F.conv2d(blurred, kernel[:, None, :, None], groups=len(kernel))
    blurred = F.conv2d(blurred, kernel[:, None, None, :], groups=len(kernel))
    return x.index_copy(0, chosen, blurred.view(len(chosen), *x.shape[1:]))


def _check_range(name: str, pair: tuple[float, float], most: float = math.inf) -> None:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most or math.isinf(pair[1]):
        upper = "" if math.isinf(most) else f", at most {most:g}"
        raise EffaceError(
            f"views.{name} cannot be {tuple(pair)}.",
            f"It is (smallest, largest), both above 0{upper}, in this order.",
        )
