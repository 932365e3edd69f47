"""The verbs keys, sign and verify on run folders: exit codes, reasons, refusals, and checking by hand."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from efface.reporting.record import Record, record_digest
from efface.reporting.redaction import KEY_FILE
from tests.bundles import WEIGHTS, case, payload_of, run_folder
from tests.commands import JUDGED, refused

PAGE = Path(__file__).parents[2] / "docs" / "signed_bundle.md"
OLD = Path(__file__).parents[1] / "runs" / "run_of_0.1.0.zip"
NAME = "checkpoint.safetensors"


@pytest.fixture
def home(tmp_path, efface) -> Path:
    """A folder with the run of an audit that passed, another run, and two pairs of keys."""
    run_folder(tmp_path / "run", "removed")
    run_folder(tmp_path / "other", "residue")
    for name in ("ours", "theirs"):
        assert efface("keys", "new", tmp_path / f"{name}.pem")[0] == 0
    return tmp_path


@pytest.fixture
def sign(home, efface):
    """Sign a run in that folder and return the answer."""

    def run(name: str = "run", *words: object, key: str = "ours") -> tuple[int, str, str]:
        return efface("sign", home / name, "--key", home / f"{key}.pem", *words)

    return run


def verify(efface, bundle: Path, key: Path | None, *words: object) -> tuple[int, dict]:
    named = [] if key is None else ["--key", key]
    code, out, err = efface("verify", bundle, *named, *words, "--json")
    assert "Traceback" not in err
    result = json.loads(out)
    assert (result["reason"] is None) == (code == 0)
    assert result["reason"] is None or f"refused: {result['reason']}: " in err
    return code, result


def test_the_round_trip(home, sign, efface):
    code, out, _ = sign("run", "--request-id", "DSR-2026-0042", "--json")
    made = json.loads(out.splitlines()[-1])
    bundle = home / "run" / f"{NAME}.intoto.jsonl"
    assert (code, made["bundle"], made["outcome"], made["certified"]) == (0, str(bundle), "PASSED", True)
    public = home / "ours.pub.pem"
    code, result = verify(efface, bundle, public, "--weights", home / "run" / NAME, "--require-pass")
    assert (code, result["verdict"], result["request_id"]) == (0, "removed", "DSR-2026-0042")
    assert result["out_of_scope"] and result["checked"] and result["not_checked"]
    assert result["key"] == json.loads(efface("keys", "show", public, "--json")[1])["key"] == made["key"]
    code, out, _ = efface("verify", bundle, "--key", public)
    assert code == 0
    assert all(words in out for words in ("bundle is good", "removed", "Checked:", "Not checked:", "Not covered"))


@pytest.mark.parametrize("words", [[], ["--weights", NAME]])
def test_nothing_is_verified_without_a_key(home, sign, efface, words):
    sign()
    code, result = verify(efface, home / "run" / f"{NAME}.intoto.jsonl", None, *words)
    assert (code, result["reason"]) == (2, "no_key")


def test_another_key_another_run_and_other_weights_are_refused(home, sign, efface):
    sign()
    sign("other")
    bundle, public = home / "run" / f"{NAME}.intoto.jsonl", home / "ours.pub.pem"
    code, result = verify(efface, bundle, home / "theirs.pub.pem")
    assert (code, result["reason"]) == (3, "wrong_key")
    code, result = verify(efface, bundle, public, "--weights", home / "other" / NAME)
    assert (code, result["reason"]) == (3, "weights_mismatch")
    assert "verdict" not in result
    code, result = verify(efface, home / "other" / f"{NAME}.intoto.jsonl", public, "--require-pass")
    assert (code, result["reason"]) == (3, "not_passed")
    assert verify(efface, home / "other" / f"{NAME}.intoto.jsonl", public)[0] == 0


def test_a_forged_record_signed_with_another_key_is_refused(home, sign, efface):
    """The forger's numbers fit each other; only the pinned key tells."""
    forged = run_folder(home / "forged", "residue")
    passed = case("removed").record
    changed = forged.model_copy(update={"verdict": passed.verdict, "findings": passed.findings})
    (home / "forged" / "record.json").write_text(changed.bound().text())
    code, out, _ = sign("forged", "--json", key="theirs")
    assert (code, json.loads(out.splitlines()[-1])["certified"]) == (0, True)
    bundle = home / "forged" / f"{NAME}.intoto.jsonl"
    assert verify(efface, bundle, home / "theirs.pub.pem")[0] == 0
    code, result = verify(efface, bundle, home / "ours.pub.pem")
    assert (code, result["reason"]) == (3, "wrong_key")


# ---- what is not signed ----


def test_a_run_that_changed_after_its_audit_is_not_signed(home, sign):
    run = home / "run"
    (run / NAME).write_bytes(WEIGHTS["other"])
    refused(sign(), NAME, "not the file that was audited")
    (run / NAME).unlink()
    refused(sign(), "missing")
    assert not list(run.glob("*.jsonl"))


