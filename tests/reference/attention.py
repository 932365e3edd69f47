"""Attention maps in loops and float64, from a layer's inputs and its own weights."""

import math


def softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def queries_and_keys(token, weight, bias, dim):
    made = [dot(row, token) + b for row, b in zip(weight, bias, strict=True)]
    return made[:dim], made[dim : 2 * dim]


def tokens(inputs, weight, bias, heads, prefix, class_token):
    """``inputs``: one image's tokens; the map over the tokens after ``prefix``."""
    dim = len(inputs[0])
    width = dim // heads
    pairs = [queries_and_keys(token, weight, bias, dim) for token in inputs]
    queries = [0] if class_token else range(prefix, len(inputs))
    total = [0.0] * len(inputs)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in queries:
            scores = [dot(pairs[i][0][part], key[part]) / math.sqrt(width) for _, key in pairs]
            for j, value in enumerate(softmax(scores)):
                total[j] += value / heads / len(queries)
    return total[prefix:]


def windows(cells, weight, bias, table, heads, window, shift):
    """Swin: ``cells[row][column]``; ``table[offset][head]``: position biases. Cells attend within window and region.

    The image is shifted, then padded with zeros to full windows; padding gets attention, but is no query.
    """
    rows, columns, dim = len(cells), len(cells[0]), len(cells[0][0])
    high, wide = -(-rows // window) * window, -(-columns // window) * window
    width = dim // heads

    def cell(y, x):
        inside = y < rows and x < columns
        return cells[(y + shift) % rows][(x + shift) % columns] if inside else [0.0] * dim

    def region(place, size):
        if shift == 0:
            return 0
        return 0 if place < size - window else 1 if place < size - shift else 2

    total = [[0.0] * columns for _ in range(rows)]
    for top in range(0, high, window):
        for left in range(0, wide, window):
            places = [(top + i, left + j) for i in range(window) for j in range(window)]
            real = [(y, x) for y, x in places if y < rows and x < columns]
            pairs = {place: queries_and_keys(cell(*place), weight, bias, dim) for place in places}
            for y, x in real:
                for head in range(heads):
                    part = slice(head * width, (head + 1) * width)
                    scores = []
                    for v, u in places:
                        offset = (y - v + window - 1) * (2 * window - 1) + (x - u + window - 1)
                        score = dot(pairs[y, x][0][part], pairs[v, u][1][part]) / math.sqrt(width) + table[offset][head]
                        same = (region(y, high), region(x, wide)) == (region(v, high), region(u, wide))
                        scores.append(score if same else score - 100)
                    for (v, u), value in zip(places, softmax(scores), strict=True):
                        if (v, u) in real:
                            total[(v + shift) % rows][(u + shift) % columns] += value / heads / len(real)
    return total
