"""Which kind of source a name is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pocketlm.errors import InputError, SourceError
from pocketlm.sources import resolve


@pytest.mark.parametrize("source", ["", "  ", "two words", "a:b", "ü/model", "nul\0byte", "x" * 5000 + "?"])
def test_a_source_that_looks_like_nothing_is_told_the_three_forms(source: str, tmp_path: Path):
    with pytest.raises(SourceError, match=r"local file or folder, a Hub id .*pypi:PACKAGE==VERSION/PATH"):
        resolve(source, "model", tmp_path)


@pytest.mark.parametrize(
    "source", ["./gone", "/gone", "~/gone", "a/b/c", "gone/", "train.csv", "a/b.jsonl.gz", r"C:\x"]
)
def test_what_looks_like_a_path_is_said_to_be_missing(source: str, tmp_path: Path):
    with pytest.raises(SourceError, match="no such file or folder: "):
        resolve(source, "data", tmp_path)


@pytest.mark.parametrize("source", ["{path}", "pypi:tiny==1.0/x"])
def test_a_revision_goes_with_a_hub_id_only(source: str, tmp_path: Path):
    with pytest.raises(InputError, match="revision='main' goes with a Hub id"):
        resolve(source.format(path=tmp_path), "data", tmp_path, revision="main")


def test_importing_sources_imports_no_heavy_library():
    script = "import sys, pocketlm.sources; print({'torch', 'huggingface_hub', 'pip'} & {*sys.modules})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"
