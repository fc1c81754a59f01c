from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketlm.data import read
from pocketlm.data.read import read_table, table_format
from pocketlm.errors import DataError, MissingExtraError

# Any character but NUL, lone surrogates and carriage returns (CSV writes its own line ends).
CHARACTERS = st.characters(exclude_characters="\0\r", exclude_categories=("Cs",))
CELLS = st.text(CHARACTERS, max_size=12)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path)
    return str(caught.value)


@SAME_FOLDER
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_csv_gives_back_what_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerows([("text", "label"), *rows])
    (tmp_path / "a.csv").write_bytes(stream.getvalue().encode())
    table = read_table(tmp_path / "a.csv")
    assert [(row["text"], row["label"]) for row in table.rows] == rows


@SAME_FOLDER
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), crlf=st.booleans())
def test_tsv_has_no_quoting(tmp_path: Path, rows: list[tuple[str, str]], crlf: bool) -> None:
    rows = [tuple(cell.replace("\t", " ").replace("\n", '"') for cell in row) for row in rows]
    end = "\r\n" if crlf else "\n"
    (tmp_path / "a.tsv").write_bytes(
        ("text\tlabel" + end + "".join(f"{a}\t{b}{end}" for a, b in rows)).encode()
    )
    table = read_table(tmp_path / "a.tsv")
    assert [(row["text"], row["label"]) for row in table.rows] == rows


@SAME_FOLDER
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"text": CELLS},
            optional={"n": st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)},
        ),
        min_size=1,
        max_size=6,
    ),
    ascii_only=st.booleans(),
)
def test_json_lines_give_back_what_was_written(tmp_path: Path, rows: list[dict], ascii_only: bool) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(lines.encode())
    table = read_table(tmp_path / "a.jsonl")
    assert [{name: row[name] for name in table.columns} for row in table.rows] == [
        {name: row.get(name) for name in table.columns} for row in rows
    ]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\nx\t1\n"),
        ("a.csv", "text,label\nx,1\n"),
        ("a.jsonl", '{"text": "x", "label": "1"}\n'),
        ("a.ndjson", '{"text": "x", "label": "1"}\n'),
    ],
)
def test_every_text_format_reads_alike_plain_and_compressed(write, compress, name: str, content: str) -> None:
    packed = name + (".gz" if compress is gzip.compress else ".bz2")
    for path in (write(name, content), write(packed, compress(content.encode()))):
        table = read_table(path)
        assert table.columns == ("text", "label")
        assert table.rows == [{"text": "x", "label": "1"}]
        assert table.source == path.name


def test_parquet_keeps_types_and_spells_the_rest(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "text": pa.array(["x", None]).dictionary_encode(),
        "n": pa.array([1, None]),
        "ok": pa.array([True, False]),
        "tokens": pa.array([["a", "b"], []]),
        "day": pa.array([0, 1], pa.date32()),
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").rows == [
        {"text": "x", "n": 1, "ok": True, "tokens": '["a", "b"]', "day": "1970-01-01"},
        {"text": None, "n": None, "ok": False, "tokens": "[]", "day": "1970-01-02"},
    ]


def test_parquet_ignores_the_name_of_its_folder(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "split=train").mkdir()
    path = tmp_path / "split=train" / "a.parquet"
    parquet.write_table(pa.table({"text": ["x"]}), path)
    assert read_table(path).columns == ("text",)


