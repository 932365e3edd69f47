"""The line search by trying shares one after the other, in float64."""


def cost(share, before, after, weights, luck):
    """What is minimized: the distances at a share of the change, and what luck makes of going elsewhere than to 1."""
    total = 0.0
    for first, last, weight in zip(before, after, weights, strict=True):
        total += weight * (first + share * (last - first)) ** 2
        total += weight * luck * (share - 1) ** 2
    return total


def best_share(before, after, weights, luck):
    """The share between 1/2 and 3/2 of the least cost, to a ten-thousandth."""
    shares = [0.5 + number / 10000 for number in range(10001)]
    return min(shares, key=lambda share: cost(share, before, after, weights, luck))


def between(first, last, share):
    """One weight at a share of the change."""
    return first + share * (last - first)


def on_lines(share, shares, distances):
    """A distance at a share between two that were tried."""
    for left, right, first, last in zip(shares, shares[1:], distances, distances[1:], strict=False):
        if left <= share <= right:
            return first + (last - first) * (share - left) / (right - left)
    raise ValueError(share)


def least_on_lines(shares, distances):
    """The smallest distance, whatever its sign, at a thousand shares between the first and the last."""
    width = shares[-1] - shares[0]
    return min(abs(on_lines(shares[0] + width * number / 1000, shares, distances)) for number in range(1001))
