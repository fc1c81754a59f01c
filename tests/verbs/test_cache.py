"""What the cache takes on disk, and what `--clear` leaves."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

import pocketlm
from pocketlm.cli import main
from pocketlm.errors import InputError
from pocketlm.measure.ledger import Cost
from pocketlm.verbs.cache import Held

DAY = 86_400
WRITTEN = json.dumps(asdict(Cost("prepare", 1.0, None, None, "none")))
COST = len(WRITTEN)


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two results of `prepare`, one of them 10 days old, what a stopped `distill` left, and a download."""
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path))
    for name, size, stage in (("a", 300, "prepare"), ("b", 500, "prepare"), ("c", 2000, None)):
        folder = tmp_path / "stages" / name / "part"
        folder.mkdir(parents=True)
        (folder / "values").write_bytes(bytes(size))
        if stage:
            (folder.parent / "cost.json").write_text(WRITTEN)
    then = time.time() - 10 * DAY
    for path in (*(tmp_path / "stages" / "a").rglob("*"), tmp_path / "stages" / "a"):
        os.utime(path, (then, then))
    (tmp_path / "sources").mkdir()
    return tmp_path


def test_it_counts_by_stage_the_largest_first(held: Path) -> None:
    assert pocketlm.cache() == [Held("unfinished", 1, 2000), Held("prepare", 2, 800 + 2 * COST)]
    assert sorted(path.name for path in (held / "stages").iterdir()) == ["a", "b", "c"]


def test_it_removes_what_it_counts_and_no_download(held: Path) -> None:
    assert pocketlm.cache(clear=True) == [Held("unfinished", 1, 2000), Held("prepare", 2, 800 + 2 * COST)]
    assert not list((held / "stages").iterdir()) and (held / "sources").is_dir()
    assert pocketlm.cache(clear=True) == []


def test_what_was_asked_for_lately_stays(held: Path) -> None:
    assert pocketlm.cache(older_than=11) == []
    assert pocketlm.cache(clear=True, older_than=9) == [Held("prepare", 1, 300 + COST)]
    assert sorted(path.name for path in (held / "stages").iterdir()) == ["b", "c"]


def test_what_a_killed_clear_left_goes_with_the_next(held: Path) -> None:
    (held / "stages" / "c").rename(held / "stages" / ".c")
    assert Held("unfinished", 1, 2000) in pocketlm.cache(clear=True)
    assert not list((held / "stages").iterdir())


def test_without_a_cache_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "none"))
    assert pocketlm.cache(clear=True) == []


def test_days_below_none_are_refused() -> None:
    with pytest.raises(InputError, match="give 0 days or more"):
        pocketlm.cache(older_than=-1)


def test_the_command_prints_what_it_holds(held: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["cache", "--clear"])
    printed = capsys.readouterr().out
    assert "x unfinished" in printed and f"removed from {held}" in printed
