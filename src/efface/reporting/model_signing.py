"""Sign a released folder as OpenSSF model signing does: a manifest of every file, in a Sigstore bundle. No torch.

What is stated about the files (bundles, time stamps, bills of materials) is left out of the manifest, so that it can be
added later. The library takes keys on the curves P-256, P-384 and P-521 and no ed25519 keys, so that a folder has a key
of its own: ``efface keys new FILE --folder``.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from efface.errors import EffaceError, optional_imports
from efface.reporting.redaction import KEY_FILE

with optional_imports("signing a folder", "export"):
    from model_signing import hashing, signing, verifying

SIGNATURE = "model.sig"
ENDINGS = (".intoto.jsonl", ".tsr", ".cdx.json")
"""How the names of files end that state something about others: they are outside the manifest."""
TO_COME = (".intoto.jsonl", ".intoto.jsonl.tsr", ".intoto.jsonl.cdx.json")
"""What is appended to the name of a released file for its bundle, time stamp and bill of materials."""
PRIVATE = (KEY_FILE, "exact.key", "head.key", "deletion-*.key", "split.json", "config.yaml", "identity.npz", "*.pem")
"""Files that a released folder must not hold: keys, and lists of the examples."""


def sign_folder(folder: Path, key: Path, out: Path | None = None, passphrase: bytes | None = None) -> Path:
    """Sign every file of a folder.

    Args:
        folder: The folder to release.
        key: An elliptic-curve key in PEM.
        out: The signature to write; by default ``model.sig`` in the folder.
        passphrase: For an encrypted key.

    Returns:
        The path of the signature.

    Raises:
        EffaceError: The folder is empty or holds files that must not be released, or the key is of another kind.

    """
    folder, key = Path(folder), Path(key)
    if not folder.is_dir():
        raise EffaceError(f"{folder} is not a folder.", remedy="Name the folder that is released.")
    private = sorted({found.name for pattern in PRIVATE for found in folder.rglob(pattern)})
    if private:
        raise EffaceError(
            f"{folder} is not ready to be released: it holds {', '.join(private[:4])}.",
            "They are keys, or list examples by their ids.",
            "Copy the weights and what belongs to them into a folder of their own, and sign that.",
        )
    folder = folder.resolve()
    signed = [found for found in folder.rglob("*") if found.is_file() and not is_attestation(found)]
    if not signed:
        raise EffaceError(f"{folder} holds nothing to sign.", remedy="Copy the released files into it.")
    _require_curve(key, passphrase)
    path = Path(out).resolve() if out is not None else folder / SIGNATURE
    to_come = [found.with_name(found.name + suffix) for found in signed for suffix in TO_COME]
    config = signing.Config().use_elliptic_key_signer(
        private_key=key, password=None if passphrase is None else passphrase.decode()
    )
    config.set_hashing_config(_outside(folder, [*to_come, path])).sign(folder, path)
    return path


def verify_folder(folder: Path, key: Path, signature: Path | None = None) -> int:
    """Check a folder against its signature by the library's own verifier.

    Args:
        folder: The folder.
        key: The public key in PEM.
        signature: The signature; by default ``model.sig`` in the folder.

    Returns:
        The number of files outside the manifest.

    Raises:
        EffaceError: A file was changed, added or removed, or another key signed.

    """
    folder = Path(folder).resolve()
    path = Path(signature).resolve() if signature is not None else folder / SIGNATURE
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=Path(key))
        config.set_hashing_config(_outside(folder, [path])).verify(folder, path)
    except (ValueError, OSError, UnsupportedAlgorithm, KeyError, TypeError) as error:
        raise EffaceError(
            f"{folder} is not what {path} signs.", " ".join(str(error).split())[:300], "Fetch it again from its signer."
        ) from error
    return sum(is_attestation(found) for found in folder.rglob("*"))


def is_attestation(path: Path) -> bool:
    """Whether a file states something about others, and is outside the manifest."""
    return path.name == SIGNATURE or path.name.endswith(ENDINGS)


def _outside(folder: Path, more: list[Path]) -> hashing.Config:
    """What the manifest leaves out: attestations that are there, and ``more``, which may not be there yet."""
    there = [found for found in folder.rglob("*") if is_attestation(found)]
    names = {found.relative_to(folder) for found in (*there, *more) if found.is_relative_to(folder)}
    return hashing.Config().set_ignored_paths(paths=sorted(names))


def _require_curve(key: Path, passphrase: bytes | None) -> None:
    """Raise unless a private key is one that the library signs with."""
    try:
        found = serialization.load_pem_private_key(key.read_bytes(), passphrase)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EffaceError(
            f"{key} cannot be read as a private key.", str(error), "Make one: `efface keys new FILE --folder`."
        ) from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise EffaceError(
            f"{key} cannot sign a folder.",
            "OpenSSF model signing takes keys on the curves P-256, P-384 and P-521, and no ed25519 keys.",
            "Make one: `efface keys new FILE --folder`.",
        )
