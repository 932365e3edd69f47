"""Why a signed bundle is not accepted: stable codes, and what each means."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a bundle was not accepted. The codes are stable; the last four mean that nothing could be checked."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    WRONG_PAYLOAD_TYPE = "wrong_payload_type"
    WRONG_KEY = "wrong_key"
    BAD_SIGNATURE = "bad_signature"
    MALFORMED_STATEMENT = "malformed_statement"
    UNKNOWN_PREDICATE = "unknown_predicate"
    INVALID_PREDICATE = "invalid_predicate"
    MISSING_OUT_OF_SCOPE = "missing_out_of_scope"
    MISSING_STATEMENT = "missing_statement"
    DUPLICATE_STATEMENT = "duplicate_statement"
    WRONG_ORDER = "wrong_order"
    SUBJECT_MISMATCH = "subject_mismatch"
    STATEMENTS_DISAGREE = "statements_disagree"
    VERDICT_CONTRADICTS_NUMBERS = "verdict_contradicts_numbers"
    WEIGHTS_MISMATCH = "weights_mismatch"
    BAD_TIMESTAMP = "bad_timestamp"
    NO_TIMESTAMP = "no_timestamp"
    NOT_PASSED = "not_passed"
    NO_KEY = "no_key"
    BAD_KEY = "bad_key"
    NO_BUNDLE = "no_bundle"
    NO_WEIGHTS = "no_weights"


REASONS: dict[Reason, str] = {
    Reason.EMPTY: "the file holds nothing",
    Reason.TOO_LARGE: "it is larger than any bundle (8 MiB, 8 statements)",
    Reason.TRUNCATED: "its last line does not end: the file was cut",
    Reason.MALFORMED: "a line is not a DSSE envelope in canonical JSON with one signature",
    Reason.WRONG_PAYLOAD_TYPE: "an envelope holds something other than an in-toto statement",
    Reason.WRONG_KEY: "an envelope says that another key signed it",
    Reason.BAD_SIGNATURE: "a signature does not fit its content and the pinned key",
    Reason.MALFORMED_STATEMENT: "the pinned key signed something that is not an in-toto Statement v1 in canonical JSON",
    Reason.UNKNOWN_PREDICATE: "a statement is of a type that this version does not know",
    Reason.INVALID_PREDICATE: "a statement does not follow the schema of its type",
    Reason.MISSING_OUT_OF_SCOPE: "it does not say what the evidence does not cover",
    Reason.MISSING_STATEMENT: "a statement that belongs to the bundle is not there",
    Reason.DUPLICATE_STATEMENT: "a statement is there twice",
    Reason.WRONG_ORDER: "the statements are not in their order",
    Reason.SUBJECT_MISMATCH: "the statements are not about the same file",
    Reason.STATEMENTS_DISAGREE: "one statement says something other than another",
    Reason.VERDICT_CONTRADICTS_NUMBERS: "the verdict does not follow from its own numbers",
    Reason.WEIGHTS_MISMATCH: "the weights are not the file that the bundle is about",
    Reason.BAD_TIMESTAMP: "the time stamp is not a good one of this bundle by the pinned authority",
    Reason.NO_TIMESTAMP: "an authority was pinned, and the bundle has no time stamp",
    Reason.NOT_PASSED: "with --require-pass: the bundle is good, but it does not certify a pass",
    Reason.NO_KEY: "no public key was pinned",
    Reason.BAD_KEY: "the pinned key cannot be used",
    Reason.NO_BUNDLE: "the bundle cannot be read",
    Reason.NO_WEIGHTS: "the weights cannot be read",
}
"""What each reason means."""
NOTHING_CHECKED = (Reason.NO_KEY, Reason.BAD_KEY, Reason.NO_BUNDLE, Reason.NO_WEIGHTS)


class Refusal(Exception):
    """A bundle is not accepted."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
