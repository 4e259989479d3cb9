"""Rows of .jsonl, .csv and .parquet files: counted and read without holding the file in memory.

JSON Lines: one object per line (jsonlines.org). CSV: RFC 4180, the first row names the columns. Parquet needs pyarrow,
which no other module uses.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from engineworks.errors import SamplesError
from engineworks.host.regular_files import open_regular
from engineworks.store.json_files import parse_json

SUFFIXES = (".jsonl", ".csv", ".parquet")

Row = dict[str, Any]

csv.field_size_limit(1 << 27)  # a document is longer than csv's default limit of 128 KiB per field


def look_at(path: Path) -> tuple[list[str], int]:
    """Names of the columns and the number of rows. Raises `SamplesError` for a file that cannot be parsed.

    The columns of a .jsonl file are those of its first line.
    """
    if path.suffix == ".parquet":
        file = _parquet(path)
        return list(file.schema_arrow.names), int(file.metadata.num_rows)
    if path.suffix == ".csv":
        rows = _csv_rows(path)
        try:
            columns = next(rows)[1]
        except StopIteration:
            raise SamplesError(f"{path.name}: the file is empty", hint="its first row names the columns") from None
        return columns, sum(1 for _ in rows)
    first: list[str] = []
    count = 0
    for number, line in _lines(path):
        if not count:
            first = list(_object(path, number, line))
        count += 1
    return first, count


def read_rows(path: Path, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows with these numbers (ascending, from 0), each with its place in the file: `file.csv:12`.

    Raises `SamplesError` for a row that cannot be parsed or lacks one of `columns`.
    """
    pending = iter(wanted)
    next_row = next(pending, None)
    for index, (place, row) in enumerate(_rows(path, columns)):
        if next_row is None:
            return
        if index == next_row:
            parsed = row if isinstance(row, dict) else _object(path, int(place.rpartition(":")[2]), row)
            for column in columns:
                if parsed.get(column) is None:
                    raise SamplesError(f"{place}: '{column}' is missing", hint="every row needs it, or leave it out")
            yield place, parsed
            next_row = next(pending, None)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row | str]]:
    if path.suffix == ".parquet":
        start = 0
        for rows_of_batch in _parquet_batches(path, columns):
            for offset, row in enumerate(rows_of_batch):
                yield f"{path.name}: row {start + offset + 1}", row
            start += len(rows_of_batch)
    elif path.suffix == ".csv":
        rows = _csv_rows(path)
        _, names = next(rows)
        for number, values in rows:
            if len(values) != len(names):
                raise SamplesError(
                    f"{path.name}:{number}: {len(values)} values for {len(names)} columns",
                    hint="quote texts that hold commas",
                )
            yield f"{path.name}:{number}", dict(zip(names, values, strict=True))
    else:
        for number, line in _lines(path):
            yield f"{path.name}:{number}", line


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-empty lines with their numbers."""
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with _opened(path, newline="") as file:
            reader = csv.reader(file, strict=True)
            for values in reader:
                if values:
                    yield reader.line_num, values
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except csv.Error as error:
        raise SamplesError(f"{path.name}:{reader.line_num}: {error}", hint="quote texts as CSV does") from None


def _object(path: Path, number: int, line: str) -> Row:
    try:
        value = parse_json(line.encode())
    except ValueError as error:
        raise SamplesError(f"{path.name}:{number}: is no JSON: {error}", hint="one JSON object per line") from None
    if not isinstance(value, dict):
        raise SamplesError(f"{path.name}:{number}: is no JSON object", hint='such as {"text": "…", "label": 1}')
    return value


def _opened(path: Path, newline: str | None = None) -> TextIO:
    """Open a regular file as UTF-8 text. Raises `SamplesError`."""
    try:
        return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=newline)
    except OSError as error:
        raise SamplesError(f"{path.name}: cannot be read: {error.strerror}") from None


def _parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[list[Row]]:
    """Yield the rows of the file, some at a time. Raises `SamplesError` for contents that are damaged."""
    file = _parquet(path)
    import pyarrow

    try:
        for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
            yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _not_parquet(path, error) from None


def _not_parquet(path: Path, error: Exception) -> SamplesError:
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    return SamplesError(f"{path.name}: is not a Parquet file that can be read ({message})")


def _parquet(path: Path) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise SamplesError(
            f"{path.name}: pyarrow reads it, and is not installed", hint="pip install 'engineworks[parquet]'"
        )
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(open_regular(path))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _not_parquet(path, error) from None


def _not_utf8(path: Path, error: UnicodeDecodeError) -> SamplesError:
    return SamplesError(
        f"{path.name}: is not UTF-8 ({error.reason} at byte {error.start})", hint="convert it: iconv -t utf-8"
    )
