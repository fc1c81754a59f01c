from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "scripts" / "readme_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load()


def line(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "bench": "demo",
        "row": "default",
        "kind": "pocket",
        "method": "distilled",
        "teacher": "mini",
        "task": "critics",
        "split": "test",
        "metric": "accuracy",
        "seed": 0,
        "score": 0.8,
        "score_low": 0.78,
        "score_high": 0.82,
        "retention_pct": 98.0,
        "size_bytes": 5_000_000,
        "smaller_x": 16.0,
        "p50_ms": 1.5,
        "faster_x": 4.0,
        "faster_x_eager_torch": 8.0,
        "threads": 2,
        "make_minutes": 6.0,
        "energy_wh": 3.0,
        "energy_method": "tdp",
        "commit": "0123456789abcdef",
        "recipe_sha256": "aa",
        "machine": "two cores",
        "isa": ["avx2"],
        "when": "2026-01-01T00:00:00+00:00",
    }
    return {**values, **changes}


def project(folder: Path, lines: list[dict[str, Any]]) -> Path:
    results = folder / "benchmarks" / "results"
    results.mkdir(parents=True)
    (folder / "docs").mkdir()
    text = "before\n<!-- table:demo -->\nold\n<!-- /table -->\nafter\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "docs" / "page.md").write_text("no table here\n", encoding="utf-8")
    if lines:
        content = "".join(json.dumps(values) + "\n" for values in lines)
        (results / "demo.jsonl").write_text(content, encoding="utf-8")
    return folder


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s*\|\s*", row.strip("| \n")) for row in text.splitlines() if row.startswith("|")]


def test_no_results_says_so(tmp_path: Path) -> None:
    root = project(tmp_path, [])
    assert tables.main([], root) == 0
    text = (root / "README.md").read_text(encoding="utf-8")
    assert "Not measured yet" in text
    assert text.startswith("before\n") and text.endswith("after\n")


def test_check_changes_nothing_and_fails_until_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(tmp_path, [line()])
    before = (root / "README.md").read_text(encoding="utf-8")
    assert tables.main(["--check"], root) == 1
    assert "README.md: stale; run: make tables" in capsys.readouterr().out
    assert (root / "README.md").read_text(encoding="utf-8") == before
    assert tables.main([], root) == 0
    assert tables.main(["--check"], root) == 0


def test_median_and_extremes_over_seeds() -> None:
    lines = [line(seed=seed, p50_ms=ms) for seed, ms in enumerate((1.5, 9.0, 2.0))]
    head, _, row = rows(tables.table(lines))
    assert row[head.index("p50, ms")] == "2.00 (1.50 to 9.00)"
    assert row[head.index("size, MB")] == "5.00"
    assert row[head.index("accuracy [interval]")] == "80.0 [78.0, 82.0]"
    assert row[head.index("faster, same runtime")] == "4.00x"


def test_means_are_over_tasks_of_the_medians_over_seeds() -> None:
    lines = [
        line(task="a", row="point", retention_pct=98.0, size_bytes=4_000_000),
        *(line(task="b", row="point", seed=seed, retention_pct=90.0 + seed) for seed in range(3)),
        line(task="b", row="other", kind="control", retention_pct=50.0),
        line(task="b", row="paper", kind="paper-recipe", retention_pct=80.0),
    ]
    head, _, *found = rows(tables.means(lines))
    of = {row[head.index("row")]: dict(zip(head, row, strict=True)) for row in found}
    assert {*of} == {"point", "paper"}
    assert (of["point"]["tasks"], of["point"]["mean retention"]) == ("2", "94.5 %")
    assert of["point"]["least"] == "91.0 % (b)"
    assert of["point"]["MB"] == "4.50 (4.00 to 5.00)"


def test_an_ablation_stands_below_its_recipe_on_the_same_task() -> None:
    lines = [
        line(task="a", row="paper", kind="paper-recipe", score=0.8),
        line(task="b", row="paper", kind="paper-recipe", score=0.9),
        line(task="a", row="paper, no term", kind="control", score=0.7),
        line(task="a", row="other, no term", kind="control", score=0.6),
    ]
    head, _, *found = rows(tables.ablation(lines, "paper"))
    assert [(row[0], row[1], row[head.index("score [interval]")].split()[0]) for row in found] == [
        ("paper", "a", "80.0"),
        ("no term", "a", "70.0"),
    ]
    assert "Not measured yet" in tables.ablation(lines[:2], "paper")


def test_scores_beside_the_headline_are_of_teacher_and_pocket_alone() -> None:
    joint = {"intent_accuracy": 0.987, "span_f1": 0.951}
    lines = [
        line(task="joint", row="point", score=0.88, other_metrics=joint),
        line(task="joint", row="static", kind="control", other_metrics=joint),
        line(task="scoped", row="point", score=0.81, other_metrics={"in_scope_accuracy": 0.937}),
        line(task="plain", row="point", other_metrics={"macro_f1": 0.8}),
    ]
    head, _, *found = rows(tables.parts(lines))
    of = {row[head.index("task")]: dict(zip(head, row, strict=True)) for row in found}
    assert {*of} == {"joint", "scoped"} and len(found) == 2
    assert (of["joint"]["score"], of["joint"]["intent"], of["joint"]["slot F1"]) == ("88.0", "98.7", "95.1")
    assert (of["joint"]["in scope alone"], of["scoped"]["in scope alone"]) == ("–", "93.7")
    assert "Not measured yet" in tables.parts(lines[3:])


