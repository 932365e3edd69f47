"""How often is the verdict wrong? Worlds with a known answer, and the verdicts on them.

    python -m research.verdicts synthetic      scores with a known AUC; takes minutes
    python -m research.verdicts real           judge the models made by research.verdict_worlds
    python -m research.verdicts table          write the tables into docs/results/verdict.md

Results: ``research/results/verdicts.json``. Synthetic: Gaussian scores on two signals (correlation 0.5) whose AUC is
the true answer; the original has AUC 0.65 unless stated otherwise. Real: over-fitted SimCLR on digits; smaller requests
are random subsets of its forget set (draws share the models, so only seeds are independent).
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from benchmarks.machine import machine, read_json, write_json
from research import verdict_worlds
from research.paths import DOCS, RESULTS, ROOT
from scipy.special import ndtri

from efface import stats
from efface.auditing import signals, utility_gate, verdict
from efface.auditing.audits.relearn import Relearn
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Evidence, RelearnedCopies
from efface.auditing.observations import Observations
from efface.auditing.representations import knn_accuracy

RESULT, PAGE = RESULTS / "verdicts.json", DOCS / "results" / "verdict.md"
WORDS = ("removed", "residue", "over-forgotten", "removed, utility lost", "inconclusive")
AUCS = (0.40, 0.45, 0.475, 0.50, 0.525, 0.55, 0.575, 0.60, 0.65)
SIZES = (20, 50, 100, 200, 300, 500, 1000, 2000)
HOLDOUTS = {1000: (0.03, 0.05, 0.1), 4000: (0.05,)}
"""Number of never-trained examples to the values of δ that are tried with them."""
DELTAS = (0.03, 0.05, 0.1)
WORLDS = 300
SIGNALS = ("backbone.margin", "projector.margin")
REAL_SIZES = {20: 10, 50: 10, 100: 10, 200: 5, 300: 1}
"""Size of the request to draws per seed."""
UTILITY = utility_gate.UtilityLoss(0.0, "", "not part of these worlds")


# ---- scores with a known AUC ----


def scores(rng: np.random.Generator, n: int, auc: float) -> list[np.ndarray]:
    """Two correlated scores of ``n`` examples whose AUC against N(0, 1) is ``auc``."""
    shift, shared = np.sqrt(2) * ndtri(auc), rng.normal(size=n)
    return [shift + np.sqrt(0.5) * (shared + rng.normal(size=n)) for _ in SIGNALS]


def world(rng: np.random.Generator, name: str, auc: float, n: int, holdout: int) -> Observations:
    arrays: dict[str, np.ndarray] = {}
    for part, size, truth in (("forget", n, auc), ("holdout", holdout, 0.5)):
        arrays[f"{part}/keys"] = np.arange(size).astype(str)
        for signal, values in zip(SIGNALS, scores(rng, size, truth), strict=True):
            arrays[f"{part}/{signal}"] = values
    return Observations(name, "s", arrays, {"spaces": ["backbone", "projector"]})


def verdict_word(evidence: Evidence, criteria: Criteria, utility: utility_gate.UtilityLoss) -> str:
    """The verdict as one word."""
    names = signals.prespecified_signals(evidence.subject)
    return verdict.combine_signals(verdict.judge_signals(evidence, names, criteria), utility)


def cell(
    truth: float, n: int, holdout: int, original: float, seed: int, deltas: tuple[float, ...]
) -> dict[str, dict[str, float]]:
    """Rate of each verdict by δ."""
    rng = np.random.default_rng(seed)
    words = {delta: Counter[str]() for delta in deltas}
    for _ in range(WORLDS):
        before, after = world(rng, "o", original, n, holdout), world(rng, "s", truth, n, holdout)
        for delta in deltas:
            words[delta][verdict_word(Evidence(before, after), Criteria(delta=delta), UTILITY)] += 1
    return {
        f"{delta:g}": {word: words[delta][word] / WORLDS for word in WORDS if words[delta][word]} for delta in deltas
    }


def synthetic() -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for seed, (holdout, n, truth) in enumerate((h, n, t) for h in HOLDOUTS for n in SIZES for t in AUCS):
        rates = cell(truth, n, holdout, 0.65, seed, HOLDOUTS[holdout])
        rows.append({"n": n, "holdout": holdout, "truth": truth, "original": 0.65, "rates": rates})
    for seed, (original, n) in enumerate((o, n) for o in (0.55, 0.6, 0.7, 0.8) for n in SIZES):
        rates = cell(0.5, n, 1000, original, 10_000 + seed, (0.05,))
        rows.append({"n": n, "holdout": 1000, "truth": 0.5, "original": original, "rates": rates})
    return {"worlds": WORLDS, "rows": rows}


# ---- real models ----


def only(observed: Observations, rows: np.ndarray) -> Observations:
    """The observations with some of the forget set."""
    arrays = {k: (v[rows] if k.startswith("forget/") else v) for k, v in observed.arrays.items()}
    return Observations(observed.model, observed.split, arrays, observed.meta)


def references(seed: int, name: str) -> dict[str, tuple[str, ...]]:
    """Level to the oracles that a model is compared with, never itself or the model it was made from."""
    kin = {"pushed": "oracle-1"}.get(name, name)
    others = tuple(one for one in ("oracle-1", "oracle-2") if one != kin)
    return {"A0": (), "A1, one oracle": others[-1:], **({"A1, two oracles": others} if len(others) == 2 else {})}


def judged(seed: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """Verdicts, AUCs and utility of every model of one seed, by level and size of the request."""
    loaded = {name: verdict_worlds.seen(seed, name) for name in names}
    original = loaded["original"]
    for name, subject in loaded.items():
        utility = utility_gate.judge_utility(Evidence(original, subject), SIGNALS, Criteria().max_utility_drop)
        for level, others in references(seed, name).items():
            counted: dict[str, dict[str, Counter[str]]] = {}
            for n, draws in REAL_SIZES.items():
                rng = np.random.default_rng(n)
                for _ in range(draws):
                    rows = np.sort(rng.permutation(subject.count("forget"))[:n])
                    evidence = Evidence(
                        only(original, rows), only(subject, rows), tuple(only(loaded[o], rows) for o in others)
                    )
                    for delta in DELTAS:
                        word = verdict_word(evidence, Criteria(delta=delta), utility)
                        counted.setdefault(f"{delta:g}", {}).setdefault(str(n), Counter())[word] += 1
            evidence = Evidence(original, subject, tuple(loaded[o] for o in others))
            signs = verdict.judge_signals(evidence, SIGNALS, Criteria())
            yield {
                "seed": seed,
                "model": name,
                "level": level,
                "words": counted,
                "auc": {one.signal: one.value for one in signs},
                "original": {one.signal: one.power[0] for one in signs},
                "retained": {
                    s: stats.auc(*pair) for s in SIGNALS if (pair := signals.score_pair(subject, "retain", s))
                },
                "inside": [one.signal for one in signs if one.word == "removed"],
                "lost": bool(utility.lost),
                "blinded": [one.signal for one in signs if one.blinded],
                "knn": right[0][0] / right[0][1] if (right := knn_accuracy(subject, "test", (20,))) else None,
            }


def relearned(seed: int) -> Iterator[dict[str, Any]]:
    """Steps until half of the lost signal has returned, for each model with relearning results."""
    oracles = ("oracle-1", "oracle-2")
    for on in ("retain", "forget"):
        for name in verdict_worlds.RELEARNED:
            folders = {one: verdict_worlds.folder(seed, one) / f"relearn-{on}" for one in (name, *oracles)}
            if not all((folder / "done").exists() for folder in folders.values()):
                continue
            looks = {
                one: tuple((int(file.stem), Observations.load(file)) for file in sorted(folder.glob("*.npz")))
                for one, folder in folders.items()
            }
            first = {one: found[0][1] for one, found in looks.items()}
            others = [one for one in oracles if one != name]
            if len(others) < 2:
                continue
            start = verdict_worlds.folder(seed, "original") / f"relearn-{on}" / "00000.npz"
            named = {"subject": looks[name], "oracle 1": looks[oracles[0]], "oracle 2": looks[oracles[1]]}
            evidence = Evidence(
                Observations.load(start),
                first[name],
                tuple(first[one] for one in oracles),
                relearned=(RelearnedCopies(on, named),),
            )
            for found in Relearn().findings(evidence):
                if found.name.endswith(".steps"):
                    yield {
                        "seed": seed, "model": name, "on": on,
                        "signal": found.name.split(".", 2)[2].removesuffix(".steps"),
                        "curves": found.details["curves"],
                    }  # fmt: skip


def real() -> dict[str, Any]:
    rows, again = [], []
    for seed in range(20):
        names = [name for name in verdict_worlds.MODELS if (verdict_worlds.folder(seed, name) / "cell.json").exists()]
        if {"original", "oracle-1", "oracle-2"} <= set(names):
            rows += judged(seed, names)
            again += relearned(seed)
            print(f"seed {seed}: {len(names)} models", flush=True)
    return {"rows": rows, "relearn": again, "sizes": verdict_worlds.SIZES, "forget": verdict_worlds.FORGET}


# ---- tables ----


def rate(words: Counter[str] | dict[str, float], word: str) -> float:
    return words.get(word, 0) / (sum(words.values()) or 1)


def power_table(result: dict[str, Any], holdout: int = 1000, delta: str = "0.05") -> str:
    """Table of the rate of decisions by size of the request and true AUC."""
    rows = [r for r in result["synthetic"]["rows"] if r["holdout"] == holdout and r["original"] == 0.65]
    head = "| AUC in truth | " + " | ".join(f"n = {n}" for n in SIZES) + " |"
    lines = [head, "|" + "---|" * (len(SIZES) + 1)]
    for truth in AUCS:
        cells = []
        for n in SIZES:
            words = next(r["rates"][delta] for r in rows if r["truth"] == truth and r["n"] == n)
            cells.append(" / ".join(percent(words.get(w, 0)) for w in ("removed", "residue", "over-forgotten")))
        lines.append(f"| {truth:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def choice_table(result: dict[str, Any], holdout: int = 1000) -> str:
    """For each δ: forget examples that decide four times in five, and the largest rates of error."""
    rows = [r for r in result["synthetic"]["rows"] if r["holdout"] == holdout and r["original"] == 0.65]
    lines = ["| δ | `removed` of AUC 0.5: n for 80 % | `residue` said of 0.6 | `removed` said of 0.5 ± δ or beyond, "
             "at most "
             "| `residue` or `over-forgotten` said of 0.5, at most |", "|---|---|---|---|---|"]  # fmt: skip
    for delta in DELTAS:
        key = f"{delta:g}"

        def enough(truth: float, word: str, key: str = key) -> str:
            sizes = [r["n"] for r in rows if r["truth"] == truth and r["rates"][key].get(word, 0) >= 0.8]
            return str(min(sizes)) if sizes else f"more than {SIZES[-1]}"

        outside = [r["rates"][key].get("removed", 0) for r in rows if abs(r["truth"] - 0.5) >= delta - 1e-9]
        inside = [r["rates"][key].get("residue", 0) + r["rates"][key].get("over-forgotten", 0) for r in rows
                  if r["truth"] == 0.5]  # fmt: skip
        lines.append(f"| {key} | {enough(0.5, 'removed')} | {enough(0.6, 'residue')} | {percent(max(outside))} % "
                     f"| {percent(max(inside))} % |")  # fmt: skip
    return "\n".join(lines)


def real_table(result: dict[str, Any], size: int = 300, delta: str = "0.05") -> str:
    """Words of every model by level, over the seeds."""
    rows = result["real"]["rows"]
    levels = ("A0", "A1, one oracle", "A1, two oracles")
    lines = ["| model | AUC backbone, projector (A1) | retained, projector | kNN | " + " | ".join(levels) + " |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = [r for r in rows if r["model"] == model]
        best = [r for r in mine if r["level"] == mine[-1]["level"]]
        aucs = ", ".join(f"{np.mean([r['auc'][s] for r in best]):.3f}" for s in SIGNALS)
        kept = np.mean([r["retained"]["projector.margin"] for r in best])
        told = []
        for level in levels:
            words = sum((Counter(r["words"][delta][str(size)]) for r in mine if r["level"] == level), Counter())
            told.append(", ".join(f"{count} {word}" for word, count in words.most_common()) or "–")
        accuracy = np.mean([r["knn"] for r in best])
        lines.append(f"| `{model}` | {aucs} | {kept:.3f} | {accuracy:.3f} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def small_table(result: dict[str, Any], delta: str = "0.05", level: str = "A1, one oracle") -> str:
    """Table of right, undecided and wrong verdicts on models with a known answer, by size of the request."""
    right = {"oracle-1": "removed", "oracle-2": "removed", "original": "residue", "half": "residue",
             "batchnorm": "residue", "head": "residue", "noise-0.5": "residue", "pushed": "over-forgotten"}  # fmt: skip
    rows = [r for r in result["real"]["rows"] if r["level"] == level and r["model"] in right]
    lines = ["| n | right | undecided | wrong |", "|---|---|---|---|"]
    for n in REAL_SIZES:
        total, good, open_ = 0, 0, 0
        for r in rows:
            words = Counter(r["words"][delta][str(n)])
            total += sum(words.values())
            good += words[right[r["model"]]]
            open_ += words["inconclusive"]
        lines.append(f"| {n} | {percent(good / total)} % | {percent(open_ / total)} % | "
                     f"{percent((total - good - open_) / total)} % |")  # fmt: skip
    return "\n".join(lines)


def back(curve: dict[str, Any]) -> str:
    """The step at which half of the lost signal had returned, as text."""
    if curve["original"] - curve["auc"][0] <= Relearn().least:
        return "nothing lost"
    return "never" if curve["returned"] is None else str(curve["returned"])


def relearn_table(result: dict[str, Any], signal: str = "projector.margin") -> str:
    """Table of steps until half returned, and the first and last AUC, by model and training data."""
    rows = [r for r in result["real"]["relearn"] if r["signal"] == signal]
    lines = [
        "| model | trained on | AUC at first | AUC at last | won | half back after (seeds) |",
        "|---|---|---|---|---|---|",
    ]
    curves: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for r in rows:
        curves.setdefault((r["on"], r["model"]), {})[r["seed"]] = r["curves"]["subject"]
        for i in (1, 2):
            curves.setdefault((r["on"], f"oracle-{i}"), {})[r["seed"]] = r["curves"][f"oracle {i}"]
    for (on, model), seeds in sorted(curves.items(), key=lambda item: (item[0][0] == "forget", item[0][1])):
        first, last = (np.array([c["auc"][i] for c in seeds.values()]) for i in (0, -1))
        steps = Counter(back(curve) for curve in seeds.values())
        told = ", ".join(f"{step} ({count})" for step, count in sorted(steps.items(), key=lambda s: s[0].zfill(9)))
        won = f"{(last - first).mean():+.3f}" + (f" (SD {(last - first).std(ddof=1):.3f})" if len(first) > 1 else "")
        lines.append(f"| `{model}` | {on} | {first.mean():.3f} | {last.mean():.3f} | {won} | {told} |")
    return "\n".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.1f}" if 0 < share < 0.1 else f"{100 * share:.0f}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "power": power_table,
    "choice": choice_table,
    "real": real_table,
    "small": small_table,
    "relearn": relearn_table,
}


def write_tables() -> None:
    """Write every table between its markers in the page."""
    result = read_json(RESULT)
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
        whole = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.DOTALL)
        if whole:
            text = text[: whole.start()] + f"{begin}\n{make(result)}\n{end}" + text[whole.end() :]
        print(f"{name}: {'written' if whole else 'no markers in the page'}")
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["synthetic", "real", "table"])
    arguments = parser.parse_args()
    if arguments.what == "table":
        write_tables()
        return
    result = read_json(RESULT) if RESULT.exists() else {}
    result[arguments.what] = {"machine": machine(), **{"synthetic": synthetic, "real": real}[arguments.what]()}
    write_json(RESULT, result, indent=None)
    print(f"Written: {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
