"""WebDataset tars: keys, labels, what is not read, hostile tars, and tars that are written again."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from efface.data.identity import DataIdentity
from efface.data.pixel_caches import find_shards, list_residual_caches
from efface.data.shards import rewriting
from efface.data.shards.paths import expand_braces
from efface.data.shards.rewriting import rewrite_shards
from efface.data.sources import load
from efface.files import file_digest
from tests import shards
from tests.commands import refused
from tests.pictures import fails, raises

OPTIONS = {"size": 16}


def test_folder_and_tars_of_the_same_pictures_are_the_same_data(tmp_path, encoded):
    folder = load(shards.write_folder(tmp_path / "pictures", encoded), **OPTIONS)
    home = shards.write_tars(tmp_path / "tars", encoded)
    for source in (home, f"{home}/shard-{{000000..000002}}.tar"):
        tars = load(source, key_suffix=True, **OPTIONS)
        assert tars.keys.tolist() == folder.keys.tolist()
        assert tars.classes == folder.classes
        assert (tars.y == folder.y).all()
        assert (tars.x == folder.x).all()
        assert tars.digest() == folder.digest()
        assert (DataIdentity.of(tars).contents == DataIdentity.of(folder).contents).all()


def test_the_key_is_the_name_before_the_first_dot(tmp_path, encoded):
    path = shards.write_tar(tmp_path / "a.tar", shards.members(encoded))
    assert load(path, **OPTIONS).keys.tolist() == [one.key.removesuffix(".jpg") for one in encoded]


def test_what_is_said_in_texts_and_json(tmp_path, encoded):
    said = [
        ("a.jpg", encoded[0].content), ("a.txt", b"an ant\n"), ("a.json", b'{"label": 3, "group": "g1"}'),
        ("b.jpg", encoded[1].content), ("b.cls", b"7"), ("b.json", b'{"label": 3, "group": null}'), ("b.txt", b"b"),
    ]  # fmt: skip
    data = load(shards.write_tar(tmp_path / "a.tar", said), **OPTIONS)
    assert data.y is not None
    assert data.group is not None
    assert [data.classes[label] for label in data.y] == ["3", "7"]
    assert data.text == ("an ant", "b")
    assert data.group.tolist() == ["g1", ""]


def test_fields_with_other_names(tmp_path, encoded):
    said = [("a.jpg", encoded[0].content), ("a.json", b'{"id": 12, "title": "t"}')]
    path = shards.write_tar(tmp_path / "a.tar", said)
    data = load(path, columns={"key": "id", "caption": "title"}, **OPTIONS)
    assert (data.keys.tolist(), data.text) == (["12"], ("t",))
    fails(path, "maps 'captoin'", "caption", columns={"captoin": "title"}, **OPTIONS)
    fails(path, "no field 'none'", columns={"key": "none"}, **OPTIONS)


def test_folders_in_the_tar_are_classes_if_nothing_else_says_them(tmp_path, encoded):
    path = shards.write_tar(tmp_path / "a.tar", [(one.key, one.content) for one in encoded])
    assert load(path, **OPTIONS).classes == shards.CLASSES
    assert load(path, labels=False, **OPTIONS).y is None
    flat = [(f"all/{number}.jpg", one.content) for number, one in enumerate(encoded)]
    assert load(shards.write_tar(tmp_path / "b.tar", flat), **OPTIONS).y is None


def test_shards_that_are_called_train_and_val_are_the_official_parts(tmp_path, encoded):
    shards.write_tar(tmp_path / "t" / "train-0.tar", shards.members(encoded[:6]))
    shards.write_tar(tmp_path / "t" / "val-0.tar", shards.members(encoded[6:]))
    data = load(tmp_path / "t", **OPTIONS)
    assert data.official is not None
    assert (data.official == "test").sum() == 6
    shards.write_tar(tmp_path / "t" / "other.tar", [])
    fails(tmp_path / "t", "1 shards are neither train nor test", "other.tar", **OPTIONS)


def test_what_is_not_read_is_counted_and_said(tmp_path, encoded):
    more = [("a.npy", b"x"), ("a.seg.png", b"x"), (".hidden.jpg", b"x"), ("alone.cls", b"1"), ("README", b"x")]
    home = tmp_path / "t"
    shards.write_tar(home / "s.tar", [*shards.members(encoded), *more])
    (home / "sizes.json").write_text("{}")
    data = load(home, **OPTIONS)
    counts = {(one["folder"], one["kind"]): one["count"] for one in data.unread}
    assert counts == {
        ("", ".json"): 1, ("s", ".npy"): 1, ("s", ".seg.png"): 1, ("s", "hidden files"): 1,
        ("s", "texts without a picture"): 1, ("s", "files without a suffix"): 1,
    }  # fmt: skip
    assert "6 files in t were not read" in " ".join(data.notes)


def test_a_sample_with_two_pictures_needs_a_choice(tmp_path, encoded):
    path = shards.write_tar(tmp_path / "a.tar", [("a.jpg", encoded[0].content), ("a.png", encoded[1].content)])
    fails(path, "has 2 pictures: jpg, png", "data.picture=jpg", **OPTIONS)
    assert len(load(path, picture=".JPG", **OPTIONS)) == 1


def test_a_key_names_one_example(tmp_path, encoded):
    for number in range(2):
        shards.write_tar(tmp_path / "t" / f"{number}.tar", [("a.jpg", encoded[number].content)])
    fails(tmp_path / "t", "1 keys of t are used more than once: 'a'", "data.shard_keys=true", **OPTIONS)
    assert load(tmp_path / "t", shard_keys=True, **OPTIONS).keys.tolist() == ["0/a", "1/a"]


def test_patterns_count_and_choose(tmp_path):
    assert expand_braces("{a,b}-{08..10}.tar") == [f"{x}-{n}.tar" for x in "ab" for n in ("08", "09", "10")]
    assert expand_braces("{0..2}") == ["0", "1", "2"]
    raises(lambda: expand_braces("{0..999999999999}"), "more than 100000 shards")
    raises(lambda: expand_braces("{0..99999}{0..99999}"), "more than 100000 shards")
    raises(lambda: expand_braces("{5..2}"), "counts down")
    fails(tmp_path / "s-{0..3}.tar", "4 of 4 shards are missing")


def _link(kind: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return buffer.getvalue()


def _named(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


def _claims(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that claims a content which is not there."""
    info = tarfile.TarInfo("a.jpg")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


