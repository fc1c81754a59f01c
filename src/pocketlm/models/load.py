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
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pocketlm.data.batches import pad
from pocketlm.errors import TeacherError
from pocketlm.task import Task
from pocketlm.tokenization.encode import Encoded, encode, load_tokenizer, pad_id

EVALUATION_BATCH = 64
# On a CPU and texts of tens of pieces, the fused kernel's backward pass takes twice as long.
ATTENTION = "eager"


@dataclass
class Classifier:
    """A transformers classifier with its tokenizer.

    Args:
        model: Any `…ForSequenceClassification` of transformers.
        tokenizer: Its tokenizer, without padding or truncation of its own.
        task: What it is asked to do; logits are in the order of `task.labels`.
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
        return encode(self.tokenizer, texts, self.max_length)

    def inputs(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """Padded input tensors of the examples `indices`, each [batch, length]."""
        ids, mask = pad([encoded.ids[index] for index in indices], pad_id(self.tokenizer))
        tensors = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask).long()}
        if takes_segments(self.model):
            segments, _ = pad([encoded.type_ids[index] for index in indices], 0)
            tensors["token_type_ids"] = torch.from_numpy(segments)
        return tensors

    @torch.no_grad()
    def logits(self, encoded: Encoded) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits of every example, [examples, outputs]; the model is left in its mode of before."""
        training = self.model.training
        self.model.eval()
        result = np.zeros((len(encoded), self.task.outputs), dtype=np.float32)
        order = np.argsort(encoded.lengths, kind="stable")
        for start in range(0, len(order), EVALUATION_BATCH):
            indices = order[start : start + EVALUATION_BATCH]
            result[indices] = self.model(**self.inputs(encoded, indices.tolist())).logits.float().numpy()
        self.model.train(training)
        return result

    def save(self, folder: Path) -> None:
        """Write `config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.id2label = dict(enumerate(self.task.labels or ("value",)))
        self.model.config.label2id = {label: index for index, label in self.model.config.id2label.items()}
        self.model.config.problem_type = (
            "regression" if self.task.kind == "regression" else "single_label_classification"
        )
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
        """Read what `save` wrote, in float32.

        Raises:
            TeacherError: the weights do not fit the config.
        """
        return cls(_read_model(folder, new_head=False), load_tokenizer(folder), task, max_length)


def head_of(folder: Path) -> tuple[str, ...] | None:
    """Label names of a folder's classification head; None where the model has no such head."""
    config = _read_config(folder)
    names: list[str] = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in names):
        return None
    return tuple(str(config.id2label[index]) for index in sorted(config.id2label))


def with_new_head(folder: Path, task: Task, max_length: int, dropout: float | None = None) -> Classifier:
    """A pre-trained encoder under a fresh head for `task`; seed torch before the call.

    Raises:
        TeacherError: transformers knows no classifier of this architecture, or the weights do not fit it.
    """
    config = _read_config(folder)
    config.num_labels = task.outputs
    config.problem_type = None
    if dropout is not None:
        set_dropout(config, dropout)
    try:
        model = _read_model(folder, new_head=True, config=config)
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


def _read_model(folder: Path, new_head: bool, **options: Any) -> PreTrainedModel:
    """The classifier of a folder; what its weights do not hold would be random, which only a head may be."""
    options |= {"use_safetensors": True, "dtype": torch.float32, "attn_implementation": ATTENTION}
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    with quiet_transformers():
        auto = cast(Any, AutoModelForSequenceClassification)
        model, found = auto.from_pretrained(str(folder), local_files_only=True, **options)
    body = re.compile(rf"{model.base_model_prefix}\.(?!pooler\.)")
    random = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    random = [name for name in random if not new_head or body.match(name)]
    if random:
        raise TeacherError(
            f"the weights in {folder} do not fit its config.json: {', '.join(random[:3])}"
            f"{', …' if len(random) > 3 else ''} missing or of another shape; fetch or save the model again"
        )
    return model


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
