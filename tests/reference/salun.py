"""SalUn: which weights may change, and momentum descent that restores the others after each update."""

import numpy as np


def mask(gradient, keep):
    """True for the share ``keep`` of all numbers with the largest absolute values."""
    order = sorted(range(len(gradient)), key=lambda i: -abs(gradient[i]))
    chosen = set(order[: round(keep * len(gradient))])
    return np.array([i in chosen for i in range(len(gradient))])


def run(weight, bias, steps, rates, momentum, decay, mask_w, mask_b):
    weight, bias = weight.copy(), bias.copy()
    speed_w, speed_b = np.zeros_like(weight), np.zeros_like(bias)
    for gradient, rate in zip(steps, rates, strict=True):
        g_w, g_b = gradient(weight, bias)
        speed_w, speed_b = momentum * speed_w + g_w + decay * weight, momentum * speed_b + g_b
        weight = np.where(mask_w, weight - rate * speed_w, weight)
        bias = np.where(mask_b, bias - rate * speed_b, bias)
    return weight, bias
