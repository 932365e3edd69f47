"""A machine-learning bill of materials (CycloneDX 1.7) from a bundle that was verified. Needs neither torch nor NumPy.

What the bundle states becomes a model card, the original becomes an ancestor, and the verdict a claim: signals that
carry it are its evidence, the others its counter-evidence. Nothing is in it that the bundle does not state, so that it
can be passed on like the bundle itself; equal bundles give equal files.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from efface.errors import EffaceError, optional_imports
from efface.reporting.exact import ExactDeletion, Stated
from efface.reporting.predicates import SignedFile, Unlearning

SPECIFICATION = "1.7"
MODEL, ORIGINAL, MAIN_CLAIM = "model", "original-model", "claim-forgotten"
SCORES = {"PASSED": 1.0, "WARNED": 0.5, "FAILED": 0.0}
"""Conformance by outcome of the test."""
_NAMESPACE = uuid.UUID("4b7a8c86-3a38-5a0e-8f0f-1f1d5b3f6c10")


def compose_bom(stated: Stated, subject: SignedFile, bundle_name: str, bundle_sha256: str) -> dict[str, Any]:
    """Compose the bill of materials.

    Args:
        stated: What a verified bundle states.
        subject: The released file.
        bundle_name: Name of the bundle.
        bundle_sha256: Its SHA-256.

    Returns:
        The bill of materials as a JSON object, to be checked by :func:`validate_bom`.

    """
    evidence, counter = _evidence(stated)
    model = {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": subject.name,
        "version": subject.digest.sha256[:12],
        "hashes": [_sha256(subject.digest.sha256)],
        "pedigree": {
            "ancestors": [
                {
                    "type": "machine-learning-model",
                    "bom-ref": ORIGINAL,
                    "name": "original model",
                    "version": stated.original.file[:12],
                    "hashes": [_sha256(stated.original.file)],
                }
            ],
            "notes": f"{stated.forget_set.count} examples were unlearned from the ancestor by {stated.method.name}.",
        },
        "modelCard": _model_card(stated),
        "externalReferences": [
            {
                "type": "attestation",
                "url": bundle_name,
                "comment": "signed bundle of in-toto statements",
                "hashes": [_sha256(bundle_sha256)],
            }
        ],
    }
    unchecked = [
        {
            "bom-ref": f"claim-unchecked-{number}",
            "target": MODEL,
            "predicate": f"{one.about}: {one.claim}",
            "reasoning": "The signer states it, and nobody checked it.",
        }
        for number, one in enumerate(stated.claims, 1)
    ]
    main = {
        "bom-ref": MAIN_CLAIM,
        "target": MODEL,
        "predicate": _predicate(stated),
        "reasoning": stated.verdict.sentence,
        "evidence": [one["bom-ref"] for one in evidence],
        "counterEvidence": [one["bom-ref"] for one in counter],
    }
    side = "counterClaims" if stated.outcome == "FAILED" else "claims"
    conformance = {
        "score": SCORES[stated.outcome],
        "rationale": f"The test {stated.outcome}: {stated.verdict.word}.",
    }
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, bundle_sha256)}",
        "version": 1,
        "metadata": {
            "timestamp": stated.record.created,
            "tools": {
                "components": [{"type": "application", "name": "efface", "version": stated.record.efface_version}]
            },
            "component": model,
        },
        "declarations": {
            "attestations": [
                {"summary": stated.verdict.sentence, "map": [{side: [MAIN_CLAIM], "conformance": conformance}]}
            ],
            "claims": [main, *unchecked],
            "evidence": [*evidence, *counter],
        },
    }


def validate_bom(bom: dict[str, Any]) -> str:
    """Check a bill of materials against the official schema, and return it as text.

    Raises:
        EffaceError: The library with the schema is missing, or the bill of materials does not follow it.

    """
    with optional_imports("a bill of materials", "export"):
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    text = json.dumps(bom, indent=1, ensure_ascii=False) + "\n"
    problem = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    if problem is not None:
        raise EffaceError(
            "The bill of materials does not follow the schema of CycloneDX 1.7.",
            " ".join(str(problem).split())[:300],
            "Upgrade efface.",
        )
    return text


def _predicate(stated: Stated) -> str:
    count = stated.forget_set.count
    if isinstance(stated, ExactDeletion):
        return f"The model is the one that would have been made without the {count} deleted examples."
    delta = stated.verdict.delta
    return (
        f"The {count} forgotten examples cannot be told from examples that were never trained on, at resolution "
        f"δ = {delta:g} under threat model {stated.verdict.level}, and the model is still of use."
    )


def _evidence(stated: Stated) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What carries the claim, and what speaks against it or leaves it open."""
    found: list[tuple[bool, dict[str, Any]]] = []
    if isinstance(stated, ExactDeletion):
        found = [
            (one.passed, _item("check", one.name, f"{one.what}: {one.measured}", one.content()))
            for one in stated.checks
        ]
    else:
        for one in stated.verdict.signals:
            interval = f"AUC {one.value:.3f}, interval {one.low:.3f} to {one.high:.3f}: {one.word}"
            carries = one.word == "removed" and not one.blinded
            found.append((carries, _item("signal", one.signal, interval, one.content())))
        drop, largest = stated.verdict.utility_drop, stated.verdict.max_utility_drop
        if drop is not None:
            text = f"loss of utility {drop:.3f}, at most {largest:g} is accepted"
            kept = drop <= largest and stated.verdict.word != "removed, utility lost"
            found.append((kept, _item("utility", "drop", text, {"drop": drop, "largest": largest})))
        if stated.all_requests is not None:
            text = f"all {stated.all_requests.count} requests together: {stated.all_requests.word or 'not judged'}"
            carries = stated.all_requests.word == "removed"
            found.append((carries, _item("requests", "all", text, stated.all_requests.content())))
    return [one for carries, one in found if carries], [one for carries, one in found if not carries]


def _item(kind: str, name: str, description: str, content: dict[str, Any]) -> dict[str, Any]:
    attachment = {"contentType": "application/json", "content": json.dumps(content, sort_keys=True)}
    return {
        "bom-ref": f"evidence-{kind}-{name}",
        "propertyName": f"efface:{kind}:{name}",
        "description": description,
        "data": [{"name": name, "contents": {"attachment": attachment}}],
    }


def _model_card(stated: Stated) -> dict[str, Any]:
    metrics: list[dict[str, Any]] = []
    if isinstance(stated, Unlearning):
        for one in stated.findings:
            if one.value is None:
                continue
            metric: dict[str, Any] = {"type": one.name, "value": f"{one.value:.6g}"}
            if one.interval is not None:
                low, high = one.interval
                metric["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
            metrics.append(metric)
    else:
        metrics = [{"type": one.name, "value": one.measured} for one in stated.checks]
    card: dict[str, Any] = {
        "modelParameters": {"task": "machine unlearning"},
        "considerations": {"technicalLimitations": list(stated.out_of_scope)},
        "properties": [
            {"name": "efface:verdict", "value": stated.verdict.word},
            {"name": "efface:level", "value": stated.verdict.level},
            {"name": "efface:outcome", "value": stated.outcome},
            {"name": "efface:method", "value": json.dumps(stated.method.content(), sort_keys=True)},
            {"name": "efface:record", "value": stated.record.sha256},
            *([{"name": "efface:request", "value": stated.request_id}] if stated.request_id else []),
        ],
    }
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def _sha256(value: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": value}
