"""Our methods beside their official code, on the same tensors: one function for each repository.

Used by :mod:`research.against_official`. Networks have no BatchNorm, so that one pass or several make no difference;
where official code makes several, the note says so.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from research.official_code import (
    CLASSES,
    RATE,
    Part,
    Row,
    apart,
    batch_of,
    differ,
    images,
    load,
    network,
    official,
    step,
)
from torch import nn

from efface.training.batch import Batch, Log, LossTerms, Subset
from efface.training.gradients import compute_gradient, flatten_parts, squared_gradients, unflatten_vector
from efface.training.loop import Run, frozen_copy
from efface.training.model import Model
from efface.training.objectives import CrossEntropy, Moco, SimClr
from efface.training.objectives.shared import normalize_rows
from efface.unlearning import methods
from efface.unlearning.methods.contrastive_unlearning import push_and_pull
from efface.unlearning.protocol import MethodInputs, disagreement, task_loss


def alignment_calibration(folder: Path) -> list[Row]:
    """The whole loss of a mixed batch, with SimCLR and MoCo; β at a share of a third."""
    rows, kept, gone = [], batch_of(8, 1), batch_of(4, 2)
    other, third = batch_of(4, 3), batch_of(8, 4)
    mixed = kept + gone.pair_with(other, 0)
    views = [mixed.view(0), mixed.view(1), torch.cat([third.view(2), gone.view(2)])]
    for objective, name, alpha in (
        (SimClr(temperature=0.5), "SimCLRModel", 1.0),
        (SimClr(temperature=0.5), "SimCLRModel", 0.5),
        (Moco(temperature=0.1), "MocoModel", 1.0),
    ):
        model, method = network(objective), methods.AlignmentCalibration(alpha=alpha, gamma=alpha)
        with official(folder):
            algs = load("algs")
            algs.get_indices = lambda **_: (None, list(range(8)), list(range(8, 12)))
            counts = {"seed": 0, "num_total_samples": 12, "num_unlearn_samples": 4, "l1_reg": None}
            args = Namespace(dataset="cifar10", backbone="resnet18", unlearn_mode="ft", beta=method.beta, **counts)
            args.alpha = None if alpha == 1 else alpha
            theirs = getattr(algs, name)(10, 0.06, 0.9, 5e-4, args)
        theirs.log = lambda *_, **__: None
        theirs.backbone, theirs.projection_head = Part(model.features), Part(model.project)
        if model.queue is not None:
            theirs.backbone_momentum = Part(lambda x, model=model: model.features(x, model.momentum_encoder))
            theirs.projection_head_momentum = Part(lambda h, model=model: model.project(h, model.momentum_encoder))
            bank = theirs.criterion.memory_bank
            bank.bank = model.queue.clone() if bank.bank.shape[0] == len(model.queue) else model.queue.T.clone()
            bank.bank_ptr = torch.zeros(1, dtype=torch.long)
        loss = theirs.training_step((views, None, torch.arange(12)), 0)
        ours = sum(method.terms(model, mixed, gone, 4 / 12, alpha).terms.values())
        label = f"{type(objective).__name__}, alpha = gamma = {alpha:g}"
        slip = "with alpha other than 1 their mask orders the two views differently from their losses"
        rows.append({"what": f"loss of a mixed batch, {label}", "note": slip if alpha != 1 else ""}
                    | differ(torch.as_tensor(ours), loss, model))  # fmt: skip
    return rows


def contrastive_unlearning(folder: Path) -> list[Row]:
    """The whole loss on the same features and logits, for one class and for samples."""
    with official(folder):
        trainer = load("core.trainer.unlearn.unlearn").UnlearnTrainer
    rows, generator = [], torch.Generator().manual_seed(0)
    u, r = (torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_() for n in (7, 9))
    logits = torch.randn(9, CLASSES, generator=generator, dtype=torch.float64).requires_grad_()
    retained = torch.arange(9) % 2
    cases = {"one class": ("single_class", torch.full((7,), 2)), "samples": ("random_sample", torch.arange(7) % 2)}
    for label, (kind, forgotten) in cases.items():
        theirs = trainer.__new__(trainer)
        theirs.temperature = theirs.base_temperature = 0.7
        theirs.CT_ratio, theirs.CE_ratio, theirs.unlearn_type = 3.0, 1.0, kind
        z, others = normalize_rows(u), normalize_rows(r)
        loss = theirs.Loss_v2(torch.zeros(7, CLASSES), logits, z, others, forgotten, retained)
        task = nn.functional.cross_entropy(logits, retained)
        plain = 3 * push_and_pull(z, others, forgotten, retained, 0.7) + task
        for weighted in (False, True) if label == "samples" else (False,):
            ours = plain
            if weighted:  # their factor on the push: (|N| + |P|) / |N|, one anchor at a time
                same = forgotten[:, None] == retained[None]
                log_sum = (z @ others.T / 0.7).masked_fill(~same, -torch.inf).logsumexp(1)
                ours = plain + 3 * (log_sum * (same.shape[1] / (~same).sum(1).double() - 1)).mean()
            pairs = [torch.autograd.grad(one, (u, r, logits), retain_graph=True) for one in (ours, loss)]
            rows.append({
                "what": f"loss, {label}" + (", our push times their factor" if weighted else ""),
                "note": "" if label == "one class" or weighted else "the weight of their push is (|N| + |P|) / |N|",
                "loss": None, "gradient": apart(*pairs),
            })  # fmt: skip
    return rows


def ssd(folder: Path) -> list[Row]:
    """Importances of the same batches, dampening by the same importances, and how much is dampened in the end."""
    with official(folder / "src"):
        perturber = load("ssd").ParameterPerturber
    settings = {"lower_bound": 1, "exponent": 1, "magnitude_diff": None, "min_layer": -1, "max_layer": -1,
                "forget_threshold": 1, "dampening_constant": 1.0, "selection_weighting": 10.0}  # fmt: skip

    def official_of(model: Model) -> Any:
        return perturber(model, torch.optim.SGD(model.parameters(), lr=0.1), "cpu", settings)

    def loader(batches: list[Batch]) -> list[Any]:
        return [(batch.view(0), None, batch.labels()) for batch in batches]

    model = network(CrossEntropy())
    batches = [batch_of(9, seed) for seed in range(4)]
    mean_loss = lambda batch: model.objective.loss(model, batch).per_example.mean()
    ours = squared_gradients(model, batches, mean_loss)
    theirs = flatten_parts(model, list(official_of(model).calc_importance(loader(batches)).values()))
    rows = [{"what": "importance of the same batches", "note": "", "loss": None, "step": apart([ours], [theirs])}]
    forget = squared_gradients(model, batches[:1], mean_loss)
    before = flatten_parts(model, model.trainable_parameters()).detach().clone()
    damped = before * methods.Ssd(alpha=1.2).factor(forget, ours)
    names = [name for name, _ in model.named_parameters()]
    dicts = [dict(zip(names, unflatten_vector(model, one), strict=True)) for one in (ours, forget)]
    their = official_of(model)
    their.selection_weighting = 1.2
    their.modify_weight(*dicts)
    after = flatten_parts(model, model.trainable_parameters()).detach()
    rows.append(
        {"what": "dampening by the same importances", "note": "", "loss": None, "step": apart([damped], [after])}
    )
    return [
        *rows,
        {"what": "share of the weights dampened, 4 of 404 forgotten", **shares(official_of, loader)},
    ]


def shares(official_of: Any, loader: Any) -> Row:
    """Mean share of the weights of an over-fitted classifier that is dampened, over ten requests."""
    x, y = (images(404, 9) * 255).to(torch.uint8), torch.arange(404) % CLASSES
    whole = Subset(x, torch.arange(404), lambda view, _: view, y, name="all")
    model = network(CrossEntropy(), 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x / 255), y).backward()
        optimizer.step()
    found: dict[str, list[float]] = {"ours": [], "official": []}
    total = sum(weight.numel() for weight in model.trainable_parameters())
    for first in range(0, 40, 4):
        rows = torch.arange(404)
        forget, retain = rows[first : first + 4], torch.cat([rows[:first], rows[first + 4 :]])
        parts = {"forget": Subset(x, forget, whole.augment, y), "retain": Subset(x, retain, whole.augment, y)}
        method, log = methods.Ssd(batch_size=64), list[Row]()
        method.unlearn(copy_of(model), MethodInputs(method.needs, parts), Run(log=keep_in(log)))
        found["ours"].append(log[-1]["terms"]["share"])
        changed = copy_of(model)
        their = official_of(changed)
        generator = torch.Generator().manual_seed(0)
        everything = loader(list(whole.batches(128, generator)))
        their.modify_weight(
            their.calc_importance(everything), their.calc_importance(loader(list(parts["forget"].ordered_batches(128))))
        )
        pairs = zip(model.parameters(), changed.parameters(), strict=True)
        found["official"].append(sum(int((a != b).sum()) for a, b in pairs) / total)
    means = {key: float(np.mean(values)) for key, values in found.items()}
    return {"note": "theirs compares squares of 4 examples with squares of 128", "loss": None, "shares": means}


def keep_in(records: list[Row]) -> Log:
    """A log that appends to a list."""

    def log(record: Row) -> None:
        records.append(record)

    return log


def copy_of(model: Model) -> Model:
    """A copy that can be trained."""
    return frozen_copy(model).requires_grad_(True)


def salun(folder: Path) -> list[Row]:
    """The mask from the same batches, and one masked step on R."""
    model, batches = network(CrossEntropy()), [batch_of(6, seed) for seed in (1, 2)]
    loaders = {"forget": [(batch.view(0), batch.labels()) for batch in batches]}
    with official(folder / "Classification"), tempfile.TemporaryDirectory() as scratch:
        args = Namespace(unlearn_lr=RATE, momentum=0.9, weight_decay=5e-4, save_dir=scratch)
        load("generate_mask").save_gradient_ratio(loaders, copy_of(model), nn.CrossEntropyLoss(), args)
        theirs = torch.load(Path(scratch) / "with_0.5.pt", weights_only=True)
        rule = load("unlearn.RL")
    total = sum(compute_gradient(model, model.objective.loss(model, batch).per_example.sum()) for batch in batches)
    mask = methods.SalUn().mask(model, torch.as_tensor(total), Run())
    pairs = zip(mask.values(), theirs.values(), strict=True)
    other = sum(int((ours.long() != their).sum()) for ours, their in pairs)
    note = (
        f"{other} of {sum(their.numel() for their in theirs.values())} weights differ: half of an odd number is rounded"
    )
    rows: list[Row] = [{"what": "mask of half of the weights", "note": note, "loss": None}]
    kept, changed = batch_of(12, 5), copy_of(model)
    start = {name: weight.detach().clone() for name, weight in changed.named_parameters()}
    optimizer = torch.optim.SGD(changed.parameters(), lr=RATE, momentum=0.9)
    nn.functional.cross_entropy(changed(kept.view(0)), kept.labels()).backward()
    rule._apply_mask_to_grads(changed, theirs)
    optimizer.step()
    rule._restore_masked_params(changed, theirs, start, optimizer)
    mine = copy_of(model)
    only = dict(zip(mine.trainable_parameters(), mask.values(), strict=True))
    stepped = step(mine, kept, task_loss(mine), only)
    rows.append({"what": "one masked step", "loss": None, "step": apart(stepped, list(changed.parameters())),
                 "note": "theirs goes over F with random labels, then over R; ours takes both at once"})  # fmt: skip
    return rows


def l1_sparse(folder: Path) -> list[Row]:
    """One step at the full penalty."""
    model, batch, method = network(CrossEntropy()), batch_of(12, 1), methods.L1Sparse(weight=5e-4)
    changed, mine = copy_of(model), copy_of(model)
    with official(folder):
        args = Namespace(imagenet_arch=False, warmup=0, unlearn_epochs=1, no_l1_epochs=0, alpha=5e-4, print_freq=100)
        optimizer = torch.optim.SGD(changed.parameters(), lr=RATE, momentum=0.9)
        loader = [(batch.view(0), batch.labels())]
        load("unlearn.FT").FT_iter({"retain": loader}, changed, nn.CrossEntropyLoss(), optimizer, 0, args, with_l1=True)

    def terms(shown: Batch) -> LossTerms:
        norm = torch.stack([weight.abs().sum() for weight in mine.trainable_parameters()]).sum()
        loss = mine.objective.loss(mine, shown).per_example.mean()
        return LossTerms({"task": loss, "sparse": method.weight * norm})

    stepped = step(mine.train(), batch, terms)
    note = "theirs lowers the penalty after each epoch, ours after each step"
    return [{"what": "one step", "note": note, "loss": None, "step": apart(stepped, list(changed.parameters()))}]


def scrub(folder: Path) -> list[Row]:
    """One step towards and one away from the teacher, and one of NegGrad+."""
    model, teacher = network(CrossEntropy(temperature=4.0)), network(CrossEntropy(temperature=4.0), 7)
    kept, gone, method, rows = batch_of(12, 1), batch_of(6, 2), methods.Scrub(), list[Row]()
    with official(folder):
        loops = load("thirdparty.repdistiller.helper.loops")
        divergence = load("thirdparty.repdistiller.distiller_zoo.KD").DistillKL(4.0)
    for split, batch in (("minimize", kept), ("maximize", gone)):
        changed, mine = copy_of(model), copy_of(model)
        optimizer = torch.optim.SGD(changed.parameters(), lr=RATE, momentum=0.9)
        options = Namespace(distill="kd", gamma=method.gamma, alpha=method.alpha, beta=0, print_freq=100)
        criteria = [nn.CrossEntropyLoss(), divergence, None]
        loader = [(batch.view(0), batch.labels())]
        loops.train_distill(1, loader, [changed, teacher], None, criteria, optimizer, options, split, quiet=True)

        def terms(shown: Batch, mine: Model = mine, split: str = split) -> LossTerms:
            far = disagreement(teacher, mine, shown).mean()
            if split == "maximize":
                return LossTerms({"away": -far})
            task = mine.objective.loss(mine, shown).per_example.mean()
            return LossTerms({"stay": method.alpha * far, "task": method.gamma * task})

        note = "at their temperature 4; ours is 1" if split == "minimize" else ""
        stepped = step(mine.train(), batch, terms)
        rows.append({"what": f"one step, {split}", "note": note, "loss": None,
                     "step": apart(stepped, list(changed.parameters()))})  # fmt: skip
    changed, mine = copy_of(model), copy_of(model)
    optimizer = torch.optim.SGD(changed.parameters(), lr=RATE, momentum=0.9)
    loaders = [[(batch.view(0), batch.labels())] for batch in (kept, gone)]
    loops.train_negrad(1, *loaders, changed, nn.CrossEntropyLoss(), optimizer, 0.95, None, quiet=True)

    def both(shown: Batch) -> LossTerms:
        losses = mine.objective.loss(mine, shown + gone).per_example
        return LossTerms({"task": 0.95 * losses[:12].mean(), "away": -0.05 * losses[12:].mean()})

    rows.append({"what": "one step of NegGrad+", "note": "theirs makes two passes, so BatchNorm sees R and F apart",
                 "loss": None, "step": apart(step(mine.train(), kept, both), list(changed.parameters()))})  # fmt: skip
    return rows


def bad_teacher(folder: Path) -> list[Row]:
    """The loss of a batch with as many of R as of F."""
    model, good, bad = (network(CrossEntropy(), seed) for seed in (0, 1, 2))
    kept, gone = batch_of(6, 1), batch_of(6, 2)
    joint = kept + gone
    with official(folder):
        rule = load("unlearn").UnlearnerLoss
    x, labels = joint.view(0), torch.cat([torch.zeros(6), torch.ones(6)])
    theirs = rule(model(x), labels, good(x).detach(), bad(x).detach(), 1.0)
    targets = torch.cat([good.outputs(kept), bad.outputs(gone)]).detach()
    distances = model.objective.distance(targets, model.outputs(joint))
    ours = distances[:6].mean() + distances[6:].mean()
    note = "theirs is a mean over examples and classes: 2 C times smaller than ours"
    return [{"what": "loss, times 2 C", "note": note} | differ(ours, 2 * CLASSES * theirs, model)]


class Pooled(nn.Module):
    """Our network with a pooling layer between features and classifier, where the official code looks for features."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.inner, self.pool = model, nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, [B, C]."""
        return self.inner.project(self.pool(self.inner.features(x)[:, :, None, None]).flatten(1))


