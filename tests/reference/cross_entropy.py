"""Cross-entropy and its distance, one example at a time, in float64."""

import math


def softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def loss(logits, labels):
    return [-math.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)]


def distance(a, b, temperature):
    result = []
    for row_a, row_b in zip(a, b, strict=True):
        p = softmax([value / temperature for value in row_a])
        q = softmax([value / temperature for value in row_b])
        result.append(temperature**2 * sum(u * (math.log(u) - math.log(v)) for u, v in zip(p, q, strict=True)))
    return result
