"""What is shown of words, several labels and answers; single labels and numbers are tested beside compare."""

from __future__ import annotations

import numpy as np

from pocketlm.data.examples import Examples
from pocketlm.measure.kinds import by_name, confusions, differences, disagreements, spoken, true_spoken
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits

JOINT = Task("joint", pair=False, labels=("go", "stop"), tags=("B-city", "I-city", "O"))
TAGGED = Task("tokens", pair=False, tags=JOINT.tags)
MANY = Task("multilabel", pair=False, labels=("a", "b", "c"))
QUESTION = Task("qa", pair=True)
TEXTS = [("to New York",), ("wait",)]


def tagged(tags: list[list[str]], text: list[list[float]]) -> WordLogits:
    flat = [JOINT.tags.index(tag) for row in tags for tag in row]
    offsets = np.cumsum([0, *map(len, tags)])
    return WordLogits(np.array(text), np.eye(3)[flat], np.ones(len(flat), dtype=bool), offsets, TEXTS)


RIGHT = [["O", "B-city", "I-city"], ["O"]]
TEST = Examples(TEXTS, [{"intent": 0, "tags": RIGHT[0]}, {"intent": -1, "tags": ["B-new"]}])
LOGITS = {
    "teacher": tagged(RIGHT, [[1, 0], [0, 1]]),
    "pocket": tagged([["O", "B-city", "O"], ["O"]], [[0, 1], [0, 1]]),
}


def test_an_intent_with_slots_is_written_as_it_is_read() -> None:
    assert spoken(JOINT, LOGITS["teacher"]) == ["go · city: New York", "stop · -"]
    assert true_spoken(JOINT, TEST) == ["go · city: New York", "(not in train) · new: wait"]
    assert differences(JOINT, LOGITS["teacher"], LOGITS["pocket"]).tolist() == [3, 0]
    (entry,) = disagreements(TEST, LOGITS, JOINT)
    assert (entry["teacher"], entry["pocket"]) == ("go · city: New York", "stop · city: New")
    assert confusions(TEST, LOGITS, JOINT) == {
        "labels": ["go", "stop"], "teacher": [[1, 0], [0, 0]], "pocket": [[0, 1], [0, 0]],
    }  # fmt: skip


def test_each_type_of_span_has_its_f1() -> None:
    wanted = [
        {"name": "city", "of": 1, "teacher": 1.0, "pocket": 0.0},
        {"name": "new", "of": 1, "teacher": 0.0, "pocket": 0.0},
    ]
    assert by_name(TEST, LOGITS, JOINT) == wanted
    plain = Examples(TEXTS, [label["tags"] for label in TEST.labels])
    alone = {
        name: WordLogits(np.zeros((2, 0)), said.words, said.known, said.offsets, TEXTS)
        for name, said in LOGITS.items()
    }
    assert by_name(plain, alone, TAGGED) == wanted
    assert spoken(TAGGED, alone["teacher"]) == ["city: New York", "-"]
    assert true_spoken(TAGGED, plain)[1] == "new: wait"
    assert confusions(plain, alone, TAGGED) is None


def test_several_labels() -> None:
    test = Examples([("x",), ("y",)], [[0, 2], []])
    logits = {
        "teacher": np.array([[1.0, -1, 1], [-1, -1, -1]]),
        "pocket": np.array([[1.0, 1, -1], [-1, -1, -1]]),
    }
    assert spoken(MANY, logits["pocket"]) == ["a, b", "-"]
    assert true_spoken(MANY, test) == ["a, c", "-"]
    assert differences(MANY, logits["teacher"], logits["pocket"]).tolist() == [2, 0]
    rows = by_name(test, logits, MANY)
    assert rows is not None and [row["name"] for row in rows] == ["a", "c", "b"]
    assert rows[0] == {"name": "a", "of": 1, "teacher": 1.0, "pocket": 1.0}


def test_answers_that_share_more_words_are_nearer() -> None:
    texts = [("?", "red car"), ("?", "red car"), ("?", "red car")]
    offsets = np.array([0, 2, 4, 6])

    def answers(*spans: tuple[int, int]) -> WordLogits:
        words = np.zeros((6, 2))
        for row, (first, last) in enumerate(spans):
            words[2 * row + first, 0] = words[2 * row + last, 1] = 9
        return WordLogits(np.zeros((3, 0)), words, np.ones(6, dtype=bool), offsets, texts)

    teacher, pocket = answers((0, 1), (0, 1), (0, 0)), answers((0, 1), (0, 0), (1, 1))
    assert spoken(QUESTION, pocket) == ["red car", "red", "car"]
    apart = differences(QUESTION, teacher, pocket)
    assert apart[0] == 0 < apart[1] < apart[2]
    test = Examples(texts, [{"answers": ["red", "car"], "start": 0, "end": 0}] * 3)
    assert true_spoken(QUESTION, test) == ["red"] * 3
    assert by_name(test, {"teacher": teacher, "pocket": pocket}, QUESTION) is None
    assert len(disagreements(test, {"teacher": teacher, "pocket": pocket}, QUESTION)) == 2
