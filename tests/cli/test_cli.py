"""The command line: verbs on run folders, exit codes, and error messages for wrong input."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from efface.files import EPOCH
from efface.reporting.record import Record
from efface.runs.folder import failed_log_path, partial_path
from tests.commands import JUDGED, TINY, refused

# ---- the main verbs ----


def test_a_run_records_its_precision(efface, made, tmp_path):
    assert "bf16: false" in (made / "original" / "config.yaml").read_text()
    words = ["pretrain", "--data", "digits", "--objective", "simclr", "--out", tmp_path / "b", *TINY]
    assert efface(*words, "--set", "bf16=true")[0] == 0
    assert "bf16: true" in (tmp_path / "b" / "config.yaml").read_text()
    weights = [load_file(at / "checkpoint.safetensors") for at in (made / "original", tmp_path / "b")]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_audit_and_report_write_everything_and_the_exit_code_is_the_verdict(efface, made):
    oracles = ["--oracle", made / "oracle", "--oracle", made / "second"]
    code, out, _ = efface("audit", made / "tuned", *oracles, "--json", "--set", "watch.views=4")
    result = json.loads(out.splitlines()[-1])
    assert code == {"removed": 0, "residue": 3, "over-forgotten": 3}.get(result["verdict"], 4)
    record = Record.load(made / "tuned")
    assert record.verdict.word == result["verdict"]
    assert record.verdict.level == "A1"
    assert set(record.checkpoints) == {"original", "subject", "oracle 1", "oracle 2"}
    assert record.lineage == (record.checkpoints["original"].digest, record.checkpoints["subject"].digest)
    assert {"findings.json", "items.key", "observations.npz", "record.schema.json", "report.html"} <= {
        path.name for path in (made / "tuned").iterdir()
    }
    page = (made / "tuned" / "report.html").read_text(encoding="utf-8")
    (made / "tuned" / "report.html").unlink()
    assert efface("report", made / "tuned")[0] == 0
    assert (made / "tuned" / "report.html").read_text(encoding="utf-8") == page


def test_no_bare_id_leaves_the_run_unless_asked(efface, made):
    keys = json.loads((made / "tuned" / "split.json").read_text())["parts"]["forget"]
    efface("audit", made / "tuned", "--oracle", made / "oracle", "--quiet")
    text = (made / "tuned" / "record.json").read_text(encoding="utf-8")
    assert not any(f'"{key}"' in text for key in keys)
    efface("audit", made / "tuned", "--oracle", made / "oracle", "--quiet", "--plain-ids")
    text = (made / "tuned" / "record.json").read_text(encoding="utf-8")
    assert all(f'"{key}"' in text for key in keys)


def test_the_same_selector_forgets_the_same_examples_whatever_the_seed(made):
    parts = [json.loads((made / name / "split.json").read_text())["parts"] for name in ("oracle", "second", "tuned")]
    assert parts[0]["forget"] == parts[1]["forget"] == parts[2]["forget"]
    digests = {json.loads((made / name / "meta.json").read_text())["digest"] for name in ("oracle", "second")}
    assert len(digests) == 2


def test_unlearning_again_from_the_result_keeps_the_lineage(efface, made, tmp_path):
    assert (
        efface("unlearn", made / "tuned", "--forget", "@random:5", "--method", "neggrad", "--out", tmp_path / "n")[0]
        == 0
    )
    assert efface("audit", tmp_path / "n", "--quiet")[0] in JUDGED
    record = Record.load(tmp_path / "n")
    assert len(record.lineage) == 3
    assert any("earlier request" in warning for warning in record.warnings)


def test_inspect_and_listings(efface, made):
    code, out, _ = efface("inspect", made / "tuned", "--json")
    assert code == 0
    assert json.loads(out)["meta"]["method"]["name"] == "finetune"
    for verb in ("methods", "audits", "data"):
        code, out, _ = efface(verb)
        assert code == 0
        assert len(out.splitlines()) > 4
    code, out, _ = efface("methods", "gradient_constraint")
    assert code == 0
    assert all(word in out for word in ("G_θ(x)", "Source", "Departures", "forget_batch_size"))


def test_settings_come_from_the_file_then_the_options_then_set(efface, tmp_path):
    (tmp_path / "c.yaml").write_text("data: digits\nseed: 5\nrecipe: {epochs: 7, batch_size: 10}\n")
    words = ["--config", tmp_path / "c.yaml", "--seed", "6", *TINY, "--set", "recipe.epochs=1", "--out", tmp_path / "o"]
    code, _, err = efface("pretrain", *words)
    assert code == 0, err
    kept = (tmp_path / "o" / "config.yaml").read_text()
    assert "seed: 6" in kept
    assert "epochs: 1\n" in kept


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv=['efface','--help']\nfrom efface import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    )
    code += "assert not {'torch', 'numpy', 'sklearn', 'pydantic'} & set(sys.modules), 'slow imports'"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# ---- wrong input: exit code 2, a helpful message, and nothing written ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "digit"], "Did you mean 'digits'?"),
        (["--data", "digits", "--objective", "simclrr"], "Did you mean 'simclr'?"),
        (["--data", "digits", "--set", "recipe.epoch=1"], "Did you mean 'epochs'?"),
        (["--data", "digits", "--set", "sede=1"], "Did you mean 'seed'?"),
        (["--data", "digits", "--set", "recipe.optim.lr=-1"], "cannot be -1"),
        (["--data", "digits", "--set", "recipe.epochs=many"], "'recipe.epochs' cannot be 'many'"),
        (["--data", "digits", "--set", "recipe.batch_size=5000"], "larger than"),
        (["--data", "digits", "--set", "recipe"], "is not an assignment"),
        (["--data", "digits", "--config", "absent.yaml"], "no configuration file"),
        (["--data", "digits", "--device", "tpu9"], "device 'tpu9'"),
        ([], "Nothing was said about the data"),
    ],
)
def test_pretrain_refuses(efface, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    refused(efface("pretrain", "--out", tmp_path / "o", *words), said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "scrubb", "--forget", "@random:5"], ["Did you mean 'scrub'?"]),
        (["--method", "scrub", "--forget", "@random:5", "--set", "method.alfa=1"], ["Did you mean 'alpha'?"]),
        (["--method", "scrub"], ["which examples to forget"]),
        (["--method", "scrub", "--forget", "@keys:x1,x2,x3,x4,x5,x6,x7"], ["7", "'x1', 'x2', 'x3', 'x4', 'x5', ..."]),
        (["--method", "scrub", "--forget", "@random:60"], ["all 60 training examples", "Nothing would be retained"]),
        (["--method", "scrub", "--forget", "@clas:5"], ["class"]),
        (["--method", "scrub", "--forget", "absent.txt"], ["absent.txt"]),
    ],
)
def test_unlearn_refuses(efface, made, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    refused(efface("unlearn", made / "original", "--out", tmp_path / "o", *words), *said)
    assert not (tmp_path / "o").exists()
    assert not partial_path(tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "said"), [("", "holds no ids"), ("{one}\n{one}\n", "more than once"), ("{held}\n", "holdout")]
)
def test_lists_that_cannot_be_forgotten(efface, made, tmp_path, text, said):
    parts = json.loads((made / "original" / "split.json").read_text())["parts"]
    (tmp_path / "ids.txt").write_text(text.format(one=parts["retain"][0], held=parts["holdout"][0]))
    words = ["--forget", tmp_path / "ids.txt", "--method", "finetune", "--out", tmp_path / "o"]
    refused(efface("unlearn", made / "original", *words), said)


def test_existing_folders_are_not_overwritten(efface, made, tmp_path):
    words = ["unlearn", made / "original", "--forget", "@random:5", "--method", "finetune", "--out", made / "tuned"]
    before = (made / "tuned" / "meta.json").read_bytes()
    refused(efface(*words), "exists already", "--force")
    assert (made / "tuned" / "meta.json").read_bytes() == before


def test_models_that_cannot_be_references_are_refused(efface, made):
    refused(efface("audit", made / "tuned", "--oracle", made / "tuned"), "cannot be used as a retrained reference")
    refused(efface("audit", made / "original"), "asked to forget nothing")
    refused(efface("audit", made / "tuned", "--original", made / "oracle"), "never trained on")
    refused(efface("audit", made / "absent"), "There is no checkpoint")


def test_an_oracle_of_another_request_is_refused(efface, made, tmp_path):
    words = ["--forget", "@random:12", "--set", "forget_seed=9", "--method", "retrain", "--out", tmp_path / "other"]
    assert efface("unlearn", made / "original", *words)[0] == 0
    refused(efface("audit", made / "tuned", "--oracle", tmp_path / "other"), "it trained on")


def test_missing_labels_are_refused(efface, tmp_path):
    np.savez(tmp_path / "plain.npz", x=np.zeros((80, 8, 8), np.uint8))
    words = ["--data", tmp_path / "plain.npz", "--objective", "cross_entropy", "--out", tmp_path / "o"]
    refused(efface("pretrain", *words), "needs labels")


def test_foreign_weights_are_read_safely(efface, made, tmp_path):
    words = ["--data", "digits", *TINY, "--objective", "simclr", "--forget", "@random:5", "--method", "finetune"]
    weights = load_file(made / "original" / "checkpoint.safetensors")

    def unlearn(path):
        return efface("unlearn", path, *words, "--out", tmp_path / "o")

    refused(unlearn(tmp_path / "absent.pt"), "no checkpoint")
    whole = (made / "original" / "checkpoint.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(unlearn(tmp_path / "cut.safetensors"), "damaged or truncated")
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    refused(unlearn(tmp_path / "other.safetensors"), "the layout of no library")
    save_file({k: v for k, v in weights.items() if k != "backbone.layer2.0.bn1.bias"}, tmp_path / "other.safetensors")
    refused(unlearn(tmp_path / "other.safetensors"), "another architecture", "Missing: ")
    broken = dict(weights)
    broken["backbone.conv1.weight"] = broken["backbone.conv1.weight"] * torch.nan
    save_file(broken, tmp_path / "nan.safetensors")
    refused(unlearn(tmp_path / "nan.safetensors"), "not all finite", "backbone.conv1.weight")
    assert not (tmp_path / "o").exists()
    torch.save(weights, tmp_path / "good.pt")
    refused(unlearn(tmp_path / "good.pt"), "sees no more", "check=false")  # after two epochs on 60 pictures
    words += ["--set", "check=false"]
    code, _, err = unlearn(tmp_path / "good.pt")
    assert code == 0, err
    assert "stem assumed" not in err  # its stride was set


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_foreign_classes_is_refused_and_nothing_runs(efface, tmp_path, save):
    save({"state_dict": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    refused(efface("inspect", tmp_path / "bomb.pt"), "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_image_folders_that_cannot_be_used(efface, tmp_path):
    def pretrain(folder, *words):
        return efface(
            "pretrain", "--data", folder, "--out", tmp_path / "o", "--set", f"data.cache={tmp_path}/c", *words
        )

    (tmp_path / "none").mkdir()
    refused(pretrain(tmp_path / "none"), "no images")
    (tmp_path / "broken").mkdir()
    for number in range(9):
        Image.new("L", (8, 8), number).save(tmp_path / "broken" / f"{number}.png")
    (tmp_path / "broken" / "bad.png").write_bytes(b"not an image")
    refused(pretrain(tmp_path / "broken"), "bad.png")
    (tmp_path / "dots").mkdir()
    for number in range(60):
        Image.new("L", (1, 1), number).save(tmp_path / "dots" / f"{number}.png")
    refused(pretrain(tmp_path / "dots", "--set", "recipe.batch_size=10"), "one pixel")


def test_a_full_disk_leaves_what_was_there(efface, made, tmp_path, monkeypatch):
    from efface.training.checkpoint import Checkpoint

    def full(self, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoint, "save", full)
    words = ["--forget", "@random:5", "--method", "finetune", "--out", tmp_path / "o"]
    refused(efface("unlearn", made / "original", *words), "disk is full", "untouched")
    assert not (tmp_path / "o").exists()


def test_a_loss_that_diverges_names_its_term(efface, made, tmp_path):
    words = ["--forget", "@random:12", "--method", "gradient_ascent", "--set", "method.epochs=200"]
    words += ["--set", "method.optim={lr: 1.0e+20}", "--out", tmp_path / "o"]
    refused(efface("unlearn", made / "original", *words), "away", "no longer a finite number")
    assert not (tmp_path / "o").exists() and (failed_log_path(tmp_path / "o") / "log.jsonl").exists()


def test_interrupted_and_called_again_it_ends_with_the_same_weights(tmp_path):
    words = [sys.executable, "-m", "efface", "pretrain", "--data", "digits", "--objective", "byol", "--quiet"]
    words += [*TINY, "--set", "recipe.epochs=80"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    cut = subprocess.Popen(
        [*words, "--out", tmp_path / "cut"], env=env, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells ignore it in background
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (partial_path(tmp_path / "cut") / EPOCH).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    cut.send_signal(signal.SIGINT)
    said = cut.communicate()[1]
    assert cut.returncode == 130, said
    assert "Interrupted" in said
    assert not (tmp_path / "cut").exists()
    for name in ("cut", "whole"):
        subprocess.run([*words, "--out", tmp_path / name], env=env, check=True)
    digests = {json.loads((tmp_path / name / "meta.json").read_text())["digest"] for name in ("cut", "whole")}
    assert len(digests) == 1
    steps = [json.loads(line)["step"] for line in Path(tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 241))
