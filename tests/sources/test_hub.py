"""The Hub: one that answers on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pocketlm.errors import MissingExtraError, SourceError
from pocketlm.sources import resolve
from tests.sources.builders import model_files, write_tree

COMMIT = "c0ffee" + "0" * 34
OTHER_COMMIT = "decade" + "0" * 34


class Hub:
    """A Hub on this machine: repositories by (`models` or `datasets`, id), and what was asked of it."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.refuse: dict[tuple[str, str], tuple[int, str]] = {}
        self.asked: list[str] = []
        self.broken_files = 0
        self.garbage = False
        self.branches = {
            "main": COMMIT,
            COMMIT: COMMIT,
            "refs/pr/1": OTHER_COMMIT,
            OTHER_COMMIT: OTHER_COMMIT,
        }

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a GET of `path`; a HEAD is the same without the body."""
        self.asked.append(path)
        if self.garbage:
            return 200, {}, b"<html>sign in to this network</html>"
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        repo, rest = "/".join(parts[:2]), parts[2:]
        key = (kind, repo)
        if key in self.refuse and (not api or self.refuse[key][1] != "GatedRepo"):
            return self.refuse[key][0], {"X-Error-Code": self.refuse[key][1]}, b""
        if key not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        files = self.repos[key]
        if not api and self.broken_files:
            return self.broken_files, {}, b""
        if not api:
            commit, name = rest[1], "/".join(rest[2:])
            etag = hashlib.sha1(files[name]).hexdigest()
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, files[name]
        revision = "/".join(rest[1:]) or "main"
        if revision not in self.branches:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        siblings = [{"rfilename": name} for name in files]
        return (
            200,
            {},
            json.dumps({"id": repo, "sha": self.branches[revision], "siblings": siblings}).encode(),
        )


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub-cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return folder


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(urlsplit(self.path).path.replace("%2F", "/"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield hub
        server.shutdown()


def test_a_model_comes_from_the_hub_without_what_we_do_not_read(hub: Hub, hub_cache: Path, tmp_path: Path):
    unread = ("pytorch_model.bin", "onnx/model.safetensors", "tokenizer/tokenizer.json", "modeling.py")
    extra = dict.fromkeys(unread, b"no")
    hub.repos["models", "org/tiny"] = model_files() | extra
    found = resolve("org/tiny", "model", tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == model_files()
    assert (found.name, found.licence, found.path.name) == ("org/tiny", "apache-2.0", COMMIT)
    assert hub_cache in found.path.parents
    assert not any(name in path for path in hub.asked for name in extra)


def test_the_fingerprint_follows_the_commit(hub: Hub, tmp_path: Path):
    hub.repos["models", "org/tiny"] = hub.repos["models", "org/other"] = model_files()
    main = resolve("org/tiny", "model", tmp_path).fingerprint
    assert resolve("org/tiny", "model", tmp_path, revision=COMMIT).fingerprint == main
    assert resolve("org/tiny", "model", tmp_path, revision="refs/pr/1").fingerprint != main
    assert resolve("org/other", "model", tmp_path).fingerprint != main


def test_a_data_set_comes_from_the_hub(hub: Hub, tmp_path: Path):
    files = {"data/train.parquet": b"p", "test.jsonl.gz": b"j", "README.md": b"---\nlicense: cc0-1.0\n---\n"}
    hub.repos["datasets", "org/set"] = files | {"script.py": b"no"}
    found = resolve("org/set", "data", tmp_path)
    assert {
        path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()
    } == set(files)
    assert found.licence == "cc0-1.0"


def test_a_data_set_without_data_files(hub: Hub, tmp_path: Path):
    hub.repos["datasets", "org/set"] = {"script.py": b"", "README.md": b""}
    with pytest.raises(SourceError, match="data set org/set holds no data files; allowed: tsv, csv"):
        resolve("org/set", "data", tmp_path)


def test_a_hub_model_with_pickles_only_is_refused_before_any_download(hub: Hub, tmp_path: Path):
    files = model_files()
    del files["model.safetensors"]
    hub.repos["models", "org/old"] = files | {"pytorch_model.bin": b"no"}
    with pytest.raises(SourceError, match=r"org/old holds only pickled weights \(pytorch_model\.bin\)"):
        resolve("org/old", "model", tmp_path)
    assert not any("resolve" in path for path in hub.asked)


def test_a_local_folder_comes_before_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "org/tiny", model_files())
    assert resolve("org/tiny", "model", tmp_path / "cache").path == Path("org/tiny")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (None, "org/x: no such file or folder here, and no model of this name on the Hub .*HF_TOKEN"),
        ((404, ""), "no model of this name on the Hub"),
        ((401, ""), "no model of this name on the Hub that you may read"),
        ((403, "GatedRepo"), "the Hub model org/x is gated or private; ask for access on its page"),
        ((403, ""), "the Hub model org/x is gated or private"),
        (
            (500, ""),
            r"the Hub at http://127\.0\.0\.1:\d+ gave no answer \(HfHubHTTPError: .*500.*pypi: source",
        ),
    ],
)
def test_the_hub_says_no(refusal: tuple[int, str] | None, message: str, hub: Hub, tmp_path: Path):
    if refusal:
        hub.repos["models", "org/x"] = model_files()
        hub.refuse["models", "org/x"] = refusal
    with pytest.raises(SourceError, match=message):
        resolve("org/x", "model", tmp_path)


def test_a_download_that_breaks_off(hub: Hub, hub_cache: Path, tmp_path: Path):
    hub.repos["models", "org/x"] = model_files()
    hub.broken_files = 418
    with pytest.raises(SourceError, match=r"fetching org/x from the Hub broke off .*418.*; try again"):
        resolve("org/x", "model", tmp_path)
    hub.broken_files = 0
    assert resolve("org/x", "model", tmp_path).path.is_relative_to(hub_cache)


def test_an_endpoint_that_is_no_hub(hub: Hub, tmp_path: Path):
    hub.garbage = True
    with pytest.raises(SourceError, match="gave no answer"):
        resolve("org/x", "model", tmp_path)


def test_an_unknown_revision(hub: Hub, tmp_path: Path):
    hub.repos["models", "org/tiny"] = model_files()
    with pytest.raises(
        SourceError, match="the Hub model org/tiny has no revision 'v9'; name a branch, tag or commit"
    ):
        resolve("org/tiny", "model", tmp_path, revision="v9")


def test_what_the_hub_library_calls_no_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with pytest.raises(SourceError, match="'org/a--b' is neither a local path nor a Hub id"):
            resolve("org/a--b", "model", tmp_path)


def hub_layout(cache: Path, files: dict[str, bytes]) -> Path:
    repo = cache / "models--org--tiny"
    write_tree(repo, {"refs/main": COMMIT.encode()})
    return write_tree(repo / "snapshots" / COMMIT, files)


def test_without_a_network_the_hub_cache_serves(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = hub_layout(hub_cache, model_files())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    down = resolve("org/tiny", "model", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/tiny", "model", tmp_path) == down
    assert down.path == snapshot and down.licence == "apache-2.0"


def test_what_was_fetched_once_works_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.repos["models", "org/tiny"] = model_files() | {"onnx/model.safetensors": b"no"}
    online = resolve("org/tiny", "model", tmp_path)
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    assert resolve("org/tiny", "model", tmp_path) == online
    assert hub.asked == []
    (online.path / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set.*does not hold the model whole"):
        resolve("org/tiny", "model", tmp_path)


def test_the_cache_follows_hf_home(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = hub_layout(tmp_path / "home" / "hub", model_files())
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/tiny", "model", tmp_path).path == snapshot


def test_no_network_and_no_cache_says_what_works_offline(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        SourceError,
        match=r"the Hub at http://127\.0\.0\.1:9 gave no answer \(ConnectError.*local folder or a pypi:",
    ):
        resolve("org/tiny", "model", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set.*the data*set at v2"):
        resolve("org/tiny", "data", tmp_path, revision="v2")


def test_a_snapshot_that_another_program_left_half(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub_layout(hub_cache, {"config.json": b"{}"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"org/tiny has no model\.safetensors"):
        resolve("org/tiny", "model", tmp_path)


def test_without_huggingface_hub_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pocketlm\[compress\]'"):
        resolve("org/tiny", "model", tmp_path)
