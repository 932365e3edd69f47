"""Plain gradient descent of a linear softmax classifier in float64, which every training method is compared with.

The model is logits = W x + b. Gradients are the textbook formula, momentum is torch's (v = mu v + g; w -= lr v),
the schedule is given as a list of rates. Nothing here differentiates automatically.
"""

import numpy as np


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def losses(weight, bias, x, y):
    return -np.log(softmax(x @ weight.T + bias)[np.arange(len(y)), y])


def task_gradient(weight, bias, x, y):
    """Gradient of the mean cross-entropy over the rows."""
    error = softmax(x @ weight.T + bias)
    error[np.arange(len(y)), y] -= 1
    return error.T @ x / len(y), error.mean(0)


def distance_gradient(weight, bias, x, teacher_weight, teacher_bias):
    """Gradient of the mean KL(teacher || student) at temperature 1."""
    error = softmax(x @ weight.T + bias) - softmax(x @ teacher_weight.T + teacher_bias)
    return error.T @ x / len(x), error.mean(0)


def run(weight, bias, steps, rates, momentum, decay, clip=None):
    """``steps``: functions (weight, bias) -> (gradient of weight, of bias), one per update."""
    weight, bias = weight.copy(), bias.copy()
    speed_w, speed_b = np.zeros_like(weight), np.zeros_like(bias)
    for gradient, rate in zip(steps, rates, strict=True):
        g_w, g_b = gradient(weight, bias)
        if clip is not None:
            size = np.sqrt((g_w**2).sum() + (g_b**2).sum())
            shrink = min(1.0, clip / (size + 1e-6))
            g_w, g_b = g_w * shrink, g_b * shrink
        speed_w = momentum * speed_w + g_w + decay * weight
        speed_b = momentum * speed_b + g_b
        weight, bias = weight - rate * speed_w, bias - rate * speed_b
    return weight, bias


def cosine(rate, steps):
    return [0.5 * rate * (1 + np.cos(np.pi * t / steps)) for t in range(steps)]
