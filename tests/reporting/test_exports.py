"""Exports of a bundle: CycloneDX by its schema, OpenSSF model signing by its own verifier, time stamps by a server."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from model_signing import verifying

from efface.errors import EffaceError
from efface.reporting.cyclonedx import MAIN_CLAIM, compose_bom, validate_bom
from efface.reporting.model_signing import sign_folder, verify_folder
from efface.reporting.refusals import Reason
from efface.reporting.signing import create_keys, public_key_path, public_pem
from efface.reporting.timestamps import request_stamp, stamp_path
from efface.reporting.verify import verify_bundle, verify_content
from tests.authority import make_authority, serve_authority
from tests.bundles import bundle, signer
from tests.commands import call

CASES = ("removed", "residue", "over_forgotten", "small", "blind", "utility_lost", "oracles", "evil")


def bom(name: str) -> dict:
    content = bundle(name)
    found = verify_content(content, signer().public_key)
    assert found.stated is not None
    assert found.subject is not None
    return compose_bom(found.stated, found.subject, f"{name}.intoto.jsonl", hashlib.sha256(content).hexdigest())


def bundle_file(folder: Path, name: str = "removed") -> tuple[Path, Path]:
    """A bundle and the public key that it is checked against."""
    folder.mkdir(parents=True, exist_ok=True)
    path, key = folder / "model.intoto.jsonl", folder / "signer.pub.pem"
    path.write_bytes(bundle(name))
    key.write_text(public_pem(signer().public_key))
    return path, key


@pytest.mark.parametrize("name", CASES)
def test_every_bill_of_materials_follows_the_official_schema(name):
    made = bom(name)
    assert json.loads(validate_bom(made)) == made
    assert made == bom(name), "equal bundles give equal files"


def test_the_official_schema_refuses_what_is_wrong():
    for change in (
        lambda one: one.update(bomFormat="SPDX"),
        lambda one: one["metadata"]["component"].update(type="model"),
        lambda one: one["metadata"]["component"]["modelCard"].update(colour="red"),
        lambda one: one["declarations"]["claims"][0].update(evidence=[1]),
        lambda one: one["metadata"]["component"]["hashes"][0].update(content="abc"),
    ):
        made = copy.deepcopy(bom("removed"))
        change(made)
        with pytest.raises(EffaceError, match="does not follow the schema of CycloneDX"):
            validate_bom(made)


def test_what_carries_the_claim_is_evidence_and_what_does_not_is_counter_evidence():
    passed, failed = bom("removed")["declarations"], bom("residue")["declarations"]
    assert passed["claims"][0]["evidence"]
    assert not passed["claims"][0]["counterEvidence"]
    assert passed["attestations"][0]["map"][0]["claims"] == [MAIN_CLAIM]
    assert failed["claims"][0]["counterEvidence"]
    assert failed["attestations"][0]["map"][0]["counterClaims"] == [MAIN_CLAIM]
    assert "claims" not in failed["attestations"][0]["map"][0]
    lost = bom("utility_lost")["declarations"]["claims"][0]
    assert "evidence-utility-drop" in lost["counterEvidence"]
    for one in (passed, failed):
        named = {
            ref for claim in one["claims"] for kind in ("evidence", "counterEvidence") for ref in claim.get(kind, ())
        }
        assert named == {item["bom-ref"] for item in one["evidence"]}
    assert len({bom(name)["serialNumber"] for name in CASES}) == len(CASES)


def test_the_model_card_and_the_ancestor_say_what_the_bundle_says():
    made, content = bom("removed"), bundle("removed")
    found = verify_content(content, signer().public_key)
    model = made["metadata"]["component"]
    assert found.stated is not None
    assert model["pedigree"]["ancestors"][0]["hashes"][0]["content"] == found.stated.original.file
    assert model["modelCard"]["considerations"]["technicalLimitations"] == list(found.stated.out_of_scope)
    metrics = {one["type"]: one["value"] for one in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics == {one.name: f"{one.value:.6g}" for one in found.stated.findings if one.value is not None}
    assert "anna" not in json.dumps(made)


def test_the_verb_exports_only_a_bundle_that_verifies(tmp_path, capsys):
    path, key = bundle_file(tmp_path)
    assert call("export", "bom", path, "--key", key) == 0
    made = tmp_path / "model.intoto.jsonl.cdx.json"
    first = made.read_bytes()
    assert call("export", "bom", path, "--key", key, "--json") == 0
    assert made.read_bytes() == first
    made.write_text("{}")
    assert call("export", "bom", path, "--key", key) == 2
    assert "exists already" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-2] + b"x\n")
    assert call("export", "bom", path, "--key", key, "--out", tmp_path / "other.json") == 2
    assert "is not good" in capsys.readouterr().err
    assert not (tmp_path / "other.json").exists()


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, Path]:
    """A folder to release, with a bundle in it, and a key for folders."""
    folder = tmp_path / "released"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "inner" / "README.md").write_text("A model.")
    (folder / "model.safetensors.intoto.jsonl").write_bytes(bundle("removed"))
    create_keys(tmp_path / "folder.pem", folders=True)
    return folder, tmp_path / "folder.pem"


def test_a_signed_folder_verifies_by_the_library_itself(released, tmp_path, monkeypatch):
    folder, key = released
    monkeypatch.chdir(tmp_path)  # relative paths lead to the same signature
    sign_folder(Path("released"), key)
    public = public_key_path(key)
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, folder / "model.sig")
    payload = json.loads((folder / "model.sig").read_text())["dsseEnvelope"]["payload"]
    names = {one["name"] for one in json.loads(base64.b64decode(payload))["predicate"]["resources"]}
    assert names == {"model.safetensors", "inner/README.md"}, "the bundle is outside the manifest"
    assert verify_folder(folder, public) == 2
    (folder / "model.safetensors.intoto.jsonl.tsr").write_bytes(b"a stamp that came later")
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, folder / "model.sig")


def test_the_key_of_folders_is_made_by_the_verb_and_signs_no_bundles(released, tmp_path, capsys):
    folder, _ = released
    key = tmp_path / "made.pem"
    assert call("keys", "new", key, "--folder") == 0
    assert key.stat().st_mode & 0o077 == 0
    assert call("export", "signature", folder, "--key", key, "--out", tmp_path / "apart.sig", "--quiet") == 0
    assert verify_folder(folder, tmp_path / "made.pub.pem", tmp_path / "apart.sig") == 1
    assert call("keys", "show", key) == 2
    assert "not an ed25519 key" in capsys.readouterr().err
    assert call("keys", "new", key, "--folder") == 2


def test_a_changed_folder_or_another_key_is_refused(released, tmp_path):
    folder, key = released
    sign_folder(folder, key)
    public = public_key_path(key)
    create_keys(tmp_path / "other.pem", folders=True)
    with pytest.raises(EffaceError, match="is not what"):
        verify_folder(folder, tmp_path / "other.pub.pem")
    for change in (
        lambda: (folder / "model.safetensors").write_bytes(b"weights" * 99 + b"weightz"),
        lambda: (folder / "inner" / "README.md").unlink(),
        lambda: (folder / "more.bin").write_bytes(b"x"),
    ):
        shutil.copytree(folder, tmp_path / "kept", dirs_exist_ok=True)
        change()
        with pytest.raises(EffaceError, match="is not what"):
            verify_folder(folder, public)
        shutil.rmtree(folder)
        shutil.move(tmp_path / "kept", folder)
    assert verify_folder(folder, public) == 2


def test_folders_with_keys_or_ids_and_keys_of_another_kind_are_refused(released, tmp_path, capsys):
    folder, key = released
    create_keys(tmp_path / "bundles.pem")
    assert call("export", "signature", folder, "--key", tmp_path / "bundles.pem") == 2
    assert "no ed25519 keys" in capsys.readouterr().err
    for name in ("items.key", "split.json", "inner/deletion-0001.key"):
        (folder / name).write_text("secret")
        assert call("export", "signature", folder, "--key", key) == 2
        assert "not ready to be released" in capsys.readouterr().err
        (folder / name).unlink()
    assert call("export", "signature", tmp_path / "nowhere", "--key", key) == 2
    (tmp_path / "empty").mkdir()
    assert call("export", "signature", tmp_path / "empty", "--key", key) == 2
    assert call("export", "signature", folder, "--key", key, "--quiet") == 0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a time-stamping authority."""
    folder = tmp_path_factory.mktemp("tsa") / "ours"
    make_authority(folder)
    return folder


