from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from pocketlm.errors import TeacherError
from pocketlm.models.heads import gathered, model_class
from pocketlm.models.load import Classifier, head_of, with_new_head
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import MISSING, words_of
from tests.tiny_models import (
    ARCHITECTURES,
    JOINT,
    MAX_LENGTH,
    ON_WORDS,
    QUESTION,
    SINGLE,
    TAGGED,
    Architecture,
    classifier,
    examples_of,
)

every_task = pytest.mark.parametrize("task", ON_WORDS, ids=lambda task: task.kind)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@every_task
def test_padding_never_changes_what_is_said_of_a_word(architecture: Architecture, task: Task) -> None:
    made = classifier(architecture, task, max_length=60)
    texts = examples_of(task, 12).texts
    encoded = made.encode(texts)
    assert len(set(encoded.lengths)) > 3
    together = made.logits(encoded)
    assert together.words.shape == (sum(len(words_of(task, text)) for text in texts), task.word_outputs)
    assert together.text.shape == (12, task.outputs) and together.known.all()
    for index, text in enumerate(texts):
        alone = made.logits(made.encode([text]))
        assert np.allclose(alone.words, together.of(index)[0], atol=1e-5)
        assert np.allclose(alone.text[0], together.text[index], atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@every_task
def test_what_is_saved_is_loaded_again(tmp_path: Path, architecture: Architecture, task: Task) -> None:
    made = classifier(architecture, task)
    made.save(tmp_path)
    texts = examples_of(task, 6).texts
    wanted = made.logits(made.encode(texts))
    again = Classifier.load(tmp_path, task, MAX_LENGTH)
    said = again.logits(again.encode(texts))
    assert np.array_equal(said.words, wanted.words) and np.array_equal(said.text, wanted.text)
    assert np.array_equal(said.known, wanted.known)
    assert head_of(tmp_path, task) == task.names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@every_task
def test_transformers_opens_the_same_file(tmp_path: Path, architecture: Architecture, task: Task) -> None:
    made = classifier(architecture, task)
    made.save(tmp_path)
    auto = AutoModelForSequenceClassification if task.outputs else AutoModelForTokenClassification
    plain = auto.from_pretrained(tmp_path, local_files_only=True)
    encoded = made.encode(examples_of(task, 3).texts)
    inputs = made.inputs(encoded, range(3))
    with torch.no_grad():
        theirs, ours = plain(**inputs).logits, made.model(**inputs)
    assert torch.allclose(theirs, ours.logits if task.outputs else ours.word_logits, atol=1e-5)
    assert type(plain).__name__ == type(made.model).__name__


def test_word_logits_are_those_of_the_first_pieces() -> None:
    made = classifier(task=TAGGED)
    encoded = made.encode([("reworked unlovely zebra plot",), ("film",)])
    inputs = made.inputs(encoded, [0, 1])
    with torch.no_grad():
        said = made.model(**inputs).word_logits
    places, mask = made.words(encoded, [0, 1])
    assert mask.tolist() == [[True] * 4, [True] + [False] * 3]
    logits = made.logits(encoded)
    own = gathered(said, places)
    assert np.allclose(logits.words, torch.cat([own[0], own[1, :1]]).numpy(), atol=1e-5)
    starts = [encoded.spans[0][place][0] for place in places[0].tolist()]
    assert starts == [start for start, _ in words_of(TAGGED, ("reworked unlovely zebra plot",))]


def test_words_behind_the_cut_are_not_known() -> None:
    made = classifier(task=TAGGED, max_length=8)
    encoded = made.encode([("film " * 9,)])
    assert encoded.words == [[1, 2, 3, 4, 5, 6, MISSING, MISSING, MISSING]]
    assert made.logits(encoded).known.tolist() == [True] * 6 + [False] * 3


def test_a_long_context_is_read_to_its_end() -> None:
    made = classifier(task=QUESTION, max_length=14)
    encoded = made.encode([("a mood", "film " * 40), ("a mood", "plot")])
    assert MISSING in encoded.words[0] and max(encoded.lengths) == 14
    logits = made.logits(encoded)
    assert logits.known.all() and logits.offsets.tolist() == [0, 40, 41]
    assert np.ptp(logits.words[:40, 0]) > 0


def test_states_and_no_more_are_given_when_asked_for() -> None:
    for task in ON_WORDS:
        made = classifier(task=task)
        inputs = made.inputs(made.encode(examples_of(task, 2).texts), [0, 1])
        assert made.model(**inputs).hidden_states is None
        output = made.model(**inputs, output_hidden_states=True)
        assert len(output.hidden_states) == 4
        assert (output.logits is None) == (task.outputs == 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_question_answering_model_is_taken_as_it_is(tmp_path: Path, architecture: Architecture) -> None:
    made = classifier(architecture, QUESTION)
    config = made.model.config
    theirs = AutoModelForQuestionAnswering.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    made.tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert head_of(tmp_path, QUESTION) == ("start", "end")
    loaded = Classifier.load(tmp_path, QUESTION, MAX_LENGTH)
    inputs = loaded.inputs(loaded.encode(examples_of(QUESTION, 3).texts), range(3))
    with torch.no_grad():
        wanted, said = theirs(**inputs), loaded.model(**inputs).word_logits
    assert torch.allclose(said[..., 0], wanted.start_logits, atol=1e-5)
    assert torch.allclose(said[..., 1], wanted.end_logits, atol=1e-5)


def test_only_a_head_of_the_same_kind_fits(tmp_path: Path) -> None:
    for task in (SINGLE, *ON_WORDS):
        classifier(task=task).save(tmp_path / task.kind)
    assert head_of(tmp_path / "classification", TAGGED) is None
    assert head_of(tmp_path / "classification", JOINT) is None, "it knows no tags"
    assert head_of(tmp_path / "tokens", QUESTION) is None
    assert head_of(tmp_path / "tokens", SINGLE) is None
    other = Task("joint", False, JOINT.labels, ("B-other", "O"))
    assert head_of(tmp_path / "joint", other) is None
    made = with_new_head(tmp_path / "joint", other, MAX_LENGTH)
    assert made.logits(made.encode([("a film",)])).words.shape == (2, 2)


def test_an_architecture_without_such_a_head_is_told() -> None:
    class Odd:
        model_type = "odd"

    with pytest.raises(
        TeacherError, match="no token classifier of model type odd; use an encoder of the BERT"
    ):
        model_class(Odd(), TAGGED)
