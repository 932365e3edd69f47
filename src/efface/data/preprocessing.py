"""How a picture becomes the pixels that a network is given: resize, crop, resampling, rotation and transparency.

A network is used with the preparation that it was trained with; another one loads and runs without an error, and gives
other features. A :class:`Preprocessing` is applied to pictures at their own size, with Pillow or with torchvision, as
the libraries do it, so that the pixels are theirs to the last bit. Mean, standard deviation and the order of the
colors belong to the network (``recipe.mean``, ``recipe.std``, ``recipe.order``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from PIL import Image, ImageOps

from efface import config
from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import FirstFormat

Side = Annotated[int, Ge(1), Le(2**14)]
"""A side of a picture in pixels."""
PixelValue = Annotated[int, Ge(0), Le(255)]
"""The value of a pixel."""
LARGEST_RESIZED = 2**27
"""Most pixels that a picture may have after it was resized and before it is cropped."""


class ResizeMode(StrEnum):
    """Which side the new size is for; the ratio of the sides is kept, but in ``exact``."""

    SHORTER = "shorter"
    """The shorter side gets this length, the other one is rounded down: torchvision's ``Resize(int)``."""
    EXACT = "exact"
    """Both sides get their length: the picture is squashed."""
    FIT = "fit"
    """The picture fits into the size, and is padded by the crop: ``longest`` of open_clip, ``border`` of timm."""
    COVER = "cover"
    """The picture covers the size, rounded: timm's ``ResizeKeepRatio``."""


class Resampling(StrEnum):
    """The filter with which pixels are interpolated, always with antialiasing."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    HAMMING = "hamming"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class ResizeLibrary(StrEnum):
    """Which library resizes; the two differ by single shades."""

    PILLOW = "pillow"
    """Pillow, as in timm, open_clip, torchvision's transforms of pictures, and the slow processors of transformers."""
    TORCHVISION = "torchvision"
    """torchvision on tensors of bytes, as in the fast processors of transformers."""


class Rounding(StrEnum):
    """Where a crop begins that cannot be exactly in the center."""

    EVEN = "even"
    """Half pixels are rounded to even numbers, as in torchvision."""
    DOWN = "down"
    """Rounded down, as in transformers."""


class Orientation(StrEnum):
    """What is done with the rotation that a camera wrote into a file."""

    UPRIGHT = "upright"
    STORED = "stored"
    """It is ignored, as by ``Image.open(path).convert("RGB")``."""


