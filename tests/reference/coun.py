"""CoUn: each update descends the mean over a batch of R of the task loss plus the weighted term.

The classifier has features W x and logits A (W x) + b, flattened into one vector of numbers; the gradient is taken by
central differences in float64.
"""

import math

from tests.reference.simclr import dot
from tests.reference.with_contrast import term


def unpack(numbers, inputs, width, classes):
    w = [numbers[i * inputs : (i + 1) * inputs] for i in range(width)]
    rest = numbers[width * inputs :]
    a = [rest[i * width : (i + 1) * width] for i in range(classes)]
    return w, a, rest[classes * width :]


def loss(numbers, shape, first, second, y, weight, tau):
    w, a, b = unpack(numbers, *shape)
    z = [[dot(row, x) for row in w] for x in first]
    other = [[dot(row, x) for row in w] for x in second]
    total = 0.0
    for features, label in zip(z, y, strict=True):
        logits = [dot(row, features) + bias for row, bias in zip(a, b, strict=True)]
        total += math.log(sum(math.exp(value) for value in logits)) - logits[label]
    return (total + weight * sum(term(z, other, tau))) / len(y)


def slope(function, numbers, step=1e-5):
    result = []
    for place in range(len(numbers)):
        up, down = list(numbers), list(numbers)
        up[place] += step
        down[place] -= step
        result.append((function(up) - function(down)) / (2 * step))
    return result


def descend(numbers, functions, rates):
    """Plain gradient descent, one function and rate per update."""
    for function, rate in zip(functions, rates, strict=True):
        numbers = [value - rate * s for value, s in zip(numbers, slope(function, numbers), strict=True)]
    return numbers
