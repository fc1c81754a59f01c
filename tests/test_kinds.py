"""Every kind of task on words, and several labels, through the whole house: from data to report."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketlm import doctor, load
from pocketlm.diagnose import speed
from tests.conftest import Forked, Made, Tiny, make
from tests.easy import word_rows, write_jsonl

KINDS = ("joint", "tokens", "multilabel", "qa")
CODED = ("joint", "qa")
"""Those whose pocket is one coded file."""
CONTROLS = {
    "joint": ["no distillation", "tf-idf", "static"],
    "multilabel": ["no distillation", "tf-idf", "static"],
    "tokens": ["no distillation", "static"],
    "qa": ["no distillation"],
}


@pytest.fixture(scope="module", params=KINDS)
def shrunk(
    request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Made]:
    folder = tmp_path_factory.mktemp(request.param)
    data = write_jsonl(folder / f"{request.param}.jsonl", word_rows(request.param))
    longer = (("finetune", "epochs", 12), ("distill", "epochs", 10))
    coded = ("pack", "coded", request.param in CODED)
    return request.param, make(folder, tiny.teacher, data, more=(*longer, coded))


def test_a_kind_goes_through_the_whole_house(shrunk: tuple[str, Made]) -> None:
    kind, made = shrunk
    assert made.info["task"]["kind"] == kind
    ledger = made.info["ledger"]
    teacher, pocket, *controls = ledger["rows"]
    assert [row["name"] for row in controls] == CONTROLS[kind]
    assert teacher["score"] > 0.5 and pocket["score"] > 0.3
    if kind == "joint":
        assert next(row for row in controls if row["name"] == "tf-idf")["label"].endswith(
            "intent only (every word O)"
        )
    assert (ledger["confusion"] is not None) == (kind == "joint")
    assert (ledger["by_name"] is not None) == (kind != "qa")
    page = (made.pocket / "report.html").read_text(encoding="utf-8")
    assert "Where they differ" in page or not ledger["disagreements"]
    assert ledger["metric"] in (made.pocket / "pocket.json").read_text(encoding="utf-8")


def test_the_pocket_predicts(shrunk: tuple[str, Made], forked: Forked, tmp_path: Path) -> None:
    kind, made = shrunk
    text = "the film a superb gripping city"
    inputs = ["which film", text] if kind == "qa" else [text]
    pocket = load(made.pocket, threads=1)
    (said,) = pocket.predict([tuple(inputs) if kind == "qa" else text])
    if kind == "multilabel":
        assert said.labels is not None and said.scores is not None and "twice" in said.scores
    else:
        assert said.spans is not None
        assert all(text[span.start : span.end] == span.text for span in said.spans)
    shown = forked("run", made.pocket, *inputs)
    assert shown.code == 0 and shown.stdout.strip()
    whole = forked("run", made.pocket, *inputs, "--json")
    assert whole.code == 0 and ("labels" if kind == "multilabel" else "spans") in whole.stdout


def test_the_doctor_finds_no_fault(shrunk: tuple[str, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = shrunk
    monkeypatch.setenv("POCKETLM_CACHE", str(made.cache))
    monkeypatch.setattr(speed, "ROUNDS", 5)
    monkeypatch.setattr(speed, "WARMUP", 1)
    found = doctor(made.pocket)
    assert not [one.text for one in found.findings if one.fault]
    assert found.scores["pocket"] and found.scores["teacher"] and found.costs and found.maps
