"""What the rehearsals of a procedure say about one audited request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from efface.auditing import signals
from efface.auditing.attacks.learned import attach_scores, fit_attack
from efface.auditing.controls import Control, describe_fixed, strictest
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.auditing.pooled_placements import Rehearsal, all_have_signal
from efface.auditing.reference_bank import ReferenceBank
from efface.auditing.rehearsals import FEWEST_REHEARSALS, PooledWord, RehearsedVerdict, judge_rehearsals
from efface.auditing.release import check_release, draw_requests
from efface.data.request_kinds import count_units, kinds_that_stand_for
from efface.errors import EffaceError
from efface.reporting.facts import RehearsalFacts
from efface.runs.binding import BOUND
from efface.runs.comparison import Comparison, lineage
from efface.runs.provenance import NEAREST, weight_distance
from efface.runs.rehearsal_kinds import size_class
from efface.runs.rehearsal_plan import BEFORE, RehearsalPlan, count_bank
from efface.runs.stored_rehearsals import load_rehearsals


@dataclass(frozen=True, eq=False)
class RehearsedProcedure:
    """Rehearsals that stand for an audited request."""

    before: Rehearsal | None
    """The original on the examples of all of them; None for an exact method."""
    rehearsals: tuple[Rehearsal, ...]
    kind: str
    file: str = ""
    """Their folder, or the bank's."""
    digest: str = ""
    """SHA-256 of what they hold."""
    notes: tuple[str, ...] = ()

    def facts(self) -> RehearsalFacts:
        """Describe them for the record."""
        return RehearsalFacts(file=self.file, digest=self.digest, kind=self.kind, requests=len(self.rehearsals))

    def judge(self, evidence: Evidence, criteria: Criteria, fixed: Criteria | None = None) -> RehearsedVerdict:
        """Judge the procedure, and check whether the request of the evidence is like its rehearsals.

        Args:
            evidence: The evidence of the request.
            criteria: Thresholds and signals.
            fixed: Those that were fixed before unlearning: the procedure must leave nothing by these as well.

        """
        found = self._judge_by(evidence, criteria)
        if fixed is not None and fixed != criteria:
            before = self._judge_by(evidence, fixed).word
            word = "passed" if before == "removed" else "failed"
            found = _object(found, Control("fixed", word, "inconclusive", describe_fixed(criteria, fixed, before)))
        names, real = [one.signal for one in found.signals], Rehearsal(evidence.subject, evidence.references)
        if self.before is None:  # models of a bank: other examples are retained, and many more are left out
            small = draw_requests(self.rehearsals, evidence.subject.count("forget"))
            return replace(found, release=check_release(small, real, names, parts=("forget",)))
        return replace(found, release=check_release(self.rehearsals, real, names))

    def _judge_by(self, evidence: Evidence, criteria: Criteria) -> RehearsedVerdict:
        """Judge the procedure by some criteria; a signal that decides and was not observed is an objection."""
        wanted = criteria.signals or signals.prespecified_signals(evidence.subject)
        everyone = [*self.rehearsals, *([] if self.before is None else [self.before])]
        names = tuple(
            name for name in wanted if all(all_have_signal(everyone, name, part) for part in ("forget", "holdout"))
        )
        if not names:
            raise EffaceError(
                "The rehearsals were not observed on any signal that decides.", remedy="Rehearse again with these."
            )
        found = judge_rehearsals(self.rehearsals, self.before, names, criteria.delta, criteria.alpha, self.kind)
        absent = ", ".join(name for name in wanted if name not in names)
        note = f"{absent} decides, and the rehearsals were not observed on it"
        return _object(found, Control("signals", "missing", "inconclusive", note)) if absent else found


def _object(found: RehearsedVerdict, control: Control) -> RehearsedVerdict:
    """Add a control to a verdict on a procedure, and what follows from it."""
    word = cast("PooledWord", strictest(found.word, [control]))
    return replace(found, word=word, controls=(*found.controls, control))


def open_rehearsals(home: Path, compared: Comparison, bank: ReferenceBank | None) -> RehearsedProcedure:
    """Read the rehearsals of a folder for an audited run, and check that they stand for its request.

    Args:
        home: Folder of the rehearsals.
        compared: The run, with the models that it is compared with.
        bank: The reference bank of the audit, if there is one.

    Raises:
        EffaceError: They are not finished, or are of another original, method, kind, size or way of observing.

    """
    plan, subject = RehearsalPlan.load(home), compared.subject
    left = plan.left()
    if left:
        raise EffaceError(
            f"{len(left)} of {len(plan.names)} tasks of the rehearsals in {home} are not finished.",
            remedy=f"Finish them: `efface rehearse {subject.folder} --out {home}`.",
        )
    differences = [what for what, same in _sameness(plan, compared).items() if not same]
    if differences:
        raise EffaceError(
            f"{home} does not stand for this request: another {', '.join(differences)}.",
            "Only the same procedure on requests of the same kind and size says something about this one.",
            f"Rehearse this one: `efface rehearse {subject.folder}`.",
        )
    stored = load_rehearsals(plan)
    digest = _joined_digest(one.digest for one in stored.values())
    own = subject.meta["parent"] == plan.original
    notes = () if own else ("The rehearsals started from an earlier model of this chain of requests.",)
    ready = {name: calibrate_rehearsal(one, bank) for name, one in stored.items()}
    before = ready.pop(BEFORE)
    return RehearsedProcedure(before, tuple(ready.values()), plan.describe_kind(), str(home.resolve()), digest, notes)