@pytest.mark.parametrize("name", ["meta.json", "observations.npz", "log.jsonl"])
def test_other_files_of_the_audit_are_checked_too(home, sign, efface, name):
    run = home / "run"
    (run / name).write_text("{}")
    record = Record.load(run)
    files = record.files | {name: "0" * 64 if name != "meta.json" else f"hmac-sha256:{'0' * 64}"}
    (run / "record.json").write_text(record.model_copy(update={"files": files}).bound().text())
    refused(sign(), name, "not the file that was audited")
    (run / name).unlink()
    assert sign()[0] == 0  # what was erased since cannot be checked, and need not be


def test_a_record_whose_key_was_destroyed_can_still_be_signed(home, sign, efface):
    (home / "run" / KEY_FILE).unlink()
    assert sign()[0] == 0
    assert verify(efface, home / "run" / f"{NAME}.intoto.jsonl", home / "ours.pub.pem")[0] == 0


def test_an_edited_verdict_is_not_signed(home, sign):
    path = home / "other" / "record.json"
    text = path.read_text()
    assert '"word": "residue"' in text
    path.write_text(text.replace('"word": "residue"', '"word": "removed"'))
    refused(sign("other"), "record.json was edited or damaged")
    for count in (-1, 1):  # by a forger who computes the digest again
        content = json.loads(text.replace('"word": "residue"', '"word": "removed"', count))
        path.write_text(json.dumps(content | {"content_digest": record_digest(content)}))
        refused(sign("other"), "verdict does not follow from its own numbers", "efface audit")


def test_bare_ids_and_names_of_the_forgotten_are_not_signed(home, sign):
    made = case("removed")
    run_folder(home / "plain", "removed", **dict(made.record.sealed(made.ids, plain_ids=True)[0]))
    refused(sign("plain"), "bare ids", "--plain-ids")
    refused(sign("run", "--request-id", made.ids[3]), "--request-id names one of the examples")
    refused(sign("run", "--request-id", f"erase {made.ids[3]}"), "--request-id names one of the examples")
    (home / "run" / "split.json").unlink()
    refused(sign("run", "--request-id", made.ids[3]), "--request-id names one of the examples")


def test_a_handed_back_file_must_be_named_and_is_a_claim(home, sign, efface):
    given = home / "run" / "foreign" / "moco.pth"
    given.parent.mkdir()
    given.write_bytes(b"the same model in another layout")
    refused(sign(), "moco.pth", "--weights")
    code, out, _ = sign("run", "--weights", given, "--json")
    made = json.loads(out.splitlines()[-1])
    assert (code, made["outcome"], made["certified"]) == (0, "PASSED", False)
    assert made["claims"][0]["about"] == "released file"
    bundle, public = home / "run" / "moco.pth.intoto.jsonl", home / "ours.pub.pem"
    code, result = verify(efface, bundle, public, "--weights", given)
    assert code == 0 and any("released file" in one for one in result["not_checked"])
    assert verify(efface, bundle, public, "--weights", home / "run" / NAME)[1]["reason"] == "weights_mismatch"
    assert verify(efface, bundle, public, "--require-pass")[1]["reason"] == "not_passed"


def test_a_handed_back_file_that_the_record_lists_is_none(home, sign):
    given = home / "run" / "foreign" / "moco.safetensors"
    given.parent.mkdir()
    given.write_bytes(b"the same model in another layout")
    record = Record.load(home / "run")
    listed = subprocess.run(["sha256sum", given], capture_output=True, text=True, check=True).stdout.split()[0]
    files = record.files | {"foreign/moco.safetensors": listed}
    (home / "run" / "record.json").write_text(record.model_copy(update={"files": files}).bound().text())
    made = json.loads(sign("run", "--weights", given, "--json")[1].splitlines()[-1])
    assert made["certified"] and not made["claims"]
    given.write_bytes(b"another model")
    refused(sign("run", "--weights", given), "not the file that was audited")


def test_a_bundle_is_replaced_only_on_request_and_the_same_one_is_no_change(home, sign):
    path = home / "run" / f"{NAME}.intoto.jsonl"
    assert sign()[0] == 0
    first = path.read_bytes()
    assert sign()[0] == 0
    assert path.read_bytes() == first
    refused(sign("run", "--request-id", "2"), "states something else", "--force")
    assert path.read_bytes() == first
    assert sign("run", "--request-id", "2", "--force")[0] == 0
    assert path.read_bytes() != first


def test_a_run_without_audit_and_keys_that_do_not_fit(home, sign, efface):
    (home / "run" / "record.json").unlink()
    refused(sign(), "has not been audited")
    refused(efface("sign", home / "other", "--key", home / "ours.pub.pem"), "private key")
    refused(efface("sign", home / "other", "--key", home / "none.pem"), "cannot be read", "efface keys new")
    (home / "ours.pem").chmod(0o644)
    refused(sign("other"), "Other users")
    refused(efface("keys", "new", home / "ours.pem"), "exists already")


