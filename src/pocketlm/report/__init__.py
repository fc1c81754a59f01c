"""The report of a pocket: one page, one terminal table, one Markdown table, all from the same ledger."""

from pocketlm.report.html import render, write_report
from pocketlm.report.table import ledger_rows, ledger_table, markdown_table

__all__ = ["ledger_rows", "ledger_table", "markdown_table", "render", "write_report"]