class Transparency(StrEnum):
    """What is done with transparent pixels."""

    WHITE = "white"
    """They are put on white."""
    DROP = "drop"
    """The colors below are used as they are stored, as by ``Image.open(path).convert("RGB")``."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Settings):
    """How a picture of any size becomes pixels of one size.

    Example:
        >>> Preprocessing(resize=256, crop=(224, 224), resampling="bicubic").output
        (224, 224)

    """

    format: FirstFormat = 1
    """Version of these settings."""
    resize: Side | tuple[Side, Side] | None = None
    """New length of the shorter side, or height and width; None: pictures keep their size."""
    mode: ResizeMode = ResizeMode.SHORTER
    """What ``resize`` is for: ``shorter``, ``exact``, ``fit`` or ``cover``."""
    crop: tuple[Side, Side] | None = None
    """Height and width that are cut out of the center, or padded to; None: no crop."""
    rounding: Rounding = Rounding.EVEN
    """``even`` (torchvision) or ``down`` (transformers): where a crop begins that cannot be exactly in the center."""
    fill: PixelValue | tuple[PixelValue, ...] = 0
    """Value of padded pixels, one number or one for each channel."""
    resampling: Resampling = Resampling.BILINEAR
    """``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` or ``lanczos``."""
    library: ResizeLibrary = ResizeLibrary.PILLOW
    """``pillow`` or ``torchvision``."""
    orientation: Orientation = Orientation.UPRIGHT
    """``upright``: turned as the camera says; ``stored``: as the pixels are stored."""
    transparency: Transparency = Transparency.WHITE
    """``white``: transparent pixels are put on white; ``drop``: transparency is dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        several = self.resize is not None and self.mode is not ResizeMode.EXACT
        if several and self.crop is None:
            raise EffaceError(
                "data.preprocessing resizes pictures without a crop.",
                f"In the mode {self.mode} pictures of different shapes keep different sizes.",
                "Add data.preprocessing.crop=[HEIGHT, WIDTH], or data.preprocessing.mode=exact.",
            )
        if self.mode is ResizeMode.SHORTER and isinstance(self.resize, tuple):
            raise EffaceError(
                f"data.preprocessing.resize cannot be {list(self.resize)} in the mode shorter.",
                "One side is given there.",
                "Give one number, or data.preprocessing.mode=exact.",
            )
        if self.library is ResizeLibrary.TORCHVISION and self.resampling in (Resampling.BOX, Resampling.HAMMING):
            raise EffaceError(
                f"torchvision has no resampling '{self.resampling}' on tensors.",
                remedy="Set data.preprocessing.library=pillow.",
            )

    @property
    def output(self) -> tuple[int, int] | None:
        """Height and width of every result; None if pictures keep their own."""
        if self.crop is not None:
            return self.crop
        return None if self.resize is None else self._target

    @property
    def _target(self) -> tuple[int, int]:
        assert self.resize is not None
        return self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture after it was resized, and before it is cropped."""
        if self.resize is None:
            return height, width
        if self.mode is ResizeMode.EXACT:
            return self._target
        if self.mode is ResizeMode.SHORTER:
            short, long = sorted((height, width))
            size = self._target[0]
            other = max(1, int(size * long / short))
            return (size, other) if height <= width else (other, size)
        ratios = [side / wanted for side, wanted in zip((height, width), self._target, strict=True)]
        ratio = max(ratios) if self.mode is ResizeMode.FIT else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def turn(self, image: Image.Image) -> Image.Image:
        """Turn a picture upright, if that is asked for."""
        return ImageOps.exif_transpose(image) if self.orientation is Orientation.UPRIGHT else image

    def apply(self, image: Image.Image) -> np.ndarray:
        """Resize and crop a picture in gray or RGB.

        Returns:
            Pixels, uint8 [C, H, W].

        Raises:
            ValueError: The picture would become too large before it is cropped.

        """
        size = self.resized(image.height, image.width)
        if size[0] * size[1] > LARGEST_RESIZED:
            raise ValueError(
                f"it is {image.width} x {image.height}, and would be resized to {size[1]} x {size[0]} before the crop"
            )
        return self._crop(self._resize(image, size))

    def describe(self) -> str:
        """Describe the preparation in words, such as ``shorter side to 256 (bicubic), center 224 x 224``."""
        words: list[str] = []
        if self.resize is not None:
            target = f"{self._target[0]} x {self._target[1]}"
            words.append(
                {
                    ResizeMode.SHORTER: f"shorter side to {self._target[0]}",
                    ResizeMode.EXACT: f"squashed to {target}",
                    ResizeMode.FIT: f"fitted into {target}",
                    ResizeMode.COVER: f"scaled to cover {target}",
                }[self.mode]
                + f" ({self.resampling}, {self.library})"
            )
        if self.crop is not None:
            words.append(f"center {self.crop[0]} x {self.crop[1]}")
        if self.orientation is Orientation.STORED:
            words.append("not turned upright")
        if self.transparency is Transparency.DROP:
            words.append("transparency dropped")
        return ", ".join(words) or "their own size"

    def as_settings(self) -> dict[str, Any]:
        """Plain values, as in a configuration."""
        return config.dump(self)

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """The resized picture as uint8 [C, H, W]."""
        if self.library is ResizeLibrary.TORCHVISION and size != (image.height, image.width):
            from torchvision.transforms import v2  # slow to import, and needed only where a library resizes with it

            filters = v2.InterpolationMode
            mode = {
                Resampling.NEAREST: filters.NEAREST,
                Resampling.BILINEAR: filters.BILINEAR,
                Resampling.BICUBIC: filters.BICUBIC,
                Resampling.LANCZOS: filters.LANCZOS,
            }[self.resampling]
            pixels = v2.functional.pil_to_tensor(image)
            return v2.functional.resize(pixels, list(size), interpolation=mode, antialias=True).numpy()
        if size != (image.height, image.width):
            image = image.resize((size[1], size[0]), Image.Resampling[self.resampling.name])
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def _crop(self, x: np.ndarray) -> np.ndarray:
        """Cut out the center, padding first where the picture is smaller."""
        if self.crop is None:
            return x
        missing = [max(0, wanted - side) for wanted, side in zip(self.crop, x.shape[1:], strict=True)]
        if any(missing):
            padded = np.empty(
                (len(x), *(side + more for side, more in zip(x.shape[1:], missing, strict=True))), np.uint8
            )
            padded[:] = np.array(self.fill, np.uint8).reshape(-1, 1, 1)
            top, left = (more // 2 for more in missing)
            padded[:, top : top + x.shape[1], left : left + x.shape[2]] = x
            x = padded
        begin = round if self.rounding is Rounding.EVEN else int
        top, left = (begin((side - wanted) / 2) for side, wanted in zip(x.shape[1:], self.crop, strict=True))
        return x[:, top : top + self.crop[0], left : left + self.crop[1]]
