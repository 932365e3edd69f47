"""Open torch files, safetensors files and model folders safely, and write them back in the same form.

A container holds tensors under flat names (``state``) and the plain entries beside them (``meta``). Writing replaces
the tensors that changed and preserves everything else: a safetensors file is copied and only the changed bytes are
replaced, so its header stays; a torch file keeps its nesting, the order of its keys and its types of dictionaries.

After unlearning, a container is written ``cleaned``: with its weights and plain settings only. Optimizer moments,
random states, schedules and other copies of the weights are left out, and each is named in the notes that are returned.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.errors import EffaceError
from efface.interop.averages import AVERAGED_NAMES
from efface.interop.safe_load import is_archive, load_torch, sniff_safetensors
from efface.interop.sidecars import (
    SIDECARS,
    copy_sidecars,
    is_plain,
    read_json_sidecar,
    read_sidecars,
    to_plain_settings,
)
from efface.interop.sizes import require_memory, require_safetensors_size

WEIGHT_SECTIONS = ("state_dict", "model_state_dict", "model", "module", "net")
"""Names of the section with the weights in a torch file."""
TRAINING_STATE = re.compile(r"(^|_)(optim|sched|scaler|rng|random|amp$|callbacks|loops)")
"""Matches the names of entries that belong to a training run and not to its result."""
NETWORK_SECTIONS = ("student", "teacher")
"""Sections that keep their names, because the name tells which network it is."""
TEXT_SUFFIXES = (".json", ".txt", ".md", ".model", ".yaml", ".yml", ".jinja", ".py", "")
"""Suffixes of files in a model folder that hold no weights."""
WEIGHT_STEMS = ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
"""Names of the weights in a model folder, best first."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")
"""Suffixes of the weights in a model folder, best first."""


