"""Convert one opened picture to pixels.

Images are converted in this order: the EXIF rotation is applied; only the first frame of an animation is used; 16-bit
gray is scaled to 8 bits, by what is white over the whole set; transparent pixels are put on white; the result is gray
(luminance) or RGB. With ``size`` the largest centered square is scaled to ``size`` x ``size`` with antialiasing
(bilinear), which equals scaling the shorter side to ``size`` and cropping the center. Smaller images are scaled up.
With a :class:`efface.data.preprocessing.Preprocessing` its rules take the place of ``size``.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from efface.data.preprocessing import Preprocessing, Transparency


def to_array(
    image: Image.Image,
    size: int | None,
    channels: int,
    white: int = 65535,
    preprocessing: Preprocessing | None = None,
) -> np.ndarray:
    """Convert one image to uint8 [C, H, W] by the rules at the top of this module; ``white`` is white in 16 bits."""
    rules = preprocessing or Preprocessing()
    image = rules.turn(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels go from {values.min()} to {values.max()}, outside of 0 to 65535")
        image = Image.fromarray(((np.minimum(values, white) * 510 + white) // (2 * white)).astype(np.uint8))
    elif image.has_transparency_data and rules.transparency is Transparency.WHITE:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("L" if channels == 1 else "RGB")
    if preprocessing is not None:
        return preprocessing.apply(image)
    if size is not None:
        side = min(image.size)
        left, upper = (image.width - side) / 2, (image.height - side) / 2
        # Cropping first avoids huge intermediate images: 1 x 10 000 pixels would first become 32 x 320 000.
        box = (left, upper, left + side, upper + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
