"""Our objectives and methods beside official code, on the same tensors: loss, gradient or one step.

    python -m research.against_official --repos FOLDER     research/results/against_official.json
    make docs                                              docs/against_official_code.md

FOLDER holds clones of the public repositories in ``REPOSITORIES``, each in a folder ``owner+name``; none is part of
efface. Objectives are compared with lightly and open_clip, which the extra ``dev`` installs. What the official code
imports and the comparison does not need (loggers, figures) is replaced by an empty module. A comparison whose
repository is missing is left out of the result.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from benchmarks.machine import machine, write_json
from research.official_code import Row, assigned_value, batch_of, differ, loadable, network, option_default
from research.official_methods import COMPARED
from research.paths import RESULTS, ROOT
from torch import Tensor

from efface.training.model import Model
from efface.training.objectives import OBJECTIVES, Barlow, Moco
from efface.training.objectives.shared import normalize_rows
from efface.unlearning import methods

RESULT = RESULTS / "against_official.json"
REPOSITORIES = {
    "alignment_calibration": "EhanW+Alignment-Calibration",
    "contrastive_unlearning": "Hongkyu-Lee+Contrastive-Unlearning",
    "ssd": "if-loops+selective-synaptic-dampening",
    "salun": "OPTML-Group+Unlearn-Saliency",
    "l1_sparse": "OPTML-Group+Unlearn-Sparse",
    "scrub": "meghdadk+SCRUB",
    "bad_teacher": "vikram2000b+bad-teaching-unlearning",
    "purge": "vedjaw+la_purge",
}


OFFICIAL_DEFAULTS: dict[str, tuple[str, dict[str, str]]] = {
    "alignment_calibration": (
        "forget.py",
        {"optim.lr": "--cl-lr", "epochs": "--cl-epochs", "batch_size": "--batch-size", "beta": "--beta"},
    ),
    "contrastive_unlearning": (
        "core/args/parse.py",
        {"tau": "--temp", "weight": "--CT_ratio", "task_weight": "--CE_ratio", "omega": "--retain_sampling_freq",
         "epochs": "--unlearn_epoch", "batch_size": "--batch_size"},
    ),
    "ssd": ("src/forget_random_main.py", {"batch_size": "-b"}),
    "salun": (
        "Classification/arg_parser.py",
        {"optim.lr": "--unlearn_lr", "epochs": "--unlearn_epochs", "batch_size": "--batch_size"},
    ),
    "l1_sparse": (
        "arg_parser.py",
        {"optim.lr": "--unlearn_lr", "epochs": "--unlearn_epochs", "batch_size": "--batch_size", "weight": "--alpha"},
    ),
    "scrub": (
        "small_scale_unlearning.ipynb",
        {"alpha": "args.alpha", "gamma": "args.gamma", "ascent_epochs": "args.msteps", "epochs": "args.sgda_epochs",
         "optim.lr": "args.sgda_learning_rate"},
    ),
    "bad_teacher": ("unlearn.py", {}),
    "purge": (
        "run.py",
        {"optim.lr": "--lr", "optim.clip": "--max_grad_norm", "epochs": "--epochs", "batch_size": "--batch_size",
         "erase": "--rep_weight", "distill": "--kd_weight", "temperature": "--temperature",
         "budget": "--retain_budget_factor"},
    ),
}  # fmt: skip
"""The file with the official defaults, and where in it each of our settings has its counterpart."""


# ---- objectives ----


def predict(model: Model, x: Tensor) -> Tensor:
    """The predictor's outputs of BYOL and SimSiam."""
    assert model.predictor is not None
    return model.predictor(model(x))


