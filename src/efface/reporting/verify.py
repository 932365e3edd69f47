"""Check a signed bundle against a pinned key, and say what was checked and what could not be.

The in-toto specification lets a reader skip what it does not know. A verifier that did so could not notice a removed
statement, and our bundles are complete by definition: anything that differs from the one form in which a bundle is
written is refused, with a stable
:class:`~efface.reporting.refusals.Reason`. Needs neither torch nor NumPy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from efface.errors import EffaceError
from efface.files import file_digest
from efface.reporting.exact import EXACT, ExactDeletion, Stated, reference_of, svr_of, test_result_of
from efface.reporting.predicates import (
    PREDICATES,
    PROVENANCE,
    SVR,
    TEST_RESULT,
    UNLEARNING,
    Provenance,
    SignedFile,
    Statement,
    StatementPart,
    Unlearning,
    expected_types,
)
from efface.reporting.refusals import NOTHING_CHECKED, Reason, Refusal
from efface.reporting.signing import (
    PAYLOAD_TYPE,
    canonical_json,
    load_public_key,
    read_envelope,
    signature_fits,
)

if TYPE_CHECKING:
    from efface.reporting.signing import SSlibKey

_Part = TypeVar("_Part", bound=StatementPart)
FIRST_STATEMENTS: dict[str, type[Unlearning | ExactDeletion]] = {UNLEARNING: Unlearning, EXACT: ExactDeletion}
"""What the first statement of a bundle can be, by its type."""
_REPEAT: dict[type, str] = {Unlearning: "`efface audit`", ExactDeletion: "`efface check` or `efface heads check`"}
STATEMENT_MODELS: dict[str, type[StatementPart]] = {**PREDICATES, **FIRST_STATEMENTS}
NO_TIME = ", and when it was signed: there is no trusted time"
LARGEST_BUNDLE = 8 * 2**20
MOST_STATEMENTS = 8
_SIGNATURE_FIELDS = {"keyid", "sig"}
_EXACT_DIGITS = 15
"""Integers of more digits may be written by a float, and are read as one."""


@dataclass(frozen=True)
class Verification:
    """What became of a check."""

    reason: Reason | None
    """Why the bundle was not accepted; None if it was."""
    detail: str = ""
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    """What nobody can check from the bundle alone."""
    key: str = ""
    """Id of the pinned key."""
    subject: SignedFile | None = None
    stated: Stated | None = None
    """What the bundle states; None if it was not accepted."""

    @property
    def exit_code(self) -> int:
        """0: accepted. 2: nothing could be checked. 3: refused."""
        return 0 if self.reason is None else 2 if self.reason in NOTHING_CHECKED else 3

    def as_dict(self) -> dict[str, Any]:
        """The result as a JSON object."""
        result: dict[str, Any] = {
            "accepted": self.reason is None,
            "reason": self.reason and self.reason.value,
            "detail": self.detail,
            "checked": list(self.checked),
            "not_checked": list(self.unchecked),
            "key": self.key,
        }
        if self.subject is not None and self.stated is not None:
            stated = self.stated
            result |= {
                "weights": {"name": self.subject.name, "sha256": self.subject.digest.sha256},
                "request_id": stated.request_id,
                "verdict": stated.verdict.word,
                "level": stated.verdict.level,
                "outcome": stated.outcome,
                "certified": stated.passes,
                "claims": [one.content() for one in stated.claims],
                "out_of_scope": list(stated.out_of_scope),
            }
        return result


def verify_bundle(
    bundle: Path,
    key: Path | None,
    weights: Path | None = None,
    *,
    require_pass: bool = False,
    authority: Path | None = None,
    stamp: Path | None = None,
) -> Verification:
    """Check a bundle; never raises for a bad one.

    Args:
        bundle: The file that ``efface sign`` wrote.
        key: The public key that must have signed it. Without one nothing can be checked.
        weights: The file that is to be used; its digest must be the one that the bundle is about.
        require_pass: Refuse a bundle that certifies no pass, although it is good.
        authority: Certificates of a time-stamping authority: the bundle must have a time stamp by it.
        stamp: The time stamp; by default beside the bundle.

    Example:
        >>> verify_bundle(Path("model.intoto.jsonl"), None).reason.value
        'no_key'

    """
    pinned = None
    try:
        pinned = _pin(key)
        content = _read(Path(bundle))
        found = verify_content(content, pinned, weights, require_pass=require_pass)
        return found if authority is None else _with_time(found, content, Path(bundle), authority, stamp)
    except Refusal as refused:
        return Verification(refused.reason, refused.detail, key=pinned.keyid if pinned else "")


def _pin(key: Path | None) -> SSlibKey:
    if key is None:
        raise Refusal(Reason.NO_KEY, "A bundle is checked against a key that you have from its signer: --key.")
    try:
        return load_public_key(Path(key))
    except EffaceError as error:
        raise Refusal(Reason.BAD_KEY, str(error)) from error


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_BUNDLE + 1)
    except OSError as error:
        raise Refusal(Reason.NO_BUNDLE, f"{path}: {error.strerror or error}.") from error
    if len(content) > LARGEST_BUNDLE:
        raise Refusal(Reason.TOO_LARGE, f"{path} has more than {LARGEST_BUNDLE} bytes.")
    return content


def verify_content(
    content: bytes, pinned: SSlibKey, weights: Path | None = None, *, require_pass: bool = False
) -> Verification:
    """Check the content of a bundle like :func:`verify_bundle`; one that is not accepted raises a :class:`Refusal`."""
    payloads = [_open(line, number, pinned) for number, line in enumerate(_lines(content), 1)]
    statements = [_statement(payload, number) for number, payload in enumerate(payloads, 1)]
    stated = _agree(statements)
    subject = statements[0].subject[0]
    checked = [
        f"{len(statements)} statements are signed by the pinned key, and none is missing, repeated or out of order",
        f"all are about {subject.name}, sha256 {subject.digest.sha256}",
        "they follow their schemas, agree with each other, and the verdict follows from its own numbers",
    ]
    unchecked = [
        f"whether it was carried out as stated: repeat it from the folder with {_REPEAT[type(stated)]}",
        f"whether a later bundle about this model replaced this one{NO_TIME}",
        f"the record (sha256 {stated.record.sha256}), which has the rest of the evidence",
        *(f"{one.about}: {one.claim}" for one in stated.claims),
    ]
    if weights is None:
        unchecked.insert(0, "whether the weights that you use are this file: pass --weights")
    else:
        _require_weights(Path(weights), subject)
        checked.append(f"{weights} is this file")
    if require_pass and not stated.passes:
        why = "it passed, but rests on claims that nobody checked" if stated.outcome == "PASSED" else stated.outcome
        raise Refusal(Reason.NOT_PASSED, f"The verdict is '{stated.verdict.word}': {why}.")
    return Verification(None, "", tuple(checked), tuple(unchecked), pinned.keyid, subject, stated)


def _with_time(found: Verification, content: bytes, bundle: Path, authority: Path, stamp: Path | None) -> Verification:
    """Check the time stamp too; it needs a library of its own, which is loaded only here."""
    try:
        from efface.reporting.timestamps import stamp_path, verify_stamp
    except EffaceError as error:
        raise Refusal(Reason.BAD_KEY, str(error)) from error
    when = verify_stamp(content, stamp or stamp_path(bundle), authority)
    checked = (*found.checked, f"the authority of {authority} states that it existed at {when.isoformat()}")
    unchecked = tuple(line.replace(NO_TIME, "") for line in found.unchecked)
    return replace(found, checked=checked, unchecked=unchecked)


def _lines(content: bytes) -> list[bytes]:
    if not content.strip():
        raise Refusal(Reason.EMPTY, "The file holds nothing.")
    if not content.endswith(b"\n"):
        raise Refusal(Reason.TRUNCATED, "The last line does not end.")
    lines = content[:-1].split(b"\n")
    if len(lines) > MOST_STATEMENTS:
        raise Refusal(Reason.TOO_LARGE, f"The file has {len(lines)} lines.")
    return lines


def _open(line: bytes, number: int, pinned: SSlibKey) -> bytes:
    """The payload of an envelope, once its signature was verified."""
    try:
        content = _parse(line)
        [signature] = content["signatures"]
        if set(signature) != _SIGNATURE_FIELDS:
            raise ValueError("the fields of its signature are not keyid and sig")  # noqa: TRY301
        texts = [content["payload"], content["payloadType"], *signature.values()]
        if not all(isinstance(one, str) for one in texts):
            raise TypeError("a field is not a text")  # noqa: TRY301
        envelope = read_envelope(content)
        if canonical_json(envelope.to_dict()) != line:
            raise ValueError("it is not in canonical form, or has other fields")  # noqa: TRY301
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, EffaceError) as error:
        raise Refusal(Reason.MALFORMED, f"Line {number} is not an envelope: {_shown(error)}.") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise Refusal(Reason.WRONG_PAYLOAD_TYPE, f"Line {number} holds {_shown(envelope.payload_type)}.")
    if signature["keyid"] != pinned.keyid:
        raise Refusal(
            Reason.WRONG_KEY, f"Line {number} names the key {_shown(signature['keyid'])}, not {pinned.keyid}."
        )
    if not signature_fits(envelope, pinned):
        raise Refusal(Reason.BAD_SIGNATURE, f"The signature of line {number} does not fit.")
    return envelope.payload


def _parse(text: bytes) -> dict[str, Any]:
    """Parse a JSON object. A repeated field, NaN and infinity have no canonical form, which callers compare with."""
    found = json.loads(text.decode("utf-8"), parse_int=_exact_or_float)
    if not isinstance(found, dict):
        raise TypeError("it is not an object")
    return found


def _exact_or_float(digits: str) -> float:
    return int(digits) if len(digits.removeprefix("-")) <= _EXACT_DIGITS else float(digits)


def _statement(payload: bytes, number: int) -> Statement:
    """The statement in a signed payload, its predicate checked against the schema of its type."""
    try:
        content = _parse(payload)
        if canonical_json(content) != payload:
            raise ValueError("it is not in canonical form")  # noqa: TRY301
        statement = _model(Statement, content)
    except (ValueError, TypeError, RecursionError, EffaceError) as error:
        raise Refusal(Reason.MALFORMED_STATEMENT, f"Line {number} is not a statement: {_shown(error)}.") from error
    model = STATEMENT_MODELS.get(statement.predicate_type)
    if model is None:
        raise Refusal(Reason.UNKNOWN_PREDICATE, f"Line {number} is of type {_shown(statement.predicate_type)}.")
    if model in FIRST_STATEMENTS.values() and not statement.predicate.get("outOfScope"):
        raise Refusal(Reason.MISSING_OUT_OF_SCOPE, f"Line {number} does not say what it does not cover.")
    try:
        _model(model, statement.predicate)
    except ValidationError as error:
        reason = Reason.INVALID_PREDICATE
        if model in FIRST_STATEMENTS.values() and all(one["loc"][0] == "outOfScope" for one in error.errors()):
            reason = Reason.MISSING_OUT_OF_SCOPE
        raise Refusal(reason, f"Line {number} breaks its schema: {_shown(error)}.") from error
    return statement


def _model(model: type[_Part], content: Mapping[str, Any]) -> _Part:
    """Build a part from JSON types: no conversion of types, and no names other than those of the schema."""
    return model.model_validate_json(canonical_json(content), strict=True, by_alias=True, by_name=False)


def _agree(statements: Sequence[Statement]) -> Stated:
    """Check that the statements are those of one bundle and say the same; returns the first one's content."""
    kinds = [one.predicate_type for one in statements]
    repeated = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if repeated is not None:
        raise Refusal(Reason.DUPLICATE_STATEMENT, f"{repeated} is there {kinds.count(repeated)} times.")
    about = next((kind for kind in FIRST_STATEMENTS if kind in kinds), None)
    if about is None:
        raise Refusal(Reason.MISSING_STATEMENT, f"{UNLEARNING} is missing.")
    stated = _model(FIRST_STATEMENTS[about], statements[kinds.index(about)].predicate)
    expected = expected_types(stated, about)
    missing = [kind for kind in expected if kind not in kinds]
    if missing:
        raise Refusal(Reason.MISSING_STATEMENT, f"{', '.join(missing)} is missing.")
    if SVR in kinds and SVR not in expected:
        raise Refusal(Reason.STATEMENTS_DISAGREE, "A pass is certified, but the evidence does not carry one.")
    if tuple(kinds) != expected:
        raise Refusal(Reason.WRONG_ORDER, f"The order is {', '.join(kinds)}.")
    if any(one.subject != statements[0].subject for one in statements):
        raise Refusal(Reason.SUBJECT_MISMATCH, "The statements are about different files.")
    if stated.release == "audited" and statements[0].subject[0].digest.sha256 != stated.unlearned.file:
        raise Refusal(Reason.SUBJECT_MISMATCH, "The statements are about a file other than the audited one.")
    by_kind = dict(zip(kinds, statements, strict=True))
    derived = {TEST_RESULT: test_result_of(stated)} | ({SVR: svr_of(stated)} if SVR in kinds else {})
    for kind, part in derived.items():
        if by_kind[kind].predicate != part.content():
            raise Refusal(Reason.STATEMENTS_DISAGREE, f"{kind} does not follow from {about}.")
    _agree_on_provenance(stated, _model(Provenance, by_kind[PROVENANCE].predicate))
    contradiction = stated.contradiction()
    if contradiction:
        raise Refusal(Reason.VERDICT_CONTRADICTS_NUMBERS, f"{contradiction[0].upper()}{contradiction[1:]}.")
    return stated


