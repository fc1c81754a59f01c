"""Classifiers in and out of folders, and their inputs as tensors."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pocketlm.artifact import Artifact
from pocketlm.data.batches import pad
from pocketlm.errors import TeacherError
from pocketlm.models.heads import configure, model_class, new_model
from pocketlm.models.uneven import cut_as_saved, is_uneven
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import MISSING, WordLogits, WordSums
from pocketlm.tokenization.encode import Encoded, encode, encode_windows, load_tokenizer, pad_id

EVALUATION_BATCH = 64
# On a CPU and texts of tens of pieces, the fused kernel's backward pass takes twice as long.
ATTENTION = "eager"
QUESTION_ANSWERING = "ForQuestionAnswering"


@dataclass
class Classifier:
    """A transformers classifier of texts or words with its tokenizer.

    Args:
        model: As `pocketlm.models.heads` makes it.
        tokenizer: Its tokenizer, without padding or truncation of its own.
        task: What it is asked to do; logits are in the order of `task.labels`, those of words of `task.tags`.
        max_length: Pieces an input is cut to; no more than the model has positions for.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    task: Task
    max_length: int

    def __post_init__(self) -> None:
        self.max_length = min(self.max_length, positions_of(self.model) or self.max_length)

    def encode(self, texts: Sequence[Sequence[str]]) -> Encoded:
        """Tokenize examples as this model reads them."""
        return encode(self.tokenizer, texts, self.max_length, self.task)

    def inputs(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """Padded input tensors of the examples `indices`, each [batch, length]."""
        ids, mask = pad([encoded.ids[index] for index in indices], pad_id(self.tokenizer))
        tensors = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask).long()}
        if takes_segments(self.model):
            segments, _ = pad([encoded.type_ids[index] for index in indices], 0)
            tensors["token_type_ids"] = torch.from_numpy(segments)
        return tensors

    def words(self, encoded: Encoded, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Places of the first pieces of the words of the examples `indices`, and their mask.

        Returns:
            Places, int64 [batch, words], 0 where there is none; mask, bool [batch, words]: False for
            padding and for words that were cut off.
        """
        places, _ = pad([encoded.words[index] for index in indices], MISSING)
        tensor = torch.from_numpy(places)
        return tensor.clamp_min(0), tensor != MISSING

    @torch.no_grad()
    def logits(self, encoded: Encoded) -> Any:
        """What the model says of every example; it is left in its mode of before.

        Returns:
            Float32 [examples, outputs]; where the task has words, `pocketlm.tasks.words.WordLogits`. A
            context that is longer than the model's input is read in windows.
        """
        training = self.model.training
        self.model.eval()
        said = self._word_logits(encoded) if self.task.word_outputs else self._text_logits(encoded)
        self.model.train(training)
        return said

    def _text_logits(self, encoded: Encoded) -> np.ndarray[Any, np.dtype[np.float32]]:
        result = np.zeros((len(encoded), self.task.outputs), dtype=np.float32)
        for indices in self._batches(encoded):
            result[indices] = self.model(**self.inputs(encoded, indices)).logits.float().numpy()
        return result

    def _word_logits(self, encoded: Encoded) -> WordLogits:
        text = np.zeros((len(encoded), self.task.outputs), dtype=np.float32)
        sums = WordSums(self.task, encoded.texts)
        owners: Sequence[int] = range(len(encoded))
        if self.task.kind == "qa":
            encoded, owners = encode_windows(self.tokenizer, encoded.texts, self.max_length, self.task)
        for indices in self._batches(encoded):
            output = self.model(**self.inputs(encoded, indices))
            if output.logits is not None:
                text[indices] = output.logits.float().numpy()
            for index, said in zip(indices, output.word_logits.float().numpy(), strict=True):
                sums.add(owners[index], encoded.words[index], said)
        return sums.logits(text)

    def _batches(self, encoded: Encoded) -> list[list[int]]:
        """Examples of like length together."""
        order = np.argsort(encoded.lengths, kind="stable")
        return [
            order[start : start + EVALUATION_BATCH].tolist()
            for start in range(0, len(order), EVALUATION_BATCH)
        ]

    def save(self, folder: Path) -> None:
        """Write `config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        configure(self.model.config, self.task)
        with quiet_transformers():
            self.model.save_pretrained(str(folder))
        self.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_length,
            "pad_token": self.tokenizer.id_to_token(pad_id(self.tokenizer)),
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, task: Task, max_length: int) -> Classifier:
        """Read what `save` wrote, in float32, or a model of transformers with a head for the task.

        Raises:
            TeacherError: the weights do not fit the config.
        """
        return cls(_read_model(folder, task, new_head=False), load_tokenizer(folder), task, max_length)


def student_of(artifact: Artifact) -> Classifier:
    """The student as the stages before left it."""
    return Classifier.load(artifact.parts["student"], artifact.task, artifact.figures["max_length"])


def with_student(artifact: Artifact, student: Classifier, context: Context, **figures: Any) -> Artifact:
    """Write a student that a stage has changed to the stage's folder; figures are added or replaced."""
    folder = context.folder / "student"
    student.save(folder)
    return artifact.with_part("student", folder).with_figures(**figures)


def head_of(folder: Path, task: Task | None = None) -> tuple[str, ...] | None:
    """Names of the outputs of a folder's head for tasks like `task`; None where the model has no such head.

    Args:
        folder: A model.
        task: None asks for a classification head. A joint head has to know the very tags of the task.
    """
    config = _read_config(folder)
    architectures: list[str] = config.architectures or []
    wanted = ("ForSequenceClassification",)
    if task is not None and not task.outputs:
        wanted = ("ForTokenClassification",)
        if task.kind == "qa" and any(name.endswith(QUESTION_ANSWERING) for name in architectures):
            return task.names
    if not any(name.endswith(wanted) for name in architectures):
        return None
    if task is not None and task.kind == "joint" and getattr(config, "word_labels", None) != list(task.tags):
        return None
    names = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    # Any head with two outputs has the right shape, but only one with these names knows what to say.
    return None if task is not None and task.kind == "qa" and names != task.names else names


def with_new_head(folder: Path, task: Task, max_length: int, dropout: float | None = None) -> Classifier:
    """A pre-trained encoder under a fresh head for `task`; seed torch before the call.

    Raises:
        TeacherError: transformers knows no classifier of this architecture, or the weights do not fit it.
    """
    config = _read_config(folder)
    configure(config, task)
    config.num_labels = len(task.names) or task.outputs
    config.problem_type = None
    if dropout is not None:
        set_dropout(config, dropout)
    try:
        model = _read_model(folder, task, new_head=True, config=config)
    except ValueError as error:
        raise TeacherError(
            f"{folder.name} is of model type {config.model_type}, which transformers cannot load as a "
            f"sequence classifier; use an encoder of the BERT family ({error})"
        ) from error
    return Classifier(model, load_tokenizer(folder), task, max_length)


def _read_config(folder: Path) -> Any:
    try:
        return cast(Any, AutoConfig.from_pretrained(str(folder), local_files_only=True))
    except ValueError as error:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        raise TeacherError(
            f"{folder / 'config.json'}: model_type={kind!r} is none that transformers knows; "
            "use an encoder of the BERT family"
        ) from error


def _read_model(folder: Path, task: Task, new_head: bool, **options: Any) -> PreTrainedModel:
    """The classifier of a folder; what its weights do not hold would be random, which only a head may be."""
    if is_uneven(config := _read_config(folder)):
        return _read_uneven(folder, task, config)
    if task.word_outputs:
        config = options.setdefault("config", config)
        if task.kind == "qa":  # the head of `…ForQuestionAnswering` is a token classifier's by another name
            options["key_mapping"] = {"^qa_outputs": "classifier"}
            config.num_labels = task.word_outputs
    options |= {"use_safetensors": True, "dtype": torch.float32, "attn_implementation": ATTENTION}
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    with quiet_transformers():
        made = model_class(options.get("config"), task)
        model, found = made.from_pretrained(str(folder), local_files_only=True, **options)
    body = re.compile(rf"{model.base_model_prefix}\.(?!pooler\.)")
    random = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    random = [name for name in random if not new_head or body.match(name)]
    if random:
        raise TeacherError(
            f"the weights in {folder} do not fit its config.json: {', '.join(random[:3])}"
            f"{', …' if len(random) > 3 else ''} missing or of another shape; fetch or save the model again"
        )
    return model


def _read_uneven(folder: Path, task: Task, config: Any) -> PreTrainedModel:
    """A model with layers that are not alike: built whole, cut to the shapes in its config, then filled."""
    with quiet_transformers():
        model = new_model(config, task)
    model.set_attn_implementation(ATTENTION)
    cut_as_saved(model)
    given, own = load_file(folder / "model.safetensors"), model.state_dict()
    wrong = sorted(name for name in {*given, *own} if not _same_shape(given.get(name), own.get(name)))
    if wrong:
        raise TeacherError(
            f"the weights in {folder} do not fit the shapes in its config.json: {', '.join(wrong[:3])}; "
            "fetch or save the model again"
        )
    model.load_state_dict(given)
    return model.eval()


def _same_shape(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Set the dropout of hidden states, attention and head, under whichever names the architecture has."""
    for name in (
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"),
        *("classifier_dropout", "seq_classif_dropout"),
    ):
        if hasattr(config, name):
            setattr(config, name, dropout)


def output_layer(model: nn.Module) -> nn.Linear:
    """The last linear layer of the classification head: [outputs, width].

    Raises:
        TeacherError: the model has no such layer.
    """
    head = getattr(model, "classifier", None)
    layers = (
        [module for module in head.modules() if isinstance(module, nn.Linear)] if head is not None else []
    )
    if not layers:
        raise TeacherError(
            f"{type(model).__name__} has no linear classification head called `classifier`; "
            "use an encoder of the BERT family"
        )
    return layers[-1]


def takes_segments(model: nn.Module) -> bool:
    """True where `token_type_ids` mean something to the model."""
    forward = inspect.signature(model.forward).parameters
    return "token_type_ids" in forward and getattr(model.config, "type_vocab_size", 0) > 1


def positions_of(model: nn.Module) -> int | None:
    """Pieces of the longest input that the model has positions for; None where it has no such table."""
    embeddings = getattr(getattr(model, "base_model", None), "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None
    # The RoBERTa family counts positions from behind the id of its padding piece.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def parameters_of(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Keep transformers from drawing bars and loading reports between ours."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
            transformers_logging.enable_progress_bar()
