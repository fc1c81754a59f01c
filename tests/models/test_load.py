from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertModel
from transformers.utils import logging as transformers_logging

from pocketlm.errors import TeacherError
from pocketlm.models.load import (
    EVALUATION_BATCH,
    Classifier,
    head_of,
    output_layer,
    parameters_of,
    quiet_transformers,
    set_dropout,
    takes_segments,
    with_new_head,
)
from pocketlm.tasks.task import Task
from tests.tiny import sentences
from tests.tiny_models import (
    ARCHITECTURES,
    MAX_LENGTH,
    PAIR,
    SINGLE,
    VALUE,
    Architecture,
    classifier,
    examples_of,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("task", [SINGLE, PAIR], ids=["single", "pair"])
def test_padding_never_changes_a_logit(architecture: Architecture, task: Task) -> None:
    made = classifier(architecture, task, max_length=40)
    encoded = made.encode(examples_of(task, 12).texts)
    assert len(set(encoded.lengths)) > 3
    with torch.no_grad():
        together = made.model(**made.inputs(encoded, range(12))).logits
        alone = torch.cat([made.model(**made.inputs(encoded, [index])).logits for index in range(12)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert alone.std(dim=0).min() > 1e-3
    assert np.allclose(made.logits(encoded), alone.numpy(), atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whatever_stands_in_the_padding_counts_for_nothing(architecture: Architecture) -> None:
    made = classifier(architecture)
    encoded = made.encode([("a film",), ("a quiet film of the story",)])
    inputs = made.inputs(encoded, [0, 1])
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    with torch.no_grad():
        wanted = made.model(**inputs).logits
        inputs["input_ids"] = torch.where(padding, torch.tensor(7), inputs["input_ids"])
        assert torch.allclose(made.model(**inputs).logits, wanted, atol=1e-5)


def test_inputs_are_padded_with_their_own_values() -> None:
    made = classifier("bert", PAIR)
    encoded = made.encode([("plot", "it"), ("a quiet film", "plot")])
    inputs = made.inputs(encoded, [1, 0])
    assert inputs["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert inputs["token_type_ids"].tolist() == [[0] * 5 + [1] * 2, [0] * 3 + [1] * 2 + [0] * 2]
    assert inputs["input_ids"][1, 5:].tolist() == [made.tokenizer.token_to_id("[PAD]")] * 2
    assert inputs["input_ids"][0].tolist() == encoded.ids[1]
    assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}


@pytest.mark.parametrize(
    ("architecture", "segments"),
    [("bert", True), ("electra", True), ("roberta", False), ("distilbert", False), ("mpnet", False)],
)
def test_segments_are_given_where_they_mean_something(architecture: Architecture, segments: bool) -> None:
    made = classifier(architecture, PAIR)
    assert takes_segments(made.model) == segments
    encoded = made.encode([("a", "film")])
    assert ("token_type_ids" in made.inputs(encoded, [0])) == segments


def test_logits_come_in_the_order_of_the_texts_however_they_are_batched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = classifier()
    encoded = made.encode([(text,) for text in sentences(25)])
    whole = made.logits(encoded)
    assert whole.dtype == np.float32 and whole.shape == (25, 3)
    assert EVALUATION_BATCH > 25
    monkeypatch.setattr("pocketlm.models.load.EVALUATION_BATCH", 4)
    assert np.allclose(made.logits(encoded), whole, atol=1e-5)


def test_logits_are_without_dropout_and_leave_the_mode_and_the_gradients_alone() -> None:
    made = classifier(hidden_dropout_prob=0.5)
    encoded = made.encode([("a film",)])
    made.model.train()
    assert np.array_equal(made.logits(encoded), made.logits(encoded))
    assert made.model.training and torch.is_grad_enabled()
    made.model.eval()
    made.logits(encoded)
    assert not made.model.training


def test_logits_of_nothing() -> None:
    made = classifier()
    assert made.logits(made.encode([])).shape == (0, 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE], ids=["single", "pair", "value"])
def test_what_is_saved_is_loaded_again(tmp_path: Path, architecture: Architecture, task: Task) -> None:
    made = classifier(architecture, task)
    made.save(tmp_path)
    encoded = made.encode(examples_of(task, 6).texts)
    again = Classifier.load(tmp_path, task, MAX_LENGTH)
    assert again.encode(examples_of(task, 6).texts) == encoded
    weights = again.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.model.state_dict().items())
    # Where tensors lie in memory may change the order of a sum.
    assert np.allclose(again.logits(encoded), made.logits(encoded), rtol=1e-5, atol=1e-6)
    assert head_of(tmp_path) == (task.labels or ("value",))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, local_files_only=True)
    with torch.no_grad():
        logits = plain(**made.inputs(encoded, range(6))).logits
    assert np.allclose(logits.numpy(), made.logits(encoded), atol=1e-5)
    assert plain.config.num_labels == task.outputs
    assert plain.config.label2id == {name: index for index, name in plain.config.id2label.items()}
    kind = "regression" if task.kind == "regression" else "single_label_classification"
    assert plain.config.problem_type == kind


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_reads_the_tokenizer_alike(tmp_path: Path, architecture: Architecture) -> None:
    made = classifier(architecture)
    made.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = ["a quiet film", "naïve 😀 unlovely 日本"]
    batch = theirs(texts, padding=True, truncation=True, return_tensors="pt")
    encoded = made.encode([(text,) for text in texts])
    ours = made.inputs(encoded, [0, 1])
    assert torch.equal(batch["input_ids"], ours["input_ids"])
    assert torch.equal(batch["attention_mask"], ours["attention_mask"])
    assert theirs.model_max_length == MAX_LENGTH
    assert len(theirs("film " * 50, truncation=True)["input_ids"]) == MAX_LENGTH


def test_a_half_precision_teacher_is_loaded_in_float32(tmp_path: Path) -> None:
    made = classifier()
    made.save(tmp_path)
    AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float16).save_pretrained(
        tmp_path
    )
    again = Classifier.load(tmp_path, SINGLE, MAX_LENGTH)
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.float32}
    headed = with_new_head(tmp_path, PAIR, MAX_LENGTH)
    assert {parameter.dtype for parameter in headed.model.parameters()} == {torch.float32}


