"""The model card: front matter that a Hub reads, the measured figures, code that runs."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml

from pocketlm.report.card import card
from pocketlm.report.table import markdown_table
from tests.conftest import Made


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_yaml_that_names_licence_and_teacher(full: dict[str, Any]) -> None:
    full["teacher"].update(name='a "quoted": name', licence="apache-2.0")
    found = front_matter(card(full))
    assert found["license"] == "apache-2.0" and found["base_model"] == 'a "quoted": name'
    assert found["library_name"] == "pocketlm"


def test_a_licence_that_nobody_stated_is_unknown(full: dict[str, Any]) -> None:
    full["teacher"]["licence"] = None
    text = card(full)
    assert front_matter(text)["license"] == "unknown" and "(not stated)" in text


def test_the_card_names_every_licence_that_came_with_a_part(full: dict[str, Any]) -> None:
    assert "The data's is not stated." in card(full) and "starts from" not in card(full)
    full["data"]["licence"] = "cc-by-4.0"
    full["start"] = {"name": "MiniLM", "source": "a-folder", "licence": "mit"}
    assert "That of the model whose weights it starts from is mit. The data's is cc-by-4.0." in card(full)


def test_the_card_has_the_measured_figures(full: dict[str, Any]) -> None:
    text = card(full)
    assert markdown_table(full["ledger"]) in text
    assert "82.2" in text and "97.8" in text


def test_the_hub_reads_the_figures_too(full: dict[str, Any]) -> None:
    row = next(row for row in full["ledger"]["rows"] if row["kind"] == "pocket")
    (index,) = front_matter(card(full))["model-index"]
    (result,) = index["results"]
    assert index["name"] == full["name"] and result["task"] == {"type": "text-classification"}
    assert {"type": full["ledger"]["metric"], "value": round(row["score"], 4)} in result["metrics"]
    assert result["dataset"]["split"] == "test"


def test_what_ships_in_one_file_is_told(full: dict[str, Any]) -> None:
    assert "A device needs `model.onnx`" in card(full)
    full["files"] = {"model.pocket": {}}
    assert "`model.pocket` is all that a device needs" in card(full)


def test_what_opens_the_weights_is_told(full: dict[str, Any]) -> None:
    assert "for `AutoModelForSequenceClassification` of transformers." in card(full)
    for kind, told in (
        ("tokens", "AutoModelForTokenClassification"),
        ("joint", "the intent and not the slots"),
    ):
        full["task"]["kind"] = kind
        assert told in card(full)
    full["history"] = ["Structured(speedup=8.0)"]
    assert "opens in pocketlm alone" in card(full) and "AutoModel" not in card(full)


def test_rows_that_the_training_has_seen_are_told(full: dict[str, Any]) -> None:
    full["data"].update(rows={"train": 100, "valid": 10, "test": 40}, overlap={"valid": 0, "test": 0})
    assert "trained on 100 rows and measured on 40 that it never saw." in card(full)
    full["data"]["overlap"]["test"] = 7
    assert "measured on 40; 7 of those texts occur in train, too." in card(full)
    assert "never saw" not in card(full)


@pytest.mark.parametrize("pair", [False, True])
def test_the_code_is_python_and_fits_the_task(pair: bool, full: dict[str, Any]) -> None:
    full["task"]["pair"] = pair
    full["name"] = "reviews"
    (code,) = re.findall(r"```python\n(.*?)```", card(full), re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    predict = next(call for call in calls if ast.unparse(call.func) == "pocket.predict")
    (given,) = ast.literal_eval(predict.args[0])
    assert isinstance(given, tuple) == pair
    assert "pocketlm.load('reviews')" in ast.unparse(calls[0])


def test_the_card_of_a_pocket_shows_its_own_figures(made: Made) -> None:
    text = (made.pocket / "README.md").read_text(encoding="utf-8")
    assert text == card(made.info)
    found = front_matter(text)
    (index,) = found.pop("model-index")
    metrics = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    row = next(row for row in made.info["ledger"]["rows"] if row["kind"] == "pocket")
    assert metrics[made.info["ledger"]["metric"]] == round(row["score"], 4)
    assert found == {
        "license": "mit",
        "library_name": "pocketlm",
        "pipeline_tag": "text-classification",
        "base_model": "teacher",
    }
    rows = made.info["ledger"]["rows"]
    assert "trained on 320 rows and measured on 40 that it never saw" in text
    assert f"{100 * rows[1]['score']:.1f}" in text and "TF-IDF + logistic regression" in text


def test_the_card_names_the_kind_of_task(full: dict[str, Any]) -> None:
    for kind, wanted in (
        ("tokens", "token-classification"),
        ("qa", "question-answering"),
        ("joint", "text-class"),
    ):
        task = {"kind": kind, "pair": kind == "qa", "labels": []}
        assert f"pipeline_tag: {wanted}" in card({**full, "task": task})
