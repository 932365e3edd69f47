"""More than a thousand mutated bundles: every one is refused, with the expected reason, and nothing crashes."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from efface.reporting.predicates import PROVENANCE, SVR, TEST_RESULT
from efface.reporting.refusals import NOTHING_CHECKED, Reason
from efface.reporting.signing import canonical_json, sign_statements
from efface.reporting.verify import LARGEST_BUNDLE
from tests.bundles import TYPE, bundle, lines, payload_of, reason_of, resigned, sealed, signer, statements

R = Reason
BROKEN = {R.MALFORMED, R.BAD_SIGNATURE, R.WRONG_KEY, R.WRONG_PAYLOAD_TYPE, R.TRUNCATED, R.TOO_LARGE}
"""What a change of bytes somewhere in the file may end in: never a reason that needs a signed statement."""
CASES = ("removed", "residue", "small", "utility_lost")
Mutant = tuple[bytes, set[Reason]]


def edited(line: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """An envelope with a changed field, in canonical form."""
    envelope = json.loads(line)
    change(envelope)
    return canonical_json(envelope) + b"\n"


def swapped(name: str, number: int, line: bytes) -> bytes:
    """A bundle with another line in one place."""
    return b"".join([*lines(name)[:number], line, *lines(name)[number + 1 :]])


def flipped(data: bytes, bit: int) -> bytes:
    """``data`` with one bit flipped."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def encoded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


def flips_inside(rng: random.Random) -> Iterator[Mutant]:
    """One bit of a payload or of a signature, with everything around it well formed."""
    for name, _ in itertools.product(CASES, range(60)):
        number = rng.randrange(len(lines(name)))
        line = lines(name)[number]
        envelope = json.loads(line)
        payload = base64.b64decode(envelope["payload"])
        other = encoded(flipped(payload, rng.randrange(len(payload) * 8)))
        yield swapped(name, number, edited(line, lambda e, o=other: e.update(payload=o))), {R.BAD_SIGNATURE}
        signature = base64.b64decode(envelope["signatures"][0]["sig"])
        other = encoded(flipped(signature, rng.randrange(len(signature) * 8)))
        yield (
            swapped(name, number, edited(line, lambda e, o=other: e["signatures"][0].update(sig=o))),
            {R.BAD_SIGNATURE},
        )


def raw_changes(rng: random.Random) -> Iterator[Mutant]:
    """A flipped, lost, added or repeated byte anywhere in the file."""
    for name, _ in itertools.product(CASES, range(40)):
        content = bundle(name)
        at = rng.randrange(len(content) - 1)
        yield flipped(content, at * 8 + rng.randrange(8)), BROKEN
        yield content[:at] + content[at + 1 :], BROKEN
        yield content[:at] + bytes([rng.randrange(256)]) + content[at:], BROKEN


def cuts(rng: random.Random) -> Iterator[Mutant]:
    """A file that ends too early."""
    for name in CASES:
        content = bundle(name)
        ends = list(itertools.accumulate(len(line) for line in lines(name)))
        for at in (*rng.sample(range(1, len(content)), 50), len(content) - 1):
            yield content[:at], {R.MISSING_STATEMENT if at in ends else R.TRUNCATED}
        for at in ends[:-1]:
            yield content[:at], {R.MISSING_STATEMENT}
        yield b"", {R.EMPTY}
        yield b"\n" * 3, {R.EMPTY}


def other_orders() -> Iterator[Mutant]:
    """Statements removed, repeated, in another order, or lines that are none."""
    for name in CASES:
        own = lines(name)
        for size in range(1, len(own)):
            for kept in itertools.combinations(own, size):
                yield b"".join(kept), {R.MISSING_STATEMENT}
        for order in itertools.permutations(own):
            if list(order) != own:
                yield b"".join(order), {R.WRONG_ORDER}
        for line, at in itertools.product(own, range(len(own) + 1)):
            yield b"".join([*own[:at], line, *own[at:]]), {R.DUPLICATE_STATEMENT}
        yield bundle(name) * 3, {R.TOO_LARGE}
        for junk in (b"\n", b"{}\n", b"[]\n", b"null\n", b"0\n", b'"a"\n', b"\xff\xfe\n", b"\x00\n"):
            yield bundle(name) + junk, {R.MALFORMED}
            yield junk + bundle(name), {R.MALFORMED}


