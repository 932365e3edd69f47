"""l1-sparse: the task gradient plus the sign of each weight times the decaying penalty."""

import numpy as np

from tests.reference import descent


def steps(retain, weight, total=None, fade=True):
    """``retain``: (x, y) batches in order; ``total``: number of steps until the penalty is 0."""
    total = total or len(retain)

    def one(number, x, y):
        left = weight * ((total - number) / total if fade else 1)

        def gradient(w, b):
            g_w, g_b = descent.task_gradient(w, b, x, y)
            return g_w + left * np.sign(w), g_b + left * np.sign(b)

        return gradient

    return [one(number, x, y) for number, (x, y) in enumerate(retain)]