def test_a_stamp_is_fetched_kept_and_verified_without_the_network(authority, tmp_path, capsys):
    path, key = bundle_file(tmp_path)
    with serve_authority(authority) as url:
        assert call("export", "stamp", path, "--timestamp-url", url) == 0
    root = authority / "root.pem"
    assert stamp_path(path).is_file()
    found = verify_bundle(path, key, authority=root)
    assert found.reason is None
    assert any("states that it existed at" in one for one in found.checked)
    assert not any("no trusted time" in one for one in found.unchecked)
    assert any("no trusted time" in one for one in verify_bundle(path, key).unchecked)
    assert call("verify", path, "--key", key, "--tsa-certificate", root) == 0
    assert "states that it existed at" in capsys.readouterr().out


def test_a_stamp_of_something_else_or_of_another_authority_is_refused(authority, tmp_path):
    path, key = bundle_file(tmp_path / "one")
    other, _ = bundle_file(tmp_path / "two", "residue")
    with serve_authority(authority) as url:
        request_stamp(path, url)
        request_stamp(other, url)
    root, stranger = authority / "root.pem", make_authority(tmp_path / "stranger", "Other")
    assert verify_bundle(path, key, authority=stranger).reason is Reason.BAD_TIMESTAMP
    assert verify_bundle(path, key, authority=root, stamp=stamp_path(other)).reason is Reason.BAD_TIMESTAMP
    good = stamp_path(path).read_bytes()
    for bad in (good[:-40], b"", good[:100] + bytes([good[100] ^ 1]) + good[101:], b"no stamp"):
        stamp_path(path).write_bytes(bad)
        assert verify_bundle(path, key, authority=root).reason is Reason.BAD_TIMESTAMP, bad[:20]
    stamp_path(path).unlink()
    assert verify_bundle(path, key, authority=root).reason is Reason.NO_TIMESTAMP
    assert verify_bundle(path, key, authority=tmp_path / "nothing.pem").reason is not None
    stamp_path(path).write_bytes(good)
    assert verify_bundle(path, key, authority=authority / "tsa.pem").reason is Reason.BAD_KEY


def test_a_server_that_replays_refuses_or_is_not_there_leaves_no_stamp(authority, tmp_path):
    path, _ = bundle_file(tmp_path / "one")
    other, _ = bundle_file(tmp_path / "two", "residue")
    with serve_authority(authority) as url:
        request_stamp(other, url)
    for replay in (stamp_path(other).read_bytes(), b"nonsense", b""):
        with serve_authority(authority, replay=replay) as url, pytest.raises(EffaceError, match=r"server|time stamp"):
            request_stamp(path, url)
    with pytest.raises(EffaceError, match="did not answer"):
        request_stamp(path, url)
    for wrong in ("file:///etc/passwd", "stamps", "ftp://a/b"):
        with pytest.raises(EffaceError, match="not the address of a server"):
            request_stamp(path, wrong)
    assert not stamp_path(path).exists()
