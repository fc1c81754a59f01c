from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from rich.console import Console

from pocketlm.report.table import columns, ledger_rows, ledger_table, markdown_table

Pocket = dict[str, Any]


def printed(ledger: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(ledger_table(ledger))
    return console.export_text()


def test_rows_come_teacher_first_with_every_cell_written(full: Pocket):
    full["ledger"]["rows"].reverse()
    rows = ledger_rows(full["ledger"])
    assert [row["kind"] for row in rows] == ["teacher", "pocket", "control", "control", "control"]
    pocket = {key: cell.replace("\u202f", " ") for key, cell in rows[1].items()}
    assert pocket == {
        "name": "pocket",
        "kind": "pocket",
        "label": "Pocket, 3 layers, int8",
        "score": "82.2 %",
        "interval": "79.9–84.3",
        "retention": "97.8 %",
        "retention_interval": "95.9–99.6",
        "metric_macro_f1": "81.9 %",
        "size": "8.09 MB",
        "parameters": "6.61 M",
        "p50": "4.72 ms",
        "p95": "6.61 ms",
        "eager_p50": "7.90 ms",
        "throughput": "402 /s",
        "ram": "88.0 MB",
        "start": "71.0 ms",
        "training": "3 min 8 s",
        "energy": "1.6 Wh",
    }


def test_a_row_where_nothing_was_measured_is_dashes(minimal: Pocket):
    for row in ledger_rows(minimal["ledger"]):
        figures = {key: cell for key, cell in row.items() if key not in ("name", "kind", "label")}
        assert {cell for key, cell in figures.items() if "interval" not in key} == {"–"}
        assert {cell for key, cell in figures.items() if "interval" in key} == {""}


def test_a_column_nobody_measured_is_left_out_unless_it_is_a_main_one(full: Pocket, minimal: Pocket):
    assert [c.key for c in columns(minimal["ledger"])] == ["score", "retention", "size", "parameters", "p50"]
    assert "ram" in [c.key for c in columns(full["ledger"])]
    for row in full["ledger"]["rows"]:
        row["ram_bytes"] = None
    assert "ram" not in [c.key for c in columns(full["ledger"])]


def test_every_column_has_a_cell_in_every_row(pocket: Pocket):
    for row in ledger_rows(pocket["ledger"]):
        assert all(isinstance(row[column.key], str) for column in columns(pocket["ledger"]))


def test_the_terminal_table_fits_80_columns_and_cuts_no_figure(full: Pocket):
    text = printed(full["ledger"])
    assert max(map(len, text.splitlines())) <= 80
    for cell in ("82.2 %", "79.9–84.3", "97.8 %", "8.09 MB", "4.72 ms", "18.4 ms", "4 min 12 s", "2.1 Wh"):
        assert cell in text


def test_the_terminal_table_reads_no_markup_in_a_label(full: Pocket):
    full["ledger"]["rows"][0]["label"] = "[red]x[/red]\x1b[2J"
    text = printed(full["ledger"], width=200)
    assert "[red]x[/red]?[2J" in text


def test_markdown_cells_keep_their_columns_whatever_the_label(full: Pocket):
    full["ledger"]["rows"][1]["label"] = "a|b\n<b>*c*</b> `d` [e](f)"
    lines = markdown_table(full["ledger"]).splitlines()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert widths == {len(columns(full["ledger"])) + 2}
    assert r"**a\|b &lt;b&gt;\*c\*&lt;/b&gt; \`d\` \[e\](f)**" in lines[3]


def test_the_cells_need_neither_rich_nor_jinja2(full: Pocket):
    code = (
        "import sys; sys.modules.update({'rich': None, 'jinja2': None, 'pocketlm.progress': None})\n"
        "from pocketlm.report.table import ledger_rows, markdown_table\n"
        "assert ledger_rows({'rows': [{}]}) and markdown_table({'rows': [{}]})\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=60
    )
