"""InfoNCE against a queue, the queue as a list, and the moving average, in loops."""

import math

from tests.reference.simclr import dot, unit


def loss(queries, keys, queue, temperature):
    result = []
    for query, key in zip(queries, keys, strict=True):
        q, k = unit(query), unit(key)
        positive = math.exp(dot(q, k) / temperature)
        negatives = sum(math.exp(dot(q, n) / temperature) for n in queue)
        result.append(-math.log(positive / (positive + negatives)))
    return result


def enqueue(queue, keys):
    """Newest first; the oldest fall out at the end."""
    return ([*keys, *queue])[: len(queue)]


def update_ema(averaged, online, momentum):
    return [momentum * a + (1 - momentum) * o for a, o in zip(averaged, online, strict=True)]
