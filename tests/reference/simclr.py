"""NT-Xent as written in the paper: for each of the 2B views, its positive in contrast to all other views."""

import math


def dot(u, v):
    return sum(x * y for x, y in zip(u, v, strict=True))


def unit(u):
    size = math.sqrt(dot(u, u))
    return [x / size for x in u]


def loss(first, second, temperature):
    a, b = [unit(u) for u in first], [unit(u) for u in second]
    z, count = a + b, len(a)

    def one(i, j):
        others = [math.exp(dot(z[i], z[k]) / temperature) for k in range(2 * count) if k != i]
        return -math.log(math.exp(dot(z[i], z[j]) / temperature) / sum(others))

    return [(one(i, i + count) + one(i + count, i)) / 2 for i in range(count)]


def anchored(anchor, first, second, temperature):
    """One direction; ``anchor`` replaces ``first`` as the query, the negatives stay as they are."""
    q, a, b = [unit(u) for u in anchor], [unit(u) for u in first], [unit(u) for u in second]
    result = []
    for i in range(len(q)):
        weights = [math.exp(dot(q[i], a[k]) / temperature) for k in range(len(a)) if k != i]
        weights += [math.exp(dot(q[i], b[k]) / temperature) for k in range(len(b))]
        result.append(-dot(q[i], b[i]) / temperature + math.log(sum(weights)))
    return result
