"""Sign a bundle again after its release, with what became of the artefacts that still remembered.

Everything else stays as it was signed. The new bundle is verified like any other; both remain valid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import EffaceError
from efface.files import atomic_path
from efface.reporting.predicates import (
    PROVENANCE,
    SVR,
    TEST_RESULT,
    UNLEARNING,
    DownstreamArtefact,
    Statement,
    Unlearning,
    derive_svr,
    derive_test_result,
)
from efface.reporting.refusals import REASONS, Refusal
from efface.reporting.signing import read_envelope, sign_statements
from efface.reporting.verify import verify_content

if TYPE_CHECKING:
    from efface.reporting.signing import CryptoSigner

STILL_THERE = {"listed": "listed, and a person has to decide", "failed": "it could not be erased"}


def amend_bundle(bundle: Path, out: Path, signer: CryptoSigner, artefacts: Sequence[tuple[str, str, int, int]]) -> Path:
    """Write a bundle again with the outcomes of an erasure.

    Args:
        bundle: The released bundle; it stays as it is.
        out: The bundle to write.
        signer: Who signed the first one.
        artefacts: Kind, outcome, how many, and how many entries of them altogether.

    Raises:
        EffaceError: The bundle is not good, or was signed by somebody else.

    """
    content = bundle.read_bytes()
    try:
        found = verify_content(content, signer.public_key)
    except Refusal as refused:
        raise EffaceError(
            f"{bundle} cannot be signed again: {REASONS[refused.reason]}.",
            refused.detail,
            "Use the key that it was signed with, or sign the release again.",
        ) from refused
    stated, subject = found.stated, found.subject
    if stated is None or subject is None:
        raise EffaceError(f"{bundle} states nothing.")
    if not isinstance(stated, Unlearning):
        raise EffaceError(
            f"{bundle} is about an exact deletion, which has no list of what was erased beside it.",
            remedy="Sign the release of an audited run.",
        )
    downstream = tuple(
        DownstreamArtefact.model_validate({"kind": kind, "outcome": outcome, "artefacts": number, "entries": entries})
        for kind, outcome, number, entries in artefacts
    )
    still = [
        f"{one.artefacts} × {one.kind}: {STILL_THERE[one.outcome]}." for one in downstream if one.outcome in STILL_THERE
    ]
    stated = stated.model_copy(update={"downstream": downstream, "out_of_scope": (*stated.out_of_scope, *still)})
    statements = [
        Statement(subject=(subject,), predicate_type=kind, predicate=predicate)
        for kind, predicate in _predicates(stated, content)
    ]
    signed = sign_statements(statements, signer)
    verify_content(signed, signer.public_key)
    with atomic_path(out) as fresh:
        fresh.write_bytes(signed)
    return out


def _predicates(stated: Unlearning, content: bytes) -> list[tuple[str, dict[str, object]]]:
    """The predicates of the new bundle: those that follow from the first one, and the provenance as it was."""
    old = [json.loads(read_envelope(json.loads(line)).payload) for line in content.splitlines()]
    provenance = next(one["predicate"] for one in old if one["predicateType"] == PROVENANCE)
    made: list[tuple[str, dict[str, object]]] = [(UNLEARNING, stated.content())]
    made.append((TEST_RESULT, derive_test_result(stated).content()))
    if stated.passes:
        made.append((SVR, derive_svr(stated).content()))
    return [*made, (PROVENANCE, provenance)]
