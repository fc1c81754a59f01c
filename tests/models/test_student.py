from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.models import student
from pocketlm.models.cut import chosen_layers, keep_layers, keep_neurons
from pocketlm.models.families import encoder_layers
from pocketlm.models.load import Classifier, parameters_of
from pocketlm.models.pieces import keep_pieces, keep_positions
from pocketlm.models.saliency import neuron_saliency
from pocketlm.models.student import BuildStudent, calibration
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.tokenization.trim import trim
from tests.tiny import NO_DEADLINE, sentences
from tests.tiny_models import (
    BERT_LIKE,
    MAX_LENGTH,
    NEURONS,
    PAIR,
    SINGLE,
    VALUE,
    Architecture,
    classifier,
    examples_of,
    prepared,
)

TEXTS = [(text,) for text in sentences(16, longest=6)]
LONG = [("film " * 40,), ("quiet " * MAX_LENGTH,)]


def built(
    folder: Path, teacher: Classifier, stage: BuildStudent, task: Task = SINGLE
) -> tuple[Classifier, Artifact]:
    """The student that the stage makes, read from its folder, and the artifact."""
    artifact = prepared(folder, task)
    teacher.save(folder / "teacher")
    artifact = stage(
        artifact.with_part("teacher", folder / "teacher"), Context(folder, folder / "checkpoints")
    )
    return Classifier.load(artifact.parts["student"], task, MAX_LENGTH), artifact


def logits_of(made: Classifier, texts: list[tuple[str, ...]]) -> np.ndarray:
    return made.logits(made.encode(texts))


@given(depth=st.integers(1, 48), data=st.data())
@NO_DEADLINE
def test_chosen_layers_are_spread_and_end_with_the_last(depth: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, depth))
    layers = chosen_layers(count, depth)
    assert len(layers) == count
    assert layers[-1] == depth - 1
    gaps = np.diff([-1, *layers])
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    assert chosen_layers(layers, depth) == layers


def test_chosen_layers_by_example() -> None:
    assert chosen_layers(3, 6) == (1, 3, 5)
    assert chosen_layers(4, 12) == (2, 5, 8, 11)
    assert chosen_layers(6, 6) == (0, 1, 2, 3, 4, 5)
    assert chosen_layers([0, 5], 6) == (0, 5)


@pytest.mark.parametrize("layers", [0, -1, 7])
def test_too_many_layers_are_refused(layers: int) -> None:
    with pytest.raises(RecipeError) as error:
        chosen_layers(layers, 6)
    assert str(error.value) == f"layers={layers} is out of range; the teacher has 6, so allowed: 1 to 6"