def test_a_block_of_means_is_filled(tmp_path: Path) -> None:
    root = project(tmp_path, [line()])
    page = root / "docs" / "page.md"
    page.write_text(
        "<!-- means:demo -->\n<!-- /means -->\n<!-- means:none -->\n<!-- /means -->\n", encoding="utf-8"
    )
    assert tables.main([], root) == 0
    text = page.read_text(encoding="utf-8")
    assert "| 98.0 % |" in text and "Not measured yet" in text
    assert tables.main(["--check"], root) == 0


def test_a_seed_measured_again_replaces_its_older_line() -> None:
    lines = [line(p50_ms=9.0, when="2026-01-02"), line(p50_ms=1.0, when="2026-01-03")]
    for order in (lines, lines[::-1]):
        head, _, row = rows(tables.table(order))
        assert row[head.index("p50, ms")] == "1.00"


def test_an_older_recipe_is_left_out() -> None:
    lines = [line(seed=1, score=0.5, recipe_sha256="bb"), line(seed=0, when="2026-02-01")]
    head, _, row = rows(tables.table(lines))
    assert row[head.index("accuracy [interval]")].startswith("80.0")


@pytest.mark.parametrize("changed", [{"machine": "four cores"}, {"isa": ["avx512"]}])
def test_of_another_machine_scores_count_and_times_do_not(changed: dict[str, Any]) -> None:
    lines = [line(seed=1, p50_ms=9.0, score=0.6, **changed), line(seed=0, p50_ms=1.0, when="2026-02-01")]
    table = tables.table(lines)
    head, _, row = rows(table)
    assert row[head.index("p50, ms")] == "1.00" and row[head.index("accuracy [interval]")].startswith("70.0")
    assert "; times of the newest line's machine alone; 2 threads" in table


def test_every_kind_of_processor_behind_a_table_is_named() -> None:
    caption = tables.table([line(), line(row="other", isa=["avx2", "avx512"])]).splitlines()[-1]
    assert "; two cores (avx2); two cores (avx2, avx512); 2 threads" in caption


def test_missing_figures_are_a_dash_and_never_zero() -> None:
    head, _, row = rows(tables.table([line(energy_wh=None, score=None, size_bytes=None)]))
    for name in ("Wh", "accuracy [interval]", "size, MB"):
        assert row[head.index(name)] == "–"


def test_teacher_first_and_controls_after_the_pocket() -> None:
    lines = [line(row=kind, kind=kind) for kind in ("control", "pocket", "teacher")]
    names = [row[0].split(",")[0] for row in rows(tables.table(lines))[2:]]
    assert names == ["teacher", "**pocket", "control"]


def test_several_tasks_name_the_task_and_keep_each_metric() -> None:
    head, _, first, second = rows(
        tables.table([line(task="sst2"), line(task="stsb", metric="pearson", score=0.8123)])
    )
    assert head[0] == "task" and "score [interval]" in head
    assert (first[0], second[0]) == ("sst2", "stsb")
    assert second[head.index("score [interval]")].startswith("0.812 ")


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    path.write_text('{"row": 1}\n{"row": \n', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"demo\.jsonl:2 is not JSON .*; mend the line by hand"):
        tables.read_results(path)


@given(st.floats(min_value=1e-3, max_value=1e6))
def test_three_significant_digits(value: float) -> None:
    shown = tables.significant(value)
    assert "e" not in shown
    assert float(shown) == pytest.approx(value, rel=0.006)


@given(st.lists(st.floats(min_value=0.1, max_value=1e4), min_size=1, max_size=5))
def test_spread_is_ordered(values: list[float]) -> None:
    numbers = [float(number) for number in re.findall(r"[\d.]+", tables.spread(values, tables.significant))]
    middle, low, high = numbers if len(numbers) == 3 else (numbers[0],) * 3
    assert low <= middle <= high


def test_several_teachers_are_named_and_kept_apart() -> None:
    text = tables.table([line(), line(teacher="base", score=0.9)])
    assert "| teacher | model |" in text
    assert len(re.findall(r"^\| (base|mini) \| \*\*default", text, re.MULTILINE)) == 2


def test_a_study_of_single_weights_has_a_line_for_every_sparsity(tmp_path: Path) -> None:
    rows = [
        line(bench="prune", row=f"resnet: {what}, {sparsity:.1%}", seed=seed, sparsity=sparsity, score=score)
        for what, sparsity, scores in (("dense", 0.0, (0.9, 0.92)), ("gradual", 0.9, (0.91, 0.91)))
        for seed, score in enumerate(scores)
    ]
    other = line(bench="prune", row="decoder: wanda", metric="perplexity", sparsity=0.5, score=21.456)
    text = "".join(json.dumps(values) + "\n" for values in [*rows, other])
    (tmp_path / "prune.jsonl").write_text(text)
    page = "<!-- sparse:resnet -->\n<!-- /sparse -->\n<!-- sparse:decoder -->\n<!-- /sparse -->\n"
    filled = tables.fill(page, tmp_path)
    assert "| mini | critics | dense | 0% | 91.0 (90.0 to 92.0) accuracy | 2 |" in filled
    assert "| mini | critics | gradual | 90% | 91.0 accuracy | 2 |" in filled
    assert "| mini | critics | wanda | 50% | 21.5 perplexity | 1 |" in filled
    assert tables.fill(filled, tmp_path) == filled
    assert "Not measured yet" in tables.fill(page, tmp_path / "nowhere")
