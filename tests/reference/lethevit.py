"""LetheViT's masks and forget loss, one pixel and one image at a time."""

import math

from tests.reference.simclr import dot, unit


def masked(image, score, ratio):
    """``image[channel][row][column]`` with the patches of the highest ``score[row][column]`` black."""
    rows, columns = len(score), len(score[0])
    high, wide = len(image[0]) // rows, len(image[0][0]) // columns
    ranked = sorted(((score[i][j], i, j) for i in range(rows) for j in range(columns)), reverse=True)
    gone = {(i, j) for _, i, j in ranked[: max(1, round(ratio * rows * columns))]}
    return [
        [[0.0 if (y // high, x // wide) in gone else value for x, value in enumerate(line)] for y, line in enumerate(c)]
        for c in image
    ]


def loss(z, positive, negative, tau):
    def cosine(u, v):
        return dot(unit(u), unit(v))

    rows = zip(z, positive, negative, strict=True)
    return [math.log(1 + math.exp((cosine(u, n) - cosine(u, p)) / tau)) for u, p, n in rows]