def objectives() -> list[Row]:
    """Loss and gradient of every objective, in evaluation mode, against lightly and open_clip."""
    from lightly import loss as lightly

    rows = []

    def add(name: str, model: Model, theirs: Tensor, against: str, note: str = "", scale: float = 1.0) -> None:
        ours = model.objective.loss(model, batch).per_example.mean()
        rows.append({"name": name, "kind": "objective", "against": against, "note": note}
                    | differ(ours, scale * theirs, model))  # fmt: skip

    batch, library = batch_of(12, 1), f"lightly {version('lightly')}"
    built = {name: network(OBJECTIVES[name]()) for name in OBJECTIVES if name not in ("barlow", "vicreg", "clip")}
    views = [batch.view(0), batch.view(1)]
    model = built["simclr"]
    add("simclr", model, lightly.NTXentLoss(temperature=0.5)(*(model(x) for x in views)), f"{library}, NTXentLoss")
    model = built["moco"]
    contrast = lightly.NTXentLoss(temperature=Moco().temperature, memory_bank_size=(4096, 128))
    queue = model.queue
    assert queue is not None
    contrast.memory_bank.bank = queue.clone() if contrast.memory_bank.bank.shape[0] == len(queue) else queue.T.clone()
    contrast.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        keys = model(views[1], model.momentum_encoder)
    add("moco", model, contrast(model(views[0]), keys), f"{library}, NTXentLoss with a memory bank",
        "lightly's example moves the momentum encoder before a step, ours after it")  # fmt: skip
    cosine = lightly.NegativeCosineSimilarity()
    model = built["byol"]
    with torch.no_grad():
        targets = [model(x, model.momentum_encoder) for x in views]
    predictions = [predict(model, x) for x in views]
    add("byol", model, 2 + cosine(predictions[0], targets[1]) + cosine(predictions[1], targets[0]),
        f"{library}, NegativeCosineSimilarity", "averaged over both directions: half of the paper's sum")  # fmt: skip
    model = built["simsiam"]
    targets = [model(x).detach() for x in views]
    predictions = [predict(model, x) for x in views]
    add("simsiam", model, (cosine(predictions[0], targets[1]) + cosine(predictions[1], targets[0])) / 2,
        f"{library}, NegativeCosineSimilarity")  # fmt: skip
    for name, chosen, theirs in (
        ("barlow", Barlow(), lightly.BarlowTwinsLoss(lambda_param=Barlow().weight)),
        ("vicreg", OBJECTIVES["vicreg"](), lightly.VICRegLoss()),
    ):
        model = network(chosen)
        add(name, model, theirs(*(model(x) for x in views)), f"{library}, {type(theirs).__name__}")
    if loadable("open_clip"):
        import open_clip

        model = network(OBJECTIVES["clip"]())
        assert model.scale is not None
        u, v = (normalize_rows(z) for z in (model(views[0]), model.encode_text(batch.captions())))
        add("clip", model, open_clip.ClipLoss()(u, v, model.scale.exp()),
            f"open_clip {version('open_clip_torch')}, ClipLoss")  # fmt: skip
    return rows


# ---- defaults ----


def defaults(name: str, folder: Path) -> list[Row]:
    """Our defaults of a method beside those of its official code, each read from the code itself."""
    method, file = methods.METHODS[name](), folder / OFFICIAL_DEFAULTS[name][0]
    read = assigned_value if file.suffix == ".ipynb" else option_default
    rows = []
    for setting, place in OFFICIAL_DEFAULTS[name][1].items():
        ours = method
        for part in setting.split("."):
            ours = getattr(ours, part)
        rows.append({"setting": setting, "ours": ours, "official": read(file, place)})
    return rows


def main() -> None:
    """Compare what is there, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repos", type=Path, required=True, help="Folder with clones of the repositories.")
    folder: Path = parser.parse_args().repos
    torch.set_num_threads(1)
    rows, tables, missing = objectives(), dict[str, list[Row]](), list[str]()
    for name, compare in COMPARED.items():
        place = (folder / REPOSITORIES[name]).resolve()
        if not place.is_dir():
            missing.append(name)
            continue
        commit = subprocess.run(
            ["git", "-C", str(place), "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        against = f"{REPOSITORIES[name].replace('+', '/')} at {commit}"
        with contextlib.redirect_stdout(io.StringIO()):
            rows += [{"name": name, "kind": "method", "against": against} | row for row in compare(place)]
        tables[name] = defaults(name, place)
    write_json(RESULT, {"machine": machine(), "rows": rows, "defaults": tables, "not there": missing})
    for row in rows:
        print(row)
    print(f"Written: {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
