"""How well duplicate detection separates altered copies from look-alikes; needs Debian's Fashion-MNIST.

    python -m benchmarks.near_copies

Look-alikes: pairs of different pictures above a threshold, by pixels and by edges. Copies: the similarity that remains
after a photograph is encoded again, rescaled and so on. Results are printed.
"""

from __future__ import annotations

import io
import platform
import time

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from efface.data.duplicates import FINE, NEAR, edges
from efface.data.sources import load
from efface.data.split import partition, select_forget_set

RNG = np.random.default_rng(0)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


def rescaled(image: Image.Image, part: float) -> Image.Image:
    side = int(image.width * part)
    return image.resize((side, side), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


CHANGES = {
    "jpeg, quality 75": lambda image: jpeg(image, 75),
    "jpeg, quality 30": lambda image: jpeg(image, 30),
    "brightness 0.7": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast 1.3": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "3/4 and back": lambda image: rescaled(image, 0.75),
    "1/2 and back": lambda image: rescaled(image, 0.5),
    "shifted by a pixel": lambda image: Image.fromarray(np.roll(np.asarray(image), 1, 1)),
}


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)[None]


def look_alikes() -> None:
    data = load("fashion-mnist")
    chosen = RNG.permutation(60_000)[:1000]
    pixels = np.asarray(data.x).reshape(len(data), -1).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    for name, z, threshold in (("pixels", pixels, 0.98), ("edges", edges(np.asarray(data.x), FINE), NEAR)):
        alike = z[chosen] @ z.T
        alike[np.arange(len(chosen)), chosen] = 0
        print(f"{name} above {threshold}: {(alike > threshold).sum()} pairs of 1 000 x 70 000")
    split = partition(data)
    times = []
    for seed in range(5):
        start = time.perf_counter()
        select_forget_set(split, data, "@random:1000", seed)
        times.append(time.perf_counter() - start)
    spread = f"{min(times):.2f} to {max(times):.2f}, n 5"
    print(f"forget(@random:1000) among 70 000: {np.median(times):.2f} s ({spread})")


def copies() -> None:
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    crops = []
    for photo in photos:
        for _ in range(30):
            side = int(RNG.integers(100, 400))
            left, top = int(RNG.integers(photo.width - side)), int(RNG.integers(photo.height - side))
            crops.append(photo.crop((left, top, left + side, top + side)))
    for size in (32, 64, 224):
        for name, change in CHANGES.items():
            images = [crop.resize((size, size), Image.Resampling.BICUBIC) for crop in crops]
            pairs = [(edges(array(one), FINE), edges(array(change(one)), FINE)) for one in images]
            left = np.array([(one @ other.T).item() for one, other in pairs])
            middle, low, found = np.median(left), np.quantile(left, 0.1), (left > NEAR).mean()
            print(f"{size:4} {name:20} median {middle:.3f}, tenth {low:.3f}, found {found:.0%}")


if __name__ == "__main__":
    print(f"{platform.processor() or platform.machine()}, numpy {np.__version__}, n = 60 photographs")
    look_alikes()
    copies()
