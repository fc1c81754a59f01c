"""`pocketlm bench`: both sides in one run, against the pocket's own teacher or a given one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pocketlm
from pocketlm import pipeline
from pocketlm.cli import main
from pocketlm.data.examples import Examples
from pocketlm.errors import InputError, PocketError, SourceError
from pocketlm.export import onnx
from pocketlm.measure import compare
from pocketlm.tasks.task import Task
from pocketlm.verbs.bench import relabelled
from tests.conftest import Made, Tiny
from tests.easy import LABELS, sentence_rows, write_tsv

Bench = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Path], None]:
    """The exporter, which takes seconds, with a memory for weights that it has met."""
    kept = tmp_path_factory.mktemp("exported")

    def remember(classifier: Any, path: Path) -> None:
        state = classifier.model.state_dict().values()
        known = kept / hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state)).hexdigest()
        if not known.exists():
            onnx.export(classifier, known)
        path.parent.mkdir(parents=True)
        shutil.copyfile(known, path)

    return remember


@pytest.fixture
def bench(made: Made, export: Callable[[Any, Path], None], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """`pocketlm.bench`, quick in what other tests look at."""
    monkeypatch.setattr(compare, "export", export)
    monkeypatch.setattr(compare, "REST_SECONDS", 0.0)
    monkeypatch.setenv("POCKETLM_CACHE", str(made.cache))
    monkeypatch.setattr(compare, "request_energy", lambda run, requests: None)
    monkeypatch.setattr(compare, "peak_ram_bytes", lambda folder, texts, threads: None)
    monkeypatch.setattr(compare, "start_ms", lambda folder, text, threads: None)

    def run(*arguments: Any, **options: Any) -> dict[str, Any]:
        return pocketlm.bench(*arguments, **{"rounds": 30, "threads": 1, **options})

    return run


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stage but `prepare` may run: the teacher is in the cache."""
    for kind, name in pipeline.STAGE_NAMES.items():
        if name != "prepare":
            monkeypatch.setattr(kind, "__call__", lambda stage, *_: pytest.fail(f"{stage} ran"))


def rows_of(ledger: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    teacher, small = ledger["rows"]
    assert (teacher["kind"], small["kind"]) == ("teacher", "pocket")
    return teacher, small


@pytest.mark.usefixtures("untrained")
def test_both_sides_are_weighed_timed_and_scored(made: Made, bench: Bench) -> None:
    ledger = bench(made.pocket)
    teacher, small = rows_of(ledger)
    recorded = made.info["ledger"]["rows"][:2]
    for row, before in zip((teacher, small), recorded, strict=True):
        assert row["p50_ms"] > 0 and row["p95_ms"] >= row["p50_ms"] and row["throughput_per_s"] > 0
        for name in ("score", "score_low", "score_high", "retention_pct", "size_bytes", "parameters"):
            assert row[name] == before[name], name
    assert (teacher["label"], small["label"]) == ("teacher", "moods")
    assert teacher["eager_p50_ms"] > 0 and small["eager_p50_ms"] is None
    for name in ("faster_x", "faster_x_eager_torch", "throughput_x"):
        ratio = ledger["ratios"][name]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert ledger["ratios"]["smaller_x"] == teacher["size_bytes"] / small["size_bytes"]
    assert (ledger["examples"], ledger["threads"], ledger["metric"]) == (40, 1, "accuracy")
    assert ledger["bill"]["make_wh"] is None and ledger["curves"] == []


def test_a_teacher_without_a_head_is_timed_and_not_scored(made: Made, bench: Bench, tiny: Tiny) -> None:
    ledger = bench(made.pocket, str(tiny.teacher))
    teacher, small = rows_of(ledger)
    assert teacher["p50_ms"] > 0 and small["p50_ms"] > 0
    assert "score" not in teacher and "score" not in small
    assert ledger["confusion"] is None and ledger["disagreements"] == []


def test_a_given_teacher_with_a_head_is_scored(made: Made, bench: Bench) -> None:
    teacher, small = rows_of(bench(made.pocket, str(made.part("teacher"))))
    recorded = made.info["ledger"]["rows"]
    assert (teacher["score"], small["score"]) == (recorded[0]["score"], recorded[1]["score"])


@pytest.mark.usefixtures("untrained")
def test_all_rows_of_another_file_are_the_test_and_the_teacher_stays(
    made: Made, bench: Bench, tmp_path: Path
) -> None:
    wrong = [
        {**row, "label": LABELS[0]} if number % 4 else row for number, row in enumerate(sentence_rows(60, 9))
    ]
    ledger = bench(made.pocket, data=str(write_tsv(tmp_path / "other.tsv", wrong)))
    teacher, _ = rows_of(ledger)
    assert ledger["examples"] == 60
    right = (
        sum(row["label"] == true["label"] for row, true in zip(wrong, sentence_rows(60, 9), strict=True)) / 60
    )
    assert teacher["score"] == pytest.approx(right, abs=0.07)


def test_columns_of_other_data_can_be_named(made: Made, bench: Bench, tmp_path: Path) -> None:
    renamed = [{"words": row["text"], "mood": row["label"]} for row in sentence_rows(60, 9)]
    path = write_tsv(tmp_path / "other.tsv", renamed)
    names = [("prepare", "text", ["words"]), ("prepare", "label", "mood")]
    assert bench(made.pocket, data=str(path), overrides=names)["examples"] == 60


def test_data_of_another_task_are_refused(made: Made, bench: Bench, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give data of its task"):
        bench(made.pocket, data=str(tiny.pairs))
    two = [row for row in sentence_rows(60) if row["label"] != "ça va"]
    with pytest.raises(
        InputError, match=r"the data have the labels Blame, praise, the pocket Blame, praise, ça va"
    ):
        bench(made.pocket, data=str(write_tsv(tmp_path / "two.tsv", two)))


def test_what_is_not_there_is_refused(made: Made, bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(PocketError, match="is not a folder"):
        bench(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no such file or folder"):
        bench(made.pocket, str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="no such file or folder"):
        bench(made.pocket, data=str(tmp_path / "nowhere.tsv"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["bench", *map(str, arguments), "--threads", "1", "--rounds", "10"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("bench")
def test_the_command_prints_the_table_and_the_ratios(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, made.pocket, "--against", made.part("teacher"))
    for word in ("Size", "Latency p50", "Throughput", "same runtime", "eager PyTorch", "batches of 32"):
        assert word in out
    assert out.count("x faster (") == 3


@pytest.mark.usefixtures("bench")
def test_the_command_prints_json(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = json.loads(printed(capsys, made.pocket, "--json"))
    assert [row["kind"] for row in ledger["rows"]] == ["teacher", "pocket"]
    assert ledger["rows"][0]["score"] == made.info["ledger"]["rows"][0]["score"]


def test_intents_of_other_data_are_counted_as_the_pocket_does() -> None:
    theirs = Task("joint", False, ("go", "new", "stop"), ("O",))
    ours = Task("joint", False, ("stop", "go"), ("O",))
    test = Examples([("a",)] * 4, [{"intent": intent, "tags": ["O"]} for intent in (0, 1, 2, -1)])
    assert [label["intent"] for label in relabelled(test, theirs, ours).labels] == [1, -1, 0, -1]
