"""What remembers in files and folders that the user named: vectors, indexes, models, heads, banks, lists.

Everything in them is searched, or named as what was not. A file that fails is an outcome of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from efface.data.identity import IDENTITY
from efface.data.image_files import MORE_SUFFIXES, SUFFIXES
from efface.desk.derived import find_derived
from efface.desk.forgotten import UNSEARCHED, ForgottenIds, Remains, say_unsearched
from efface.desk.indexes import INDEX_SUFFIXES
from efface.desk.keyed_rows import KEYED_SUFFIXES, keyed_ids, require_keyed
from efface.desk.lists import divide_text, is_text, listed_words
from efface.desk.replacing import Replacement
from efface.desk.row_keys import KEY_ENDS, is_keys_of, read_array, texts_of
from efface.desk.run_ids import find_in_run, observed_ids, trained_on
from efface.desk.vectors import VECTOR_SUFFIXES, require_vectors, texts_beside_keys, vector_ids
from efface.errors import EffaceError
from efface.files import META, SPLIT

CHECKPOINT_FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
AVERAGE_NAMES = ("ema", "swa", "momentum", "teacher", "average")
MEDIA = (*SUFFIXES, *MORE_SUFFIXES, ".mp4", ".avi", ".mov", ".mkv", ".webm", ".wav", ".mp3", ".flac", ".ogg")
"""What holds neither ids nor vectors; it is named only if the user named it."""
PASSING = (".tmp", ".lock")
"""How the names of files end that are about to go."""
NEVER_TEXT = (".pkl", ".pickle", ".joblib", ".h5", ".hdf5")
"""Python objects, which are never loaded, and containers; also where they look like text."""
OTHERS_NAMED = 10
"""So many files of one unknown kind in one folder are named one by one; of more it is said how many there are."""
_LIST_DETAIL = "a person has to decide about it"


def find_in_folder(folder: Path, top: Path, ids: ForgottenIds, *, remove: bool) -> Iterator[Remains]:
    """Find what a folder remembers; ``top`` is the one that the user named."""
    try:
        if (folder / META).is_file() and (folder / SPLIT).is_file():
            yield from _find_in_other_run(folder, ids, remove=remove)
            return
        derived = find_derived(folder, ids, remove=remove)
        items = sorted(folder.iterdir())
    except (EffaceError, OSError) as error:
        yield say_unsearched(folder, error, ids)
        return
    if derived is not None:
        yield from derived
        gone = any(one.action == "remove" for one in derived)
        for run in () if gone else (one for one in items if (one / META).is_file()):
            yield from find_in_folder(run, top, ids, remove=remove)  # models of a bank whose weights were kept
        return
    unknown: dict[str, list[Path]] = defaultdict(list)
    for item in items:
        if _is_passing(item):
            continue
        if item.is_symlink():
            yield from _name_link(item, top)
        elif item.is_dir() and item.name == ".git":
            yield Remains("file", str(item), "list", f"{UNSEARCHED} it is the history of a repository")
        elif item.is_dir():
            yield from find_in_folder(item, top, ids, remove=remove)
        elif _is_unknown(item):
            unknown[item.suffix.lower()].append(item)
        else:
            yield from find_in_file(item, ids, remove=remove)
    yield from _name_unknown(folder, unknown)


def _find_in_other_run(run: Path, ids: ForgottenIds, *, remove: bool) -> Iterator[Remains]:
    """Find what a run outside the chain remembers; references of a plan are made again by its own command."""
    trained = ids.among(trained_on(run))
    reference = (run.parent / "plan.json").is_file() and (run.parent / "tasks.jsonl").is_file()
    if trained:
        kind = "reference" if reference else "checkpoint"
        gone = reference or remove
        detail = "trained on them" + ("" if gone else " (remove it with --remove-models)")
        yield Remains(kind, str(run), "remove" if gone else "list", detail, len(trained))
        if gone:
            return
    else:
        yield from find_in_run(run, ids, "the run is not of this chain")
    for path in sorted(run.iterdir()):  # what a user keeps there beside the files of the run
        kind, own = path.suffix.lower(), "observations" in path.name or path.name == IDENTITY
        if kind in (*INDEX_SUFFIXES, *VECTOR_SUFFIXES) and not own and not path.name.lower().endswith(KEY_ENDS):
            yield from find_in_file(path, ids, remove=remove)


def find_in_file(path: Path, ids: ForgottenIds, *, remove: bool, named: bool = False) -> Iterator[Remains]:
    """Find what a file remembers; if it cannot be read, or is of an unknown kind and ``named`` by the user, say so."""
    name, kind = path.name.lower(), path.suffix.lower()
    try:
        if _is_media(path) or _is_passing(path) or _is_unknown(path):
            if named:
                yield Remains("file", str(path), "list", f"{UNSEARCHED} {_why_unknown(path)}")
            return
        if kind in CHECKPOINT_FILES:
            what = "average" if any(word in name for word in AVERAGE_NAMES) else "checkpoint"
            detail = "nothing says what it was trained on" + ("" if remove else " (remove it with --remove-models)")
            yield Remains(what, str(path), "remove" if remove else "list", detail)
        elif name.endswith(KEY_ENDS):
            if not _has_rows(path):
                held = texts_of(read_array(path), "keys", path) if kind == ".npy" else listed_words(path)
                yield from _listed(path, len(ids.among(held)))
        elif kind in INDEX_SUFFIXES:
            yield from _find_rows("index", path, ids)
        elif kind == ".npz" and "observations" in name and (seen := observed_ids(path)):
            held = ids.among(seen)
            if held:
                yield Remains("observations", str(path), "remove", "scores of each example", len(held))
        elif kind == ".npy" and read_array(path, mapped=True).dtype.kind in "US":
            yield from _listed(path, len(ids.among(texts_of(read_array(path).reshape(-1), "texts", path))))
        elif kind in VECTOR_SUFFIXES:
            yield from _find_rows("vectors", path, ids)
        else:
            yield from _listed(path, len(ids.among(listed_words(path))))
    except (EffaceError, OSError) as error:
        yield say_unsearched(path, error, ids)


def _find_rows(kind: str, path: Path, ids: ForgottenIds) -> Iterator[Remains]:
    """Find rows of the forgotten, and texts beside the keys that name them."""
    for name, texts in texts_beside_keys(path).items() if kind == "vectors" else ():
        held = ids.among(word for one in texts for word in (one, *divide_text(one)))
        if held:
            yield Remains("list of ids", str(path), "list", f"'{name}' names them: {_LIST_DETAIL}", len(held))
    keyed = path.suffix.lower() in KEYED_SUFFIXES
    held = ids.among(keyed_ids(path) if keyed else vector_ids(path))
    if held:
        yield Remains(kind, str(path), "rewrite", "rows of the forgotten", len(held))
        return
    if keyed:
        require_keyed(path)
    else:
        require_vectors(path)
    if keyed and Replacement(path).pending:
        yield Remains(kind, str(path), "rewrite", "a call was cut while it replaced the file")


def _listed(path: Path, count: int) -> Iterator[Remains]:
    if count:
        yield Remains("list of ids", str(path), "list", _LIST_DETAIL, count)


def _has_rows(keys: Path) -> bool:
    """Whether a file of keys has an array or an index beside it, which is searched with it."""
    beside = (one for one in keys.parent.iterdir() if one.suffix.lower() in KEYED_SUFFIXES)
    return any(is_keys_of(keys.name, one) and not one.name.lower().endswith(KEY_ENDS) for one in beside)


def _is_passing(path: Path) -> bool:
    return path.name.endswith(PASSING)


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in MEDIA


def _is_unknown(path: Path) -> bool:
    """Whether a file is of a kind that nothing here reads: no text, and none of the kinds of vectors and models."""
    kind = path.suffix.lower()
    if kind in NEVER_TEXT or not path.is_file():
        return True
    if kind in (*CHECKPOINT_FILES, *INDEX_SUFFIXES, *VECTOR_SUFFIXES, *MEDIA) or path.name.lower().endswith(KEY_ENDS):
        return False
    try:
        return not is_text(path)
    except OSError:
        return False  # it is named when it is opened again


def _why_unknown(path: Path) -> str:
    if not path.is_file():
        return "it is no file"
    return f"nothing here reads {path.suffix.lower() or 'files without a suffix'}"


def _name_link(link: Path, top: Path) -> Iterator[Remains]:
    """Name a link that leads out of what is searched; pictures are often links."""
    target = link.resolve()
    if target.is_relative_to(top.resolve()) or (_is_media(link) and not target.is_dir()):
        return
    yield Remains("file", str(link), "list", f"{UNSEARCHED} it is a link; name what it leads to: {target}")


def _name_unknown(folder: Path, unknown: dict[str, list[Path]]) -> Iterator[Remains]:
    for paths in unknown.values():
        if len(paths) > OTHERS_NAMED:
            detail = f"{UNSEARCHED} {len(paths)} files; {_why_unknown(paths[0])}"
            yield Remains("file", str(folder), "list", detail)
            continue
        for path in paths:
            yield Remains("file", str(path), "list", f"{UNSEARCHED} {_why_unknown(path)}")