HOSTILE = {
    "symbolic link": (lambda good: _link(tarfile.SYMTYPE), "is a link"),
    "hard link": (lambda good: _link(tarfile.LNKTYPE), "is a link"),
    "device": (lambda good: _link(tarfile.CHRTYPE), "is no plain file"),
    "pipe": (lambda good: _link(tarfile.FIFOTYPE), "is no plain file"),
    "leads up": (lambda good: _named("../../a.jpg"), "leads out of it"),
    "absolute": (lambda good: _named("/a.jpg"), "leads out of it"),
    "cut in a member": (lambda good: good[: len(good) // 2 - 100], "cut off"),
    "cut between members": (lambda good: good[: good.index(b"cat/0001.jpg") // 512 * 512], "cut off"),
    "without an end": (lambda good: good.rstrip(b"\0"), "cut off"),
    "empty": (lambda good: b"", "damaged or cut off"),
    "damaged header": (lambda good: good.replace(b"cat/0001.jpg", b"cat/0009.jpg", 1), "damaged or cut off"),
    "two joined": (lambda good: good + good, "holds more after the mark of its end"),
    "more than there is": (lambda good: _claims(2**50), "claims 1125899906842624 bytes"),
    "a name without end": (lambda good: _claims(2**40, tarfile.GNUTYPE_LONGNAME), "claims"),
    "headers without end": (lambda good: _claims(2**40, tarfile.XHDTYPE), "claims"),
    "compressed": (lambda good: gzip.compress(good), "compressed tar"),
    "no tar": (lambda good: b"PK\x03\x04" + bytes(2000), "damaged"),
    "the same member twice": (lambda good: _named("a.jpg")[:1024] + _named("a.jpg"), "two members"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused(tmp_path, encoded, own_cache, name):
    make, says = HOSTILE[name]
    path = tmp_path / "a.tar"
    good = shards.write_tar(tmp_path / "good.tar", shards.members(encoded)).read_bytes()
    path.write_bytes(make(good))
    fails(path, says, **OPTIONS)
    assert not own_cache.exists()


def test_hostile_texts_are_refused(tmp_path, encoded):
    jpg = ("a.jpg", encoded[0].content)
    for name, content, says in (
        ("a.json", b"[" * 100_000, "is no JSON"), ("a.json", b"[1]", "no JSON object"), ("a.cls", b"\xff", "not text"),
        ("a.txt", b"x" * 2**21, "has 2097152 bytes"), ("a.json", b'{"label": {"a": 1}}', "text or a whole number"),
        ("a.cls", b"-1", "would become a class"),
    ):  # fmt: skip
        fails(shards.write_tar(tmp_path / "a.tar", [jpg, (name, content)]), says, **OPTIONS)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    from efface.data import image_files

    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "PNG")  # 80 KB, 81 MB when it is decoded
    monkeypatch.setattr(image_files, "free_memory", lambda: 2**28)
    fails(shards.write_tar(tmp_path / "a.tar", [("a.png", buffer.getvalue())]), "GB of memory", **OPTIONS)


def test_a_broken_picture_is_skipped_on_request(tmp_path, encoded):
    path = shards.write_tar(tmp_path / "a.tar", [*shards.members(encoded), ("z.jpg", encoded[0].content[:90])])
    fails(path, "1 of 13 images cannot be read", "'z'", "as an image", "skip_broken", **OPTIONS)
    for decode in ("memory", "lazy"):
        data = load(path, skip_broken=True, decode=decode, **OPTIONS)
        assert (len(data), [one["key"] for one in data.skipped]) == (12, ["z"])


def test_shards_that_hold_forgotten_pictures_are_listed(tmp_path, encoded):
    data = load(shards.write_tars(tmp_path / "t", encoded), **OPTIONS)
    forgotten = [encoded[0].key.removesuffix(".jpg"), encoded[3].key.removesuffix(".jpg")]  # both in the first
    assert find_shards(data, forgotten) == {str(tmp_path / "t" / "shard-000000.tar"): 2}
    assert find_shards(data.take([5, 4, 3]), forgotten) == {str(tmp_path / "t" / "shard-000000.tar"): 1}
    listed = list_residual_caches(data, forgotten)
    assert "it holds 2 forgotten pictures" in listed[f"shard {tmp_path / 't' / 'shard-000000.tar'}"]


def test_a_tar_is_written_again_without_forgotten_pictures(tmp_path, encoded):
    home = shards.write_tars(tmp_path / "t", encoded)
    before = load(home, **OPTIONS)
    forgotten = {encoded[0].key.removesuffix(".jpg"), encoded[4].key.removesuffix(".jpg")}
    old = {path.name: path.read_bytes() for path in home.iterdir()}
    planned = rewrite_shards(str(home), forgotten, {}, dry_run=True)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == old
    (home / "shard-000000.tar.123-abcdef.tmp").write_bytes(b"left by a command that was killed")
    made = rewrite_shards(str(home), [*forgotten, "nobody"], {"size": 16})
    assert [(one.removed, one.kept) for one in made.shards] == [(1, 3), (1, 3)]
    assert (made.examined, made.absent, made.copies) == (3, 1, ())
    for one, plan in zip(made.shards, planned.shards, strict=True):
        assert one.after == file_digest(Path(one.path)) != one.before == plan.before
    assert sorted(path.name for path in home.iterdir()) == sorted(old)  # nothing else is left beside them
    assert (home / "shard-000002.tar").read_bytes() == old["shard-000002.tar"]
    everything = b"".join(path.read_bytes() for path in home.iterdir())
    for one in encoded:
        gone = one.key.removesuffix(".jpg") in forgotten
        assert (one.content in everything) != gone
        assert (one.key.encode() in everything) != gone
    after = load(home, **OPTIONS)
    kept = [row for row, key in enumerate(before.keys) if key not in forgotten]
    assert after.digest() == before.take(kept).digest()
    raises(lambda: rewrite_shards(str(home), forgotten, {}), "No shard of", "They were removed before")


def test_members_keep_their_headers_when_a_tar_is_written_again(tmp_path, encoded):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "about all"}) as archive:
        for number, name in enumerate(("b/" + "x" * 150 + "a.jpg", "b/" + "y" * 150 + ".jpg", "b/z.jpg")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(encoded[number].content), 1234.5, 0o640
            archive.addfile(info, io.BytesIO(encoded[number].content))
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    path.chmod(0o640)
    rewrite_shards(str(path), ["b/" + "x" * 150 + "a"], {})
    with tarfile.open(path) as archive:
        kept = [(one.name, one.mtime, one.mode, one.isdir()) for one in archive.getmembers()]
        assert archive.pax_headers == {"comment": "about all"}
    assert kept == [("b/" + "y" * 150 + ".jpg", 1234.5, 0o640, False), ("b/z.jpg", 1234.5, 0o640, False),
                    ("empty", 0, 0o644, True)]  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o640


def test_exact_copies_under_other_ids_are_said(tmp_path, encoded):
    home = shards.write_tars(tmp_path / "t", encoded)
    shards.write_tar(home / "more.tar", [("copy.jpg", encoded[0].content)])
    made = rewrite_shards(str(home), [encoded[0].key.removesuffix(".jpg")], {})
    assert made.copies == ("copy",)
    assert any("byte for byte" in line and "'copy'" in line for line in made.lines())


def test_a_shard_that_is_not_what_it_should_be_is_left_as_it_was(tmp_path, encoded, monkeypatch):
    home = shards.write_tars(tmp_path / "t", encoded)
    old = {path.name: path.read_bytes() for path in home.iterdir()}
    key = encoded[0].key.removesuffix(".jpg")

    def forgets_nothing(self, keys, path):
        path.write_bytes(self.shard.path.read_bytes())

    def loses_more(self, keys, path, real=rewriting.TarContent.write_without):
        real(self, set(self.keys[:2]) | keys, path)

    for write in (forgets_nothing, loses_more):
        monkeypatch.setattr(rewriting.TarContent, "write_without", write)
        raises(lambda: rewrite_shards(str(home), [key], {}), "is not what it should be")
        assert {path.name: path.read_bytes() for path in home.iterdir()} == old


def test_other_names_of_a_shard_are_not_left_behind(tmp_path, encoded):
    home = shards.write_tars(tmp_path / "t", encoded)
    key = encoded[0].key.removesuffix(".jpg")
    shard = home / "shard-000000.tar"
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real.tar"
    shard.rename(real)
    shard.symlink_to(real)
    os.link(real, tmp_path / "second.tar")
    raises(lambda: rewrite_shards(str(home), [key], {}), "2 names (hard links)")
    (tmp_path / "second.tar").unlink()
    rewrite_shards(str(home), [key], {})
    assert shard.is_symlink()
    assert encoded[0].content not in real.read_bytes()


def test_rewrite_on_the_command_line(efface, tmp_path, encoded):
    home = shards.write_tars(tmp_path / "t", encoded)
    listed = tmp_path / "ids.txt"
    listed.write_text(f"{encoded[0].key}\n", encoding="utf-8")
    refused(efface("rewrite", home, "--forget", listed), "No shard of", "data.key_suffix=true")
    refused(efface("rewrite", home, "--forget", tmp_path / "none.txt"), "no list of ids")
    refused(efface("rewrite", home, "--forget", listed, "--set", "data.key_sufix=true"), "key_suffix")
    code, out, err = efface("rewrite", home, "--forget", listed, "--set", "data.key_suffix=true", "--json")
    assert code == 0, err
    made = json.loads(out.splitlines()[-1])
    assert made["shards"][0]["after"] == file_digest(home / "shard-000000.tar")


def test_the_same_weights_from_folder_and_tars(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from efface.runs.train import pretrain_run

    encoded = shards.draw(48, side=70)
    settings = {
        "split": {"train": 12, "valid": 8, "holdout": 12, "test": 8},
        "recipe": {"objective": "simclr", "backbone": {"width": 8, "stride": 2}, "batch_size": 6, "epochs": 1},
        "device": "cpu",
    }
    sources = {
        "folder": {"source": str(shards.write_folder(tmp_path / "f", encoded)), "decode": "memory"},
        "lazy folder": {"source": str(tmp_path / "f"), "decode": "lazy"},
        "tars": {"source": str(shards.write_tars(tmp_path / "t", encoded)), "key_suffix": True, "decode": "lazy"},
        "tables": {"source": str(shards.write_tables(tmp_path / "p", encoded)), "decode": "memory"},
    }
    digests = {
        name: pretrain_run(tmp_path / name, settings | {"data": source | {"size": 66}}).model.digest()
        for name, source in sources.items()
    }
    assert len(set(digests.values())) == 1, digests


def test_shards_are_listed_with_the_unlearned_run_until_they_are_rewritten(tmp_path):
    pytest.importorskip("sqlalchemy", reason="the extra desk is not installed")
    from efface.desk.run_erasure import erase_run
    from efface.runs.train import pretrain_run, unlearn_run

    home = shards.write_tars(tmp_path / "t", shards.draw(48), shards=2)
    settings = {
        "data": {"source": str(home), "size": 16},
        "split": {"train": 16, "valid": 8, "holdout": 8, "test": 8},
        "recipe": {"objective": "simclr", "backbone": {"width": 8, "stride": 2}, "batch_size": 8, "epochs": 1},
        "device": "cpu",
    }
    pretrain_run(tmp_path / "original", settings)
    kept = json.loads((tmp_path / "original" / "split.json").read_text())["parts"]["retain"]
    (tmp_path / "ids.txt").write_text("\n".join(kept[:4]))
    method = {"name": "finetune", "epochs": 1}
    request = {"forget": str(tmp_path / "ids.txt"), "method": method, "device": "cpu"}
    made = unlearn_run(tmp_path / "original", tmp_path / "forgotten", request)
    held = {one for one in made.purged if one.startswith("shard ")}
    named = {one.place for one in erase_run(tmp_path / "forgotten", dry_run=True) if one.kind == "shard"}
    assert held == {f"shard {place}" for place in named}
    assert held
    assert rewriting.read_forgotten(tmp_path / "forgotten") == sorted(kept[:4])
    rewrite_shards(str(home), rewriting.read_forgotten(tmp_path / "forgotten"), {})
    assert not [one for one in erase_run(tmp_path / "forgotten", dry_run=True) if one.kind == "shard"]
    assert not set(kept[:4]) & set(load(home, size=16).keys.tolist())
