"""The gradient term on a linear softmax classifier, where d loss / d x = W^T (p - onehot) is known in closed form."""

import math

import numpy as np

from tests.reference.descent import softmax


def norms(weight, bias, x, y):
    result = []
    for row, label in zip(x, y, strict=True):
        error = softmax((weight @ row + bias)[None])[0]
        error[label] -= 1
        result.append(math.sqrt(((weight.T @ error) ** 2).sum()))
    return result


def output_norms(first, second, x):
    """Norm of the gradient of the summed outputs of W₂ tanh(W₁ x), one image and one pixel at a time."""
    result = []
    for row in x:
        slopes = []
        for pixel in range(len(row)):
            slope = 0.0
            for unit, inner in enumerate(first):
                steep = 1 - math.tanh(sum(w * value for w, value in zip(inner, row, strict=True))) ** 2
                slope += sum(outer[unit] for outer in second) * steep * inner[pixel]
            slopes.append(slope)
        result.append(math.sqrt(sum(slope**2 for slope in slopes)))
    return result


def between(trained, unseen, shares):
    """ε x_F + (1 - ε) x_V, pixel by pixel; unseen images are used again if there are too few."""
    return [
        [share * a + (1 - share) * b for a, b in zip(x, unseen[place % len(unseen)], strict=True)]
        for place, (x, share) in enumerate(zip(trained, shares, strict=True))
    ]


def square(forget, center):
    return sum(((g - center) / center) ** 2 for g in forget) / len(forget)


def log_mean(forget, unseen):
    mean_forget = sum(math.log(g) for g in forget) / len(forget)
    mean_unseen = sum(math.log(g) for g in unseen) / len(unseen)
    return (mean_forget - mean_unseen) ** 2


def quantile(forget, unseen):
    logs = sorted(math.log(g) for g in forget)
    levels = [(k + 0.5) / len(logs) for k in range(len(logs))]
    targets = [np.quantile([math.log(g) for g in unseen], level) for level in levels]
    return sum((a - b) ** 2 for a, b in zip(logs, targets, strict=True)) / len(logs)
