"""A study of tickets from end to end: what it finds, keeps, lends and tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketlm.cli import main
from pocketlm.errors import InputError, PocketError, RecipeError
from pocketlm.prune.masks import load_masks, sparsity_of
from pocketlm.verbs.tickets import MASKED_LM, Plan, described, nearest, recipes_of, tickets
from tests.conftest import Tiny
from tests.easy import QUICK, sentence_rows, write_tsv
from tests.tiny import sentences

PLAN = Plan(rounds=2, share=0.4, epochs=1, seeds=2, dense_seeds=2, compared=(0.4,), transferred=0.4)
FAST = tuple(one for one in QUICK if one[0] in ("prepare", "finetune") and one[1] != "epochs")


@pytest.fixture(scope="module")
def given(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("given")
    (folder / "corpus.txt").write_text("\n".join(dict.fromkeys(sentences(700, longest=12))))
    second = write_tsv(folder / "tempers.tsv", sentence_rows()[::-1])
    return {
        "recipes": recipes_of(str(tiny.teacher), [str(tiny.data), str(second)], overrides=FAST),
        "corpus": str(folder / "corpus.txt"),
    }


@pytest.fixture(scope="module")
def study(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETLM_CACHE", str(folder / "cache"))
        return tickets(given["recipes"], PLAN, corpus=given["corpus"], out=folder / "study")


def test_every_ticket_control_and_seed_is_in_the_study(study: Path) -> None:
    values = described(study)
    assert list(values["tasks"]) == ["moods", "tempers"]
    for task in values["tasks"].values():
        seen = [(trial["kind"], trial["weights"], trial["round"], trial["seed"]) for trial in task["trials"]]
        assert len(set(seen)) == len(seen)
        assert ("found", "rewound", 2, 0) in seen
        best = task["winning_round"] or 1
        for seed in (0, 1):
            assert {("found", "rewound", number, seed) for number in (0, 1, best)} <= set(seen)
            assert ("random", "rewound", 1, seed) in seen
            for control in (("random", "rewound"), ("found", "random"), ("one-shot", "rewound")):
                assert (*control, best, seed) in seen
        for trial in task["trials"]:
            wanted = (0.0, 0.4, 0.8)[trial["round"]]
            assert trial["sparsity"] == pytest.approx(wanted, abs=0.001)
        assert all(0 <= share <= 1 for shares in task["kept"].values() for share in shares)
    assert len(values["masked_lm"]["nats"]) == 2 and len(values["masked_lm"]["dense_nats"]) == 2


def test_the_winning_ticket_is_in_the_folder(study: Path) -> None:
    for name, task in described(study)["tasks"].items():
        path, best = study / f"{name}.safetensors", task["winning_round"]
        assert path.exists() == bool(best)
        if best:
            assert sparsity_of(load_masks(path)) == pytest.approx(task["sparsities"][best - 1], abs=0.001)


def test_every_ticket_is_lent_to_every_task(study: Path) -> None:
    values = described(study)
    pairs = {(trial["source"], trial["target"]) for trial in values["transfer"]}
    names = list(values["tasks"])
    assert pairs == {(source, target) for source in (*names, MASKED_LM) for target in names}
    own = [trial for trial in values["transfer"] if (trial["source"], trial["target"]) == ("moods", "moods")]
    first = next(trial for trial in values["tasks"]["moods"]["trials"] if trial["round"] == 1)
    assert [trial["test"] for trial in own] == [first["test"]] and not first["seed"]
    general = [trial for trial in values["transfer"] if trial["source"] == MASKED_LM]
    assert {trial["seed"] for trial in general} == {0, 1}


def test_no_seed_is_spent_on_a_ticket_that_nothing_is_asked_of(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    scores = {0: 0.8, 1: 0.9, 2: 0.8, 3: 0.3}  # of the whole network and of three rounds

    def trial(self: Any, stage: Any, artifact: Any) -> dict[str, Any]:
        value = scores[stage.round] + 0.01 * (stage.seed % 2)
        return {**stage.name, "sparsity": 0.3 * stage.round, "valid": value, "test": value}

    monkeypatch.setattr("pocketlm.verbs.tickets._Study.trial", trial)
    plan = Plan(rounds=3, share=0.3, epochs=1, seeds=3, dense_seeds=2, compared=(0.3,), transferred=0.3)
    name, recipe = next(iter(given["recipes"].items()))
    task = described(tickets({name: recipe}, plan, out=tmp_path / "study"))["tasks"][name]
    found = [one for one in task["trials"] if (one["kind"], one["weights"]) == ("found", "rewound")]
    assert task["winning_round"] == 2
    assert [len([one for one in found if one["round"] == number]) for number in range(4)] == [2, 3, 3, 1]
    controls = [(one["kind"], one["weights"], one["round"]) for one in task["trials"] if one not in found]
    assert controls == [
        *[("random", "rewound", 1)] * 3, *[("random", "rewound", 2)] * 3,
        *[("found", "random", 2)] * 3, *[("one-shot", "rewound", 2)] * 3,
    ]  # fmt: skip


def test_a_study_that_is_done_trains_nothing_again(
    study: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(study.parent / "cache"))
    monkeypatch.setattr("pocketlm.finetune.train", lambda *_, **__: pytest.fail("trained"))
    before = described(study)
    tickets(given["recipes"], PLAN, corpus=given["corpus"], out=study)
    assert described(study) == before


def test_another_study_or_something_else_is_left_alone(
    study: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds a study that another recipe made"):
        tickets(given["recipes"], replace(PLAN, epochs=2), out=study)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "own.txt").write_text("mine")
    with pytest.raises(InputError, match="is there and is not a study, so it is left alone"):
        tickets(given["recipes"], PLAN, out=tmp_path / "notes")
    with pytest.raises(PocketError, match="is not a study of tickets"):
        described(tmp_path)


def test_the_page_shows_every_task_and_loads_nothing(study: Path) -> None:
    page = (study / "report.html").read_text(encoding="utf-8")
    for told in ("moods", "tempers", "random mask", "A ticket on another task", "Found on plain text"):
        assert told in page
    assert page.count("<svg") == 3  # the masthead's and one a task
    for part in ("<script", 'http-equiv="refresh"', "src=", "url("):
        assert part not in page


def test_what_cannot_be_studied_is_told_at_once(given: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    for broken in ({"seeds": 0}, {"dense_seeds": 1}, {"epochs": 0}, {"rounds": 10}):
        with pytest.raises(RecipeError, match=next(iter(broken))):
            Plan(**broken)
    with pytest.raises(InputError, match="two of the tasks are called moods"):
        recipes_of(str(tiny.teacher), [str(tiny.data), str(tiny.data)])
    first, second = given["recipes"].values()
    with pytest.raises(InputError, match="the tasks have 2 teachers"):
        tickets({"a": first, "b": replace(second, teacher="other")}, PLAN, out=tmp_path / "out")
    assert nearest([0.1, 0.2, 0.3], 0.24) == 2


def test_the_command_finds_a_ticket(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    fast = [part for stage, key, value in FAST for part in ("--set", f"{stage}.{key}={json.dumps(value)}")]
    with pytest.raises(SystemExit) as ended:
        main([
            "tickets", str(tiny.teacher), "--data", str(tiny.data), "--rounds", "1", "--share", "0.3",
            "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "study"), *fast,
        ])  # fmt: skip
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert printed.startswith("moods: ")
    assert printed.splitlines()[-1] == str(tmp_path / "study" / "report.html")
