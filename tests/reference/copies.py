"""Likeness of two images by their edges, in loops and float64."""

from __future__ import annotations

import math


def averaged(image, side):
    """A gray image (list of rows) with areas averaged down to at most side x side."""
    height, width = len(image), len(image[0])
    rows, columns = min(height, side), min(width, side)
    out = []
    for i in range(rows):
        top, bottom = i * height / rows, (i + 1) * height / rows
        line = []
        for j in range(columns):
            left, right = j * width / columns, (j + 1) * width / columns
            total = area = 0.0
            for y in range(math.floor(top), math.ceil(bottom)):
                for x in range(math.floor(left), math.ceil(right)):
                    share = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
                    total, area = total + share * image[y][x], area + share
            line.append(total / area)
        out.append(line)
    return out


def differences(image):
    """Each pixel less its neighbor above, then each pixel less its neighbor on the left."""
    below = [image[y][x] - image[y - 1][x] for y in range(1, len(image)) for x in range(len(image[0]))]
    aside = [row[x] - row[x - 1] for row in image for x in range(1, len(row))]
    return below + aside


def correlation(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def likeness(a, b, side):
    """Correlation of the edges of two images [C][H][W]."""
    gray = [
        [[sum(c[y][x] for c in image) / len(image) for x in range(len(image[0][0]))] for y in range(len(image[0]))]
        for image in (a, b)
    ]
    return correlation(*(differences(averaged(image, side)) for image in gray))