def encoder_folder(folder: Path) -> BertModel:
    """A pre-trained encoder without a head, as a teacher comes."""
    made = classifier()
    encoder = made.model.base_model
    encoder.save_pretrained(folder)
    made.tokenizer.save(str(folder / "tokenizer.json"))
    return encoder


def test_a_folder_without_a_head_is_known(tmp_path: Path) -> None:
    encoder_folder(tmp_path)
    assert head_of(tmp_path) is None


@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE], ids=["single", "pair", "value"])
def test_a_new_head_stands_on_the_old_encoder(tmp_path: Path, task: Task) -> None:
    encoder = encoder_folder(tmp_path)
    torch.manual_seed(3)
    made = with_new_head(tmp_path, task, MAX_LENGTH)
    assert output_layer(made.model).out_features == task.outputs
    old = dict(encoder.named_parameters())
    for name, parameter in made.model.base_model.named_parameters():
        assert torch.equal(parameter, old[name])
    torch.manual_seed(3)
    again = with_new_head(tmp_path, task, MAX_LENGTH)
    assert torch.equal(output_layer(again.model).weight, output_layer(made.model).weight)
    torch.manual_seed(4)
    other = with_new_head(tmp_path, task, MAX_LENGTH)
    assert not torch.equal(output_layer(other.model).weight, output_layer(made.model).weight)


def test_a_head_of_another_size_is_replaced(tmp_path: Path) -> None:
    classifier("roberta", SINGLE).save(tmp_path)
    made = with_new_head(tmp_path, PAIR, MAX_LENGTH)
    assert made.logits(made.encode([("a", "film")])).shape == (1, 2)


