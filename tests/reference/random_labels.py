"""Random labels: the task gradient on R plus the weighted task gradient on F with other labels."""

from tests.reference import descent


def steps(retain, forget, weight):
    """``retain``, ``forget``: (x, y) batches in order, the labels of ``forget`` already wrong."""

    def both(r, f):
        def gradient(w, b):
            r_w, r_b = descent.task_gradient(w, b, *r)
            f_w, f_b = descent.task_gradient(w, b, *f)
            return r_w + weight * f_w, r_b + weight * f_b

        return gradient

    return [both(r, f) for r, f in zip(retain, forget, strict=True)]
