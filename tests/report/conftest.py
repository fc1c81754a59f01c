"""Pockets to report on: a full one, one where nothing was measured, a regression and 150 labels."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

SENTENCES = (
    "A quiet triumph that trusts its audience to keep up, and is all the better for it.",
    "The jokes arrive on time, which is the best that can be said of them.",
    "Two hours in which nobody, on screen or off, seems to know why they came.",
    "For all its length it never outstays its welcome; the last act is a marvel of patience.",
    "You will laugh, though perhaps not where you were meant to.",
    "Handsome, hollow and, in its final reel, unexpectedly moving.",
    "It wants to be three films and is very nearly one.",
)


def _row(name: str, kind: str, label: str, **figures: Any) -> dict[str, Any]:
    empty = dict.fromkeys(
        [
            "score",
            "score_low",
            "score_high",
            "retention_pct",
            "retention_low",
            "retention_high",
            "parameters",
            "size_bytes",
            "ram_bytes",
            "start_ms",
            "p50_ms",
            "p95_ms",
            "throughput_per_s",
            "eager_p50_ms",
            "train_seconds",
            "energy_wh",
        ]
    )
    return {"name": name, "kind": kind, "label": label, "other_metrics": {}, **empty, **figures}


def _points(start: float, best: float, loss: float, steps: int) -> list[dict[str, Any]]:
    chance = random.Random(steps)
    found: list[dict[str, Any]] = []
    for step in range(20, steps + 1, 20):
        part = step / steps
        valid = start + (best - start) * (1 - (1 - part) ** 3) + chance.uniform(-0.004, 0.004)
        found.append(
            {
                "step": step,
                "train_loss": loss * (0.25 + 0.75 * (1 - part) ** 2) + chance.uniform(-0.02, 0.02),
                "valid_score": valid if step % 100 == 0 else None,
            }
        )
    return found


FULL: dict[str, Any] = {
    "format": 1,
    "name": "reviews",
    "task": {"kind": "classification", "pair": False, "labels": ["rotten", "fresh"]},
    "max_length": 128,
    "shape": {"layers": 3, "hidden_size": 384, "intermediate_size": 768, "heads": 12, "vocabulary": 8000},
    "teacher": {"name": "MiniLM-L6-H384", "source": "pypi:a-package==0.1.0/model", "licence": "apache-2.0"},
    "data": {
        "source": "reviews.csv",
        "columns": {"text": "quote", "label": "verdict", "group": "film"},
        "rows": {"train": 9412, "valid": 1190, "test": 1237},
        "dropped": {"train": {"empty_text": 12, "other_label": 0}},
    },
    "history": [
        "Prepare(source='reviews.csv', group='film', seed=0)",
        "FineTune(epochs=2, learning_rate=5e-05, batch_size=32, warmup=0.1, seed=0)",
        "Shrink(layers=(0, 2, 5), vocabulary=8000)",
        "Distill(epochs=4, temperature=2.0, hidden=1.0, logits=1.0, learning_rate=0.0003, seed=0)",
        "Export(runtime='onnx', weights='int8')",
    ],
    "recipe": "data:\n  source: reviews.csv\n  group: film\nteacher:\n  epochs: 2\n"
    "student:\n  layers: [0, 2, 5]\n"
    "  vocabulary: 8000\ndistill:\n  epochs: 4\n"
    "  temperature: 2.0  # softer targets say more about the wrong answers\n",
    "recipe_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "files": {
        "model.onnx": {
            "sha256": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
            "size_bytes": 7_700_000,
        },
        "tokenizer.json": {
            "sha256": "fd61a03af4f77d870fc21e05e7e80678095c92d808cfb3b5c279ee04c74aca13",
            "size_bytes": 391_002,
        },
    },
    "ledger": {
        "metric": "accuracy",
        "split": "test",
        "examples": 1237,
        "rows": [
            _row(
                "teacher",
                "teacher",
                "MiniLM-L6, fine-tuned",
                score=0.8402,
                score_low=0.819,
                score_high=0.860,
                retention_pct=100.0,
                other_metrics={"macro_f1": 0.8371},
                parameters=22_713_986,
                size_bytes=91_302_144,
                ram_bytes=312_000_000,
                p50_ms=12.31,
                p95_ms=17.9,
                throughput_per_s=148.2,
                eager_p50_ms=18.4,
                train_seconds=252.0,
                energy_wh=2.13,
            ),
            _row(
                "pocket",
                "pocket",
                "Pocket, 3 layers, int8",
                score=0.8217,
                score_low=0.799,
                score_high=0.843,
                retention_pct=97.8,
                retention_low=95.9,
                retention_high=99.6,
                other_metrics={"macro_f1": 0.8190},
                parameters=6_612_994,
                size_bytes=8_091_002,
                ram_bytes=88_000_000,
                start_ms=71.0,
                p50_ms=4.72,
                p95_ms=6.61,
                throughput_per_s=402.0,
                eager_p50_ms=7.9,
                train_seconds=188.0,
                energy_wh=1.61,
            ),
            _row(
                "undistilled",
                "control",
                "Same student, not distilled",
                score=0.792,
                score_low=0.768,
                score_high=0.815,
                retention_pct=94.3,
                other_metrics={"macro_f1": 0.790},
                parameters=6_612_994,
                size_bytes=8_091_002,
                p50_ms=4.71,
                p95_ms=6.60,
                train_seconds=96.0,
                energy_wh=0.81,
            ),
            _row(
                "tfidf",
                "control",
                "TF-IDF + logistic regression",
                score=0.7631,
                score_low=0.739,
                score_high=0.786,
                retention_pct=90.8,
                other_metrics={"macro_f1": 0.7604},
                parameters=20_412,
                size_bytes=1_210_000,
                p50_ms=0.31,
                p95_ms=0.42,
                train_seconds=2.4,
                energy_wh=0.02,
            ),
            _row(
                "static",
                "control",
                "Static embeddings",
                score=0.771,
                score_low=0.747,
                score_high=0.794,
                retention_pct=91.8,
                other_metrics={"macro_f1": 0.768},
                parameters=2_048_770,
                size_bytes=4_300_000,
                p50_ms=0.12,
                p95_ms=0.16,
                train_seconds=4.4,
                energy_wh=0.03,
            ),
        ],
        "ratios": {
            "smaller_x": 11.28,
            "fewer_parameters_x": 3.43,
            "faster_x": {"median": 2.61, "low": 2.44, "high": 2.79},
            "faster_x_eager_torch": {"median": 3.9, "low": 3.71, "high": 4.2},
        },
        "curves": [
            {"name": "teacher", "points": _points(0.62, 0.846, 0.69, 600)},
            {"name": "pocket", "points": _points(0.55, 0.829, 1.9, 1180)},
            {"name": "undistilled", "points": _points(0.52, 0.797, 0.7, 1180)},
        ],
        "confusion": {
            "labels": ["rotten", "fresh"],
            "teacher": [[401, 111], [87, 638]],
            "pocket": [[379, 133], [88, 637]],
        },
        "disagreements": [
            {
                "texts": [SENTENCES[index % len(SENTENCES)]],
                "label": ("fresh", "rotten")[index % 2],
                "teacher": ("fresh", "rotten", "rotten")[index % 3],
                "pocket": ("rotten", "fresh", "fresh")[index % 3],
            }
            for index in range(20)
        ],
        "bill": {
            "make_seconds": 551.0,
            "make_wh": 4.6,
            "make_gco2": 1.75,
            "energy_method": "tdp",
            "request_wh_teacher": 5.1e-5,
            "request_wh_pocket": 1.96e-5,
            "repaid_after_requests": 146_497,
            "country": "DEU",
            "note": "Making includes the teacher's fine-tuning and the controls.",
        },
        "machine": {
            "cpu": "A laptop processor at 2.60 GHz",
            "cores": 2,
            "ram_gb": 24,
            "os": "Debian GNU/Linux 12",
        },
        "versions": {"pocketlm": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.22.0", "tokenizers": "0.22.0"},
        "threads": 2,
        "tokens_p50": 26,
        "verdicts": [
            "At 1.2 MB, TF-IDF + logistic regression keeps 90.8 % at 0.31 ms: cheaper, if that will do.",
        ],
        "seed": 0,
        "when": "2026-03-03T14:05:11+00:00",
    },
}


def _minimal() -> dict[str, Any]:
    ledger = {**dict.fromkeys(FULL["ledger"]), "metric": "accuracy", "rows": [], "curves": []}
    ledger["rows"] = [
        {**dict.fromkeys(FULL["ledger"]["rows"][0]), "name": kind, "kind": kind, "label": kind.title()}
        for kind in ("teacher", "pocket")
    ]
    return {**dict.fromkeys(FULL), "format": 1, "name": "bare", "ledger": ledger}


def _many_labels() -> dict[str, Any]:
    pocket = copy.deepcopy(FULL)
    labels = [f"intent_{index:03}_of_the_assistant" for index in range(150)]
    chance = random.Random(0)

    def counts(mistakes: int) -> list[list[int]]:
        matrix = [[28 if true == predicted else 0 for predicted in range(150)] for true in range(150)]
        for _ in range(mistakes):
            matrix[chance.randrange(150)][int(chance.triangular(0, 149, 7))] += 1
        return matrix

    pocket["name"] = "assistant"
    pocket["task"]["labels"] = labels
    pocket["ledger"]["confusion"] = {"labels": labels, "teacher": counts(260), "pocket": counts(420)}
    return pocket


def _regression() -> dict[str, Any]:
    pocket = copy.deepcopy(FULL)
    pocket["name"] = "similarity"
    pocket["task"] = {"kind": "regression", "pair": True, "labels": []}
    ledger = pocket["ledger"]
    ledger.update(metric="pearson", confusion=None, verdicts=[])
    for row in ledger["rows"]:
        row["other_metrics"] = {"spearman": row["score"] + 0.004}
    ledger["disagreements"] = [
        {
            "texts": list(SENTENCES[index : index + 2]),
            "label": "3.2",
            "teacher": "3.4",
            "pocket": f"{index}.1",
        }
        for index in range(5)
    ]
    return pocket


MINIMAL, MANY_LABELS, REGRESSION = _minimal(), _many_labels(), _regression()

HOSTILE_TEXTS = (
    "<script>alert(1)</script><img src='https://example.invalid/x.png' onerror=alert(1)>",
    "\u202eevil \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd 👩\u200d👩\u200d👧\u200d👦 end",
    "x" * 10_000,
    "NUL \x00 bell \x07 lone \ud800 surrogate",
    "{{ 7 * 7 }} {% raw %} ]]> --> </style></title>",
    "\n\n  \t ",
)


def _hostile() -> dict[str, Any]:
    pocket = copy.deepcopy(FULL)
    nasty = HOSTILE_TEXTS[0] + HOSTILE_TEXTS[1] + HOSTILE_TEXTS[3] + HOSTILE_TEXTS[4]
    pocket.update(name=nasty, recipe=nasty, history=[nasty])
    pocket["task"]["labels"] = [nasty, HOSTILE_TEXTS[2]]
    pocket["teacher"] = dict.fromkeys(("name", "source", "licence"), nasty)
    pocket["data"].update(source=nasty, columns={nasty: nasty}, dropped={nasty: {nasty: 3}})
    pocket["files"] = {nasty: {"sha256": nasty, "size_bytes": 1}}
    ledger = pocket["ledger"]
    ledger["confusion"]["labels"] = [nasty, HOSTILE_TEXTS[2]]
    ledger["verdicts"] = [nasty, HOSTILE_TEXTS[2]]
    ledger["bill"].update(note=nasty, country=nasty)
    ledger["machine"].update(cpu=nasty, os=HOSTILE_TEXTS[2])
    ledger["versions"] = {nasty: nasty}
    ledger["when"] = nasty
    for row in ledger["rows"]:
        row["label"] = nasty
    ledger["disagreements"] = [
        {"texts": [text, text], "label": nasty, "teacher": nasty, "pocket": HOSTILE_TEXTS[2]}
        for text in HOSTILE_TEXTS
    ]
    return pocket


POCKETS = {
    "full": FULL,
    "minimal": MINIMAL,
    "many labels": MANY_LABELS,
    "regression": REGRESSION,
    "hostile": _hostile(),
}


@pytest.fixture(params=POCKETS, ids=lambda name: name.replace(" ", "-"))
def pocket(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each of the pockets, as a copy of its own."""
    return copy.deepcopy(POCKETS[request.param])


@pytest.fixture
def full() -> dict[str, Any]:
    """A pocket with every figure measured."""
    return copy.deepcopy(FULL)


@pytest.fixture
def minimal() -> dict[str, Any]:
    """A pocket with every figure null."""
    return copy.deepcopy(MINIMAL)


@pytest.fixture
def many_labels() -> dict[str, Any]:
    """A classification with 150 labels."""
    return copy.deepcopy(MANY_LABELS)


@pytest.fixture
def regression() -> dict[str, Any]:
    """A regression on pairs of texts."""
    return copy.deepcopy(REGRESSION)


@pytest.fixture
def hostile() -> dict[str, Any]:
    """A pocket whose every text tries to break out of its place."""
    return copy.deepcopy(POCKETS["hostile"])