@pytest.mark.parametrize("layers", [(), (1, 1), (2, 1), (-1, 2), (3, 6)])
def test_layers_in_disorder_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError) as error:
        chosen_layers(layers, 6)
    assert str(error.value) == (
        f"layers={list(layers)} is not a strictly ascending list of the teacher's layers 0 to 5"
    )


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE], ids=["single", "pair", "value"])
def test_a_whole_student_says_what_its_teacher_says(
    tmp_path: Path, architecture: Architecture, task: Task
) -> None:
    teacher = classifier(architecture, task)
    whole = BuildStudent(layers=3, intermediate_size=NEURONS, vocabulary=10**6)
    student, artifact = built(tmp_path, teacher, whole, task)
    texts = examples_of(task, 12, seed=0).texts
    texts += [LONG[0] * (1 + task.pair)]
    # The student's logits from other ids: its vocabulary has only the pieces that its texts use.
    # But for the order of a sum, which may depend on where tensors lie in memory.
    assert np.allclose(logits_of(student, texts), logits_of(teacher, texts), rtol=1e-5, atol=1e-6)
    assert artifact.parts["untrained_student"] == artifact.parts["student"]


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_a_student_with_everything_of_the_teacher_has_its_tokenizer_too(
    tmp_path: Path, architecture: Architecture
) -> None:
    teacher = classifier(architecture)
    student, _ = built(tmp_path, teacher, BuildStudent(layers=3, vocabulary=None))
    texts = [*TEXTS, *LONG, ("",), ("naïve 😀 unlovely",)]
    assert student.encode(texts) == teacher.encode(texts)
    assert np.array_equal(logits_of(student, texts), logits_of(teacher, texts))


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_a_smaller_student_is_the_same_in_memory_on_disk_and_in_transformers(
    tmp_path: Path, architecture: Architecture
) -> None:
    teacher = classifier(architecture, layers=4)
    stage = BuildStudent(layers=2, intermediate_size=20, vocabulary=100)
    student, artifact = built(tmp_path, teacher, stage)
    model = copy.deepcopy(teacher.model)
    texts = examples_of(SINGLE, 24, seed=0).texts
    keep_neurons(model, neuron_saliency(teacher, teacher.encode(texts)), 20)
    keep_layers(model, (1, 3))
    trimmed = trim(teacher.tokenizer, texts, 100)
    keep_pieces(model, trimmed.teacher_ids)
    keep_positions(model, MAX_LENGTH)
    by_hand = Classifier(model, trimmed.tokenizer, SINGLE, MAX_LENGTH)
    wanted = logits_of(by_hand, [*TEXTS, *LONG])
    assert np.array_equal(logits_of(student, [*TEXTS, *LONG]), wanted)
    plain = AutoModelForSequenceClassification.from_pretrained(artifact.parts["student"])
    inputs = student.inputs(student.encode(TEXTS), range(len(TEXTS)))
    with torch.no_grad():
        assert np.allclose(plain(**inputs).logits.numpy(), wanted[: len(TEXTS)], atol=1e-5)
    shape = artifact.figures["shape"]
    assert shape == {
        "layers": 2, "teacher_layers": [1, 3], "hidden_size": 32, "intermediate_size": 20, "heads": 4,
        "vocabulary": len(trimmed.teacher_ids), "embedding_size": 32,
    }  # fmt: skip
    assert artifact.figures["parameters"] == parameters_of(model)
    assert artifact.figures["teacher_parameters"] == parameters_of(teacher.model)
    assert len(encoder_layers(plain)) == 2
    assert plain.config.max_position_embeddings < teacher.model.config.max_position_embeddings


