"""CoUn's term: each view finds its own other view among the other views of the batch."""

import math

from tests.reference.simclr import dot, unit


def term(first, second, tau):
    z, other = [unit(u) for u in first], [unit(u) for u in second]

    def one(rows, columns, n):
        weights = [math.exp(dot(rows[n], column) / tau) for column in columns]
        return -math.log(weights[n] / sum(weights))

    return [one(z, other, n) + one(other, z, n) for n in range(len(z))]
