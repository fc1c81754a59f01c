"""Pockets in a page: headless Chromium answers as Python does. `make test-web` installs what it needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any, ClassVar

import numpy as np
import pytest

import pocketlm
from pocketlm.export.pack import Pack
from pocketlm.quantize.weight_only import WeightOnly
from pocketlm.runtime.pocket import Text
from pocketlm.stage import Context
from tests.conftest import Made

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 120

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine; install it and run make test-web"),
    pytest.mark.skipif(
        not (EXAMPLE / "node_modules").is_dir(), reason="the page's libraries are missing; run make test-web"
    ),
]

PAGE = """<script type="importmap">{importmap}</script>
<script type="module">
const send = (said) => fetch("/said", {{ method: "POST", body: JSON.stringify(said) }});
try {{
  const {{ load }} = await import("/pocket.mjs");
  const pocket = await load("/pocket");
  const said = [];
  for (const text of await (await fetch("/texts.json")).json())
    said.push({{
      ids: pocket.encode(text).ids, logits: await pocket.logits(text), ...(await pocket.predict(text)),
    }});
  await send(said);
}} catch (error) {{ await send({{ error: String(error) }}); }}
</script>"""

WORDS = (
    *("radiant", "superb", "film", "dull", "tedious", "plot", "a", "the", "isn't", "one-liner", "1999"),
    *("Ünïcode", "木曜日", "🎬", "…", "unaffable"),
)
TEXTS = [
    *("", " ", "a radiant, superb film", "[SEP] [MASK]", "Crème brûlée", "word " * 300, "木" * 40),
    *(" ".join(np.random.default_rng(seed).choice(WORDS, seed % 40 + 1)) for seed in range(43)),
]


def importmap() -> str:
    """The example page's own: where its libraries are."""
    page = (EXAMPLE / "index.html").read_text(encoding="utf-8")
    return page.split('<script type="importmap">')[1].split("</script>")[0].replace('"./', '"/')


@contextmanager
def served(folder: Path, said: Queue[Any]) -> Iterator[str]:
    """The address of a folder's files; what is posted there comes out of `said`."""

    class Handler(SimpleHTTPRequestHandler):
        extensions_map: ClassVar[dict[str, str]] = {
            **SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def do_POST(self) -> None:
            said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def in_a_page(pocket: Path, texts: Sequence[Text], folder: Path) -> Any:
    """What a page says of texts, one object each; or the error that it met."""
    for name in ("pocket.mjs", "node_modules"):
        (folder / name).symlink_to(EXAMPLE / name)
    (folder / "pocket").symlink_to(pocket)
    (folder / "index.html").write_text(PAGE.format(importmap=importmap()), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    said: Queue[Any] = Queue()
    with served(folder, said) as address:
        browser = subprocess.Popen(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             f"--user-data-dir={folder / 'profile'}", address],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return said.get(timeout=SECONDS)
        except Empty:
            pytest.fail(f"the page said nothing for {SECONDS} s")
        finally:
            browser.terminate()
            browser.wait()


def check(pocket: Path, texts: Sequence[Text], folder: Path, usual: float = 1e-5) -> None:
    """The same pieces, logits and answers in both; most logits no more than `usual` apart."""
    known = pocketlm.load(pocket)
    page = in_a_page(pocket, texts, folder)
    assert isinstance(page, list), page
    assert [one["ids"] for one in page] == [pieces.ids for pieces in known.encode(texts)]
    # One text at a time: 8-bit products are scaled by the batch that they are in.
    logits = np.concatenate([known.logits([text]) for text in texts])
    apart = np.abs(np.array([one["logits"] for one in page]) - logits)
    # Of 8 bits, one that is rounded the other way is seen in a text's logits; most texts have none.
    assert np.quantile(apart, 0.8) < usual and apart.max() < 0.05 * np.ptp(logits)
    predicted = [known.predict([text])[0] for text in texts]
    assert [one["label"] for one in page] == [one.label for one in predicted]
    scores = [one["score"] for one in page], [one.score for one in predicted]
    assert np.allclose(*scores, atol=max(0.02, usual))


def test_a_page_classifies_fifty_texts_as_python_does(made: Made, tmp_path: Path) -> None:
    assert len(TEXTS) == 50
    check(made.pocket, TEXTS, tmp_path)


def test_a_page_multiplies_weights_of_four_bits(made: Made, tmp_path: Path) -> None:
    context = Context(tmp_path / "stage", tmp_path / "stage")
    context.folder.mkdir()
    packed = Pack()(WeightOnly(tolerance=None)(made.artifact("Export"), context), context)
    (tmp_path / "page").mkdir()
    # Python's kernel rounds what it multiplies these weights by to 8 bits, the page's does not.
    check(packed.parts["pocket"], TEXTS, tmp_path / "page", usual=0.05)


def test_a_page_reads_weights_of_sixteen_bits(pocket_of_halves: Path, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    check(pocket_of_halves, TEXTS, tmp_path / "page")


def test_a_page_reads_pairs(pocket_of_pairs: Path, tmp_path: Path) -> None:
    check(pocket_of_pairs, [*zip(TEXTS, TEXTS[::-1], strict=True)], tmp_path)


def test_a_page_says_values(made_of_numbers: Made, tmp_path: Path) -> None:
    check(made_of_numbers.pocket, [*zip(TEXTS[:10], TEXTS[10:20], strict=True)], tmp_path)


def test_a_page_is_told_that_a_pair_is_wanted(pocket_of_pairs: Path, tmp_path: Path) -> None:
    page = in_a_page(pocket_of_pairs, TEXTS[:1], tmp_path)
    assert "a pair of texts" in page["error"]


def test_a_page_says_what_is_missing(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.pocket, tmp_path / "whole")
    (tmp_path / "whole" / "tokenizer.json").unlink()
    (tmp_path / "page").mkdir()
    page = in_a_page(tmp_path / "whole", TEXTS[:1], tmp_path / "page")
    assert "tokenizer.json: 404" in page["error"] and "copy the whole pocket folder" in page["error"]
