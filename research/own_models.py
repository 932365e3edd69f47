"""The story of an engineer with models of other libraries: described, unlearned twice, audited, handed back, again.

    python -m research.own_models PACKAGE [LIBRARY ...]

PACKAGE: the unpacked npm package ``emoji-datasource-apple``. 720 emoji as JPEGs in folders by year and user, a table of
users and categories, small models trained by the libraries themselves (:mod:`research.own_libraries`). For each:
``efface init``, a request for all pictures of one user by two methods, ``efface audit`` of both (for some with a
reference bank), a second request on top of the first, for one a third from the second's handed-back file, and the
handed-back files measured by the library's own code. A library that is done is not done again. Results:
research/results/own_models.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, read_json, write_json
from research.own_libraries import LIBRARIES, Library
from research.own_pictures import Pictures
from research.paths import RESULTS, RUNS

from efface import cli
from efface.files import file_digest

FILE = RESULTS / "own_models.json"
SIZES = ("--set", "split.valid=60", "--set", "split.holdout=90")
WATCH = ("--set", "watch.views=4", "--set", "watch.gradient=false")
BANK = 4
"""Models of a reference bank, for the libraries whose recipe is stated."""
CHAINED = "timm ResNet-18"
"""The library of which a third request is told."""


def efface(*words: object) -> dict[str, Any]:
    """One command line in this process: exit code, seconds, and what it printed."""
    began, out, err, before = time.monotonic(), io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["efface", *map(str, words)]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    print(f"$ efface {' '.join(map(str, words))}  -> {code}", flush=True)
    if code not in (0, 3, 4, 5):
        print(err.getvalue()[-1500:], flush=True)
    return {"exit": int(code or 0), "seconds": time.monotonic() - began, "out": out.getvalue(), "err": err.getvalue()}


def tell(name: str, library: Library, pictures: Pictures, home: Path) -> dict[str, Any]:
    """The story of one library."""
    theirs = library.make(pictures, home)
    found: dict[str, Any] = {"what": library.what, "before": library.measure(pictures, theirs)}
    columns = columns_of(library)
    data = ("--data", "users.csv", "--set", columns, "--set", f"data.cache={home / 'cache'}")
    split = ("--set", "split.trained=trained.txt", *SIZES)
    model = home / "model.yaml"
    made = efface("init", theirs, *data, *split, *library.options, "--out", model)
    found["init"] = {"exit": made["exit"], "seconds": made["seconds"], "checks": checks(made["out"])}
    own = library.options[-2:] if "--model" in library.options else ()
    asked = ("--forget", "@group:user.txt", *SIZES)
    found["methods"] = {}
    for method in library.methods:
        run = home / method
        done = efface("unlearn", model, *own, *asked, "--method", method, "--out", run)
        row: dict[str, Any] = {"exit": done["exit"], "seconds": done["seconds"]}
        if done["exit"]:
            found["methods"][method] = row | {"error": done["err"][-600:]}
            continue
        row["said"] = [
            line for line in done["err"].splitlines() if re.match("WARNING|There are too few|Accuracy|Captions", line)
        ]
        row["unseen"] = next((ln for ln in done["err"].splitlines() if "of the forgotten group" in ln), "")
        row["after"] = library.measure(pictures, handed_back(run))
        row["audit"] = audited(run, own, bank(run, home, own, library.recipe) if library.recipe else None)
        found["methods"][method] = row
    found["second"] = second_request(library, pictures, home, own)
    if name == CHAINED and "error" not in found["second"]:
        found["third"] = third_request(library, Pictures(pictures.home, requests=3), home)
    return found


def audited(run: Path, own: tuple[str, ...], bank: Path | None = None) -> dict[str, Any]:
    """Audit a run, and read what its record says."""
    judged = efface("audit", run, *own, *WATCH, *(("--bank", bank) if bank else ()), "--json")
    record = read_json(run / "record.json")
    verdict = record["verdict"]
    return {
        "exit": judged["exit"], "seconds": judged["seconds"], "word": verdict["word"], "level": verdict["level"],
        "utility_lost": verdict.get("utility_lost", ""), "utility_worse": verdict.get("utility_worse", ""),
        "utility_undecided": verdict.get("utility_undecided", ""),
        "bank": BANK if bank else 0, "deployed": deployed(run, record),
    }  # fmt: skip


def second_request(library: Library, pictures: Pictures, home: Path, own: tuple[str, ...]) -> dict[str, Any]:
    """A second request on top of the first, with keys that were never trained on in its list."""
    method, run = library.methods[0], home / "second"
    plain = efface("unlearn", home / method, *own, "--forget", "second.txt", "--method", method, "--out", run)
    done = efface(
        "unlearn", home / method, *own, "--forget", "second.txt", "--method", method, "--out", run,
        "--skip-never-trained",
    )  # fmt: skip
    row: dict[str, Any] = {"refused_without_skip": plain["exit"] == 2, "exit": done["exit"], "seconds": done["seconds"]}
    if done["exit"]:
        return row | {"error": done["err"][-600:]}
    row["after"] = library.measure(pictures, handed_back(run))
    row["forgotten_before_refused"] = refuses(library, run, home, ("@group:user.txt", "second.txt"))
    return row


def third_request(library: Library, pictures: Pictures, home: Path) -> dict[str, Any]:
    """A third request, which starts from the file that the second one handed back; both are audited."""
    first, second, run = home / library.methods[0], home / "second", home / "third"
    done = efface(*from_file(library, second), "--forget", "third.txt", "--out", run)
    row: dict[str, Any] = {"exit": done["exit"], "seconds": done["seconds"]}
    if done["exit"]:
        return row | {"error": done["err"][-600:]}
    row["after"] = library.measure(pictures, handed_back(run))
    row["second_audit"], row["audit"] = audited(second, ()), audited(run, ())
    steps = {first: ("@group:user.txt",), second: ("@group:user.txt", "second.txt")}
    steps[run] = ("@group:user.txt", "second.txt", "third.txt")
    row["forgotten_before_refused"] = [refuses(library, step, home, asked) for step, asked in steps.items()]
    return row


def from_file(library: Library, run: Path) -> tuple[Any, ...]:
    """The command that unlearns the file that a run handed back, without what to forget."""
    own = library.options[-2:] if "--model" in library.options else ()
    said = ("--data", "users.csv", "--set", columns_of(library), *library.options, "--set", "split.trained=trained.txt")
    return ("unlearn", handed_back(run), *own, *said, *SIZES, "--method", library.methods[0])


def refuses(library: Library, run: Path, home: Path, asked: tuple[str, ...]) -> bool:
    """Whether the file that a run handed back refuses to forget again what it has forgotten, list by list."""
    tried = [efface(*from_file(library, run), "--forget", one, "--out", home / "again") for one in asked]
    return all(one["exit"] == 2 and "has forgotten them already" in one["err"] for one in tried)


def columns_of(library: Library) -> str:
    """The columns of the user's table."""
    return "data.columns={label: category, group: user" + (", caption: title}" if library.captions else "}")


