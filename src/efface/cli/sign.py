"""The verbs that make evidence portable: keys new, keys show, sign, verify. Verifying loads no torch and no NumPy."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.cli.options import Force, Json, Quiet, ReleasedWeights, print_result
from efface.errors import EffaceError

if TYPE_CHECKING:
    from efface.reporting.signing import CryptoSigner

PASSPHRASE = "EFFACE_PASSPHRASE"  # the name of a variable, not a passphrase
TSA_URL = "EFFACE_TSA_URL"

keys = typer.Typer(
    help="Make and show the keys that sign bundles (ed25519).", no_args_is_help=True, add_completion=False
)


@keys.command("new")
def new_key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Private key to write; never replaced.")],
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help=f"Protect it with a passphrase, from ${PASSPHRASE} or asked for.")
    ] = False,
    folder: Annotated[
        bool, typer.Option("--folder", help="A key on the curve P-256, to sign folders: `efface export signature`.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write a private key, readable by you alone, and beside it the public key FILE.pub.pem to hand out."""
    from efface.reporting.signing import create_keys, load_public_key

    public = create_keys(path, ask_passphrase(path, twice=True) if encrypt else None, folders=folder)
    result = {"private": str(path), "public": str(public)}
    lines = [f"Private key, to keep: {path}", f"Public key, to hand out: {public}"]
    if not folder:
        result["key"] = load_public_key(public).keyid
        lines.append(f"Key: {result['key']}")
    print_result(result, lines, as_json=json_, quiet=json_)


@keys.command("show")
def show_key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A private or a public key.")], json_: Json = False
) -> None:
    """Print the id of a key, which every signature of it names, and its public half."""
    from efface.reporting import signing

    private = path.is_file() and b"PRIVATE KEY" in path.read_bytes()[:65_536]
    found = open_signer(path).public_key if private else signing.load_public_key(path)
    public = signing.public_pem(found).strip()
    kind = "private" if private else "public"
    print_result(
        {"key": found.keyid, "kind": kind, "public": public},
        [f"Key: {found.keyid} ({kind}, ed25519)", public],
        as_json=json_,
        quiet=json_,
    )


def sign_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An audited run, or a head.")],
    key: Annotated[Path, typer.Option("--key", help="Private key, from `efface keys new`.")],
    weights: ReleasedWeights = None,
    request_id: Annotated[str, typer.Option("--request-id", help="Your own name for the request.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Bundle to write; by default WEIGHTS.intoto.jsonl in the run.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Sign the record of an exact deletion (--method shards) instead.")
    ] = False,
    timestamp_url: Annotated[
        str | None, typer.Option("--timestamp-url", envvar=TSA_URL, help="Time-stamping server (RFC 3161) to ask.")
    ] = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sign what the record states about the released weights, as a bundle that others can verify."""
    signer = open_signer(key)
    from efface.runs.sign import sign_run
    from efface.runs.sign_exact import is_head, sign_exact

    if exact or is_head(run):
        made = sign_exact(run, signer, request_id=request_id, out=out, force=force)
    else:
        made = sign_run(run, signer, weights=weights, request_id=request_id, out=out, force=force)
    result, lines = made.as_dict(), made.lines()
    if timestamp_url:
        from efface.reporting.timestamps import request_stamp

        path, when = request_stamp(made.path, timestamp_url)
        result |= {"timestamp": str(path), "time": when.isoformat()}
        lines.append(f"Time stamp of {when.isoformat()}: {path}")
    print_result(result, lines, as_json=json_, quiet=quiet)


def verify_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The file that `efface sign` wrote.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key of the signer; nothing is verified without one.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="The file that you use or deploy.")] = None,
    require_pass: Annotated[
        bool, typer.Option("--require-pass", help="Refuse a good bundle too if it certifies no pass.")
    ] = False,
    tsa_certificate: Annotated[
        Path | None,
        typer.Option("--tsa-certificate", help="Certificates of a time-stamping authority: require its stamp."),
    ] = None,
    timestamp: Annotated[
        Path | None, typer.Option("--timestamp", help="The time stamp; by default BUNDLE.tsr.")
    ] = None,
    json_: Json = False,
) -> None:
    """Check a bundle against a key that you trust: 0 if it is good, 3 if it is refused, 2 if nothing was checked."""
    from efface.reporting.refusals import REASONS
    from efface.reporting.verify import verify_bundle

    found = verify_bundle(bundle, key, weights, require_pass=require_pass, authority=tsa_certificate, stamp=timestamp)
    if found.reason is not None:
        typer.echo(f"refused: {found.reason.value}: {REASONS[found.reason]}\nwhy:     {found.detail}", err=True)
    elif not json_ and found.stated is not None:
        stated = found.stated
        named = f" for request {printable(stated.request_id)}" if stated.request_id else ""
        certified = "and a pass is certified" if stated.passes else "and no pass is certified"
        typer.echo(f"The bundle is good. Its verdict{named}: {printable(stated.verdict.word)}, {certified}.")
        typer.echo(f"  {printable(stated.verdict.sentence)}")
        for title, lines in (
            ("Checked", found.checked),
            ("Not checked", found.unchecked),
            ("Not covered by the evidence", stated.out_of_scope),
        ):
            typer.echo(f"{title}:")
            for line in lines:
                typer.echo(f"  - {printable(line)}")
    if json_:
        typer.echo(json.dumps(found.as_dict()))
    raise typer.Exit(found.exit_code)


def printable(text: str) -> str:
    """Text for a terminal, without control characters."""
    return "".join(one if one.isprintable() else "?" for one in text)


def open_signer(path: Path) -> CryptoSigner:
    """Read a private key; asks for the passphrase of an encrypted one."""
    from efface.reporting import signing

    encrypted = path.is_file() and signing.is_encrypted(path.read_bytes()[:65_536])
    return signing.load_signer(path, ask_passphrase(path) if encrypted else None)


def ask_passphrase(path: Path, *, twice: bool = False) -> bytes:
    """The passphrase of a key: from the environment, else asked for on a terminal."""
    given = os.environ.get(PASSPHRASE, "")
    if not given and sys.stdin.isatty():
        given = typer.prompt(f"Passphrase of {path}", hide_input=True, confirmation_prompt=twice, err=True)
    if not given:
        raise EffaceError(
            f"{path} needs a passphrase, and none was given.",
            "There is no terminal to ask on.",
            f"Set {PASSPHRASE}, or run the command in a terminal.",
        )
    return given.encode()
