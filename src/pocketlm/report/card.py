"""`README.md` of a pocket: a model card with the measured figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pocketlm.report.ledger import section
from pocketlm.report.table import markdown_table

PIPELINES = {"tokens": "token-classification", "qa": "question-answering"}
"""What the Hub calls a task, where it is not text classification."""


def card(pocket: Mapping[str, Any]) -> str:
    """A Hub model card from a pocket's own description.

    Args:
        pocket: The parsed `pocket.json`.
    """
    teacher, data = pocket["teacher"], pocket["data"]
    rows = data["rows"]
    known = section(data, "overlap").get("test") or 0
    unseen = f"; {known} of those texts occur in train, too" if known else " that it never saw"
    lines = [
        "---",
        f"license: {json.dumps(teacher['licence'] or 'unknown')}",
        "library_name: pocketlm",
        f"pipeline_tag: {PIPELINES.get(pocket['task']['kind'], 'text-classification')}",
        f"base_model: {json.dumps(teacher['name'])}",
        f"model-index: {json.dumps([_index(pocket)], ensure_ascii=False)}",
        "---",
        "",
        f"# {pocket['name']}",
        "",
        f"A pocket of {teacher['name']}, trained on {rows['train']} rows "
        f"and measured on {rows['test']}{unseen}.",
        "",
        markdown_table(pocket["ledger"]),
        "",
        "```python",
        "import pocketlm",
        "",
        f'pocket = pocketlm.load("{pocket["name"]}")',
        f"pocket.predict([{_example(pocket['task'])}])",
        "```",
        "",
        *(
            [
                "`model.pocket` is all that a device needs, in one file that pocketlm opens; other runtimes",
                "take `model.onnx` and `tokenizer.json`.",
            ]
            if "model.pocket" in section(pocket, "files")
            else [
                "A device needs `model.onnx` and `tokenizer.json`; pocketlm and its page read labels from",
                "`pocket.json`.",
            ]
        ),
        f"`model.safetensors` is the same model before quantization, {_transformers(pocket)}",
        "`report.html` says how every figure was measured, `pocket.json` holds them all, with the recipe",
        "that makes this pocket again.",
        "",
        f"The licence is the teacher's ({teacher['licence'] or 'not stated'}). {_other_terms(pocket)}",
        "",
    ]
    return "\n".join(lines)


def _transformers(pocket: Mapping[str, Any]) -> str:
    """What opens the weights of a pocket."""
    kind = pocket["task"]["kind"]
    if any(stage.startswith("Structured(") for stage in pocket.get("history", ())):
        return "its layers unlike each other, as no class of transformers is: it opens in pocketlm alone."
    if kind in PIPELINES:
        return "for `AutoModelForTokenClassification` of transformers."
    rest = ", which reads the intent and not the slots" if kind == "joint" else ""
    return f"for `AutoModelForSequenceClassification` of transformers{rest}."


def _other_terms(pocket: Mapping[str, Any]) -> str:
    """What else is in a pocket, and under which licence it came."""
    found = [("The data's is", section(pocket, "data"))]
    if "start" in pocket:
        found.insert(0, ("That of the model whose weights it starts from is", section(pocket, "start")))
    return " ".join(f"{what} {one.get('licence') or 'not stated'}." for what, one in found)


def _index(pocket: Mapping[str, Any]) -> dict[str, Any]:
    """The figures on test as the Hub's metadata has them, in the metric's own unit."""
    ledger, kind = pocket["ledger"], pocket["task"]["kind"]
    row = next(row for row in ledger["rows"] if row["kind"] == "pocket")
    metrics = {ledger["metric"]: row["score"], **section(row, "other_metrics")}
    result = {
        "task": {"type": PIPELINES.get(kind, "text-classification")},
        "dataset": {"name": pocket["name"], "type": pocket["name"], "split": "test"},
        "metrics": [{"type": name, "value": round(value, 4)} for name, value in metrics.items()],
    }
    return {"name": pocket["name"], "results": [result]}


def _example(task: Mapping[str, Any]) -> str:
    if task["kind"] == "qa":
        return '("a question", "a context")'
    return '("a first text", "a second text")' if task["pair"] else '"a text"'
