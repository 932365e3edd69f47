"""How much references help: by signal, number of references and embedding space, on an over-fitted SimCLR world.

    python -m research.references make --model oracle-3     make and observe one model of the world
    python -m research.references measure                   write research/results/references.json

``original`` and ``original-K`` saw F, ``oracle-K`` did not; each has a seed of its own. Resumable: a model whose
folder is complete is not made again, and one command makes one model, so that several machines can share the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from benchmarks.machine import machine, write_json
from research.paths import RESULTS, ROOT, RUNS
from research.worlds import World, make, spread
from scipy.stats import spearmanr

import efface
from efface import stats
from efface.auditing.attacks import fitted, model_pairs, reference_models
from efface.auditing.audits.per_example import PerExample
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.auditing.observers.settings import ObservationSettings

HOME, RESULT = RUNS / "references", RESULTS / "references.json"
SEED = 10
WATCH = ObservationSettings(gradient=True, cap=1000, test_cap=2000)
SIGNALS = (
    *(f"{space}.{kind}" for space in ("backbone", "projector") for kind in ("margin", "alignment", "norm")),
    "gradient_norm",
)
COUNTS, DRAWS = (1, 2, 4, 8, 16), 20
FITS: dict[str, Callable[..., Any]] = {
    "shared variance": reference_models.fit_shared_variance,
    "Bayesian variance": reference_models.fit_student_t,
    "own variance": reference_models.fit_own_variance,
}
RELATIVE = {"RMIA, a = 0.3": 0.3, "RMIA, a = 1": 1.0}
CONTRASTS = (
    ("projector.margin", "projector.alignment"),
    ("backbone.margin", "backbone.alignment"),
    ("projector.margin", "projector.norm"),
    ("backbone.margin", "backbone.norm"),
    ("projector.margin", "backbone.margin"),
)
UNLEARNED = ("finetune", "neggrad lr .1", "gradient_constraint")
"""Made by another experiment in the same world; measured if they exist."""


def make_and_observe(world: World, name: str) -> None:
    """Make a model, unless it was made before, and observe it with gradient norms."""
    folder = world.folder / name
    if not (folder / "cell.json").exists() and name.startswith("original-"):
        data, split = world.data()
        seed = 1000 * int(name.rpartition("-")[2]) + world.seed
        checkpoint = efface.pretrain(data, split, recipe=world.recipe(data), seed=seed, device="cpu")
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder)
        cell = {"world": world.family, "seed": world.seed, "name": name, "cost": vars(checkpoint.training_cost)}
        write_json(folder / "cell.json", cell)
    make(world, name)
    if not (folder / "whole.npz").exists():
        data, split = world.data()
        seen = efface.observe(world.model(name), data, split, WATCH, device="cpu")
        seen.save(folder / "whole.tmp.npz")
        (folder / "whole.tmp.npz").replace(folder / "whole.npz")


def seen(world: World, kind: str) -> list[Observations]:
    """Observations of the models of a kind, in the order of their numbers."""
    folders = [path for path in world.folder.glob(f"{kind}*") if (path / "whole.npz").exists()]
    number = {path: int(path.name.rpartition("-")[2]) if "-" in path.name else 0 for path in folders}
    return [Observations.load(path / "whole.npz") for path in sorted(folders, key=lambda path: number[path])]


def sides(models: list[Observations], signal: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of F and of H under each model, both of shape [models, n]."""
    return reference_models.stack_references(models, "forget", signal), reference_models.stack_references(
        models, "holdout", signal
    )