def other_keys() -> Iterator[Mutant]:
    """Signed by somebody else, who may say so or pretend."""
    for name in CASES:
        foreign = sign_statements(statements(name), signer("theirs")).splitlines(keepends=True)
        yield b"".join(foreign), {R.WRONG_KEY}
        for number, line in enumerate(foreign):
            yield swapped(name, number, line), {R.WRONG_KEY}
            posing = edited(line, lambda e: e["signatures"][0].update(keyid=signer().public_key.keyid))
            yield swapped(name, number, posing), {R.BAD_SIGNATURE}
            for keyid in ("", "f" * 64, signer().public_key.keyid.upper(), signer().public_key.keyid[:-1]):
                other = edited(lines(name)[number], lambda e, k=keyid: e["signatures"][0].update(keyid=k))
                yield swapped(name, number, other), {R.WRONG_KEY}


def other_envelopes() -> Iterator[Mutant]:
    """Envelopes of another shape around the same signed payload."""
    changes: list[tuple[Callable[[dict[str, Any]], object], set[Reason]]] = [
        (lambda e, t=kind: e.update(payloadType=t), {R.WRONG_PAYLOAD_TYPE})
        for kind in ("", "application/json", TYPE.upper(), f"{TYPE} ", "application/vnd.in-toto.bundle", "\x1b[31m")
    ]
    wrong: tuple[Any, ...] = (None, 1, True, 1.5, [], {}, [TYPE], {"a": 1})
    changes += [
        (lambda e, f=field, v=value: e.update({f: v}), {R.MALFORMED})
        for field in ("payload", "payloadType", "signatures")
        for value in wrong
    ]
    changes += [
        (lambda e, f=field, v=value: e["signatures"][0].update({f: v}), {R.MALFORMED})
        for field in ("keyid", "sig")
        for value in wrong
    ]
    changes += [
        (lambda e: e.update(extra=1), {R.MALFORMED}),
        (lambda e: e.pop("signatures"), {R.MALFORMED}),
        (lambda e: e.pop("payload"), {R.MALFORMED}),
        (lambda e: e.pop("payloadType"), {R.MALFORMED}),
        (lambda e: e["signatures"][0].update(cert="x"), {R.MALFORMED}),
        (lambda e: e["signatures"][0].pop("keyid"), {R.MALFORMED}),
        (lambda e: e["signatures"].append(dict(e["signatures"][0])), {R.MALFORMED}),
        (lambda e: e.update(signatures=["keyid", "sig"]), {R.MALFORMED}),
        (lambda e: e.update(signatures=[["keyid", "sig"]]), {R.MALFORMED}),
        (lambda e: e.update(payload=e["payload"].rstrip("=") + "===="), {R.MALFORMED}),
        (lambda e: e.update(payload=" " + e["payload"]), {R.MALFORMED}),
        (lambda e: e.update(payload=e["payload"][:40] + "\n" + e["payload"][40:]), {R.MALFORMED}),
        (lambda e: e.update(payload="é"), {R.MALFORMED}),
        (lambda e: e.update(payload=""), {R.BAD_SIGNATURE}),
        (lambda e: e["signatures"][0].update(sig=""), {R.BAD_SIGNATURE}),
        (lambda e: e["signatures"][0].update(sig=encoded(bytes(64))), {R.BAD_SIGNATURE}),
        (lambda e: e["signatures"][0].update(sig=encoded(bytes(65))), {R.BAD_SIGNATURE}),
    ]
    for name in CASES[:2]:
        for number, line in enumerate(lines(name)):
            for change, expected in changes:
                yield swapped(name, number, edited(line, change)), expected


def other_spellings() -> Iterator[Mutant]:
    """The same envelope as JSON, in other bytes: a bundle has one form only."""
    spell: list[Callable[[bytes], bytes]] = [
        lambda line: line.replace(b"\n", b"\r\n"),
        lambda line: b" " + line,
        lambda line: line.replace(b'":"', b'": "', 1),
        lambda line: b"\xef\xbb\xbf" + line,
        lambda line: json.dumps(dict(reversed(json.loads(line).items())), separators=(",", ":")).encode() + b"\n",
        lambda line: line.replace(b'"payload"', b'"\\u0070ayload"', 1),
        lambda line: b'{"payload":"",' + line[1:],
        lambda line: line.decode().encode("utf-16-be"),
        lambda line: line.replace(b"}\n", b"},\n"),
        lambda line: line.replace(b"\n", b"") + b"\x00\n",
    ]
    for name in CASES[:2]:
        for (number, line), change in itertools.product(enumerate(lines(name)), spell):
            yield swapped(name, number, change(line)), {R.MALFORMED}


