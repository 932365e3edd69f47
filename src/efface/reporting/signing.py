"""Keys and signatures: ed25519 keys in PEM files, canonical JSON (RFC 8785), DSSE envelopes. No torch, no NumPy."""

from __future__ import annotations

import copy
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface.errors import EffaceError, optional_imports
from efface.files import disk_errors
from efface.reporting.predicates import StatementPart

with optional_imports("signing and verifying", "sign"):
    import rfc8785
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import CryptoSigner, SSlibKey  # pyright: ignore[reportPrivateImportUsage]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_LARGEST_KEY_FILE = 65_536


def canonical_json(value: Any) -> bytes:
    """The canonical form of a JSON value (RFC 8785); a value that has none raises an :class:`EffaceError`."""
    try:
        return rfc8785.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:  # of rfc8785: numbers that JSON cannot hold exactly
        raise EffaceError("A value has no canonical JSON form.", str(error)) from error


def public_key_path(private: Path) -> Path:
    """Where the public half of a private key is written: ``release.pem`` has ``release.pub.pem``."""
    return private.with_name(private.name.removesuffix(".pem") + ".pub.pem")


def create_keys(path: Path, passphrase: bytes | None = None, *, folders: bool = False) -> Path:
    """Write a new ed25519 key (PKCS#8 PEM, mode 0600) and its public half. Neither file is ever replaced.

    Args:
        path: The private key to write.
        passphrase: Encrypts the private key.
        folders: A key on the curve P-256 instead: :mod:`efface.reporting.model_signing` takes no other.

    Returns:
        The public key's path.

    Raises:
        EffaceError: One of the two files exists, or cannot be written.

    """
    path = Path(path)
    public = public_key_path(path)
    key = ec.generate_private_key(ec.SECP256R1()) if folders else Ed25519PrivateKey.generate()
    protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_once(public, public_pem, 0o644)
        try:
            _write_once(path, private_pem, 0o600)
        except BaseException:
            public.unlink()
            raise
    return public


def _write_once(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist yet."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise EffaceError(
            f"{path} exists already.",
            "A key that was replaced could never sign or verify again.",
            "Choose another name, or move the old key away yourself.",
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def load_signer(path: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """Read a private key.

    Args:
        path: The file that :func:`create_keys` wrote, or any ed25519 key in PKCS#8 PEM.
        passphrase: For an encrypted key.

    Raises:
        EffaceError: There is no such key, others can read it, it is of another kind, or the passphrase is wrong.

    """
    path = Path(path)
    pem = _read_pem(path)
    encrypted = is_encrypted(pem)
    if not encrypted and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise EffaceError(
            f"Other users of this machine can use the private key {path}.",
            f"Its mode is {stat.S_IMODE(path.stat().st_mode):04o}.",
            f"Run chmod 600 {path}; if others have been there, make a new key.",
        )
    try:
        key = serialization.load_pem_private_key(pem, passphrase if encrypted else None)
    except TypeError:
        raise EffaceError(f"{path} is encrypted.", "No passphrase was given.", "Pass its passphrase.") from None
    except (ValueError, UnsupportedAlgorithm):
        kind = "the passphrase is wrong" if encrypted and passphrase else "it is damaged or something else"
        raise EffaceError(
            f"{path} cannot be read as a private key: {kind}.",
            remedy="Pass the private key that `efface keys new` wrote, and its passphrase if it has one.",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise EffaceError(f"{path} is not an ed25519 key.", remedy="Make one: `efface keys new`.")
    return CryptoSigner(key, _pinned(key.public_key()))


def is_encrypted(pem: bytes) -> bool:
    """Whether a private key in PEM needs a passphrase."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem


def load_public_key(path: Path) -> SSlibKey:
    """Read a public key; a private key, or one of another kind, raises an :class:`EffaceError`."""
    path = Path(path)
    pem = _read_pem(path)
    if b"PRIVATE KEY" in pem:
        raise EffaceError(
            f"{path} is a private key.",
            "Verifying needs the public half only, and whoever has the private one can sign anything.",
            f"Pass the public key, such as {public_key_path(path)}.",
        )
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise EffaceError(
            f"{path} cannot be read as a public key.",
            "It is damaged or something else.",
            "Pass the file of the public key that `efface keys new` wrote.",
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise EffaceError(f"{path} is not an ed25519 key.", remedy="Pass the public key of the signer.")
    return _pinned(key)


def public_pem(key: SSlibKey) -> str:
    """A public key as PEM."""
    found = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return found.public_bytes(serialization.Encoding.PEM, form).decode("ascii")


def _read_pem(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_KEY_FILE)
    except OSError as error:
        raise EffaceError(
            f"The key {path} cannot be read.", error.strerror or str(error), "Make one: `efface keys new`."
        ) from error


def _pinned(key: Ed25519PublicKey) -> SSlibKey:
    """A public key under our id: SHA-256 of its DER form, so that ``openssl`` can compute it as well."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return SSlibKey.from_crypto(key, keyid=hashlib.sha256(der).hexdigest())


def sign_statements(statements: Sequence[StatementPart], signer: CryptoSigner) -> bytes:
    """Sign statements: one DSSE envelope on each line, in canonical JSON. Equal input gives equal bytes."""
    lines: list[bytes] = []
    for statement in statements:
        envelope = Envelope(canonical_json(statement.content()), PAYLOAD_TYPE, {})
        envelope.sign(signer)
        lines.append(canonical_json(envelope.to_dict()) + b"\n")
    return b"".join(lines)


def read_envelope(content: dict[str, Any]) -> Envelope:
    """The envelope in a JSON object; one that is malformed raises KeyError, TypeError or ValueError."""
    return Envelope.from_dict(copy.deepcopy(content))  # from_dict changes what it is given


def signature_fits(envelope: Envelope, key: SSlibKey) -> bool:
    """Whether an envelope was signed by the owner of a public key."""
    try:
        envelope.verify([key], 1)
    except VerificationError:
        return False
    return True
