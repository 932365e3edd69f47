"""Convert arrays of pixels to uint8 [N, C, H, W], and judge the bit depth of pictures. NumPy only."""

from __future__ import annotations

import numpy as np

from efface.errors import EffaceError

DARK = 32
"""Pictures whose brightest value is below this are said to be dark: they may be on another scale than 0 to 255."""


def convert_pixels(x: np.ndarray, name: str, channels: int | None = None) -> np.ndarray:
    """Convert pixels to uint8 [N, C, H, W].

    Args:
        x: Integers 0 to 255 of shape [N, H, W], [N, C, H, W] or [N, H, W, C]; [N, H, W, 4] is RGBA and is put on white.
        name: Name of the data in messages.
        channels: The number of channels, where the shape does not tell which axis they are on; 4 are kept as they are.

    Raises:
        EffaceError: The type or range is another one, or it is unclear which axis the channels are on.

    """
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise EffaceError(
            f"The images of {name} have shape {list(x.shape)}.",
            "Expected [N, H, W], [N, C, H, W] or [N, H, W, C] with no empty dimension.",
        )
    if x.dtype.kind not in "ui":
        scale = "astype('uint8') * 255" if x.dtype.kind == "b" else "(x * 255).round().astype('uint8')"
        raise EffaceError(
            f"The images of {name} are {x.dtype}.",
            "Pixels are integers from 0 to 255.",
            f"For {'False and True' if x.dtype.kind == 'b' else 'numbers in [0, 1]'}: {scale}.",
        )
    if x.dtype != np.uint8:
        if x.min() < 0 or x.max() > 255:
            raise EffaceError(
                f"The pixels of {name} go from {x.min()} to {x.max()}.",
                "Expected 0 to 255.",
                "Scale them by what is white, such as 4095 for 12 bits: (x * (255 / 4095)).round().astype('uint8').",
            )
        x = x.astype(np.uint8)
    if x.ndim == 3:
        x = x[:, None]
    elif channels is not None:
        x = x if x.shape[1] == channels else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    else:
        x = _channels_first(x, name)
    if channels is not None and x.shape[1] != channels:
        raise EffaceError(f"The images of {name} have the shape {list(x.shape)}, not {channels} channels.")
    return x


def _channels_first(x: np.ndarray, name: str) -> np.ndarray:
    """Move the channels to the second axis; refuse shapes that can be read in two ways."""
    first, last = x.shape[1], x.shape[3]
    if first in (1, 3):
        return x
    if first == 4:
        raise EffaceError(
            f"The images of {name} have 4 channels: {list(x.shape)}.",
            "The fourth can be transparency, which must not be trained on as a color, or another band.",
            "For RGBA: x.transpose(0, 2, 3, 1), which is put on white. For four bands: data.channels=4 "
            "(for a run that was trained on them: in its config.yaml, under data).",
        )
    if last in (1, 3, 4):
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return _put_on_white(x) if last == 4 else x
    if last < first:
        raise EffaceError(
            f"The images of {name} have the shape {list(x.shape)}.",
            f"It is unclear whether they have {first} or {last} channels.",
            f"Say which: data.channels={last} for [N, H, W, C], data.channels={first} for [N, C, H, W].",
        )
    return x


def _put_on_white(x: np.ndarray) -> np.ndarray:
    alpha = x[:, 3:].astype(np.uint16)
    return ((x[:, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def describe_darkness(x: np.ndarray, name: str) -> tuple[str, ...]:
    """Say that no pixel is brighter than ``DARK``, if that is so: the pixels are then likely on another scale."""
    brightest = int(x.max())
    if brightest >= DARK:
        return ()
    return (f"No pixel of {name} is brighter than {brightest}, of 255: is white another value, such as {brightest}?",)


def judge_depth(peak: int, count: int, white: int | None, *, reduced: bool) -> None:
    """Refuse pictures with more than 8 bits whose values, over the whole set, do not reach into the upper half.

    Args:
        peak: The largest value in all of them.
        count: How many pictures have more than 8 bits.
        white: The value that is white, if it was stated.
        reduced: Whether some were reduced to their upper 8 bits when they were opened, as color pictures are.

    Raises:
        EffaceError: What is white must be stated, or cannot be.

    """
    if reduced and white not in (None, 65535):
        raise EffaceError(
            f"data.white={white} cannot be used: some of the {count} pictures with 16 bits are in color.",
            "Of these only the upper 8 bits can be read.",
            "Convert them to 8 bits first.",
        )
    if white is not None and peak > white and not reduced:
        raise EffaceError(
            f"Some of the {count} pictures with 16 bits have values up to {peak}, above data.white={white}.",
            "They would all become white.",
            f"Set data.white to what is white in them, such as {2 ** peak.bit_length() - 1}.",
        )
    if white is not None or peak > 32767:
        return
    bits = next(bits for bits in (8, 10, 12, 14, 15) if peak < 2**bits)
    remedy = f"Add --set data.white={2**bits - 1} if these are {bits}-bit values"
    if reduced:
        remedy = "Scale them to 8 bits first (of color pictures only the upper 8 of 16 bits can be read)"
    raise EffaceError(
        f"{count} pictures have 16 bits, and no value in them is above {peak}: they would end in {peak // 257 + 1} "
        "shades.",
        f"Values of {bits} bits are often stored in 16, and then white is {2**bits - 1}, not 65535.",
        f"{remedy}, or data.white=65535 if they are meant to be this dark, or a run was trained on them as they were "
        "(then in its config.yaml, under data).",
    )
