from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pocketlm.measure import machine as module
from pocketlm.measure.machine import commit, cpu_name, isa, machine, versions

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni

processor\t: 1
model name\t: another
flags\t\t: amx_bf16
"""
PI = "processor\t: 0\nFeatures\t: fp asimd crc32 asimddp\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"


def test_machine_has_every_field_and_is_json() -> None:
    found = json.loads(json.dumps(machine()))
    assert list(found) == ["cpu", "cores", "ram_gb", "os", "isa"]
    assert found["cpu"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["ram_gb"] is None or 0.1 < found["ram_gb"] < 100_000


def test_cpuinfo_of_intel_and_arm() -> None:
    assert cpu_name(XEON) == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert isa(XEON) == ["avx2", "avx512", "avx512_vnni"]
    assert cpu_name(PI) == "Raspberry Pi 5 Model B Rev 1.0"
    assert isa(PI) == ["neon", "dotprod"]
    assert (cpu_name(""), isa("")) == (None, [])


def test_a_machine_without_cpuinfo_is_still_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "absent")
    assert machine()["cpu"]
    assert machine()["isa"] == []


def test_versions_of_what_is_installed_and_nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert {"numpy", "onnxruntime", "tokenizers"} <= set(found)
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package",))
    assert list(versions()) == ["python"]
    program = (
        "import sys; sys.path[:] = sys.argv[1:]\n"
        "from pocketlm.measure.machine import versions; versions()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, *sys.path], check=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_of_this_source_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    source = tmp_path / "src" / "pocketlm" / "measure" / "machine.py"
    source.parent.mkdir(parents=True)
    source.write_text("x = 1\n")
    monkeypatch.setattr(module, "__file__", str(source))

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert commit() is None  # no repository
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "--no-verify", "-m", "another project")
    assert commit() is None  # a repository that does not hold this source
    git("add", "src")
    git("commit", "-q", "--no-verify", "-m", "first")
    assert commit() == git("rev-parse", "HEAD")
    (tmp_path / "results.jsonl").write_text("{}\n")  # a new result does not change what was measured
    assert re.fullmatch(r"[0-9a-f]{40}", commit() or "")
    source.write_text("x = 2\n")
    assert commit() == git("rev-parse", "HEAD") + "-dirty"


def test_commit_without_git_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
