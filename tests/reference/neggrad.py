"""NegGrad+: beta times the gradient on R minus (1 - beta) times the gradient on F."""

from tests.reference import descent


def steps(retain, forget, beta):
    def both(r, f):
        def gradient(w, b):
            r_w, r_b = descent.task_gradient(w, b, *r)
            f_w, f_b = descent.task_gradient(w, b, *f)
            return beta * r_w - (1 - beta) * f_w, beta * r_b - (1 - beta) * f_b

        return gradient

    return [both(r, f) for r, f in zip(retain, forget, strict=True)]