def other_payloads() -> Iterator[Mutant]:
    """The same statement signed in other bytes: spaces, another order, a repeated field, another encoding."""
    for name in CASES[:2]:
        for number, line in enumerate(lines(name)):
            content = payload_of(line)
            plain = canonical_json(content)
            for payload in (
                json.dumps(content, sort_keys=True).encode(),
                json.dumps(dict(reversed(content.items())), separators=(",", ":"), ensure_ascii=False).encode(),
                plain + b"\n",
                plain.replace(b'"_type"', b'"\\u005ftype"', 1),
                b'{"_type":"https://in-toto.io/Statement/v1",' + plain[1:],
                b"\xef\xbb\xbf" + plain,
            ):
                yield swapped(name, number, sealed(payload)), {R.MALFORMED_STATEMENT}


def hostile_json() -> Iterator[Mutant]:
    """Deep, huge and impossible JSON: as a line, and signed by the pinned key."""
    texts = [
        b"[" * 100_000,
        b"[" * 50_000 + b"]" * 50_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"1" * 100_000,
        b'{"payload":' + b"9" * 5_000 + b"}",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":"\\ud800"}',
        b'"' + b"a" * 1_000_000 + b'"',
        b'{"a":1,"a":2}',
        b"{" + b",".join(b'"%d":0' % i for i in range(20_000)) + b"}",
        b"",
    ]
    for text in texts:
        yield text + b"\n" + bundle("removed"), {R.MALFORMED}
        yield bundle("removed") + sealed(text), {R.MALFORMED_STATEMENT}
    yield b"a" * (LARGEST_BUNDLE // 2) + b"\n", {R.MALFORMED}


def other_statements() -> Iterator[Mutant]:
    """What the pinned key itself signed, in statements that no bundle of ours has."""
    strange: list[tuple[Callable[[dict[str, Any]], object], set[Reason]]] = [
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), {R.MALFORMED_STATEMENT}),
        (lambda s: s.update(extra=1), {R.MALFORMED_STATEMENT}),
        (lambda s: s.update(subject=[]), {R.MALFORMED_STATEMENT}),
        (lambda s: s.update(subject=s["subject"] * 2), {R.MALFORMED_STATEMENT}),
        (lambda s: s["subject"][0].update(digest={"md5": "0" * 32}), {R.MALFORMED_STATEMENT}),
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 63), {R.MALFORMED_STATEMENT}),
        (lambda s: s["subject"][0]["digest"].update(sha256="A" * 64), {R.MALFORMED_STATEMENT}),
        (lambda s: s.update(predicate=[]), {R.MALFORMED_STATEMENT}),
        (lambda s: s.update(predicate_type=s.pop("predicateType")), {R.MALFORMED_STATEMENT}),
        (lambda s: s.pop("predicate"), {R.MALFORMED_STATEMENT}),
        (lambda s: s.update(predicateType="urn:efface:unlearning:v2"), {R.UNKNOWN_PREDICATE}),
        (lambda s: s.update(predicateType="https://example.org/\u001b[2J"), {R.UNKNOWN_PREDICATE}),
        (lambda s: s["predicate"].update(extra=1), {R.INVALID_PREDICATE}),
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), {R.SUBJECT_MISMATCH}),
        (lambda s: s["subject"][0].update(name="other.safetensors"), {R.SUBJECT_MISMATCH}),
    ]
    for name in CASES:
        for number in range(len(lines(name))):
            for change, expected in strange:
                yield resigned(name, number, change), expected


