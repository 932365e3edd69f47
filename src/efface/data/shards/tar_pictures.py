"""List the pictures in WebDataset tars, with their keys and what is said about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from efface.data.image_files import ImageFile, image_suffixes
from efface.data.shards.fields import as_field, check_columns
from efface.data.shards.paths import Shard
from efface.data.shards.tars import TEXTS, TarMember, TarSample, group_members, read_fields
from efface.errors import EffaceError

TAR_SUFFIXES = (".tar",)
TAR_COLUMNS = ("key", "label", "caption", "group")


@dataclass(frozen=True, kw_only=True)
class TarOptions:
    """How the members of a tar are understood."""

    picture: str | None = None
    """Ending of the member that is the picture, such as ``jpg``; None: the only one that can be."""
    key_suffix: bool = False
    """Whether the key is the name of the picture with its suffix, as in a folder."""
    shard_keys: bool = False
    """Whether the name of the shard comes before each key."""
    columns: dict[str, str] = field(default_factory=dict)
    """Fields of ``.json`` members with other names."""

    @staticmethod
    def of(picture: Any, key_suffix: Any, shard_keys: Any, columns: Any) -> TarOptions:
        """Check what a user said.

        Raises:
            EffaceError: A value is of another kind.

        """
        if picture is not None and (not isinstance(picture, str) or not picture.strip(".")):
            raise EffaceError(f"The option 'picture' cannot be {picture!r}.", "It is an ending, such as jpg.")
        for name, value in (("key_suffix", key_suffix), ("shard_keys", shard_keys)):
            require_flag(name, value)
        ending = None if picture is None else picture.lower().strip(".")
        mapping = check_columns(columns, TAR_COLUMNS)
        return TarOptions(picture=ending, key_suffix=key_suffix, shard_keys=shard_keys, columns=mapping)


def require_flag(name: str, value: Any) -> None:
    """Raise unless an option is true or false."""
    if not isinstance(value, bool):
        raise EffaceError(f"The option '{name}' cannot be {value!r}.", "It is true or false.")


@dataclass(frozen=True, slots=True)
class TarPicture:
    """A picture in a tar, and all members that are about it."""

    item: ImageFile
    sample: TarSample
    fields: frozenset[str]
    """Which of label, caption and group are stated."""


def list_tar_pictures(shard: Shard, options: TarOptions, skipped: Counter[tuple[str, str]]) -> Iterator[TarPicture]:
    """List the pictures of a tar in the order of their first members.

    Args:
        shard: The tar.
        options: How its members are understood.
        skipped: Counts members that are not read, by shard and kind.

    Raises:
        EffaceError: The tar is damaged or hostile; it is unclear which member is a picture, or what is said about it.

    """
    for sample in group_members(shard.path, skipped, shard.name, suffixes=options.key_suffix).values():
        found = _find_picture(shard, sample, options)
        for ending in sample.members:
            if ending not in TEXTS and (found is None or ending != found[0]):
                skipped[shard.name, f".{ending}"] += 1
        if found is None:
            texts = sum(ending in TEXTS for ending in sample.members)
            if texts:
                skipped[shard.name, "texts without a picture"] += texts
            continue
        yield _describe(shard, sample, found[1], options)


def _find_picture(shard: Shard, sample: TarSample, options: TarOptions) -> tuple[str, TarMember] | None:
    if options.picture is not None:
        member = sample.members.get(options.picture)
        return None if member is None else (options.picture, member)
    found = [(ending, one) for ending, one in sample.members.items() if f".{ending}" in image_suffixes()]
    if len(found) > 1:
        raise EffaceError(
            f"The sample {sample.key!a} of {shard.path} has {len(found)} pictures: "
            f"{', '.join(ending for ending, _ in found)}.",
            "One of them is the example.",
            f"Say which: --set data.picture={found[0][0]}.",
        )
    return found[0] if found else None


def _describe(shard: Shard, sample: TarSample, member: TarMember, options: TarOptions) -> TarPicture:
    where = f"The sample {sample.key!a} of {shard.path}"
    said = read_fields(shard.path, sample)
    values: dict[str, str] = {}
    for name in ("label", "caption", "group"):
        field_name = options.columns.get(name, name)
        if field_name in said:
            values[name] = as_field(said[field_name], name, where)
    key = member.name if options.key_suffix else sample.key
    if "key" in options.columns:
        key = as_field(said.get(options.columns["key"]), "key", where)
        if not key:
            raise EffaceError(f"{where} has no field '{options.columns['key']}', which is to be its key.")
    key = f"{shard.name}/{key}" if options.shard_keys else key
    item = ImageFile(key, shard.path, **values, official=shard.official, place=member.part)
    return TarPicture(item, sample, frozenset(values))