def interval(members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """An AUC with its 95 % interval."""
    value, low, high = stats.delong(members, others)
    return {"value": value, "low": low, "high": high}


def signal_row(inside: list[Observations], out: list[Observations], signal: str) -> dict[str, Any]:
    """AUC of one signal without references and with all, over the models that saw F; and per example."""
    (f_in, h_in), (f_out, h_out) = sides(inside, signal), sides(out, signal)
    calibrated = [(f - f_out.mean(0), h - h_out.mean(0)) for f, h in zip(f_in, h_in, strict=True)]
    single = [stats.auc(f_in[:, i], f_out[:, i]) for i in range(f_in.shape[1])]
    row: dict[str, Any] = {
        "a0": spread(stats.auc(f, h) for f, h in zip(f_in, h_in, strict=True)),
        "a1": spread(stats.auc(f, h) for f, h in calibrated),
        "a1 of the first": interval(*calibrated[0]),
        "tpr at 1 %": spread(stats.tpr_at_fpr(f, h, 0.01).value for f, h in calibrated),
        "single example": {
            "mean": float(np.mean(single)),
            "interval": stats.bootstrap(lambda v: float(v.mean()), np.array(single)),
            "n": len(single),
        },
    }
    if len(inside) >= 4:
        pairs = min(len(inside), len(out))
        row["online, pairs"] = {"auc": model_pairs.ulira(f_in[:pairs], f_out[:pairs]), "n": pairs}
    return row


def contrast(inside: list[Observations], out: list[Observations], first: str, second: str) -> dict[str, Any]:
    """Difference in AUC of two signals on the first original, with all references; paired by example."""

    def calibrated(signal: str) -> tuple[np.ndarray, np.ndarray]:
        (f_in, h_in), (f_out, h_out) = sides(inside[:1], signal), sides(out, signal)
        return f_in[0] - f_out.mean(0), h_in[0] - h_out.mean(0)

    value, low, high = stats.delong_difference(calibrated(first), [calibrated(second)])
    return {"first": first, "second": second, "value": value, "low": low, "high": high}


def count_rows(inside: list[Observations], out: list[Observations], signal: str) -> dict[str, Any]:
    """AUC on the originals by number of references: mean and spread over random draws and models."""
    (f_in, h_in), (f_out, h_out) = sides(inside, signal), sides(out, signal)
    rows, rng = {}, np.random.default_rng(0)
    for count in (c for c in COUNTS if c <= len(out)):
        found: dict[str, list[float]] = {name: [] for name in (*FITS, *RELATIVE, "oracle", "rank agreement")}
        draws = 1 if count == len(out) else DRAWS
        for _ in range(draws):
            order = rng.permutation(len(out))
            chosen, rest = order[:count], order[count:]
            for i in range(len(inside)):
                for name, fit in FITS.items():
                    if count > 1 or fit is not reference_models.fit_own_variance:
                        score = [
                            reference_models.lira_offline(s[i], o[chosen], h_out[chosen], fit)
                            for s, o in ((f_in, f_out), (h_in, h_out))
                        ]
                        found[name].append(stats.auc(*score))
                if signal.endswith("margin"):
                    log_p = [
                        (-np.logaddexp(0, -s[i]), -np.logaddexp(0, -o[chosen]))
                        for s, o in ((f_in, f_out), (h_in, h_out))
                    ]
                    for name, a in RELATIVE.items():
                        found[name].append(stats.auc(*(reference_models.rmia_ratio(x, o, a) for x, o in log_p)))
            if len(rest):
                one = rest[0]
                null = [reference_models.lira_offline(o[one], o[chosen], h_out[chosen]) for o in (f_out, h_out)]
                found["oracle"].append(stats.auc(*null))
            if len(rest) >= count:
                other = rest[:count]
                twice = [f_in[0] - f_out[half].mean(0) for half in (chosen, other)]
                found["rank agreement"].append(float(np.asarray(spearmanr(*twice))[0]))
        rows[str(count)] = {name: spread(values) for name, values in found.items()}
    return rows


def encodermi(inside: list[Observations], out: list[Observations]) -> dict[str, Any]:
    """AUC of EncoderMI on the originals, fitted on their own R or on four shadow encoders."""
    found: dict[str, Any] = {}
    for space in ("backbone", "projector"):
        for name, run in (("vector", fitted.encodermi_v), ("set", fitted.encodermi_s)):
            for how, shadows in (("own", ()), ("shadow", tuple(out[:4]))):
                aucs = [float(run(o, "forget", space, shadows).v10.mean()) for o in inside]
                found[f"{space}, {name}, {how}"] = spread(aucs)
    return found


def examples(world: World, out: list[Observations]) -> dict[str, Any]:
    """Findings per example in the models that another experiment unlearned in this world."""
    original, found = world.seen("original"), {}
    references = tuple(world.seen(name) for name in world.oracles()[: len(out)])
    for name in ("original", *UNLEARNED):
        if not (world.folder / name / "observations.npz").exists():
            continue
        rows = {f.name: f for f in PerExample().findings(Evidence(original, world.seen(name), references))}
        found[name] = {
            key.removeprefix("per_example."): {
                "value": f.value, "interval": f.interval, "original": f.original, "oracle": f.oracle, "n": f.n
            }
            for key, f in rows.items()
        }  # fmt: skip
        for key, f in rows.items():
            found[name][key.removeprefix("per_example.")] |= {"discoveries": f.details.get("discoveries")}
    return found


def measure(world: World) -> None:
    inside, out = seen(world, "original"), seen(world, "oracle")
    result = {
        "machine": machine(),
        "world": {"family": world.family, "seed": world.seed, "train": world.train, "epochs": world.epochs},
        "models": {"saw F": len(inside), "never saw F": len(out)},
        "examples": {part: inside[0].count(part) for part in ("forget", "holdout", "retain")},
        "signals": {signal: signal_row(inside, out, signal) for signal in SIGNALS},
        "contrasts": [contrast(inside, out, *names) for names in CONTRASTS],
        "counts": {s: count_rows(inside, out, s) for s in ("projector.margin", "backbone.margin")},
        "encodermi": encodermi(inside, out),
        "per example": examples(world, out),
    }
    write_json(RESULT, result)
    print(f"Written: {RESULT.relative_to(ROOT)}: {len(inside)} models saw F, {len(out)} did not")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("make", "measure"))
    parser.add_argument("--model", nargs="*", default=[], help="original, original-K, oracle-K")
    parser.add_argument("--seed", type=int, default=SEED, help="of the world")
    arguments = parser.parse_args()
    world = World("simclr", arguments.seed, HOME, epochs=400)
    for name in arguments.model:
        make_and_observe(world, name)
    if arguments.stage == "measure":
        measure(world)


if __name__ == "__main__":
    main()
