"""SimSiam: minus the cosine of each prediction with the other view's projection, both directions averaged."""

from tests.reference.simclr import dot, unit


def loss(predicted_first, predicted_second, projected_first, projected_second):
    rows = zip(predicted_first, predicted_second, projected_first, projected_second, strict=True)
    return [-(dot(unit(p1), unit(z2)) + dot(unit(p2), unit(z1))) / 2 for p1, p2, z1, z2 in rows]
