"""SSD, one weight at a time."""


def dampened(weights, forget, others, alpha, strength):
    result = []
    for weight, gone, kept in zip(weights, forget, others, strict=True):
        if gone > alpha * kept:
            weight = weight * min(strength * kept / gone, 1.0)
        result.append(weight)
    return result


def outputs_squared(weight, bias, groups):
    """Mean over the groups of the squared gradient of each group's mean of |Wx + b|²; W by rows, then b."""
    total = [0.0] * (weight.size + bias.size)
    for x in groups:
        mean = [0.0] * len(total)
        for row in x:
            f = weight @ row + bias
            one = [2 * value * pixel for value in f for pixel in row] + [2 * value for value in f]
            mean = [m + g / len(x) for m, g in zip(mean, one, strict=True)]
        total = [t + m**2 / len(groups) for t, m in zip(total, mean, strict=True)]
    return total
