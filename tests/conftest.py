from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets (sst2, mrpc, stsb, …), which are not part of the repository."""
    folder = Path(os.environ.get("POCKETLM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set POCKETLM_DATA to the folder that holds them")
    return folder
