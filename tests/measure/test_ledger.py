"""The ledger repeats what was measured, and says first what speaks against the pocket."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.measure.ledger import (
    POCKET_STAGES,
    TEACHER_STAGES,
    Cost,
    bill,
    curves,
    from_stored,
    in_float,
    ledger,
    slower,
    spent,
    total,
    unpacked,
    verdicts,
)
from pocketlm.pipeline import cost_of
from pocketlm.recipe import STAGES
from tests.conftest import Made

RATIOS = {"smaller_x": 10.0, "faster_x": {"median": 2.0, "low": 1.5, "high": 2.5}}
figures = st.none() | st.floats(0, 1e6)


def costs_of(energy: float | None = 2.0) -> list[Cost]:
    return [Cost(name, 10.0 + n, energy, energy and energy / 2, "tdp") for n, name in enumerate(STAGES)]


def measured_of(teacher: float | None, pocket: float | None) -> dict[str, Any]:
    return {"request_wh": {"teacher": teacher, "pocket": pocket}, "energy_method": "tdp", "grid": "DEU"}


# What was measured


def test_rows_have_exactly_what_was_found(made: Made) -> None:
    artifact = made.artifact()
    found, rows = artifact.figures["measured"], made.info["ledger"]["rows"]
    for row, measured in zip(rows[:2], found["rows"], strict=True):
        added = {"label", "train_seconds", "energy_wh"}
        assert {k: v for k, v in row.items() if k not in added} == {
            k: v for k, v in measured.items() if k not in added
        }
    recorded = made.info["ledger"]
    for name in ("ratios", "confusion", "disagreements", "threads", "tokens_p50", "examples"):
        assert recorded[name] == found[name], name
    for row, control in zip(rows[2:], artifact.figures["controls"], strict=True):
        own = {key: value for key, value in control.items() if value is not None}
        assert {key: row[key] for key in own} == own
        assert row["retention_pct"] == pytest.approx(100 * control["score"] / rows[0]["score"])


def test_the_twin_of_the_pocket_weighs_and_takes_what_the_pocket_does(made: Made) -> None:
    rows = {row["name"]: row for row in made.info["ledger"]["rows"]}
    for name in ("size_bytes", "p50_ms", "p95_ms", "parameters"):
        assert rows["no distillation"][name] == rows["pocket"][name] is not None


def test_training_is_billed_to_the_side_that_needed_it(made: Made) -> None:
    rows = {row["name"]: row for row in made.info["ledger"]["rows"]}
    costs = {cost.stage: cost.seconds for cost in (cost_of(one, made.cache) for one in made.artifacts())}
    assert rows["teacher"]["train_seconds"] == costs["finetune"]
    assert rows["pocket"]["train_seconds"] == pytest.approx(
        sum(costs[name] for name in POCKET_STAGES if name in costs)
    )
    whole = made.info["ledger"]["bill"]
    assert whole["make_seconds"] == pytest.approx(sum(costs.values()))
    assert whole["energy_method"] in ("rapl", "tdp", "none")


def test_every_stage_is_billed_to_one_side_or_to_the_proof() -> None:
    billed = [*TEACHER_STAGES, *POCKET_STAGES, "prepare", "controls", "measure"]
    assert sorted(billed) == sorted(STAGES)


def test_learning_curves_are_those_of_the_stages(made: Made) -> None:
    found = {curve["name"]: curve["points"] for curve in made.info["ledger"]["curves"]}
    figures = made.artifact().figures
    assert found == {"teacher": figures["teacher"]["curve"], "pocket": figures["distil"]["curve"]}
    assert all(len(points) == 8 for points in found.values())


def test_what_did_not_train_has_no_curve() -> None:
    assert curves({"teacher": {"curve": []}}) == []


def test_only_a_trained_teacher_is_called_fine_tuned(made: Made) -> None:
    figures = copy.deepcopy(dict(made.artifact().figures))
    assert ledger(figures, costs_of(), 0)["rows"][0]["label"] == "teacher, fine-tuned"
    figures["teacher"] = {"trained": False, "curve": []}
    assert ledger(figures, costs_of(), 0)["rows"][0]["label"] == "teacher"


# Sums


@given(st.lists(figures, max_size=6))
def test_a_sum_is_unknown_where_a_part_is(values: list[float | None]) -> None:
    assert total(values) == (None if None in values else pytest.approx(sum(v or 0 for v in values)))


def test_spent_adds_the_named_stages() -> None:
    costs = [
        Cost("a", 1.0, 2.0, 3.0, "tdp"),
        Cost("b", 10.0, None, None, "none"),
        Cost("a", 5.0, 7.0, 1.0, "tdp"),
    ]
    assert spent(costs, ("a",)) == {"train_seconds": 6.0, "energy_wh": 9.0}
    assert spent(costs, ("a", "b")) == {"train_seconds": 16.0, "energy_wh": None}
    assert spent(costs, ("c",)) == {"train_seconds": 0, "energy_wh": 0}


# The bill


def test_making_is_repaid_by_what_requests_save() -> None:
    made = bill(measured_of(0.003, 0.001), costs_of(2.0))
    assert made["make_wh"] == 2 * len(STAGES) and made["make_gco2"] == len(STAGES)
    assert made["repaid_after_requests"] == 1000 * len(STAGES)


@pytest.mark.parametrize(("teacher", "pocket"), [(0.001, 0.001), (0.001, 0.002), (None, 0.1), (0.1, None)])
def test_what_saves_nothing_or_is_unknown_repays_nothing(teacher: float | None, pocket: float | None) -> None:
    assert bill(measured_of(teacher, pocket), costs_of())["repaid_after_requests"] is None


def test_a_bill_without_energy_is_without_a_guess() -> None:
    made = bill(measured_of(0.003, 0.001), costs_of(None))
    assert made["make_wh"] is made["make_gco2"] is made["repaid_after_requests"] is None
    assert made["make_seconds"] == sum(cost.seconds for cost in costs_of())


def test_a_comparison_has_no_bill_for_making() -> None:
    made = bill(measured_of(0.003, 0.001), ())
    assert made["make_seconds"] is made["make_wh"] is None and made["request_wh_teacher"] == 0.003


# Verdicts


def control(score: float, label: str = "TF-IDF") -> dict[str, Any]:
    return {"label": label, "score": score}


def test_nothing_is_said_of_a_pocket_that_beats_them_all() -> None:
    assert verdicts({"score": 0.9}, [control(0.8), control(0.899)], RATIOS, True) == []


@pytest.mark.parametrize("score", [0.9, 0.95])
def test_a_control_that_is_as_good_is_named_with_both_scores(score: float) -> None:
    (told,) = verdicts({"score": 0.9}, [control(0.5, "other"), control(score)], RATIOS, True)
    assert told == f"A cheaper control is as good: TF-IDF scores {score:.3f}, the pocket 0.900."


def test_skipped_controls_are_told() -> None:
    (told,) = verdicts({"score": 0.9}, [], RATIOS, True)
    assert told.startswith("The controls were skipped")
    assert verdicts({"score": 0.9}, [], RATIOS, False) == []  # nothing was distilled


@pytest.mark.parametrize("low", [0.5, 1.0])
def test_a_speed_up_that_is_not_certain_is_told(low: float) -> None:
    ratios = {**RATIOS, "faster_x": {"median": 1.2, "low": low, "high": 1.5}}
    (told,) = slower(ratios)
    assert told.startswith("Smaller to store, not faster here")
    (told,) = slower({**ratios, "smaller_x": 0.8})
    assert told.startswith("Not smaller, not faster here")
    assert slower({**RATIOS, "faster_x": {"median": 1.2, "low": 1.01, "high": 1.5}}) == []


def test_all_that_speaks_against_a_pocket_is_told_together() -> None:
    ratios = {**RATIOS, "faster_x": {"median": 0.9, "low": 0.8, "high": 1.1}}
    told = verdicts({"score": 0.5}, [control(0.6), control(0.7, "static")], ratios, True)
    assert len(told) == 3


def test_the_verdicts_of_the_tiny_pocket_are_in_its_report(made: Made) -> None:
    info = made.info
    rows = {row["kind"]: row for row in info["ledger"]["rows"]}
    beaten = [row for row in info["ledger"]["rows"][2:] if row["score"] >= rows["pocket"]["score"]]
    assert len([told for told in info["ledger"]["verdicts"] if "as good" in told]) == len(beaten)
    page = (made.pocket / "report.html").read_text(encoding="utf-8")
    assert all(told.split(":")[0] in page for told in info["ledger"]["verdicts"])


def test_what_stays_in_float_and_what_ships_packed_are_told() -> None:
    assert in_float({}) == in_float({"quantization": {"bits": 8, "floats": []}}) == unpacked({}) == []
    kept = {"bits": 4, "floats": ["head", "map_3"], "floats_stored": 8, "score": 0.91, "score_float": 0.92}
    stored = {"compute": "float32", "int8_ms": 2.0, "float32_ms": 1.0}
    (told,) = from_stored({"quantization": stored})
    assert "1.00 ms so, and 2.00 ms" in told
    assert from_stored({"quantization": {**stored, "compute": "int8"}}) == from_stored({}) == []
    (told,) = in_float({"quantization": kept})
    assert told.startswith("4 bits would have cost too much on valid, so these parts compute in float32, ")
    assert "from weights of 8 bits: head, map_3 (0.9100, all in float32 0.9200)" in told
    (told,) = in_float({"quantization": {**kept, "floats": ["head"]}})
    assert "so this part computes in float32, products from weights of 8 bits: head (" in told
    (told,) = unpacked({"size_bytes": 1_500_000, "unpacked_bytes": 4_250_000})
    assert "model.pocket of 1.50 MB" in told and "4.25 MB unpacked" in told
