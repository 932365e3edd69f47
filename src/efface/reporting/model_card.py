"""The model card of a released model: what was done to it, what the evidence says, and what it does not cover.

It says only what a signed bundle would say as well: no ids, selectors, seeds, class names or paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from efface.auditing.formatting import format_number
from efface.reporting.predicates import Unlearning

PIPELINE_TAGS = {"cross_entropy": "image-classification", "clip": "zero-shot-image-classification"}
"""Objective to the Hub's name of what the model is for; every other objective makes an encoder."""


def write_card(stated: Unlearning | None, recipe: Mapping[str, Any], address: str) -> str:
    """Write the card as Markdown with the Hub's YAML header.

    Args:
        stated: What the record of the audit states; None for a model that was not unlearned, or not audited.
        recipe: The training recipe in ``meta.json``.
        address: Where the model can be pulled from, for the example; its last part is the title.

    Returns:
        The text of ``README.md``.

    Example:
        >>> card = write_card(None, {"objective": {"name": "simclr"}}, "my-encoder")  # doctest: +SKIP

    """
    objective = recipe["objective"]["name"]
    header = {
        "library_name": "efface",
        "pipeline_tag": PIPELINE_TAGS.get(objective, "image-feature-extraction"),
        "tags": ["efface", objective, *(["machine-unlearning"] if stated else [])],
    }
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {PurePosixPath(address).name}", ""]
    backbone, size = recipe["backbone"]["name"], "×".join(map(str, recipe["size"]))
    kind = f"A {backbone} for images of {size} pixels, trained with `{objective}`."
    lines += [kind, ""]
    lines += _unlearned(stated) if stated else ["No audit of unlearning is stated for this model.", ""]
    lines += ["## Use", "", "```python", "import efface", ""]
    lines += [f'folder = efface.hub.pull("{address}", "pulled")', "model = efface.Checkpoint.load(folder).model"]
    lines += ["features = model.features(images)  # [images, channels, height, width], in [0, 1]", "```", ""]
    return "\n".join(lines)


def _unlearned(stated: Unlearning) -> list[str]:
    """What was done and found."""
    verdict, count = stated.verdict, stated.forget_set.count
    lines = [
        "## What was forgotten",
        "",
        f"{count} training examples were unlearned with the method `{stated.method.name}`. This card does not say "
        "which; whoever holds the key of the record can check whether a given one was among them.",
        "",
        "## Evidence",
        "",
        f"Verdict: **{verdict.word}** (level {verdict.level}). {verdict.sentence}",
        "",
        "| score | before | after, interval | verdict |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one.signal} | {format_number(one.power[0], 3)} | {format_number(one.value, 3)} "
        f"({format_number(one.low, 3)} to {format_number(one.high, 3)}) | {one.word} |"
        for one in verdict.signals
    ]
    lines += ["", "0.5: an attacker cannot tell the forgotten examples from never-trained ones.", ""]
    if stated.claims:
        lines += ["Nobody checked:", "", *(f"* {one.about}: {one.claim}" for one in stated.claims), ""]
    lines += ["## Not covered", "", *(f"* {one}" for one in stated.out_of_scope), ""]
    return lines
