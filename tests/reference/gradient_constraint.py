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
