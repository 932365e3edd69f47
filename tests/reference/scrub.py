"""SCRUB: away from the teacher on F, then towards it (and the labels) on R."""

from tests.reference import descent


def steps(passes, teacher, alpha, gamma):
    """``passes``: ("away" | "home", (x, y)) in the order of the updates; ``teacher``: (weight, bias)."""

    def away(x):
        def gradient(w, b):
            g_w, g_b = descent.distance_gradient(w, b, x, *teacher)
            return -g_w, -g_b

        return gradient

    def home(x, y):
        def gradient(w, b):
            d_w, d_b = descent.distance_gradient(w, b, x, *teacher)
            t_w, t_b = descent.task_gradient(w, b, x, y)
            return alpha * d_w + gamma * t_w, alpha * d_b + gamma * t_b

        return gradient

    return [away(x) if kind == "away" else home(x, y) for kind, (x, y) in passes]
