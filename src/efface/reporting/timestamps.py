"""Time stamps by RFC 3161: a time-stamping authority states that a bundle existed at a time. No torch, no NumPy.

The stamp is over the SHA-256 of the whole bundle, and is kept beside it as ``BUNDLE.tsr``. It is checked without the
network, against the certificates of an authority that the reader trusts.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from efface.errors import EffaceError, optional_imports
from efface.files import atomic_path
from efface.reporting.refusals import Reason, Refusal

with optional_imports("time stamps", "export"):
    from cryptography import x509
    from rfc3161_client import (
        HashAlgorithm,
        TimestampRequestBuilder,
        TimeStampResponse,
        VerifierBuilder,
        decode_timestamp_response,
    )
    from rfc3161_client import VerificationError as StampError

STAMP_SUFFIX = ".tsr"
LARGEST_STAMP = 2**20
SECONDS = 30
"""How long the server may take to answer."""


def stamp_path(bundle: Path) -> Path:
    """Where the time stamp of a bundle is kept."""
    return bundle.with_name(bundle.name + STAMP_SUFFIX)


def request_stamp(bundle: Path, url: str) -> tuple[Path, datetime]:
    """Ask a time-stamping authority for a stamp of a bundle, and keep it beside the bundle.

    Args:
        bundle: The bundle.
        url: The server, http or https.

    Returns:
        The path of the stamp, and its time.

    Raises:
        EffaceError: The server cannot be reached, refuses, or answers with a stamp of something else.

    """
    bundle = Path(bundle)
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise EffaceError(f"'{url}' is not the address of a server.", remedy="Give an address that starts with http.")
    content = bundle.read_bytes()
    query = TimestampRequestBuilder(content, HashAlgorithm.SHA256).build()
    headers = {"Content-Type": "application/timestamp-query"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, query.as_bytes(), headers), timeout=SECONDS) as answer:
            stamp = answer.read(LARGEST_STAMP + 1)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise EffaceError(
            f"The time-stamping server {url} did not answer.",
            str(getattr(error, "reason", error)),
            "The bundle is written and good without a time; ask again later with `efface export stamp`.",
        ) from error
    found = _decode(stamp, url)
    info = found.tst_info
    if info.message_imprint.message != hashlib.sha256(content).digest() or info.nonce != query.nonce:
        raise EffaceError(
            f"The time-stamping server {url} stamped something else.",
            "Digest or nonce of its answer are not those that it was asked for.",
            "Use another server.",
        )
    path = stamp_path(bundle)
    with atomic_path(path) as fresh:
        fresh.write_bytes(stamp)
    return path, info.gen_time


def verify_stamp(content: bytes, stamp: Path, certificate: Path) -> datetime:
    """Check the time stamp of a bundle against the certificates of its authority.

    Args:
        content: The bundle.
        stamp: The stamp.
        certificate: PEM file: the root of the authority that is trusted, and possibly certificates between.

    Returns:
        The time at which the bundle existed.

    Raises:
        Refusal: There is no stamp, the certificates cannot be read, or the stamp is not a good one of this bundle.

    """
    try:
        with open(stamp, "rb") as file:
            stored = file.read(LARGEST_STAMP + 1)
    except OSError as error:
        raise Refusal(Reason.NO_TIMESTAMP, f"{stamp}: {error.strerror or error}.") from error
    verifier = VerifierBuilder()
    try:
        chain = x509.load_pem_x509_certificates(Path(certificate).read_bytes())
    except (OSError, ValueError) as error:
        raise Refusal(Reason.BAD_KEY, f"{certificate} holds no certificates: {error}.") from error
    for one in chain:
        is_root = one.issuer == one.subject
        verifier = verifier.add_root_certificate(one) if is_root else verifier.add_intermediate_certificate(one)
    if not any(one.issuer == one.subject for one in chain):
        raise Refusal(Reason.BAD_KEY, f"{certificate} has no root certificate, one that is issued by itself.")
    try:
        found = _decode(stored, str(stamp))
        verifier.build().verify_message(found, content)
    except EffaceError as error:
        raise Refusal(Reason.BAD_TIMESTAMP, error.what) from error
    except (StampError, ValueError) as error:
        raise Refusal(Reason.BAD_TIMESTAMP, f"{stamp}: {' '.join(str(error).split())[:160]}.") from error
    return found.tst_info.gen_time


def _decode(content: bytes, where: str) -> TimeStampResponse:
    if len(content) > LARGEST_STAMP:
        raise EffaceError(f"{where} is larger than any time stamp.", remedy="Use another server.")
    try:
        found = decode_timestamp_response(content)
        found.tst_info  # noqa: B018  (a refusal of the server has none, and raises)
    except Exception as error:  # the parser is Rust's and raises what it likes
        raise EffaceError(
            f"{where} gave no time stamp.",
            f"Its answer is a refusal, or something else: {error}",
            "Use another server.",
        ) from error
    return found
