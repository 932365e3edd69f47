"""How much memory unlearning a large checkpoint takes: a ViT-L/16 of 303 million parameters, two steps.

    python -m benchmarks.memory [FOLDER]

The checkpoint is timm's vit_large_patch16_224 for 32x32 images with random weights, 1.2 GB in float32, as safetensors.
The result is the peak resident size of the whole `efface unlearn` process, interpreter and libraries included, as a
multiple of the weights: once for a successful run, once with the check that refuses random weights. It is written to
benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import RESULTS, machine, read_json, write_json

SIDE, CLASSES, TRAIN, FORGET, BATCH = 32, 10, 36, 4, 16
LIMIT = 6.0
"""Most memory that is accepted, in multiples of the weights."""
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(f"PEAK {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss} {code}")
"""


def prepare(home: Path) -> int:
    """Write the checkpoint and the images, and return the size of the weights in bytes."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = timm.create_model("vit_large_patch16_224", img_size=SIDE, num_classes=CLASSES)
    save_file(net.state_dict(), home / "vit_large.safetensors", metadata={"format": "pt"})
    x = np.random.default_rng(0).integers(0, 256, (120, 3, SIDE, SIDE), dtype=np.uint8)
    np.savez(home / "pictures.npz", x=x, y=np.arange(120) % CLASSES)
    return sum(value.numel() * value.element_size() for value in net.state_dict().values())


def measure_command(*words: object) -> dict[str, Any]:
    """Run one command of efface and return its peak resident bytes, exit code and seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "efface", *map(str, words)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True)
    _, peak, code = done.stdout.splitlines()[-1].split()
    seconds = round(time.perf_counter() - began, 1)
    return {"peak": int(peak) * 1024, "exit": int(code), "seconds": seconds, "said": done.stderr.splitlines()[:1]}


def main() -> None:
    """Measure, print and write the result; fail if more memory was needed than ``LIMIT``."""
    home = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/memory")
    home.mkdir(parents=True, exist_ok=True)
    weights = prepare(home)
    split = {"train": TRAIN, "valid": 20, "holdout": 20, "test": 20}
    words = ["unlearn", home / "vit_large.safetensors", "--data", home / "pictures.npz", "--device", "cpu", "--force"]
    words += ["--forget", f"@random:{FORGET}", "--method", "finetune", "--set", "method.epochs=1", "--quiet"]
    words += ["--set", f"method.batch_size={BATCH}", "--set", f"split={json.dumps(split)}"]
    empty = measure_command("methods", "finetune")
    through = measure_command(*words, "--set", "check=false", "--out", home / "out")
    checked = measure_command(*words, "--out", home / "refused")
    steps = read_json(home / "out" / "meta.json")["cost"]["steps"]
    result = {
        "machine": machine(),
        "weights": weights,
        "parameters": weights // 4,
        "steps": steps,
        "libraries": empty,
        "unlearn": through | {"times": round(through["peak"] / weights, 2)},
        "check": checked | {"times": round(checked["peak"] / weights, 2)},
        "limit": LIMIT,
    }
    print(json.dumps(result, indent=1))
    write_json(RESULTS / "memory.json", result, hide=home)
    if steps != 2 or through["exit"] or max(through["peak"], checked["peak"]) > LIMIT * weights:
        raise SystemExit("the run failed, took another number of steps, or needed more memory than the limit")


if __name__ == "__main__":
    main()
