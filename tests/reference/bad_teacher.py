"""Bad teacher: towards the good one on R, towards the bad one on F."""

from tests.reference import descent


def steps(retain, forget, good, bad, weight):
    """``retain``, ``forget``: batches of x in order; ``good``, ``bad``: (weight, bias) of the teachers."""

    def both(r, f):
        def gradient(w, b):
            r_w, r_b = descent.distance_gradient(w, b, r, *good)
            f_w, f_b = descent.distance_gradient(w, b, f, *bad)
            return r_w + weight * f_w, r_b + weight * f_b

        return gradient

    return [both(r, f) for r, f in zip(retain, forget, strict=True)]
