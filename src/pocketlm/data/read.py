"""Read a table of the user's data: TSV, CSV, JSON lines or Parquet.

Text is read in lines of bounded length, so a file that is not a table (a 100 MB line, also inside
gz) is refused before it fills the memory. TSV has no quoting: a `"` is an ordinary character.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

from pocketlm.errors import DataError, MissingExtraError

Value = str | int | float | None
Row = dict[str, Value]

MAX_LINE_BYTES = 10_000_000
TEXT_SUFFIXES = (".tsv", ".csv", ".jsonl", ".ndjson")
COMPRESSIONS = (".gz", ".bz2")
ALLOWED = f"{' '.join(TEXT_SUFFIXES)} (each also with {' or '.join(COMPRESSIONS)}) and .parquet"

_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}
_SUFFIXES = {"\t": ".tsv", ",": ".csv"}
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Table:
    """A table in memory.

    Args:
        columns: Names in the order of the file.
        rows: One value for every column in every row; None where a value is missing.
        source: File name, for messages.
    """

    columns: tuple[str, ...]
    rows: list[Row]
    source: str


def table_format(path: Path) -> str | None:
    """The suffix that names the format (`.tsv`, …), compression taken off; None if it is not one we read."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    allowed = (*TEXT_SUFFIXES, ".parquet")
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        allowed = TEXT_SUFFIXES
    return suffixes[-1] if suffixes and suffixes[-1] in allowed else None


def read_table(path: Path) -> Table:
    """Read one file; the format is the suffix.

    Args:
        path: A file that ends as `ALLOWED` says.

    Returns:
        The table. Values of TSV and CSV are strings; a nested value of JSON or Parquet becomes JSON text.

    Raises:
        DataError: the file is missing, empty, damaged, not UTF-8 or not a table; the message names
            the line and the remedy.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check the path")
    if not path.is_file():
        raise DataError(f"{path}: a folder or device where a file is needed")
    suffix = table_format(path)
    if suffix is None:
        raise DataError(f"{path.name}: not a kind of table that can be read; allowed: {ALLOWED}")
    if suffix == ".parquet":
        return _read_parquet(path)
    with closing(_lines(path)) as lines, _long_csv_fields():
        if suffix in (".jsonl", ".ndjson"):
            columns, rows = _read_json_lines(path.name, lines)
        else:
            columns, rows = _read_delimited(path.name, lines, "\t" if suffix == ".tsv" else ",")
    return _table(path.name, columns, rows)


def _table(name: str, columns: Sequence[str], rows: list[Row]) -> Table:
    """Check what all formats have in common."""
    if not rows:
        raise DataError(f"{name}: a header but no rows; the file needs at least one row of data")
    return Table(columns=tuple(columns), rows=rows, source=name)


def _check_names(where: str, columns: Sequence[str]) -> None:
    twice = sorted(column for column, times in Counter(columns).items() if times > 1)
    if "" in columns:
        place = list(columns).index("") + 1
        raise DataError(f"{where}: column {place} has no name; give every column a name")
    if twice:
        raise DataError(f"{where}: two columns are called {twice[0]!r}; give every column its own name")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file without their ends, each with its number from 1.

    Raises:
        DataError: the file is missing, damaged, not UTF-8, or has a line of more than 10 MB.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path")
    with closing(_lines(path)) as lines:
        return [(number, line.removesuffix("\n").removesuffix("\r")) for number, line in lines]


def _lines(path: Path) -> Generator[tuple[int, str], None, None]:
    """Line numbers from 1 and lines with their line end, decoded."""
    number = 0
    try:
        with _open(path) as stream:
            for number in count(1):
                raw = stream.readline(MAX_LINE_BYTES + 1)
                if not raw:
                    return
                yield number, _decode(f"{path.name}, line {number}", raw, first=number == 1)
    except (EOFError, zlib.error) as error:
        raise DataError(_damaged(path, number)) from error
    except OSError as error:
        if error.errno is None:  # how gzip and bz2 report bytes that are not theirs
            raise DataError(_damaged(path, number)) from error
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    return path.open("rb")


def _damaged(path: Path, number: int) -> str:
    return (
        f"{path.name}, line {number}: the compressed file is cut off or damaged here; "
        "copy or download it again, or compress it anew"
    )


def _decode(where: str, raw: bytes, first: bool) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise DataError(
            f"{where}: longer than {MAX_LINE_BYTES // 1_000_000} MB, the most a line may have; "
            "is this a table with one row a line? Split or remove the line"
        )
    if b"\0" in raw:
        raise DataError(
            f"{where}: a NUL byte; the file is binary or UTF-16, re-save it as UTF-8 text or remove the byte"
        )
    if first:
        raw = raw.removeprefix(_UTF8_MARK)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line"
        raise DataError(f"{where}: not UTF-8 ({byte}); re-save the file as UTF-8") from error


def _read_delimited(
    name: str, lines: Iterator[tuple[int, str]], delimiter: str
) -> tuple[list[str], list[Row]]:
    records = _split_tsv(lines) if delimiter == "\t" else _split_csv(name, lines)
    number, header = next(records, (0, list[str]()))
    if not header:
        raise DataError(f"{name}: the file is empty; it needs a header line and one row a line")
    columns = [column.strip() for column in header]
    _check_delimiter(name, columns, delimiter)
    _check_names(f"{name}, line {number}", columns)
    remedy = (
        "TSV has no quoting, so replace a tab or line break inside a text by a blank"
        if delimiter == "\t"
        else 'put a text that holds a comma or line break in double quotes, and write " as ""'
    )
    rows: list[Row] = []
    for number, fields in records:
        if len(fields) != len(columns):
            raise DataError(
                f"{name}, line {number}: {_fields(len(fields))} where the header has {len(columns)}; {remedy}"
            )
        rows.append(dict(zip(columns, fields, strict=True)))
    return columns, rows


def _fields(number: int) -> str:
    return f"{number} field" if number == 1 else f"{number} fields"


def _check_delimiter(name: str, columns: Sequence[str], delimiter: str) -> None:
    """One column whose name holds another delimiter: the file is of another kind than its suffix says."""
    used = [other for other in _DELIMITERS if other != delimiter and other in columns[0]]
    if len(columns) > 1 or not used:
        return
    seen = max(used, key=columns[0].count)
    remedy = f"re-save it with {_DELIMITERS[delimiter]}"
    if seen in _SUFFIXES:
        remedy = f"rename it to end in {_SUFFIXES[seen]}, or {remedy}"
    raise DataError(
        f"{name}, line 1: a {_SUFFIXES[delimiter]} file is split by {_DELIMITERS[delimiter]}, but this one "
        f"seems to be split by {_DELIMITERS[seen]} (header: {_short(columns[0])!r}); {remedy}"
    )


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _split_tsv(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _split_csv(name: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Records with the number of their first line; a record may span lines inside quotes."""
    reader = csv.reader((line for _, line in lines), strict=True)
    first = 1
    try:
        for fields in reader:
            if fields:
                yield first, fields
            first = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {first}: not valid CSV ({error}); a field that starts with a double quote must "
            'end with one, and a " inside it is written ""'
        ) from error