class Container(Protocol):
    """An opened checkpoint: a torch file, a safetensors file or a folder."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """Flat name to tensor, in the order of the file; ``section/name`` outside of the main section."""
        ...

    @property
    def meta(self) -> dict[str, Any]:
        """Plain entries, and the JSON files beside the weights under their file names."""
        ...

    def entries(self) -> dict[str, str]:
        """Describe what is beside the weights: entry to what happens to it when the container is written cleaned."""
        ...

    def write(
        self, folder: Path, changed: Mapping[str, Tensor], *, cleaned: bool, without: Collection[str] = ()
    ) -> dict[str, str]:
        """Write a copy with the same name into a folder.

        Args:
            folder: An existing folder.
            changed: Tensors that replace those of the same names; shapes and dtypes must be equal.
            cleaned: Whether to leave out the state of the training run.
            without: Names of the tensors to leave out.

        Returns:
            What was left out beside the tensors: name to reason.

        """
        ...


def open_container(path: Path, *, trust_pickle: bool = False) -> Container:
    """Open a file of weights or a model folder.

    Args:
        path: The file or folder.
        trust_pickle: See :func:`efface.interop.safe_load.load_torch`.

    Raises:
        EffaceError: There is nothing at that path, it is refused as unsafe or damaged, or it holds no named tensors.

    """
    path = Path(path)
    if not path.exists():
        raise EffaceError(f"There is no checkpoint at {path}.", remedy="Check the path.")
    if path.is_dir():
        return open_folder(path, trust_pickle=trust_pickle)
    require_memory(path)
    if path.suffix == ".safetensors" or sniff_safetensors(path):
        return SafetensorsFile(path)
    return TorchFile(path, load_torch(path, trust_pickle=trust_pickle))


class SafetensorsFile:
    """One ``.safetensors`` file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        require_safetensors_size(path)
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                self.meta: dict[str, Any] = dict(file.metadata() or {}) | read_sidecars(path)
                loaded = {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise EffaceError(f"{path} is damaged or truncated.", str(error), "Fetch it again.") from error
        with path.open("rb") as file:
            self.start = 8 + int.from_bytes(file.read(8), "little")
            self.header: dict[str, Any] = json.loads(file.read(self.start - 8))
        self.state = {name: loaded[name] for name in self.header if name != "__metadata__"}
        if not self.state:
            raise EffaceError(f"{path} holds no named tensors.", "Its header is empty.")

    def entries(self) -> dict[str, str]:
        """Return the metadata of the header; all of it is kept."""
        return {name: f"kept: {value}" for name, value in self.meta.items() if name not in SIDECARS}

    def write(
        self, folder: Path, changed: Mapping[str, Tensor], *, cleaned: bool, without: Collection[str] = ()
    ) -> dict[str, str]:
        """Copy the file and replace the bytes of the changed tensors; header and metadata stay the same."""
        check_changed_tensors(self.state, changed, self.path)
        target = folder / self.path.name
        copy_sidecars(self.path, folder)
        if without:
            kept = {n: changed.get(n, old).cpu().contiguous() for n, old in self.state.items() if n not in without}
            save_file(kept, target, metadata=self.header.get("__metadata__"))
            return {}
        shutil.copyfile(self.path, target)
        with target.open("r+b") as file:
            for name, value in changed.items():
                file.seek(self.start + self.header[name]["data_offsets"][0])
                file.write(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return {}


class TorchFile:
    """One file of ``torch.save``: a state dict, or a dictionary with state dicts among its entries."""

    def __init__(self, path: Path, content: Any) -> None:
        self.path, self.content = path, content
        if not isinstance(content, dict) or not content:
            raise EffaceError(
                f"{path} holds no named tensors.",
                f"It holds a {type(content).__name__}.",
                "Save the state dict: torch.save(model.state_dict(), ...).",
            )
        self.main, self.sections = _find_sections(content)
        self.state: dict[str, Tensor] = {}
        self.places: dict[str, tuple[str | None, str]] = {}
        for section in self.sections:
            prefix = "" if section == self.main else f"{section}/"
            for name, value in self.get_section(section).items():
                if isinstance(name, str) and isinstance(value, Tensor):
                    self.state[prefix + name] = value
                    self.places[prefix + name] = (section, name)
        if not self.state:
            raise EffaceError(f"{path} holds no named tensors.", f"Its entries: {', '.join(map(str, content))[:200]}.")
        self.meta = {
            str(name): to_plain_settings(value) for name, value in content.items() if is_plain(value)
        } | read_sidecars(path)
        described = getattr(content, "_metadata", None)
        if isinstance(described, dict) and is_plain(described.get("efface")) and described.get("efface"):
            self.meta["efface"] = described["efface"]

    def get_section(self, section: str | None) -> dict[Any, Any]:
        """Return the dictionary of a section; ``None`` stands for the file's top level."""
        return self.content if section is None else self.content[section]

    def entries(self) -> dict[str, str]:
        """Return the entries of the file that are not weights: name to what happens to each."""
        dropped = _dropped_entries(self.content, self.sections)
        others = [key for key in self.content if key not in self.sections and str(key) not in dropped]
        kept = {str(key): f"kept: {_abbreviate(self.content[key])}" for key in others if key not in self.state}
        return kept | dropped

    def write(
        self, folder: Path, changed: Mapping[str, Tensor], *, cleaned: bool, without: Collection[str] = ()
    ) -> dict[str, str]:
        """Save the same nested dictionaries with the changed tensors in place."""
        check_changed_tensors(self.state, changed, self.path)
        content = copy.copy(self.content)
        sections = {section: copy.copy(self.get_section(section)) for section in self.sections if section is not None}
        content.update(sections)
        for name, value in changed.items():
            section, key = self.places[name]
            (content if section is None else sections[section])[key] = value.detach().cpu().contiguous()
        for name in without:
            section, key = self.places[name]
            del (content if section is None else sections[section])[key]
        for section in [section for section, inside in sections.items() if not inside and without]:
            del content[section]
        notes = _dropped_entries(content, self.sections) if cleaned else {}
        for key in [key for key in content if str(key) in notes]:
            del content[key]
        zipped = is_archive(self.path)
        torch.save(content, folder / self.path.name, _use_new_zipfile_serialization=zipped)
        copy_sidecars(self.path, folder)
        return notes


@dataclass(frozen=True, eq=False)
class Folder:
    """A model folder: one file of weights or several shards, and small files beside them."""

    path: Path
    members: tuple[Container, ...]
    state: dict[str, Tensor] = field(init=False)
    meta: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        state: dict[str, Tensor] = {}
        meta: dict[str, Any] = {}
        for member in self.members:
            duplicates = [name for name in member.state if name in state]
            if duplicates:
                raise EffaceError(
                    f"{self.path} holds '{duplicates[0]}' twice.",
                    f"Once more in {member.path.name}.",
                    "Fetch it again.",
                )
            state |= member.state
            meta |= member.meta
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "meta", meta)

    def _other_files(self) -> list[Path]:
        weights = {member.path.name for member in self.members}
        return [item for item in sorted(self.path.iterdir()) if item.name not in weights]

    def entries(self) -> dict[str, str]:
        """Return the files beside the weights: name to what happens to each."""
        outcome = {True: "kept", False: "left behind: it may hold weights or a training state"}
        return {item.name: outcome[_is_safe_to_keep(item)] for item in self._other_files()}

    def write(
        self, folder: Path, changed: Mapping[str, Tensor], *, cleaned: bool, without: Collection[str] = ()
    ) -> dict[str, str]:
        """Copy the folder, with the changed tensors in its weights; cleaned, no other file that may hold weights."""
        check_changed_tensors(self.state, changed, self.path)
        target = folder / self.path.name
        target.mkdir(parents=True, exist_ok=True)
        notes: dict[str, str] = {}
        if cleaned:
            notes = {name: outcome for name, outcome in self.entries().items() if not outcome.startswith("kept")}
        for item in self._other_files():
            if item.name in notes:
                continue
            if item.is_dir():
                shutil.copytree(item, target / item.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(item, target / item.name)
        for member in self.members:
            inside = {name: value for name, value in changed.items() if name in member.state}
            absent = [name for name in without if name in member.state]
            notes |= member.write(target, inside, cleaned=cleaned, without=absent)
        return notes


def open_folder(path: Path, *, trust_pickle: bool = False) -> Folder:
    """Open a model folder. Safetensors are preferred to ``.bin``, and one file to shards."""
    if (path / ".metadata").exists() or any(path.glob("*.distcp")):
        raise EffaceError(
            f"{path} is a distributed checkpoint in pieces.",
            remedy="Join it first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth",
        )
    found = weights_file(path)
    if found is not None and found.suffix == ".json":
        return Folder(path, _open_shards(found, trust_pickle))
    if found is not None:
        return Folder(path, (open_container(found, trust_pickle=trust_pickle),))
    raise EffaceError(
        f"{path} holds no weights that are known here.",
        f"Looked for {', '.join(WEIGHT_STEMS)} with .safetensors, .bin, .pt, and for their index.json.",
        "Name the file of weights itself.",
    )


def weights_file(path: Path) -> Path | None:
    """Return a file itself, or the weights or index of shards in a folder; ``None`` if there are none."""
    if path.is_file():
        return path
    names = [
        f"{stem}{suffix}{index}" for suffix in WEIGHT_SUFFIXES for stem in WEIGHT_STEMS for index in ("", ".index.json")
    ]
    return next((path / name for name in names if (path / name).is_file()), None)


def _open_shards(index: Path, trust_pickle: bool) -> tuple[Container, ...]:
    listed = read_json_sidecar(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise EffaceError(
            f"{index} lists no tensors.", "It should have a 'weight_map' of names of files.", "Fetch it again."
        )
    names = list(dict.fromkeys(listed.values()))
    there_are = {item.name for item in index.parent.iterdir()}
    for name in names:
        if name not in there_are or Path(name).name != name or not (index.parent / name).is_file():
            raise EffaceError(f"The shard {name} is not in {index.parent}.", f"{index.name} lists it.", "Fetch it.")
    shards = tuple(open_container(index.parent / name, trust_pickle=trust_pickle) for name in names)
    there = {tensor: shard.path.name for shard in shards for tensor in shard.state}
    wrong = [tensor for tensor in {*listed, *there} if listed.get(tensor) != there.get(tensor)]
    if wrong:
        first = min(wrong)
        raise EffaceError(
            f"The shards in {index.parent} are not what {index.name} says, in {len(wrong)} tensors.",
            f"'{first}' should be in {listed.get(first, 'none')} and is in {there.get(first, 'none')}.",
            "Fetch all the shards of one revision.",
        )
    return shards


def check_changed_tensors(state: Mapping[str, Tensor], changed: Mapping[str, Tensor], path: Path) -> None:
    """Raise an error unless each changed tensor has the name, shape and dtype of one in the file."""
    for name, value in changed.items():
        old = state.get(name)
        if old is None or old.shape != value.shape or old.dtype != value.dtype:
            kept = "nothing" if old is None else f"{tuple(old.shape)} {old.dtype}"
            raise EffaceError(
                f"'{name}' cannot be written into the layout of {path}.",
                f"There it is {kept}; the new one is {tuple(value.shape)} {value.dtype}.",
            )


def _find_sections(content: dict[Any, Any]) -> tuple[str | None, list[str | None]]:
    """Return the main section and all sections that hold weights.

    A section is a key of ``content``; ``None`` stands for the top level. The main section is "" if there is none.
    """

    def is_state(value: Any) -> bool:
        return isinstance(value, dict) and bool(value) and all(isinstance(v, Tensor) for v in value.values())

    named = [key for key in WEIGHT_SECTIONS if isinstance(content.get(key), dict)][:1]
    sections = [*named, *(key for key, value in content.items() if is_state(value) and not _is_training_state(key))]
    sections = list(dict.fromkeys(sections))
    if named:
        return named[0], [*sections]
    if len(sections) == 1 and sections[0] not in NETWORK_SECTIONS:
        return sections[0], [*sections]
    if any(isinstance(value, Tensor) for value in content.values()):
        return None, [None, *sections]
    trained = [key for key in sections if not AVERAGED_NAMES.search(str(key)) and key not in NETWORK_SECTIONS]
    if len(trained) == 1 and not set(sections) & set(NETWORK_SECTIONS):
        return trained[0], [*sections]
    return "", [*sections]


def _is_safe_to_keep(item: Path) -> bool:
    """Whether an item of a model folder is a text file that describes the model."""
    return item.is_file() and item.suffix.lower() in TEXT_SUFFIXES and not _is_training_state(item.stem)


def _is_training_state(key: Any) -> bool:
    return TRAINING_STATE.search(str(key).lower()) is not None


def _dropped_entries(content: dict[Any, Any], sections: list[str | None]) -> dict[str, str]:
    """Return the entries to leave out, with reasons: those of the training run, and those that may hold anything."""
    notes: dict[str, str] = {}
    for key, value in content.items():
        if key in sections or (None in sections and isinstance(value, Tensor)):
            continue
        if _is_training_state(key):
            notes[str(key)] = "dropped: it belongs to the training run"
        elif not is_plain(value):
            notes[str(key)] = "dropped: it is not made of plain settings"
    return notes


def _abbreviate(value: Any) -> str:
    text = str(to_plain_settings(value))
    return text if len(text) <= 60 else text[:57] + "..."