def test_calibration_reads_texts_from_everywhere_within_its_means(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = classifier()
    texts = [(f"{mark} film",) for mark in ("bad", "good", "quiet") for _ in range(400)]
    read = calibration(teacher, texts)
    assert len(read) == student.CALIBRATION_EXAMPLES
    for word in ("bad", "good", "quiet"):
        piece = teacher.tokenizer.token_to_id(word)
        assert sum(piece in ids for ids in read.ids) == pytest.approx(len(read) / 3, abs=1)
    monkeypatch.setattr(student, "CALIBRATION_PIECES", 200)
    read = calibration(teacher, texts)
    assert sum(read.lengths) <= 200 and len(read) > 30
    assert teacher.tokenizer.token_to_id("quiet") in read.ids[-1]


def test_the_teacher_is_left_as_it_was(tmp_path: Path) -> None:
    teacher = classifier()
    built(tmp_path, teacher, BuildStudent(layers=1, intermediate_size=8, vocabulary=60))
    again = Classifier.load(tmp_path / "teacher", SINGLE, MAX_LENGTH)
    assert np.array_equal(logits_of(again, TEXTS), logits_of(teacher, TEXTS))


def test_a_student_has_no_dropout(tmp_path: Path) -> None:
    student, _ = built(tmp_path, classifier(classifier_dropout=0.4), BuildStudent(layers=1))
    assert {module.p for module in student.model.modules() if isinstance(module, nn.Dropout)} == {0.0}


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_kept_layers_are_the_teachers(architecture: Architecture) -> None:
    model = classifier(architecture, layers=4).model
    before = [
        {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        for layer in encoder_layers(model)
    ]
    keep_layers(model, (0, 2))
    assert model.config.num_hidden_layers == len(encoder_layers(model)) == 2
    for layer, old in zip(encoder_layers(model), (0, 2), strict=True):
        assert all(torch.equal(tensor, before[old][name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_kept_neurons_equal_the_model_with_the_others_silent(architecture: Architecture) -> None:
    made = classifier(architecture)
    encoded = made.encode(TEXTS)
    saliency = neuron_saliency(made, encoded)
    smaller, silent = copy.deepcopy(made), copy.deepcopy(made)
    keep_neurons(smaller.model, saliency, NEURONS // 2)
    for layer, scores in zip(encoder_layers(silent.model), saliency, strict=True):
        dropped = scores.argsort()[: NEURONS // 2]
        assert scores[dropped].max() <= scores.sort().values[NEURONS // 2]
        with torch.no_grad():
            layer.output.dense.weight[:, dropped] = 0
    assert np.allclose(smaller.logits(encoded), silent.logits(encoded), atol=1e-5)
    assert not np.allclose(smaller.logits(encoded), made.logits(encoded), atol=1e-3)
    assert smaller.model.config.intermediate_size == NEURONS // 2
    for layer in encoder_layers(smaller.model):
        assert layer.intermediate.dense.weight.shape == (NEURONS // 2, 32)
        assert layer.intermediate.dense.bias.shape == (NEURONS // 2,)
        assert layer.output.dense.weight.shape == (32, NEURONS // 2)
        assert layer.intermediate.dense.out_features == layer.output.dense.in_features == NEURONS // 2


def test_silent_neurons_cost_nothing() -> None:
    made = classifier()
    encoded = made.encode(TEXTS)
    with torch.no_grad():
        for layer in encoder_layers(made.model):
            layer.output.dense.weight[:, ::3] = 0
    before = made.logits(encoded)
    keep_neurons(made.model, neuron_saliency(made, encoded), NEURONS - NEURONS // 3)
    assert np.allclose(made.logits(encoded), before, atol=1e-5)


@pytest.mark.parametrize("size", [0, -3, NEURONS + 1])
def test_too_many_neurons_are_refused(size: int) -> None:
    made = classifier()
    saliency = [torch.ones(NEURONS)] * 3
    with pytest.raises(RecipeError) as error:
        keep_neurons(made.model, saliency, size)
    assert str(error.value) == (
        f"intermediate_size={size} is out of range; the teacher has {NEURONS} neurons, "
        f"so allowed: 1 to {NEURONS}"
    )


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_saliency_is_the_mean_over_pieces_without_padding(
    monkeypatch: pytest.MonkeyPatch, architecture: Architecture
) -> None:
    made = classifier(architecture)
    encoded = made.encode(TEXTS)
    together = neuron_saliency(made, encoded)
    monkeypatch.setattr("pocketlm.models.saliency.EVALUATION_BATCH", 1)
    alone = neuron_saliency(made, encoded)
    # By hand: no padding, no hook.
    sums = [torch.zeros(NEURONS) for _ in range(3)]
    with torch.no_grad():
        for index in range(len(encoded)):
            for number, activation in enumerate(activations(made, index, encoded)):
                sums[number] += activation.abs().sum(dim=(0, 1))
    for layer, one, two, total in zip(encoder_layers(made.model), together, alone, sums, strict=True):
        wanted = total / sum(encoded.lengths) * layer.output.dense.weight.norm(dim=0)
        assert torch.allclose(one, two, rtol=1e-4)
        assert torch.allclose(one, wanted, rtol=1e-4)
    assert not any(layer.intermediate._forward_hooks for layer in encoder_layers(made.model))


def activations(made: Classifier, index: int, encoded) -> list[Tensor]:
    """What each layer's falling matrix is given for one example."""
    found: list[Tensor] = []
    hooks = [
        layer.output.dense.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
        for layer in encoder_layers(made.model)
    ]
    made.model(**made.inputs(encoded, [index]))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("size", [0, 120])
def test_kept_pieces_leave_the_logits_of_texts_in_them(architecture: Architecture, size: int) -> None:
    made = classifier(architecture)
    trimmed = trim(made.tokenizer, TEXTS, size)
    student = Classifier(copy.deepcopy(made.model), trimmed.tokenizer, SINGLE, MAX_LENGTH)
    keep_pieces(student.model, trimmed.teacher_ids)
    own = student.encode(TEXTS)
    assert own.ids != made.encode(TEXTS).ids
    # The teacher reading the very same pieces says the very same.
    theirs = copy.deepcopy(own)
    for row, ids in enumerate(own.ids):
        theirs.ids[row][:] = [trimmed.teacher_ids[new] for new in ids]
    assert np.allclose(student.logits(own), made.logits(theirs), atol=1e-5)
    embedding = student.model.get_input_embeddings()
    assert embedding.num_embeddings == student.model.config.vocab_size == trimmed.tokenizer.get_vocab_size()
    assert embedding.padding_idx == student.model.config.pad_token_id


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_special_ids_of_the_config_are_renumbered(architecture: Architecture) -> None:
    made = classifier(architecture)
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    old = {name: getattr(made.model.config, name) for name in names}
    before = {name: made.tokenizer.id_to_token(index) for name, index in old.items() if index is not None}
    trimmed = trim(made.tokenizer, TEXTS, 0)
    keep_pieces(made.model, trimmed.teacher_ids)
    for name, piece in before.items():
        assert getattr(made.model.config, name) == trimmed.tokenizer.token_to_id(piece)


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("length", [3, 7, MAX_LENGTH])
def test_kept_positions_leave_the_logits(architecture: Architecture, length: int) -> None:
    made = classifier(architecture)
    cut = Classifier(copy.deepcopy(made.model), made.tokenizer, SINGLE, length)
    encoded = cut.encode([*TEXTS, *LONG])
    assert max(encoded.lengths) == length
    keep_positions(cut.model, length)
    assert np.array_equal(cut.logits(encoded), made.logits(encoded))
    first = 2 if architecture in ("roberta", "mpnet") else 0
    assert cut.model.base_model.embeddings.position_embeddings.num_embeddings == first + length
    assert cut.model.config.max_position_embeddings == first + length


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_more_positions_than_the_teacher_has_are_not_invented(architecture: Architecture) -> None:
    made = classifier(architecture)
    before = made.model.config.max_position_embeddings
    keep_positions(made.model, 10_000)
    assert made.model.config.max_position_embeddings == before


def test_positions_follow_a_padding_piece_that_moves(tmp_path: Path) -> None:
    """RoBERTa counts positions from the id of its padding piece, which moves when earlier pieces go."""
    made = classifier("roberta")
    model = copy.deepcopy(made.model)
    encoded = made.encode(TEXTS)
    used = sorted({piece for ids in encoded.ids for piece in ids} | {1})
    without_first = [piece for piece in used if piece != 0]
    keep_pieces(model, without_first)
    keep_positions(model, MAX_LENGTH)
    assert model.config.pad_token_id == 0
    new_ids = {old: new for new, old in enumerate(without_first)}
    bare = [[piece for piece in ids if piece != 0] for ids in encoded.ids]
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for ids in bare:
        with torch.no_grad():
            wanted = made.model(input_ids=torch.tensor([ids])).logits
            new = torch.tensor([[new_ids[piece] for piece in ids]])
            assert torch.allclose(model(input_ids=new).logits, wanted, atol=1e-5)
            assert torch.allclose(again(input_ids=new).logits, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (BuildStudent(layers=4), "layers=4 is out of range; the teacher has 3"),
        (BuildStudent(layers=(1, 3)), "is not a strictly ascending list of the teacher's layers 0 to 2"),
        (BuildStudent(layers=2, intermediate_size=49), "intermediate_size=49 is out of range"),
    ],
)
def test_a_stage_that_asks_for_too_much_is_refused(tmp_path: Path, stage: BuildStudent, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        built(tmp_path, classifier(), stage)
    assert message in str(error.value)
