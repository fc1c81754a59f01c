"""Uploading a pocket to a Hub that answers on this machine."""

from __future__ import annotations

import base64
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketlm.cli import main
from pocketlm.errors import InputError, PocketError, SourceError
from pocketlm.verbs.push import push
from tests.conftest import Made

UPLOAD = {"uploadMode": "regular", "shouldIgnore": False}


class Hub:
    """What it was sent, and what it answers instead of yes."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.refuse: int | None = None

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.refuse:
            return self.refuse, {"error": "no"}
        if path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            return 200, {"url": "http://127.0.0.1/org/reviews", "name": "org/reviews"}
        if "/preupload/" in path:
            given = json.loads(body)["files"]
            return 200, {"files": [{"path": file["path"], **UPLOAD} for file in given]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {
                "success": True,
                "commitUrl": "http://127.0.0.1/org/reviews/commit/1",
                "commitOid": "1",
            }
        return 200, {"errors": [], "warnings": [], "sha": "0" * 40, "id": "org/reviews", "siblings": []}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, values = hub.answer(self.path, body)
            content = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub
        server.shutdown()


def test_every_file_of_the_pocket_goes_and_nothing_else(hub: Hub, made: Made, tmp_path: Path) -> None:
    pocket = tmp_path / "reviews"
    shutil.copytree(made.pocket, pocket)
    (pocket / "notes.txt").write_text("mine")
    (pocket / "README.md").write_text("a card with a word of mine")
    assert push(pocket, "org/reviews") == "http://127.0.0.1/org/reviews/commit/1"
    assert hub.files == {path.name: (pocket / path.name).read_bytes() for path in made.pocket.iterdir()}
    assert hub.created[0]["name"] == "reviews" and hub.created[0]["organization"] == "org"
    push(pocket, "org/reviews", private=True)
    assert hub.created[-1]["visibility"] == "private"


def test_a_name_in_the_list_is_a_name_and_no_pattern(hub: Hub, made: Made, tmp_path: Path) -> None:
    pocket = tmp_path / "reviews"
    shutil.copytree(made.pocket, pocket)
    info = json.loads((pocket / "pocket.json").read_text())
    info["files"]["*"] = {"sha256": "0" * 64, "size_bytes": 1}
    (pocket / "pocket.json").write_text(json.dumps(info))
    (pocket / "secret.txt").write_text("mine")
    push(pocket, "org/reviews")
    assert "model.onnx" in hub.files and "secret.txt" not in hub.files


def test_the_command_prints_the_address(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["push", str(made.pocket), "org/reviews"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip().endswith("/org/reviews/commit/1") and hub.files


@pytest.mark.parametrize(
    ("status", "told"), [(401, r"set HF_TOKEN"), (403, r"set HF_TOKEN"), (400, r"refused org/reviews \(400")]
)
def test_a_refusal_is_told_with_its_mend(hub: Hub, made: Made, status: int, told: str) -> None:
    hub.refuse = status
    with pytest.raises(SourceError, match=told):
        push(made.pocket, "org/reviews")


def test_what_cannot_be_pushed_is_told_before_anything_is_sent(
    hub: Hub, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is not a name on the Hub; give ORG/NAME"):
        push(made.pocket, "not a name")
    with pytest.raises(PocketError, match="is not a pocket"):
        push(tmp_path, "org/reviews")
    pocket = tmp_path / "broken"
    shutil.copytree(made.pocket, pocket)
    for name in ("model.safetensors", "model.onnx"):
        (pocket / name).write_bytes(b"")
        with pytest.raises(PocketError, match=rf"{name} has 0 bytes .* cut short"):
            push(pocket, "org/reviews")
    assert not hub.created and not hub.files
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="gave no answer"):
        push(made.pocket, "org/reviews")
