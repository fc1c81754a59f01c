from __future__ import annotations

import json

import pytest

from pocketlm.errors import PocketError
from pocketlm.tasks.task import KINDS, METRICS, Task

TASKS = (
    Task("classification", False, ("a", "b")),
    Task("regression", True),
    Task("multilabel", True, ("a",)),
    Task("tokens", False, tags=("B-x", "O")),
    Task("joint", False, ("a", "b"), ("B-x", "I-x", "O")),
    Task("qa", True),
)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_task_is_the_same_after_json(task: Task) -> None:
    values = json.loads(json.dumps(task.to_dict()))
    assert Task.from_dict(values) == task
    assert ("tags" in values) == bool(task.tags), "older pockets have none"


def test_what_each_kind_says() -> None:
    assert [(task.outputs, task.word_outputs) for task in TASKS] == [
        (2, 0),
        (1, 0),
        (1, 0),
        (0, 2),
        (2, 3),
        (0, 2),
    ]
    assert [task.names for task in TASKS] == [
        ("a", "b"), (), ("a",), ("B-x", "O"), ("a", "b"), ("start", "end"),
    ]  # fmt: skip
    assert {task.kind for task in TASKS} == set(KINDS) == set(METRICS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "poetry", "pair": False, "labels": []},
            "allowed kinds: classification, regression, multilabel",
        ),
        (
            {"kind": "tokens", "pair": False, "labels": [], "tags": "O"},
            "the tags of a task are a list of names",
        ),
        (
            {"kind": "joint", "pair": False, "labels": [1], "tags": []},
            "the labels of a task are a list of names",
        ),
    ],
)
def test_what_is_no_task(values: dict[str, object], message: str) -> None:
    with pytest.raises(PocketError, match=message):
        Task.from_dict(values)
