"""Read pictures and what is said about them from tables of Arrow: Parquet files, and folders of ``datasets``. pyarrow.

A table can claim anything about itself: its rows and the sizes of its columns are checked against the file and the
memory before they are read, and rows are read in small batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from efface.data.array_files import USABLE, free_memory
from efface.errors import EffaceError, optional_imports

BATCH_ROWS = 1024
BATCH_SHARE = 16
"""A batch of rows may take this part of the free memory: one divided by it."""
STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
"""What ``datasets`` writes beside its tables with ``save_to_disk``."""
_REMEDY = "Write it again, or leave it out."


def require_pyarrow() -> Any:
    """Import pyarrow; raise an error that says how to install it."""
    with optional_imports("tables of pictures", "data"):
        import pyarrow
        import pyarrow.parquet  # it is used as an attribute
    return pyarrow


def unreadable_table_error(path: Path, error: Exception) -> EffaceError:
    """Build the error for a table that pyarrow cannot read."""
    return EffaceError(f"{path} cannot be read as a table.", f"It is damaged or cut off: {error}", _REMEDY)


class TableShard:
    """One file of rows: a ``.parquet``, or an ``.arrow`` as ``datasets`` writes it.

    Args:
        path: The file.

    Raises:
        EffaceError: It is damaged, or claims more than its size or the memory allows.

    """

    def __init__(self, path: Path) -> None:
        self.path, self.arrow = path, require_pyarrow()
        with open(path, "rb") as file:
            self.is_parquet = file.read(4) == b"PAR1" or path.suffix.lower() == ".parquet"
        with self.errors():
            if self.is_parquet:
                opened = self._open_parquet()
                self.schema, self.rows = opened.schema_arrow, int(opened.metadata.num_rows)
                opened.close()
            else:
                self.schema, self.rows = self._scan_arrow()
        if self.rows > max(1, path.stat().st_size):
            raise EffaceError(
                f"{path} claims {self.rows} rows, and has {path.stat().st_size} bytes.",
                "A picture has more than one byte.",
                _REMEDY,
            )

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """The names of classes that ``datasets`` stored for columns of integers."""
        features: Any = {}
        try:
            metadata = (self.schema.metadata or {}).get(b"huggingface")
            if metadata is not None:
                features = json.loads(metadata)["info"]["features"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
        if not isinstance(features, dict):
            return {}
        return {
            name: tuple(map(str, one["names"]))
            for name, one in features.items()
            if isinstance(one, dict) and one.get("_type") == "ClassLabel" and isinstance(one.get("names"), list)
        }

    def picture_columns(self) -> list[str]:
        """The columns that can hold pictures: bytes, or bytes with a path as ``datasets`` stores them."""
        return [one.name for one in self.schema if is_picture_type(self.arrow, one.type)]

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Read some columns, a few rows at a time; ``image.path`` names a field of a column.

        Raises:
            EffaceError: The table is damaged, or takes more memory than there is.

        """
        with self.errors():
            if not self.is_parquet:
                yield from self._arrow_batches(columns)
                return
            file = self._open_parquet()
            try:
                for group in range(file.num_row_groups):
                    rows = self._affordable(file.metadata.row_group(group), columns)
                    yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns))
            finally:
                file.close()

    def pictures(self, column: str) -> Iterator[bytes | None]:
        """The encoded pictures of a column, row by row; None where a row has none."""
        nested = self.arrow.types.is_struct(self.schema.field(column).type)
        for batch in self.batches([f"{column}.bytes" if nested else column]):
            values = batch.column(0)
            for value in values.field("bytes") if nested else values:
                yield value.as_py()

    def write_rows(self, path: Path, keep: Sequence[bool]) -> None:
        """Write some of the rows to another file of the same format, with the same schema.

        Args:
            path: The file to write.
            keep: Whether each row is kept.

        """
        rows, names = iter(keep), self.schema.names
        with ExitStack() as stack:
            if self.is_parquet:
                file = stack.enter_context(self._open_parquet())
                writer = stack.enter_context(
                    self.arrow.parquet.ParquetWriter(
                        path,
                        self.schema,
                        compression=_compressions(file.metadata),
                        version=file.metadata.format_version,
                    )
                )
                for group in range(file.num_row_groups):
                    size = self._affordable(file.metadata.row_group(group), names)
                    batches = file.iter_batches(batch_size=size, row_groups=[group])
                    kept = [self._filter(batch, rows) for batch in batches]
                    table = self.arrow.Table.from_batches(kept, schema=self.schema)
                    if len(table):
                        writer.write_table(table, row_group_size=len(table))
                return
            file = stack.enter_context(self.arrow.memory_map(str(self.path)))
            reader = self._arrow_reader(file)
            make = self.arrow.ipc.new_file if hasattr(reader, "num_record_batches") else self.arrow.ipc.new_stream
            writer = stack.enter_context(make(str(path), self.schema))
            for batch in _stream(reader):
                batch.validate(full=True)
                kept = self._filter(batch, rows)
                if kept.num_rows:
                    writer.write_batch(kept)

    def _filter(self, batch: Any, rows: Iterator[bool]) -> Any:
        return batch.filter(self.arrow.array(list(islice(rows, batch.num_rows)), self.arrow.bool_()))

    def _open_parquet(self) -> Any:
        return self.arrow.parquet.ParquetFile(self.path, buffer_size=2**20)

    def _affordable(self, group: Any, columns: Sequence[str]) -> int:
        """How many rows of a row group are read at once: any of them can be as large as all that is stored."""
        largest = 0
        for number in range(group.num_columns):
            column = group.column(number)
            if any(column.path_in_schema == one or column.path_in_schema.startswith(f"{one}.") for one in columns):
                largest = max(largest, int(column.total_uncompressed_size))
        free = free_memory()
        if largest > USABLE * free or largest < 0:
            raise EffaceError(
                f"A part of {self.path} takes {largest / 2**30:.1f} GB of memory, and {free / 2**30:.1f} GB are free.",
                "Parquet is read by row groups, and one of them is too large.",
                "Write it again with smaller row groups.",
            )
        return int(min(BATCH_ROWS, max(1, free // BATCH_SHARE // max(1, largest))))

    def _scan_arrow(self) -> tuple[Any, int]:
        with self.arrow.memory_map(str(self.path)) as file:
            reader = self._arrow_reader(file)
            rows = 0
            for batch in _stream(reader):
                batch.validate()
                rows += batch.num_rows
            return reader.schema, rows

    def _arrow_reader(self, file: Any) -> Any:
        try:
            return self.arrow.ipc.open_stream(file)
        except self.arrow.ArrowInvalid:
            file.seek(0)
            return self.arrow.ipc.open_file(file)

    def _arrow_batches(self, columns: Sequence[str]) -> Iterator[Any]:
        with self.arrow.memory_map(str(self.path)) as file:
            for batch in _stream(self._arrow_reader(file)):
                arrays = [batch.column(one.partition(".")[0]) for one in columns]
                for array in arrays:
                    array.validate(full=True)
                made = self.arrow.RecordBatch.from_arrays(arrays, names=[one.partition(".")[0] for one in columns])
                for start in range(0, made.num_rows, BATCH_ROWS):
                    yield made.slice(start, BATCH_ROWS)

    def errors(self) -> AbstractContextManager[None]:
        """Turn what pyarrow raises within into an error that names the file."""
        return _TableErrors(self.path, self.arrow)


class _TableErrors(AbstractContextManager[None]):
    """Turns what pyarrow raises into an error that names the file."""

    def __init__(self, path: Path, arrow: Any) -> None:
        self.path, self.arrow = path, arrow

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        known = (self.arrow.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError)
        if isinstance(error, known) and not isinstance(error, (EffaceError, FileNotFoundError)):
            raise unreadable_table_error(self.path, error) from error


def _stream(reader: Any) -> Iterator[Any]:
    """The batches of a stream, or of a file of batches."""
    if hasattr(reader, "num_record_batches"):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader


def _compressions(metadata: Any) -> dict[str, str]:
    """How each column is compressed."""
    if not metadata.num_row_groups:
        return {}
    columns = [metadata.row_group(0).column(number) for number in range(metadata.num_columns)]
    return {one.path_in_schema: "NONE" if one.compression == "UNCOMPRESSED" else one.compression for one in columns}


def is_picture_type(arrow: Any, kind: Any) -> bool:
    """Whether a column of this type can hold pictures."""
    types = arrow.types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_picture_type(arrow, kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)
