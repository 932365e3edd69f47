"""Round trip of every layout, features in each library's own loader, and messages for broken files.

    python -m research.layouts

Round trip: every fixture of the tests is read, and written with all tensors unchanged; names, order and bytes are
compared. Features: a library's checkpoint is unlearned (one epoch of fine-tuning), the result is loaded by that library
itself, and its features are compared with efface's. Hostile: the cases of tests/hostile.py. Everything is tiny and
takes about a minute. Results: research/results/layouts.json, shown in docs/results/layouts.md.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.machine import machine, write_json
from research.paths import RESULTS
from tests import foreign, hostile
from tests.adoption import SPLIT, drawn
from tests.checkpoints import FIXTURES, SMALL
from torch import Tensor, nn

from efface.interop.architecture import CIFAR, IMAGENET
from efface.interop.checkpoint_file import read_foreign
from efface.interop.layouts import Role
from efface.runs import train
from efface.training.objectives.shared import build_projector

QUICK = {"name": "finetune", "epochs": 1, "batch_size": 30}
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Load = Callable[[Path], Callable[[Tensor], Tensor]]
"""A library's own loader: maps a file to a function from normalized images to features."""


def round_trips(home: Path) -> list[dict[str, Any]]:
    """Read each fixture, write it with all tensors unchanged, and compare."""
    rows = []
    for family, makers in FIXTURES.items():
        for make in makers:
            place = home / f"{family}-{make.__name__}"
            (place / "out").mkdir(parents=True)
            torch.manual_seed(0)
            path = make(place).path
            found = read_foreign(path)
            fresh = {there: found.container.state[name].clone() for name, there in found.table.items()}
            found.write(place / "out", fresh, cleaned=False)
            again = read_foreign(place / "out" / path.name)
            before, after = found.container.state, again.container.state
            rows.append(
                {
                    "layout": found.layout.name,
                    "file": make.__name__,
                    "tensors": len(before),
                    "keys": list(before) == list(after),
                    "bytes": all(_bytes(before[name]) == _bytes(after[name]) for name in before),
                    "file_bytes": path.is_file() and path.read_bytes() == (place / "out" / path.name).read_bytes(),
                    "roles": sorted({str(there.role) for there in found.table.values()}),
                }
            )
    return rows


def _bytes(value: Tensor) -> bytes:
    return (
        str((value.dtype, tuple(value.shape))).encode()
        + value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    )


# ---- each library: its checkpoint, and its own loader ----


def torchvision_file(home: Path) -> tuple[Path, Load]:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=3).state_dict(), home / "resnet18.pth")

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        net = resnet18(num_classes=3)
        net.load_state_dict(torch.load(path, weights_only=True))
        net.register_module("fc", nn.Identity())
        return net.eval()

    return home / "resnet18.pth", load


def timm_folder(home: Path) -> tuple[Path, Load]:
    import timm

    timm.models.save_for_hf(foreign.vit(num_classes=3), str(home / "timm_vit"), model_config={"num_classes": 3})

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        net: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        return lambda x: net.forward_head(net.forward_features(x), pre_logits=True)

    return home / "timm_vit", load


def moco_file(home: Path) -> tuple[Path, Load]:
    case = foreign.moco_v2(home)

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        state, start = torch.load(path, weights_only=True)["state_dict"], "module.encoder_q."
        body = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start) and ".fc." not in k}
        net = foreign.resnet()
        net.load_state_dict(body)
        return net.eval()

    return case.path, load


def solo_file(home: Path) -> tuple[Path, Load]:
    def network() -> nn.Module:
        from torchvision.models import resnet18

        net = resnet18()
        net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
        for name in ("maxpool", "fc"):
            net.register_module(name, nn.Identity())
        return net

    both = foreign.Owner(backbone=network(), classifier=nn.Linear(512, 3), projector=build_projector(512, 16, 8))
    torch.save(foreign.lightning(both), home / "solo.ckpt")
    write_json(home / "args.json", {"method": "simclr", "data": {"dataset": "cifar10"}})

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        state, net = torch.load(path, weights_only=True)["state_dict"], network()
        net.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
        return net.eval()

    return home / "solo.ckpt", load


def lightly_file(home: Path) -> tuple[Path, Load]:
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.models.resnet import ResNetGenerator

    def network() -> nn.Module:
        children = list(ResNetGenerator("resnet-9", width=1 / 8).children())[:-1]
        body = nn.Sequential(*children, nn.AdaptiveAvgPool2d(1))
        return foreign.Owner(backbone=body, projection_head=SimCLRProjectionHead(64, 16, 8))

    torch.save(network().state_dict(), home / "lightly.pth")

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        net = network().eval()
        net.load_state_dict(torch.load(path, weights_only=True))
        return lambda x: net.get_submodule("backbone")(x).flatten(1)

    return home / "lightly.pth", load


def transformers_folder(kind: str, *, classifier: bool) -> Callable[[Path], tuple[Path, Load]]:
    def make(home: Path) -> tuple[Path, Load]:
        import transformers as t

        auto = t.AutoModelForImageClassification if classifier else t.AutoModel
        sizes = {k: v for k, v in SMALL.items() if kind == "vit" or k != "intermediate_size"}
        config = t.AutoConfig.for_model(kind, **sizes | {"num_labels": 3} | ({} if kind == "vit" else {"mlp_ratio": 2}))
        auto.from_config(config).save_pretrained(home / kind)
        t.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(home / kind)

        def load(path: Path) -> Callable[[Tensor], Tensor]:
            net: Any = auto.from_pretrained(path).eval()
            seen: list[Tensor] = []
            if classifier:
                net.classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
            return lambda x: (net(x), seen.pop())[1] if classifier else net(x).pooler_output

        return home / kind, load

    return make