def _agree_on_provenance(stated: Stated, made: Provenance) -> None:
    asked, used = made.build_definition.external_parameters, made.build_definition.resolved_dependencies
    same = (
        made.run_details.byproducts == (reference_of(stated),)
        and asked.get("method") == stated.method.content()
        and asked.get("count") == stated.forget_set.count
        and bool(used)
        and used[0].get("digest") == {"sha256": stated.original.file}
    )
    if not same:
        raise Refusal(Reason.STATEMENTS_DISAGREE, f"{PROVENANCE} is about another run than the first statement.")


def _require_weights(path: Path, subject: SignedFile) -> None:
    try:
        digest = file_digest(path)
    except OSError as error:
        raise Refusal(Reason.NO_WEIGHTS, f"{path}: {error.strerror or error}.") from error
    if digest != subject.digest.sha256:
        raise Refusal(
            Reason.WEIGHTS_MISMATCH, f"{path} has sha256 {digest}; the bundle is about {subject.digest.sha256}."
        )


def _shown(value: object) -> str:
    """What an error or a field says, in one short printable line; what a bundle holds may be hostile."""
    if isinstance(value, ValidationError):
        one = value.errors()[0]
        value = f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
    if isinstance(value, KeyError):
        value = f"there is no {value}"
    text = " ".join(str(value).split())[:160]
    return "".join(one if one.isprintable() else "?" for one in text).rstrip(".") or type(value).__name__