def _sameness(plan: RehearsalPlan, compared: Comparison) -> Mapping[str, bool]:
    subject = compared.subject
    watch = compared.binder.settings()["watch"]
    return {
        "original": plan.original in (*lineage(subject), subject.meta["parent"]),
        "method or setting of the method": plan.method == subject.meta["method"],
        "recipe.micro_batch": plan.micro_batch == subject.meta["recipe"].get("micro_batch"),
        "kind of request": plan.kind in kinds_that_stand_for(subject.split),
        "number of groups or classes": plan.kind == "random" or (plan.units or 1) == count_units(subject.split),
        "size": size_class(plan.size) == size_class(subject.split.sizes()["forget"]),
        BOUND["watch"]: plan.watch == watch,
        "number of unseen examples that margins compare with": plan.compared
        == count_bank(plan.watch, len(subject.split.valid)),
    }


def calibrate_rehearsal(observed: Observations, bank: ReferenceBank | None) -> Rehearsal:
    """Calibrate one rehearsal by a bank; without a bank its raw scores count."""
    if bank is None:
        return Rehearsal(observed)
    references = bank.calibrate(observed)
    attack = fit_attack(bank)
    return Rehearsal(observed if attack is None else attach_scores(attack, observed, references), references)


def rehearse_with_bank(bank: ReferenceBank, compared: Comparison, path: Path) -> RehearsedProcedure | str:
    """Take the models of a bank as rehearsals of retraining: each was retrained without half of the examples.

    Args:
        bank: The reference bank of the audit.
        compared: A run that was made by an exact method.
        path: Where the bank is.

    Returns:
        The rehearsals, or why the bank cannot stand for this run.

    """
    pairs = bank.models // 2
    if bank.models < FEWEST_REHEARSALS or pairs < 3:
        return f"A bank of {bank.models} models is too small to rehearse retraining: at least 6 are needed."
    near = weight_distance(
        compared.models["subject"].load().model.cpu(), compared.models["original"].load().model.cpu()
    )
    if near is not None and near < NEAREST:
        return (
            f"The weights of {compared.subject.folder} are within {100 * near:.2g} % of its original's. Those of a "
            "model retrained from new random weights are not, so a bank does not stand for it."
        )
    seen = compared.observations["subject"]
    found = [half_as_rehearsal(bank, model, seen) for model in range(bank.models)]
    return RehearsedProcedure(
        None, tuple(found), f"retrained without half of the training examples, {bank.models} models",
        str(Path(path).resolve()), bank.digest,
    )  # fmt: skip


def half_as_rehearsal(
    bank: ReferenceBank, model: int, seen: Observations, forgotten: np.ndarray | None = None
) -> Rehearsal:
    """Take one model of a bank as the rehearsal of retraining without the other half, calibrated by the other pairs.

    Args:
        bank: The reference bank.
        model: Number of the model.
        seen: Names the never-trained examples: the keys of ``holdout``, and of ``control`` if it has one.
        forgotten: Which examples count as forgotten, bool [n]; by default all that the model was not trained on.

    """
    others = bank.select_pairs([pair for pair in range(bank.models // 2) if pair != model // 2])
    left_out = bank.trained & ~bank.inside[model] if forgotten is None else forgotten
    rows = {
        "forget": np.flatnonzero(left_out),
        "retain": np.flatnonzero(bank.inside[model] & ~left_out),
        "holdout": bank.positions(seen.of("holdout", "keys")),
    }
    if seen.count("control"):
        rows["control"] = bank.positions(seen.of("control", "keys"))
    arrays: dict[str, Any] = {}
    labelled = [name for name in bank.scores if name.startswith("logits.")]
    for part, at in rows.items():
        arrays[f"{part}/keys"] = bank.keys[at]
        if labelled:
            arrays[f"{part}/labels"] = np.where(np.isnan(bank.scores[labelled[0]][model, at]), -1, 0)
        for name, values in bank.scores.items():
            arrays[f"{part}/{signals.READY}{name}"] = values[model, at]
    observed = Observations(f"half {model}", seen.split, arrays, {"spaces": list(seen.spaces)})
    return calibrate_rehearsal(observed, others)


def _joined_digest(digests: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(digests).encode()).hexdigest()
