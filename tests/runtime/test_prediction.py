from __future__ import annotations

import numpy as np
import pytest

from pocketlm.export.pack import FORMAT
from pocketlm.measure.compare import as_pocket
from pocketlm.models.load import Classifier
from pocketlm.runtime import Pocket, load
from pocketlm.runtime.prediction import Prediction, Span, predictions
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits
from tests.tiny_models import JOINT, MANY, ON_WORDS, QUESTION, TAGGED, classifier, examples_of

EVERY = (MANY, *ON_WORDS)


@pytest.fixture(scope="module")
def pockets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Classifier, Pocket]]:
    """A random model of every kind beside its pocket; exporting takes seconds."""
    assert FORMAT == 1
    folder = tmp_path_factory.mktemp("pockets")
    made: dict[str, tuple[Classifier, Pocket]] = {}
    for task in EVERY:
        model = classifier(task=task, layers=1, max_length=24)
        made[task.kind] = model, load(as_pocket(model, folder / task.kind), threads=1)
    return made


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.kind)
def test_a_pocket_says_what_torch_says(pockets: dict[str, tuple[Classifier, Pocket]], task: Task) -> None:
    model, pocket = pockets[task.kind]
    texts = examples_of(task, 9).texts
    texts += [tuple(["" for _ in texts[0]]), tuple(["naïve 😀 日本 " * 12 for _ in texts[0]])]
    wanted = model.logits(model.encode(texts))
    inputs = [text[0] if len(text) == 1 else text for text in texts]
    for batch_size in (1, 4):
        said = pocket.logits(inputs, batch_size)
        if task is MANY:
            assert np.allclose(said, wanted, atol=1e-4)
            continue
        assert np.allclose(said.words, wanted.words, atol=1e-4)
        assert np.allclose(said.text, wanted.text, atol=1e-4)
        assert np.array_equal(said.known, wanted.known) and np.array_equal(said.offsets, wanted.offsets)
    assert len(pocket.predict(inputs)) == 11


@pytest.mark.parametrize("task", ON_WORDS, ids=lambda task: task.kind)
def test_spans_are_parts_of_the_text(pockets: dict[str, tuple[Classifier, Pocket]], task: Task) -> None:
    texts = examples_of(task, 12).texts
    inputs = [text[0] if len(text) == 1 else text for text in texts]
    found = 0
    for text, prediction in zip(texts, pockets[task.kind][1].predict(inputs), strict=True):
        assert prediction.spans is not None
        for span in prediction.spans:
            assert text[-1][span.start : span.end] == span.text != ""
            assert 0 <= span.score <= 1
            found += 1
    assert found > 0


def word_logits(task: Task, text: str, words: list[list[float]], whole: list[float]) -> WordLogits:
    return WordLogits(
        np.array([whole]), np.array(words), np.ones(len(words), dtype=bool), np.array([0, len(words)]),
        [("who?", text) if task.pair else (text,)],
    )  # fmt: skip


def test_an_intent_with_its_slots() -> None:
    logits = word_logits(
        JOINT, "a very  quiet film", [[0, 0, 9], [9, 0, 0], [0, 9, 0], [0, 0, 9]], [0.0, 9, 0]
    )
    (said,) = predictions(JOINT, logits)
    assert (said.label, said.labels) == ("good", None)
    assert said.score == pytest.approx(1, abs=1e-3) and said.scores is not None
    (span,) = said.spans or ()
    assert (span.name, span.text, span.start, span.end) == ("mood", "very  quiet", 2, 13)
    sure = np.exp(9) / (np.exp(9) + 2)
    assert span.score == pytest.approx(sure**2)


def test_tags_alone_have_no_label() -> None:
    (said,) = predictions(TAGGED, word_logits(TAGGED, "a b", [[0, 0, 9], [0, 0, 9]], []))
    assert (said.label, said.scores, said.spans, said.answer) == (None, None, (), None)
    assert said.score == pytest.approx(1, abs=1e-3)


def test_an_answer_is_a_span() -> None:
    logits = word_logits(QUESTION, "It was Zoë.", [[0, 0], [0, 0], [9, 9], [0, 0]], [])
    (said,) = predictions(QUESTION, logits)
    assert said.answer == "Zoë" and said.label is None
    assert said.spans == (Span("answer", "Zoë", 7, 10, said.score),)
    nothing = WordLogits(np.zeros((1, 0)), np.zeros((0, 2)), np.zeros(0, bool), np.array([0, 0]), [("?", "")])
    assert predictions(QUESTION, nothing) == [Prediction(None, 0.0, None, spans=())]


def test_labels_above_a_half_the_likeliest_first() -> None:
    first, second = predictions(MANY, np.array([[1.0, -1, 2], [-800.0, -900, -700]]))
    assert first.labels == ("seen", "bad") and first.label == "seen"
    assert first.scores is not None and first.score == first.scores["seen"] == pytest.approx(0.8808, abs=1e-4)
    assert (second.labels, second.label) == ((), None) and 0 <= second.score < 1e-300
