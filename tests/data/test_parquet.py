"""Tables of encoded pictures: columns, keys, damaged and hostile files, and tables that are written again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efface.data.pixel_caches import find_caches, find_shards, purge_caches
from efface.data.shards import hub, tables
from efface.data.shards.contents import TableContent
from efface.data.shards.rewriting import rewrite_shards
from efface.data.sources import load
from efface.errors import EffaceError
from efface.files import file_digest
from efface.runs.data_at_hand import absolute_data
from tests import shards
from tests.pictures import fails, raises

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
OPTIONS = {"size": 16}


def write(path, **columns):
    """Write a table with these columns."""
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("decode", ["memory", "lazy"])
def test_folder_and_tables_of_the_same_pictures_are_the_same_data(tmp_path, encoded, decode):
    folder = load(shards.write_folder(tmp_path / "pictures", encoded), **OPTIONS)
    for source in (
        shards.write_tables(tmp_path / "tables", encoded),
        f"{tmp_path}/tables/part-{{0,1}}.parquet",
        shards.write_saved(tmp_path / "saved", encoded),
    ):
        data = load(source, decode=decode, **OPTIONS)
        assert data.keys.tolist() == folder.keys.tolist()
        assert data.classes == folder.classes
        assert data.digest() == folder.digest()
        assert (data.x[:] == folder.x).all()


def test_columns_with_other_names(tmp_path, encoded):
    path = write(
        tmp_path / "a.parquet",
        __key__=["a", "b"],
        jpg=[one.content for one in encoded[:2]],
        cls=[3, None],
        title=["x", "y"],
    )
    data = load(path, **OPTIONS)
    assert data.keys.tolist() == ["a", "b"]
    assert data.y is not None
    assert data.y.tolist() == [0, -1]
    assert "not used are the columns 'title'" in " ".join(data.notes)
    assert load(path, columns={"caption": "title"}, **OPTIONS).text == ("x", "y")
    fails(path, "no such column", "jpg", columns={"image": "jpgs"}, **OPTIONS)
    fails(path, "holds no encoded pictures", columns={"image": "cls"}, **OPTIONS)
    fails(path, "maps 'titel'", columns={"titel": "title"}, **OPTIONS)


def test_it_must_be_clear_which_column_holds_the_pictures(tmp_path, encoded):
    content = [encoded[0].content]
    fails(write(tmp_path / "a.parquet", key=["a"], jpg=content, mask=content), "unclear which column", "jpg, mask")
    fails(write(tmp_path / "b.parquet", key=["a"], label=[1]), "unclear which column", "none")


def test_paths_beside_the_bytes_are_keys_if_nothing_else_is(tmp_path, encoded):
    stored = [{"bytes": one.content, "path": one.key} for one in encoded]
    data = load(write(tmp_path / "a.parquet", image=stored), **OPTIONS)
    assert data.keys.tolist() == [one.key for one in encoded]


def test_pictures_without_names_need_a_choice(tmp_path, encoded):
    content = [one.content for one in encoded] + [encoded[0].content]
    path = write(tmp_path / "a.parquet", image=content)
    fails(path, "Nothing names the pictures", "data.keys=content", **OPTIONS)
    fails(path, "cannot be 'rows'", "Did you mean 'row'", keys="rows", **OPTIONS)
    rows = load(path, keys="row", **OPTIONS)
    assert rows.keys[0] == "a/0000000"
    data = load(path, keys="content", **OPTIONS)
    assert (len(data), data.unread[0]["kind"], data.unread[0]["count"]) == (12, "copies of other pictures", 1)
    other = load(write(tmp_path / "b.parquet", image=content[::-1]), keys="content", **OPTIONS)
    assert data.digest() == other.digest()  # the keys do not depend on the rows
    raises(lambda: rewrite_shards(str(path), [str(rows.keys[0])], {"keys": "row"}), "keys are rows cannot be rewritten")
    key = next(key for key in data.keys if key.startswith(_content_key(encoded[0])))
    made = rewrite_shards(str(path), [key], {"keys": "content"})
    assert (made.shards[0].removed, made.shards[0].kept) == (2, 11)  # the copy as well


def _content_key(picture):
    return hashlib.sha256(picture.content).hexdigest()[:32]


def test_labels_that_are_no_position_in_the_list_of_classes_are_refused(tmp_path, encoded):
    features = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    stored = {"key": ["x", "y"], "image": [one.content for one in encoded[:2]], "label": [1, -1]}
    table = pyarrow.table(stored).replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet", **OPTIONS)
    assert data.y is not None
    assert (data.classes, data.y.tolist()) == (("a", "b"), [1, -1])
    parquet.write_table(table.set_column(2, "label", [[1, 2]]), tmp_path / "a.parquet")
    fails(tmp_path / "a.parquet", "A label", "is 2, and it names 2 classes", **OPTIONS)


def test_keys_must_be_there_and_be_unique(tmp_path, encoded):
    content = [one.content for one in encoded[:2]]
    fails(write(tmp_path / "a.parquet", key=["a", None], image=content), "Row 1", "has no key", **OPTIONS)
    fails(write(tmp_path / "a.parquet", key=["a", "a"], image=content), "used more than once", **OPTIONS)
    fails(write(tmp_path / "a.parquet", key=[0.5, 1.5], image=content), "text or a whole number", **OPTIONS)
    assert load(write(tmp_path / "a.parquet", key=[7, 8], image=content), **OPTIONS).keys.tolist() == ["7", "8"]


def test_rows_without_a_picture_are_broken(tmp_path, encoded):
    path = write(tmp_path / "a.parquet", key=["a", "b", "c"], image=[encoded[0].content, None, b"no picture"])
    fails(path, "2 of 3 images cannot be read", "the row holds no bytes of a picture", "'c'", **OPTIONS)
    assert load(path, skip_broken=True, **OPTIONS).keys.tolist() == ["a"]


def test_a_damaged_table_is_refused(tmp_path, encoded):
    good = (shards.write_tables(tmp_path / "t", encoded, shards=1) / "part-0.parquet").read_bytes()
    path = tmp_path / "a.parquet"
    for content in (b"", good[: len(good) // 2], good[:-9], b"PAR1" + bytes(100), good[:4] + bytes(3000) + good[3004:]):
        path.write_bytes(content)
        fails(path, "a.parquet cannot be read as a table", **OPTIONS)
    saved = shards.write_saved(tmp_path / "s", encoded)
    arrow = next(saved.glob("*.arrow"))
    whole = arrow.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2]):
        arrow.write_bytes(content)
        fails(saved, "cannot be read as a table", **OPTIONS)


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bytes_are_an_error_or_a_broken_picture_never_a_crash(tmp_path, encoded, seed):
    good = bytearray((shards.write_tables(tmp_path / "t", encoded, shards=1) / "part-0.parquet").read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(4, len(good), 40):
        good[place] ^= int(rng.integers(1, 256))
    path = tmp_path / "a.parquet"
    path.write_bytes(good)
    with contextlib.suppress(EffaceError):
        load(path, skip_broken=True, **OPTIONS)


def test_sizes_are_checked_before_memory_is_taken(tmp_path, encoded, monkeypatch):
    path = write(tmp_path / "a.parquet", key=["a"], image=[b"\0" * 2**24])  # a few hundred bytes in the file
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(tables, "free_memory", lambda: 2**23)
    fails(path, "GB of memory", "smaller row groups", **OPTIONS)
    many = write(
        tmp_path / "b.parquet",
        key=pyarrow.nulls(5_000_000, pyarrow.string()),
        image=pyarrow.nulls(5_000_000, pyarrow.binary()),
    )
    assert many.stat().st_size < 5_000_000
    fails(many, "claims 5000000 rows", **OPTIONS)


def test_a_saved_data_set_stays_in_its_folder(tmp_path, encoded):
    saved = shards.write_saved(tmp_path / "s", encoded)
    (saved / "cache-0123.arrow").write_bytes(b"x")
    data = load(saved, **OPTIONS)
    assert data.unread[0] == {"folder": "", "kind": "tables beside those of the data set", "count": 1}
    for state in ({"_data_files": [{"filename": "../x.arrow"}]}, {"_data_files": []}, {}, {"_data_files": [{}]}):
        (saved / "state.json").write_text(json.dumps(state))
        fails(saved, "does not list the tables", **OPTIONS)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "none.arrow"}]}))
    fails(saved, "has no table 'none.arrow'", **OPTIONS)
    (saved / "state.json").write_text("{")
    fails(saved, "cannot be read as a state of a data set", **OPTIONS)


def test_splits_of_a_saved_data_set_are_official_parts(tmp_path, encoded):
    for split, dealt in (("train", encoded[:8]), ("validation", encoded[8:])):
        shards.write_saved(tmp_path / "s" / split, dealt)
    (tmp_path / "s" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    data = load(tmp_path / "s", **OPTIONS)
    assert data.official is not None
    assert (data.official == "test").sum() == 4
    (tmp_path / "s" / "dataset_dict.json").write_text('{"splits": ["train", "../x"]}')
    fails(tmp_path / "s", "lists no splits", **OPTIONS)


def test_copies_of_encoded_pictures_are_kept_only_where_they_are_needed(tmp_path, encoded, own_cache):
    home = shards.write_tables(tmp_path / "t", encoded)
    caches = own_cache / "pixels"
    once = load(home, decode="memory", **OPTIONS)
    assert not list(caches.rglob("pictures.bin"))
    lazy = load(home, decode="lazy", **OPTIONS)
    kept = list(caches.rglob("pictures.bin"))
    assert len(kept) == 2
    assert (pickle.loads(pickle.dumps(lazy)).x[:] == once.x).all()  # as another process gets it
    forgotten = [encoded[0].key]
    held = find_caches(lazy, forgotten)
    assert sum(path.is_relative_to(folder) for path in kept for folder in held) == 1  # the copies of one shard
    purge_caches(lazy, forgotten)
    assert not find_caches(lazy, forgotten)
    assert (lazy.x[:] == once.x).all()  # made again from the table


def test_a_table_is_written_again_without_forgotten_pictures(tmp_path, encoded):
    for home in (shards.write_tables(tmp_path / "t", encoded), shards.write_saved(tmp_path / "s", encoded)):
        before = load(home, **OPTIONS)
        forgotten = {encoded[0].key, encoded[5].key}
        schemas = {Path(one): tables.TableShard(Path(one)).schema for one in find_shards(before, forgotten)}
        made = rewrite_shards(str(home), forgotten, {})
        assert sum(one.removed for one in made.shards) == 2
        after = load(home, **OPTIONS)
        kept = [row for row, key in enumerate(before.keys) if key not in forgotten]
        assert after.digest() == before.take(kept).digest()
        assert not find_shards(after, forgotten)
        for path, schema in schemas.items():
            again = tables.TableShard(path).schema
            assert again.equals(schema, check_metadata=True)
        everything = [value for path in schemas for value in tables.TableShard(path).pictures("image")]
        assert not {encoded[0].content, encoded[5].content} & set(everything)
        assert all(one.after == file_digest(Path(one.path)) for one in made.shards)
    described = parquet.ParquetFile(tmp_path / "t" / "part-0.parquet").metadata
    assert described.row_group(0).column(0).compression == "SNAPPY"
    assert described.num_row_groups == 2


def test_a_table_in_which_something_else_changed_is_left_as_it_was(tmp_path, encoded, monkeypatch):
    home = shards.write_tables(tmp_path / "t", encoded, shards=1)
    old = (home / "part-0.parquet").read_bytes()

    def other_labels(self, keys, path, real=TableContent.write_without):
        real(self, keys, path)
        table = parquet.read_table(path)
        parquet.write_table(table.set_column(2, "label", [[0] * len(table)]).cast(table.schema), path)

    monkeypatch.setattr(TableContent, "write_without", other_labels)
    raises(lambda: rewrite_shards(str(home), [encoded[0].key], {}), "is not what it should be")
    assert (home / "part-0.parquet").read_bytes() == old


def test_a_data_set_of_the_hub(tmp_path, encoded, monkeypatch):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["revision"], options["allow_patterns"]))
        return str(shards.write_tables(tmp_path / "snapshot" / "default" / "train", encoded).parents[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert len(load("hf://datasets/me/zoo", **OPTIONS)) == 12
    assert len(load("hf://datasets/me/zoo@v1/default", **OPTIONS)) == 12
    assert asked == [
        ("me/zoo", hub.CONVERTED, ["*.parquet"]), ("me/zoo", "v1", ["default/*.parquet", "default/**/*.parquet"])
    ]  # fmt: skip
    assert absolute_data("hf://datasets/me/zoo") == "hf://datasets/me/zoo"
    raises(lambda: rewrite_shards("hf://datasets/me/zoo", ["a"], {}), "is on the Hub")
    fails("hf://datasets/me/zoo/../..", "is not the name of a data set")
    fails("hf://models/me", "is not the name of a data set")


def test_without_a_connection_the_hub_is_refused_clearly(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    fails("hf://datasets/me/zoo", "cannot be downloaded", "no route to host", "name their folder")


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, encoded, monkeypatch):
    path = write(tmp_path / "a.parquet", key=["a"], image=[encoded[0].content])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    fails(path, "pyarrow", "pip install 'efface[data]'")


def test_a_picture_in_a_table_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    from efface.data import image_files

    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "PNG")
    path = write(tmp_path / "a.parquet", key=["a"], image=[buffer.getvalue()])
    monkeypatch.setattr(image_files, "free_memory", lambda: 2**28)
    fails(path, "GB of memory", **OPTIONS)