def without(folder: Path, *names: str) -> None:
    """Take weights out of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name not in names}
    assert len(kept) == len(tensors) - len(names)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["bert.encoder.layer.1.output.dense.weight", "classifier.weight"])
def test_a_saved_classifier_has_to_be_whole(tmp_path: Path, name: str) -> None:
    classifier().save(tmp_path)
    without(tmp_path, name)
    with pytest.raises(TeacherError, match=rf"do not fit its config\.json: {name} missing .*; fetch or save"):
        Classifier.load(tmp_path, SINGLE, MAX_LENGTH)


def test_under_a_new_head_only_the_head_may_be_new(tmp_path: Path) -> None:
    classifier().save(tmp_path)
    without(tmp_path, "classifier.weight", "classifier.bias", "bert.pooler.dense.weight")
    with_new_head(tmp_path, PAIR, MAX_LENGTH)
    without(tmp_path, "bert.encoder.layer.0.attention.self.query.weight")
    with pytest.raises(
        TeacherError, match=r"do not fit its config\.json: bert\.encoder\.layer\.0\.attention"
    ):
        with_new_head(tmp_path, PAIR, MAX_LENGTH)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    classifier().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 99}), encoding="utf-8")
    with pytest.raises(
        TeacherError, match=r"bert\.embeddings\.word_embeddings\.weight missing or of another"
    ):
        Classifier.load(tmp_path, SINGLE, MAX_LENGTH)


def test_dropout_is_set_and_else_left(tmp_path: Path) -> None:
    encoder_folder(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).hidden_dropout_prob
    assert with_new_head(tmp_path, SINGLE, MAX_LENGTH).model.config.hidden_dropout_prob == before
    none = with_new_head(tmp_path, SINGLE, MAX_LENGTH, dropout=0.0)
    assert {module.p for module in none.model.modules() if isinstance(module, nn.Dropout)} == {0.0}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_dropout_training_mode_changes_nothing(tmp_path: Path, architecture: Architecture) -> None:
    made = classifier(architecture, classifier_dropout=0.3, seq_classif_dropout=0.3)
    set_dropout(made.model.config, 0.0)
    made.save(tmp_path)
    again = Classifier.load(tmp_path, SINGLE, MAX_LENGTH)
    encoded = again.encode([("a quiet film",)])
    again.model.train()
    with torch.no_grad():
        logits = again.model(**again.inputs(encoded, [0])).logits
    assert np.allclose(logits.numpy(), again.logits(encoded), atol=1e-6)


def test_an_architecture_without_a_classifier_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]}),
        encoding="utf-8",
    )
    with pytest.raises(
        TeacherError, match=r"is of model type clip_vision_model, .* sequence classifier; use an encoder"
    ):
        with_new_head(tmp_path, SINGLE, MAX_LENGTH)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_output_layer_makes_the_logits(architecture: Architecture) -> None:
    made = classifier(architecture)
    encoded = made.encode([("a quiet film",), ("plot",)])
    before = made.logits(encoded)
    with torch.no_grad():
        output_layer(made.model).bias += torch.tensor([1.0, 2.0, 3.0])
    assert np.allclose(made.logits(encoded), before + np.array([1, 2, 3]), atol=1e-5)


def test_a_model_without_a_linear_head_is_refused() -> None:
    with pytest.raises(
        TeacherError, match=r"Tanh has no linear classification head called `classifier`; use"
    ):
        output_layer(nn.Tanh())


def test_parameters_are_counted_once() -> None:
    layer = nn.Linear(3, 3)
    assert parameters_of(nn.ModuleList([layer, layer])) == 12


def test_transformers_is_as_loud_afterwards_as_before() -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    with pytest.raises(RuntimeError), quiet_transformers():
        assert not transformers_logging.is_progress_bar_enabled()
        raise RuntimeError
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_an_encoder_alone_is_no_classifier(tmp_path: Path) -> None:
    classifier().save(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), BertModel)
    assert isinstance(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Tokenizer)