def bank(run: Path, home: Path, own: tuple[str, ...], recipe: str) -> Path:
    """A reference bank of the original, with the recipe that the user knows; made once."""
    if (home / "bank").exists():
        return home / "bank"
    (home / "recipe.yaml").write_text(recipe, encoding="utf-8")
    made = efface(
        "references", run, *own, "--bank", BANK, "--recipe", home / "recipe.yaml", "--out", home / "bank", "--jobs", 1,
        *WATCH,
    )  # fmt: skip
    if made["exit"]:
        raise SystemExit(made["err"])
    return home / "bank"


def handed_back(run: Path) -> Path:
    """What a run hands back: the only file or folder of weights in ``foreign``."""
    found = [one for one in sorted((run / "foreign").iterdir()) if one.is_dir() or one.suffix not in (".json", ".yaml")]
    return found[0]


def deployed(run: Path, record: dict[str, Any]) -> bool:
    """Whether the record holds the digest of every handed-back file of weights."""
    back = handed_back(run)
    kinds = (".bin", ".safetensors", ".pt", ".pth", ".ckpt")
    files = [one for one in back.iterdir() if one.suffix in kinds] if back.is_dir() else [back]
    text = json.dumps(record)
    return all(file_digest(one) in text for one in files)


def checks(text: str) -> dict[str, str]:
    """Topic to word of each check that ``efface init`` printed."""
    return dict(re.findall(r"^([a-z][a-z ]+): (passed|failed|undecided)\.", text, re.MULTILINE))


def main() -> None:
    """Tell the story of every library that is not done yet."""
    package, *names = sys.argv[1:]
    results = read_json(FILE) if FILE.exists() else {"libraries": {}}
    home = RUNS / "own_models"
    home.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(home)
    if not (home / "users.csv").exists():
        Pictures.make(home, Path(package).resolve())
    os.chdir(home)
    for name in names or LIBRARIES:
        if name in results["libraries"]:
            continue
        folder = home / re.sub("[^a-z0-9]+", "-", name.lower())
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        began = time.monotonic()
        told = tell(name, LIBRARIES[name](), pictures, folder)
        results["libraries"][name] = told | {"seconds": time.monotonic() - began}
        parts = {part: len(rows) for part, rows in pictures.parts.items()}
        write_json(FILE, results | {"parts": parts, "machine": machine()}, hide=home)
        shutil.rmtree(folder)
        print(json.dumps(told, indent=1)[:3000], flush=True)


if __name__ == "__main__":
    main()