def lies() -> Iterator[Mutant]:
    """One statement changed by the holder of the key, and the others left as they were."""
    p = "predicate"

    def verdict(**changed: Any) -> Callable[[dict[str, Any]], object]:
        return lambda s: s[p]["verdict"].update(changed)

    first: list[tuple[Callable[[dict[str, Any]], object], set[Reason]]] = [
        (lambda s: s[p].update(outOfScope=[]), {R.MISSING_OUT_OF_SCOPE}),
        (lambda s: s[p].pop("outOfScope"), {R.MISSING_OUT_OF_SCOPE}),
        (lambda s: s[p].update(outOfScope=[" "]), {R.MISSING_OUT_OF_SCOPE}),
        (lambda s: s[p].update(outOfScope=None), {R.MISSING_OUT_OF_SCOPE}),
        (lambda s: s[p].update(request_id=s[p].pop("requestId")), {R.INVALID_PREDICATE}),
        (verdict(level="A9"), {R.STATEMENTS_DISAGREE}),
        (verdict(delta=0.049), {R.STATEMENTS_DISAGREE, R.VERDICT_CONTRADICTS_NUMBERS}),
        (lambda s: s[p]["record"].update(sha256="0" * 64), {R.STATEMENTS_DISAGREE}),
        (lambda s: s[p]["unlearned"].update(file="0" * 64), {R.SUBJECT_MISMATCH}),
        (lambda s: s[p]["original"].update(file="0" * 64), {R.STATEMENTS_DISAGREE}),
        (lambda s: s[p]["method"].update(name="retrain"), {R.STATEMENTS_DISAGREE}),
        (lambda s: s[p]["forgetSet"].update(count=1), {R.STATEMENTS_DISAGREE}),
    ]
    for name in CASES:
        last = len(lines(name)) - 1
        for change, expected in first:
            yield resigned(name, 0, change), expected
        yield resigned(name, 1, lambda s: s[p].update(configuration=[])), {R.STATEMENTS_DISAGREE}
        yield resigned(name, 1, lambda s: s[p]["failedTests"].append("x")), {R.STATEMENTS_DISAGREE}
        yield resigned(name, last, lambda s: s[p]["runDetails"].update(byproducts=[{}])), {R.STATEMENTS_DISAGREE}
        for outcome in ("PASSED", "WARNED", "FAILED"):
            if payload_of(lines(name)[1])[p]["result"] != outcome:
                changed = resigned(name, 1, lambda s, o=outcome: s[p].update(result=o))
                yield changed, {R.STATEMENTS_DISAGREE}
    for word in ("residue", "over-forgotten", "inconclusive", "removed, utility lost"):
        yield resigned("removed", 0, verdict(word=word)), {R.STATEMENTS_DISAGREE}
    for name in CASES[1:]:  # a pass claimed without one: no certificate; a certificate without a pass
        yield resigned(name, 0, verdict(word="removed")), {R.MISSING_STATEMENT}
        svr = payload_of(lines("removed")[2])
        svr["subject"] = payload_of(lines(name)[0])["subject"]
        certified = [*lines(name)[:2], sealed(canonical_json(svr)), lines(name)[2]]
        yield b"".join(certified), {R.STATEMENTS_DISAGREE}
    yield resigned("removed", 2, lambda s: s[p]["properties"].append("EFFACE_PERFECT")), {R.STATEMENTS_DISAGREE}
    for ours, theirs in itertools.permutations(CASES, 2):  # statements of another run, all rightly signed
        for number in range(min(len(lines(ours)), len(lines(theirs)))):
            yield swapped(ours, number, lines(theirs)[number]), {
                R.SUBJECT_MISMATCH, R.MISSING_STATEMENT, R.DUPLICATE_STATEMENT, R.STATEMENTS_DISAGREE,
            }  # fmt: skip


def mutants() -> Iterator[tuple[str, Mutant]]:
    """Every mutant, with the name of its kind."""
    rng = random.Random(20261129)
    kinds: dict[str, Iterator[Mutant]] = {
        "flips_inside": flips_inside(rng),
        "raw_changes": raw_changes(rng),
        "cuts": cuts(rng),
        "other_orders": other_orders(),
        "other_keys": other_keys(),
        "other_envelopes": other_envelopes(),
        "other_spellings": other_spellings(),
        "other_payloads": other_payloads(),
        "hostile_json": hostile_json(),
        "other_statements": other_statements(),
        "lies": lies(),
    }
    for kind, made in kinds.items():
        for mutant in made:
            yield kind, mutant


@pytest.fixture(scope="module")
def judged() -> list[tuple[str, bytes, set[Reason], Reason | None]]:
    """Every mutant and what the verifier said."""
    return [(kind, content, expected, reason_of(content)) for kind, (content, expected) in mutants()]


@pytest.mark.parametrize("name", CASES)
def test_the_bundles_that_are_mutated_are_good(name):
    assert reason_of(bundle(name)) is None


def test_every_mutant_differs_and_is_refused_with_its_reason(judged):
    good = {bundle(name) for name in CASES}
    wrong = [
        (kind, sorted(expected), reason) for kind, content, expected, reason in judged
        if reason not in expected and content not in good
    ]  # fmt: skip
    assert wrong == []
    assert not any(content in good for _, content, _, _ in judged)
    assert len(judged) >= 1000


def test_the_mutants_reach_every_reason_that_a_bundle_can_give(judged):
    seen = Counter(reason for _, _, _, reason in judged)
    elsewhere = {*NOTHING_CHECKED, R.WEIGHTS_MISMATCH, R.NOT_PASSED, R.VERDICT_CONTRADICTS_NUMBERS}
    elsewhere |= {R.BAD_TIMESTAMP, R.NO_TIMESTAMP}
    assert set(Reason) - set(seen) <= elsewhere
    assert {kind for kind, *_ in judged} == {kind for kind, _ in mutants()}


def test_the_four_kinds_of_statements_are_there_and_the_pass_only_where_it_is_one():
    kinds = {name: [payload_of(line)["predicateType"] for line in lines(name)] for name in CASES}
    assert [SVR in kinds[name] for name in CASES] == [True, False, False, False]
    assert all(TEST_RESULT in one and one[-1] == PROVENANCE for one in kinds.values())
