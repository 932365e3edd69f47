"""PURGE, in loops: both losses of a step, and the direction that it goes along."""

import math

import numpy as np


def softmax(logits):
    """Probabilities of one example."""
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    return [power / sum(powers) for power in powers]


def divergence(target, logits):
    """KL(target ‖ softmax(logits))."""
    return sum(t * (math.log(t) - math.log(p)) for t, p in zip(target, softmax(logits), strict=True) if t > 0)


def of_forgotten(logits, features, target, retained_features, erase):
    """The loss whose gradient is g_F."""
    mean = [sum(column) / len(retained_features) for column in zip(*retained_features, strict=True)]
    apart = [(value - m) ** 2 for z in features for value, m in zip(z, mean, strict=True)]
    return sum(divergence(target, one) for one in logits) / len(logits) + erase * sum(apart) / len(apart)


def of_retained(logits, labels, known, distill, temperature):
    """The loss whose gradient is g_R."""
    total = 0.0
    for one, label, teacher in zip(logits, labels, known, strict=True):
        warm = softmax([value / temperature for value in teacher])
        agree = temperature**2 * divergence(warm, [value / temperature for value in one])
        total += -math.log(softmax(one)[label]) + distill * agree
    return total / len(logits)


def direction(forget, retain):
    """Where a step goes: g_F, without its part against g_R."""
    along = float(np.dot(forget, retain))
    if along >= 0 or float(np.dot(retain, retain)) < 1e-12:
        return forget
    return forget - along / float(np.dot(retain, retain)) * retain
