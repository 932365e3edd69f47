"""The verbs that hand evidence to other tools: a bill of materials, a signature of a folder, a time stamp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Force, Json, Quiet, print_result
from efface.cli.sign import TSA_URL, ask_passphrase
from efface.errors import EffaceError

export = typer.Typer(
    help="Hand evidence to other tools: CycloneDX, OpenSSF model signing, RFC 3161.",
    no_args_is_help=True,
    add_completion=False,
)
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The file that `efface sign` wrote.")]


@export.command("bom")
def export_bom(
    bundle: Bundle,
    key: Annotated[Path, typer.Option("--key", help="Public key of the signer: the bundle is verified first.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write; by default BUNDLE.cdx.json.")] = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write what a bundle states as a bill of materials: CycloneDX 1.7, checked against its schema."""
    import hashlib

    from efface.files import write_text
    from efface.reporting.cyclonedx import compose_bom, validate_bom
    from efface.reporting.refusals import REASONS
    from efface.reporting.verify import verify_bundle

    found = verify_bundle(bundle, key)
    if found.stated is None or found.subject is None or found.reason is not None:
        reason = "nothing was checked" if found.reason is None else REASONS[found.reason]
        raise EffaceError(f"{bundle} is not good: {reason}.", found.detail, "Export a bundle that verifies.")
    sha256 = hashlib.sha256(bundle.read_bytes()).hexdigest()
    text = validate_bom(compose_bom(found.stated, found.subject, bundle.name, sha256))
    path = out if out is not None else bundle.with_name(f"{bundle.name}.cdx.json")
    _require_free(path, text, force)
    write_text(path, text)
    result = {"bom": str(path), "bundle": str(bundle), "verdict": found.stated.verdict.word}
    print_result(result, [f"Bill of materials (CycloneDX 1.7): {path}"], as_json=json_, quiet=quiet)


@export.command("signature")
def export_signature(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that is released.")],
    key: Annotated[Path, typer.Option("--key", help="Private key, from `efface keys new FILE --folder`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Signature to write; by default FOLDER/model.sig.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sign a released folder as OpenSSF model signing does; bundles in it stay outside the manifest."""
    from efface.reporting.model_signing import sign_folder
    from efface.reporting.signing import is_encrypted

    secret = ask_passphrase(key) if key.is_file() and is_encrypted(key.read_bytes()[:65_536]) else None
    path = sign_folder(folder, key, out, secret)
    lines = [f"Signature (OpenSSF model signing): {path}"]
    print_result({"folder": str(folder), "signature": str(path)}, lines, as_json=json_, quiet=quiet)


@export.command("stamp")
def export_stamp(
    bundle: Bundle,
    url: Annotated[str, typer.Option("--timestamp-url", envvar=TSA_URL, help="The time-stamping server.")],
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a time-stamping authority (RFC 3161) state that a bundle exists now; kept as BUNDLE.tsr."""
    from efface.reporting.timestamps import request_stamp

    path, when = request_stamp(bundle, url)
    result = {"bundle": str(bundle), "stamp": str(path), "time": when.isoformat()}
    print_result(result, [f"Time stamp of {when.isoformat()}: {path}"], as_json=json_, quiet=quiet)


def _require_free(path: Path, text: str, force: bool) -> None:
    if path.exists() and not force and (not path.is_file() or path.read_text(encoding="utf-8") != text):
        raise EffaceError(
            f"{path} exists already, and says something else.", remedy="Choose another --out, or add --force."
        )
