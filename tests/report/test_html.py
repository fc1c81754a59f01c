from __future__ import annotations

import errno
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pocketlm.errors import MissingExtraError, StorageError
from pocketlm.report import render, write_report

Pocket = dict[str, Any]
VOID = frozenset({"meta", "link", "wbr", "br", "img", "input", "hr"})


class Page(HTMLParser):
    """Collects elements and text, and fails on a tag that is not closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_page_is_well_formed_and_asks_for_nothing(pocket: Pocket):
    page = render(pocket)
    parsed = Page(page)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "audio",
        "video",
        "style-sheet",
    }
    for tag, attributes in parsed.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "srcset", "xlink:href", "action", "data", "poster"):
                assert (value or "").startswith("data:"), f"<{tag} {name}={value}>"
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style is not None
    assert "url(" not in style[1] and "@import" not in style[1]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in parsed.elements
    page.encode("utf-8")


def test_every_section_is_there(full: Pocket):
    text = Page(render(full)).text
    headings = ("Side by side", "Size, score and speed", "How they learned", "Where they differ", "The bill")
    for heading in (*headings, "How it was measured", "How to make it again"):
        assert heading in text
    assert "11× smaller" in re.sub(r"\s+", " ", text)
    assert "At 1.2 MB, TF-IDF + logistic regression keeps" in text
    assert text.index("What the measurements also say") < text.index("Side by side")
    assert "softer targets say more" in text
    assert "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752" in text
    assert "3 March 2026" in text


def test_a_pocket_that_was_not_measured_claims_nothing(minimal: Pocket):
    text = re.sub(r"\s+", " ", Page(render(minimal)).text)
    assert "bare has not been measured against its teacher yet" in text
    for claim in ("smaller,", "faster,", "kept,", "None", "null", "nan", "What the measurements also say"):
        assert claim not in text


def test_a_missing_key_is_like_a_null():
    assert "has not been measured" in Page(render({"format": 1, "name": "bare"})).text


def test_a_regression_has_no_confusion_but_examples(regression: Pocket):
    text = Page(render(regression)).text
    assert "taken for" not in text and "was right" not in text
    assert "Where they differ" in text and "Pearson correlation" in text


def test_150_labels_show_a_dozen_pairs_at_most(many_labels: Pocket):
    page = render(many_labels)
    body = page[page.index('<table class="confused">') :]
    assert 1 <= body[: body.index("</table>")].count('<th scope="row">') <= 12


def test_hostile_texts_stay_text(hostile: Pocket):
    page = render(hostile)
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", page)
    assert "x" * 700 not in page
    assert len(page) < 200_000


def test_user_texts_are_isolated_from_the_direction_around_them(full: Pocket):
    full["ledger"]["disagreements"] = [
        {"texts": ["\u202eabc"], "label": "\u05d0", "teacher": "b", "pocket": "c"}
    ]
    page = render(full)
    assert "<bdi>\u202eabc</bdi>" in page and "<bdi>\u05d0</bdi>" in page


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_aa_contrast_in_both_modes(full: Pocket):
    palettes = re.findall(
        r"--paper: (#\w{6}); --ink: (#\w{6}); --soft: (#\w{6}); .*?--faint: (#\w{6}); --thread: (#\w{6})",
        render(full),
    )
    assert len(palettes) == 2
    for paper, ink, soft, faint, thread in palettes:
        for text, ground in ((ink, paper), (soft, paper), (thread, paper), (ink, faint)):
            light, dark = sorted((_luminance(text), _luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_without_jinja2_the_error_names_the_extra(full: Pocket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"jinja2 is not installed.*pip install 'pocketlm\[report\]'"):
        render(full)


def test_the_report_is_written_whole_or_not_at_all(
    full: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "report.html"
    write_report(full, path)
    assert path.read_text(encoding="utf-8") == render(full)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space", str(path))

    monkeypatch.setattr(os, "replace", full_disk)
    full["name"] = "another"
    with pytest.raises(StorageError, match="the disk is full"):
        write_report(full, path)
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_chromium_shows_it_without_sideways_scroll_or_request(pocket: Pocket, width: int, tmp_path: Path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium on the PATH: chromium, chromium-browser or google-chrome")
    write_report(pocket, tmp_path / "report.html")
    # The window itself cannot be as narrow as a phone, a frame can; scripts run in the outer page alone.
    (tmp_path / "frame.html").write_text(
        "<link rel=icon href=data:,>"
        f"<iframe id=f src=report.html style='width:{width}px;height:800px;border:0'></iframe>"
        "<script>f.onload = () => { const d = f.contentDocument.documentElement;"
        "const loads = f.contentWindow.performance.getEntriesByType('resource').length;"
        "document.title = [d.scrollWidth, d.clientWidth, loads].join(' ') }</script>"
    )
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, format: str, *args: Any) -> None:
            del format, args
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        command = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,900",
            "--virtual-time-budget=5000",
            "--dump-dom",
            f"http://127.0.0.1:{port}/frame.html",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        server.shutdown()
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert title is not None, done.stdout[:2000]
    assert title[2] == str(width)
    assert int(title[1]) <= width
    assert title[3] == "0"
    assert set(asked) == {
        "/frame.html",
        "/report.html",
    }