def test_an_encrypted_key(home, sign, efface, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    refused(efface("keys", "new", home / "safe.pem", "--encrypt"), "passphrase", "EFFACE_PASSPHRASE")
    assert not (home / "safe.pem").exists()
    monkeypatch.setenv("EFFACE_PASSPHRASE", "open sesame")
    assert efface("keys", "new", home / "safe.pem", "--encrypt")[0] == 0
    assert sign("run", key="safe")[0] == 0
    assert verify(efface, home / "run" / f"{NAME}.intoto.jsonl", home / "safe.pub.pem")[0] == 0
    shown = json.loads(efface("keys", "show", home / "safe.pem", "--json")[1])
    assert shown["public"] == (home / "safe.pub.pem").read_text().strip()
    monkeypatch.setenv("EFFACE_PASSPHRASE", "open")
    refused(sign("run", key="safe"), "passphrase is wrong")


# ---- a real run ----


def test_an_audited_run_is_signed_and_names_nobody(efface, made, tmp_path):
    assert efface("audit", made / "tuned", "--oracle", made / "oracle", "--quiet")[0] in JUDGED
    assert efface("keys", "new", tmp_path / "k.pem")[0] == 0
    out = tmp_path / "b.intoto.jsonl"
    code, _, err = efface("sign", made / "tuned", "--key", tmp_path / "k.pem", "--out", out)
    assert code == 0, err
    code, result = verify(efface, out, tmp_path / "k.pub.pem", "--weights", made / "tuned" / NAME)
    assert code == 0 and result["level"] == "A1"
    contents = [payload_of(line) for line in out.read_bytes().splitlines()]
    keys = json.loads((made / "tuned" / "split.json").read_text())["parts"]["forget"]
    texts = set(every_text(contents))
    assert len(texts) > 200 and not texts & set(keys)
    assert not any("@random" in one or str(made) in one for one in texts)
    parameters = contents[-1]["predicate"]["buildDefinition"]["externalParameters"]
    assert parameters["recipe"]["objective"]["name"] == "simclr"
    dependencies = contents[-1]["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [one["name"] for one in dependencies] == ["original model", "training data", "installed packages"]


def test_a_run_of_an_older_release_is_signed(efface, tmp_path):
    """Its record has no digest of the installed packages, and its ids are two-digit numbers."""
    with zipfile.ZipFile(OLD) as archive:
        archive.extractall(tmp_path)
    assert efface("keys", "new", tmp_path / "k.pem")[0] == 0
    code, _, err = efface("sign", tmp_path / "tuned", "--key", tmp_path / "k.pem", "--request-id", "DSR-7")
    assert code == 0, err
    bundle = tmp_path / "tuned" / f"{NAME}.intoto.jsonl"
    code, result = verify(efface, bundle, tmp_path / "k.pub.pem", "--weights", tmp_path / "tuned" / NAME)
    assert (code, result["request_id"]) == (0, "DSR-7")
    made = payload_of(bundle.read_bytes().splitlines()[-1])["predicate"]["buildDefinition"]
    assert "installed packages" not in [one["name"] for one in made["resolvedDependencies"]]


def every_text(value: object) -> list[str]:
    """Every text in a JSON value, names of fields too."""
    if isinstance(value, dict):
        return [text for key, one in value.items() for text in (key, *every_text(one))]
    return [text for one in value for text in every_text(one)] if isinstance(value, list) else [str(value)]


# ---- without torch, and without efface ----


def test_verifying_is_quick_and_needs_no_torch(home, sign):
    sign()
    code = (
        "import sys\nfrom efface import cli\ntry: cli.main()\nexcept SystemExit as end: assert not end.code, end\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'timm', 'PIL'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    words = ["verify", home / "run" / f"{NAME}.intoto.jsonl", "--key", home / "ours.pub.pem"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_without_the_library_the_remedy_is_named(home):
    code = "import sys\nsys.modules['securesystemslib'] = None\nfrom efface import cli\ncli.main()\n"
    words = ["verify", home / "b", "--key", home / "ours.pub.pem"]
    done = subprocess.run([sys.executable, "-c", code, *words], check=False, capture_output=True, text=True)
    refused((done.returncode, done.stdout, done.stderr), "efface[sign]")


@pytest.mark.skipif(not shutil.which("openssl") or not shutil.which("jq"), reason="openssl and jq are not installed")
def test_the_commands_of_the_page_verify_a_bundle_by_hand(home, sign):
    sign()
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    bundle = home / "run" / f"{NAME}.intoto.jsonl"
    named = {"BUNDLE": str(bundle), "KEY": str(home / "ours.pub.pem"), "WEIGHTS": str(home / "run" / NAME)}

    def by_hand() -> str:
        done = subprocess.run(
            ["bash", "-c", script], env=os.environ | named, cwd=home, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    said = by_hand()
    assert said.count("Signature Verified Successfully") == 4 and "Failure" not in said
    key = json.loads(bundle.read_bytes().splitlines()[0])["signatures"][0]["keyid"]
    assert said.startswith(key)
    digest = payload_of(bundle.read_bytes().splitlines()[0])["subject"][0]["digest"]["sha256"]
    assert said.count(digest) == 5 and "\nremoved\n" in said and "\nPASSED\n" in said
    named["KEY"] = str(home / "theirs.pub.pem")
    assert by_hand().count("Signature Verification Failure") == 4
