"""CLIP on given embeddings: each pair in contrast to all captions and to all images."""

import math

from tests.reference.simclr import dot, unit


def parts(images, captions, scale):
    """(attract, repel) of each pair, both directions averaged."""
    u, v = [unit(row) for row in images], [unit(row) for row in captions]
    found = []
    for i in range(len(u)):
        among_captions = sum(math.exp(scale * dot(u[i], other)) for other in v)
        among_images = sum(math.exp(scale * dot(other, v[i])) for other in u)
        found.append((scale * dot(u[i], v[i]), (math.log(among_captions) + math.log(among_images)) / 2))
    return found


def loss(images, captions, scale):
    u, v = [unit(row) for row in images], [unit(row) for row in captions]
    found = []
    for i in range(len(u)):
        own = math.exp(scale * dot(u[i], v[i]))
        to_text = -math.log(own / sum(math.exp(scale * dot(u[i], other)) for other in v))
        to_image = -math.log(own / sum(math.exp(scale * dot(other, v[i])) for other in u))
        found.append((to_text + to_image) / 2)
    return found


def anchored(anchors, images, captions, scale):
    """``anchors`` one at a time in the place of their image, all else as it was."""
    return [loss([*images[:i], anchor, *images[i + 1 :]], captions, scale)[i] for i, anchor in enumerate(anchors)]


def distance(a, b):
    """Mean of 1 - cosine of the images and of the captions; each row is an image's numbers, then its caption's."""
    found = []
    for p, q in zip(a, b, strict=True):
        half = len(p) // 2
        ways = [dot(unit(x), unit(y)) for x, y in ((p[:half], q[:half]), (p[half:], q[half:]))]
        found.append(1 - sum(ways) / 2)
    return found


def similarity_and_margin(views, caption, bank, tau):
    """Of one example: its views' cosines to its caption, and those over tau against the bank's captions."""
    v, others = unit(caption), [unit(row) for row in bank]
    own = [dot(unit(view), v) for view in views]
    crowd = [math.log(sum(math.exp(dot(unit(view), b) / tau) for b in others)) for view in views]
    return sum(own) / len(own), sum(o / tau - c for o, c in zip(own, crowd, strict=True)) / len(own)


def recall(images, captions, k):
    """Share of ways to order equals in which each image's own caption is among the first k."""
    u, v = [unit(row) for row in images], [unit(row) for row in captions]
    found = []
    for i in range(len(u)):
        own = dot(u[i], v[i])
        before = sum(dot(u[i], other) > own for other in v)
        tied = sum(dot(u[i], other) == own for other in v)
        places = [before + place for place in range(tied)]
        found.append(sum(place < k for place in places) / tied)
    return found