@contextmanager
def _long_csv_fields() -> Generator[None, None, None]:
    """The csv module's limit for a field, 128 kB, is less than a long document."""
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_json_lines(name: str, lines: Iterator[tuple[int, str]]) -> tuple[list[str], list[Row]]:
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for number, line in lines:
        if line.strip():
            row = _json_row(f"{name}, line {number}", line)
            columns.update(dict.fromkeys(row))
            rows.append(row)
    if not rows:
        raise DataError(f"{name}: the file is empty; it needs one JSON object a line")
    return list(columns), [{column: row.get(column) for column in columns} for row in rows]


def _json_row(where: str, line: str) -> Row:
    try:
        values: Any = json.loads(line, object_pairs_hook=_json_object)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not valid JSON ({error}); write one object a line, such as "
            '{"text": "a quiet triumph", "label": "fresh"}'
        ) from error
    if not isinstance(values, dict):
        raise DataError(
            f"{where}: {_short(json.dumps(values))} where a JSON object is needed; write one object a line"
        )
    row = {key: _plain(value) for key, value in cast(dict[str, Any], values).items()}
    _check_names(where, list(row))
    if "\\u" in line:
        _check_surrogates(where, row)
    return row


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r} twice in one object")
    return values


def _check_surrogates(where: str, row: Row) -> None:
    """JSON can spell half a character (an escape such as ud83d), which no UTF-8 file can hold."""
    for key, value in row.items():
        try:
            f"{key}{value}".encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {_short(ascii(key))} holds half a character (an unpaired \\u surrogate); "
                "re-save the file as UTF-8"
            ) from error


def _plain(value: Any) -> Value:
    """Nested values become JSON text, dates and decimals the text they print as."""
    if value is None or isinstance(value, str | int | float):
        return value
    return (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)
    )


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "compress") from error
    parquet_file = cast(Any, parquet).ParquetFile  # unlike read_table, blind to the names of parent folders
    arrow_error = cast("type[Exception]", cast(Any, pyarrow).ArrowException)
    try:
        with parquet_file(path) as file:
            table = file.read()
        names = [str(name) for name in table.column_names]
        _check_names(path.name, names)
        values = [[_plain(cell) for cell in column.to_pylist()] for column in table.columns]
    except (arrow_error, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path.name}: not a whole Parquet file ({_short(str(error), 120)}); copy or download it again"
        ) from error
    rows: list[Row] = [dict(zip(names, cells, strict=True)) for cells in zip(*values, strict=True)]
    return _table(path.name, names, rows)
