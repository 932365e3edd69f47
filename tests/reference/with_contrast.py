"""CoUn's term: each view in contrast to the views of the other kind in the batch."""

import math

from tests.reference.simclr import dot, unit


def term(first, second, tau):
    z, other = [unit(u) for u in first], [unit(u) for u in second]

    def one(rows, columns, n):
        weights = [math.exp(dot(rows[n], column) / tau) for column in columns]
        return -math.log(weights[n] / sum(weights))

    return [one(z, other, n) + one(other, z, n) for n in range(len(z))]