LOADERS: dict[str, tuple[Callable[[Path], tuple[Path, Load]], str, Any, dict[str, Any]]] = {
    "torchvision ResNet-18": (torchvision_file, "resnet18().load_state_dict", IMAGENET, {}),
    "timm ViT, folder": (timm_folder, "timm.create_model('local-dir:...')", HALVES, {}),
    "MoCo v2": (moco_file, "encoder_q without fc, strict", IMAGENET, {}),
    "solo-learn SimCLR, CIFAR stem": (solo_file, "backbone.* into its ResNet-18, strict", CIFAR["cifar10"], {}),
    "lightly SimCLR": (lightly_file, "lightly's modules, load_state_dict strict", IMAGENET, {}),
    "transformers ViT, classifier": (
        transformers_folder("vit", classifier=True), "AutoModelForImageClassification.from_pretrained", HALVES, {}
    ),
    "transformers ViT": (
        transformers_folder("vit", classifier=False), "AutoModel.from_pretrained", HALVES, {"fresh_head": True}
    ),
    "transformers DINOv2, classifier": (
        transformers_folder("dinov2", classifier=True), "AutoModelForImageClassification.from_pretrained", HALVES, {}
    ),
    "transformers DINOv2": (
        transformers_folder("dinov2", classifier=False), "AutoModel.from_pretrained", HALVES, {"fresh_head": True}
    ),
}  # fmt: skip
"""Name to maker, description of the loader, mean and std, and further settings for unlearning."""


@torch.no_grad()
def same_features(name: str, home: Path) -> dict[str, Any]:
    """Unlearn a library's checkpoint, load the result with the library, and compare the features."""
    make, words, (mean, std), more = LOADERS[name]
    home.mkdir()
    torch.manual_seed(0)
    path, load = make(home)
    side = 16 if make is timm_folder else 8
    x, y = drawn()
    np.savez(home / "pictures.npz", x=x.repeat(side // 8, 2).repeat(side // 8, 3), y=y)
    settings = {"data": str(home / "pictures.npz"), "split": SPLIT, "forget": "@random:12", "method": QUICK}
    settings |= {"device": "cpu", "check": False} | more | ({"objective": "simclr"} if more else {})
    with torch.enable_grad():
        made = train.unlearn_run(path, home / "out", settings)
    images = torch.rand(16, 3, side, side)
    scaled = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    ours = made.model.eval().features(images)
    theirs, before = (load(file)(scaled) for file in (home / "out" / "foreign" / path.name, path))
    body = read_foreign(path).part(Role.BACKBONE)
    return {
        "name": name,
        "layout": read_foreign(path).layout.name,
        "loader": words,
        "tensors": len(body),
        "difference": float((ours - theirs).abs().max()),
        "size": float(ours.abs().max()),
        "moved": float((before - theirs).abs().max()),
        "done": {k.removeprefix("foreign."): v for k, v in made.purged.items() if k.startswith("foreign.")},
    }


def hostiles(home: Path) -> list[dict[str, Any]]:
    """Command, message and exit code for each malicious or broken file."""
    x, y = drawn()
    home.mkdir()
    np.savez(home / "pictures.npz", x=x, y=y)
    rows = []
    for number, case in enumerate(hostile.CASES):
        place = home / str(number)
        place.mkdir()
        code, said, went_off = hostile.tried(case, place, home / "pictures.npz")
        short = said.replace(f"{place}/", "").splitlines()
        lines = [line.partition(":")[2].strip() for line in short if line.startswith(("error:", "why:"))]
        rows.append(
            {
                "file": case.name,
                "command": "unlearn" if case.unlearn else "inspect",
                "exit": code,
                "says": " ".join(lines)[:300],
                "ran": went_off,
                "as_expected": code == case.exit and case.says in said,
            }
        )
    return rows


def main() -> None:
    """Measure, print and write; fail if any result is not as expected."""
    warnings.simplefilter("ignore")  # libraries warn about sizes this small
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trips = round_trips(Path(folder) / "trips")
        features = [same_features(name, Path(folder) / str(n)) for n, name in enumerate(LOADERS)]
        broken = hostiles(Path(folder) / "hostile")
    result = {"machine": machine(), "round_trips": trips, "features": features, "hostile": broken}
    for row in trips:
        print(f"{row['layout']:24}{row['file']:30}{row['tensors']:5} keys {row['keys']} bytes {row['bytes']}")
    for row in features:
        print(f"{row['name']:34}max difference {row['difference']:.1e} of {row['size']:.2g}; moved {row['moved']:.1e}")
    for row in broken:
        print(f"{row['command']:8}{row['file']:44}exit {row['exit']}  {row['says'][:90]}")
    write_json(RESULTS / "layouts.json", result)
    good = all(row["keys"] and row["bytes"] for row in trips) and all(not row["ran"] for row in broken)
    good &= all(row["difference"] <= 1e-5 * max(1.0, row["size"]) < row["moved"] for row in features)
    if not good or not all(row["as_expected"] for row in broken):
        raise SystemExit("A layout, a loader or a hostile file did not behave as expected; see the lines above.")


if __name__ == "__main__":
    main()