def test_parquet_errors(tmp_path: Path, write) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    whole = tmp_path / "whole.parquet"
    parquet.write_table(pa.table({"text": ["some text"] * 1000, "n": list(range(1000))}), whole)
    content = whole.read_bytes()
    cut_off = write("cut.parquet", content[: len(content) // 2])
    assert "cut.parquet: not a whole Parquet file (" in error_of(cut_off)
    garbled = write(
        "garbled.parquet", content[:4] + b"\xff" * (len(content) // 2) + content[4 + len(content) // 2 :]
    )
    assert "garbled.parquet: not a whole Parquet file (" in error_of(garbled)
    assert "not a whole Parquet file" in error_of(write("empty.parquet", b""))
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    assert "two columns are called 'a'" in error_of(tmp_path / "twice.parquet")
    parquet.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "none.parquet")
    assert "a header but no rows" in error_of(tmp_path / "none.parquet")


def test_parquet_without_pyarrow_names_the_install_command(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pocketlm\[compress\]'"):
        read_table(write("a.parquet", b"PAR1"))


def test_mark_crlf_blank_lines_and_outer_blanks_of_names_are_forgiven(write) -> None:
    path = write("a.csv", b"\xef\xbb\xbftext, label\r\n\r\nx,1\r\n\r\n")
    assert read_table(path).rows == [{"text": "x", "label": "1"}]
    assert read_table(write("b.tsv", "\ufefftext\tlabel\nx\t1")).columns == ("text", "label")


def test_unusual_line_separators_are_ordinary_characters(write) -> None:
    text = "a\u2028b\x85c\x0bd"
    assert read_table(write("a.tsv", f"text\tlabel\n{text}\t1\n")).rows[0]["text"] == text
    assert read_table(write("a.csv", f"text,label\n{text},1\n")).rows[0]["text"] == text
    assert (
        read_table(write("a.jsonl", json.dumps({"text": text}, ensure_ascii=False))).rows[0]["text"] == text
    )


def test_csv_takes_a_document_longer_than_the_modules_own_limit(write) -> None:
    before = csv.field_size_limit()
    document = "word " * 100_000
    assert read_table(write("a.csv", f'text,label\n"{document}",1\n')).rows[0]["text"] == document
    assert csv.field_size_limit() == before
    with pytest.raises(DataError) as caught:
        read_table(write("b.csv", "text,label\nx\n"))
    assert csv.field_size_limit() == before, caught  # while the error, and its frames, live


def test_json_columns_are_the_union_of_all_keys(write) -> None:
    table = read_table(write("a.jsonl", '{"a": 1}\n{"b": [1, {"c": "é"}], "a": null}\n'))
    assert table.columns == ("a", "b")
    assert table.rows == [{"a": 1, "b": None}, {"a": None, "b": '[1, {"c": "é"}]'}]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_100_mb_line_is_refused_before_it_fills_the_memory(tmp_path: Path, suffix: str) -> None:
    import tracemalloc

    path = tmp_path / f"long.tsv{suffix}"
    with gzip.open(path, "wb", compresslevel=1) if suffix else path.open("wb") as stream:
        stream.write(b"text\tlabel\n")
        for _ in range(100):
            stream.write(b"x" * 1_000_000)
    tracemalloc.start()
    message = error_of(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"{path.name}, line 2: longer than 10 MB" in message
    assert peak < 4 * read.MAX_LINE_BYTES


def test_the_longest_allowed_line_is_read(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 12)
    assert read_table(write("a.tsv", "text\tlabel\n123456789\t1\n")).rows[0]["text"] == "123456789"
    assert "line 2: longer than" in error_of(write("b.tsv", "text\tlabel\n1234567890\t1\n"))


def test_a_quote_that_never_closes_is_refused_before_it_fills_the_memory(write, monkeypatch) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 1000)
    message = error_of(write("a.csv", 'text,label\nx,1\n"never closed,1\n' + "more,0\n" * 1000))
    assert "a.csv, line 3: not valid CSV (field larger than field limit" in message
    assert "must end with one" in message


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.tsv", b"", ["a.tsv: the file is empty", "needs a header line"]),
        ("a.csv", b"\n\n", ["a.csv: the file is empty"]),
        ("a.jsonl", b"\n", ["a.jsonl: the file is empty", "one JSON object a line"]),
        ("a.tsv", b"text\tlabel\n", ["a.tsv: a header but no rows"]),
        ("a.csv", b"text,label\r\n", ["a.csv: a header but no rows"]),
        ("a.tsv", b"text\tlabel\nx\0y\t1\n", ["a.tsv, line 2: a NUL byte", "re-save it as UTF-8"]),
        ("a.csv", "text,label\nx,1\n".encode("utf-16-be"), ["a.csv, line 1: a NUL byte", "UTF-16"]),
        (
            "a.tsv",
            b"text\tlabel\nfine\t1\ncaf\xe9\t1\n",
            ["line 3: not UTF-8 (byte 0xe9 at position 4", "re-save"],
        ),
        (
            "a.tsv",
            b"text\tlabel\nx\ty\t1\n",
            ["line 2: 3 fields where the header has 2", "TSV has no quoting"],
        ),
        ("a.tsv", b"text\tlabel\nx\t1\ny\n", ["line 3: 1 field where the header has 2"]),
        ("a.csv", b"text,label\nx, y,1\n", ["line 2: 3 fields where the header has 2", "in double quotes"]),
        ("a.csv", b'text,label\n"x\ny",1\nz\n', ["line 4: 1 field where the header has 2"]),
        ("a.csv", b'text,label\nx,1\n"y,1\n', ["line 3: not valid CSV"]),
        ("a.csv", b'text,label\n"x" y,1\n', ["line 2: not valid CSV"]),
        (
            "a.csv",
            b"text\tlabel\nx\t1\n",
            ["split by tabs", "rename it to end in .tsv, or re-save it with commas"],
        ),
        (
            "a.csv",
            b"text;label\nx;1\n",
            ["split by semicolons (header: 'text;label'); re-save it with commas"],
        ),
        (
            "a.tsv",
            b"text,label\nx,1\n",
            ["split by commas", "rename it to end in .csv, or re-save it with tabs"],
        ),
        ("a.tsv", b"text|label\nx|1\n", ["split by vertical bars", "; re-save it with tabs"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": }\n', ["a.jsonl, line 2: not valid JSON", "one object a line"]),
        ("a.jsonl", b"[" * 100_000, ["line 1: not valid JSON", "one object a line"]),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", ["line 1: not valid JSON", "digits"]),
        ("a.jsonl", b'[{"text": "x"}]\n', ["line 1: [{", "where a JSON object is needed"]),
        ("a.jsonl", b"null\n", ["line 1: null where a JSON object is needed"]),
        ("a.jsonl", b'{"text": "x", "text": "y"}\n', ["line 1: not valid JSON (the key 'text' twice"]),
        ("a.jsonl", b'{"": "x"}\n', ["line 1: column 1 has no name"]),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', ["line 1: 'text' holds half a character"]),
        ("a.tsv", b"text\tlabel\ttext\nx\t1\ty\n", ["line 1: two columns are called 'text'"]),
        ("a.csv", b",text,label\n0,x,1\n", ["line 1: column 1 has no name"]),
        (
            "a.tsv.gz",
            gzip.compress(b"text\tlabel\n" + b"x\t1\n" * 9, mtime=0)[:-12],
            ["a.tsv.gz, line", "cut off or damaged"],
        ),
        ("a.tsv.gz", b"text\tlabel\nx\t1\n", ["a.tsv.gz, line 1", "cut off or damaged", "download it again"]),
        ("a.tsv.bz2", bz2.compress(b"text\tlabel\n" * 9)[:-4], ["a.tsv.bz2, line", "cut off or damaged"]),
        ("a.tsv.bz2", b"text\tlabel\nx\t1\n", ["a.tsv.bz2, line 1", "cut off or damaged"]),
        (
            "a.txt",
            b"x",
            ["a.txt: not a kind of table", ".tsv .csv .jsonl .ndjson", ".gz or .bz2", ".parquet"],
        ),
        ("a.parquet.gz", b"x", ["a.parquet.gz: not a kind of table"]),
        ("a", b"x", ["a: not a kind of table"]),
    ],
)
def test_unusable_files_are_named_with_line_and_remedy(
    write, name: str, content: bytes, parts: list[str]
) -> None:
    message = error_of(write(name, content))
    for part in parts:
        assert part in message


def test_a_bit_flipped_inside_gz_is_an_error(write) -> None:
    packed = bytearray(gzip.compress(("text\tlabel\n" + "some text\t1\n" * 1000).encode()))
    packed[len(packed) // 2] ^= 0xFF
    assert "damaged" in error_of(write("a.tsv.gz", bytes(packed)))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "gone.tsv: there is no such file" in error_of(tmp_path / "gone.tsv")
    assert "gone: there is no such file" in error_of(tmp_path / "gone")
    (tmp_path / "folder.tsv").mkdir()
    assert "where a file is needed" in error_of(tmp_path / "folder.tsv")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b.TSV.GZ", ".tsv"),
        ("v1.2.csv", ".csv"),
        ("a.gz", None),
        ("tsv", None),
        (".tsv", None),
        ("a.tsv.zip", None),
    ],
)
def test_the_format_is_the_suffix(name: str, expected: str | None) -> None:
    assert table_format(Path(name)) == expected
