"""Does the demo's audit have power? Run the demo over ten seeds and collect its verdicts.

    python -m research.demo_power [--data digits] [--seeds 10] [--jobs 2]

Resumable: a demo whose folder is complete is not run again.

The demo's setting was found by training some thirty originals with seed 0 and running four demos with the seeds 0 and
1, which are among the ten that are counted here.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from benchmarks.machine import machine, read_json, write_json
from research.paths import RESULTS, ROOT, RUNS
from research.worlds import together

from efface.reporting.record import Record
from efface.runs import demo

HOME = RUNS / "demo_power"


def run_seed(data: str, seed: int) -> str:
    """Run the demo with one seed, unless it was run before."""
    torch.set_num_threads(1)
    folder = HOME / data / f"seed-{seed}"
    if not (folder / demo.DONE).exists():
        demo.run_demo(data, folder, seed=seed, device="cpu")
    return f"{data} {seed}"


def row(data: str, seed: int) -> dict[str, Any]:
    """Power and verdicts of one seed."""
    folder = HOME / data / f"seed-{seed}"
    shown = read_json(folder / demo.DONE)
    verdict = Record.load(folder / "finetune").verdict
    return {
        "seed": seed,
        "power": {one.signal: one.power for one in verdict.signals},
        "powered": any(one.powered for one in verdict.signals),
        "rows": {entry["model"]: entry for entry in shown["rows"]},
        "seconds": shown["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=sorted(demo.REGIMES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    together([(run_seed, (arguments.data, seed)) for seed in range(arguments.seeds)], arguments.jobs)
    rows = [row(arguments.data, seed) for seed in range(arguments.seeds)]
    for r in rows:
        lows = ", ".join(f"{signal} {power[1]:.3f}" for signal, power in r["power"].items())
        said = ", ".join(f"{name}: {entry['verdict']}" for name, entry in r["rows"].items())
        print(f"seed {r['seed']}  lower 95 % bounds: {lows}  {said}")
    result = {"machine": machine(), "data": arguments.data, "powered": sum(r["powered"] for r in rows), "rows": rows}
    path = RESULTS / f"demo_power_{arguments.data.replace('-', '_')}.json"
    write_json(path, result)
    print(f"{result['powered']} of {len(rows)} seeds with power; written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