def purge(folder: Path) -> list[Row]:
    """One step that is projected, and one that is not."""
    rows, method = list[Row](), methods.Purge()
    for scale in (-1.0, 1.0):  # the bias of each class, for or against what the batches have
        model, kept, gone = network(CrossEntropy()), batch_of(12, 1), batch_of(12, 2)
        with torch.no_grad():
            model.trainable_parameters()[-1].copy_(scale * torch.linspace(2, -2, CLASSES))
        changed, mine = copy_of(model), copy_of(model)
        options = Namespace(
            epochs=1, lr=RATE, momentum=0.9, weight_decay=0.0, rep_weight=method.erase, kd_weight=method.distill,
            temperature=method.temperature, forget_objective="kl_retain", forget_gate=0, retain_budget_factor=9.0,
            max_grad_norm=1e9, fa_target=None, fa_check_freq=0,
        )  # fmt: skip
        loaders = [[(batch.view(0), batch.labels())] for batch in (gone, kept)]
        with official(folder):
            _, history = load("run").purge_unlearn(Pooled(changed), *loaders, torch.device("cpu"), options)
        target = model(kept.view(0)).softmax(-1).mean(0).detach()

        def terms(shown: Batch, mine: Model = mine, model: Model = model, target: torch.Tensor = target) -> LossTerms:
            return LossTerms(method.terms(model, mine, shown, batch_of(12, 1), target))

        projected = "projected" if history["proj_rate"][0] else "where both gradients agree"
        stepped = step(mine, gone, terms)
        rows.append({"what": f"one step, {projected}", "loss": None,
                     "step": apart(stepped, list(changed.parameters())), "note": ""})  # fmt: skip
    return rows


COMPARED = {
    "alignment_calibration": alignment_calibration,
    "contrastive_unlearning": contrastive_unlearning,
    "ssd": ssd,
    "salun": salun,
    "l1_sparse": l1_sparse,
    "scrub": scrub,
    "bad_teacher": bad_teacher,
    "purge": purge,
}
