"""Which class of transformers answers a task, and what is added to say something of words.

A task on whole texts is a plain `…ForSequenceClassification`. Tags and answers come from a
`…ForTokenClassification`, whose logits are called `word_logits` here. A joint task is a sequence classifier
with one more linear layer, `word_classifier`, over the last hidden state; its config names the tags in
`word_labels`, and its file opens in transformers as the sequence classifier it also is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils.generic import ModelOutput

from pocketlm.errors import TeacherError
from pocketlm.tasks.task import Task


@dataclass
class WordOutput(ModelOutput):
    """What a model on words says of a batch.

    Args:
        logits: Of the whole texts, [batch, outputs]; None where the task has no labels for them.
        word_logits: Of every piece, [batch, length, word_outputs]; only a word's first piece counts.
        hidden_states: As transformers gives them.
        attentions: As transformers gives them.
    """

    logits: Tensor | None = None
    word_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def configure(config: Any, task: Task) -> None:
    """Write into a model's config what its heads are for."""
    names = task.names or ("value",)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    problems = {"regression": "regression", "multilabel": "multi_label_classification"}
    config.problem_type = problems.get(task.kind, "single_label_classification" if task.outputs else None)
    if task.kind == "joint":
        config.word_labels = list(task.tags)


def model_class(config: Any, task: Task) -> Any:
    """The class that answers `task` with the architecture of `config`.

    Raises:
        TeacherError: transformers knows no such class of this architecture.
    """
    auto = AutoModelForSequenceClassification if task.outputs else AutoModelForTokenClassification
    if not task.word_outputs:
        return auto
    try:
        found = cast(Any, auto)._model_mapping[type(config)]
    except KeyError as error:
        raise TeacherError(
            f"transformers has no {'sequence' if task.outputs else 'token'} classifier of model type "
            f"{config.model_type}; use an encoder of the BERT family"
        ) from error
    return _with_words(cast(Any, found[0] if isinstance(found, tuple) else found), bool(task.outputs))


def new_model(config: Any, task: Task) -> PreTrainedModel:
    """A model for `task` with random weights; seed torch before the call."""
    configure(config, task)
    made = model_class(config, task)
    return made(config) if task.word_outputs else made.from_config(config)


@functools.cache
def _with_words(base: Any, joint: bool) -> Any:
    """`base` with `WordOutput` as its output."""

    class Words(base):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if joint:
                self.word_classifier = nn.Linear(config.hidden_size, len(config.word_labels))
                self.post_init()

        @functools.wraps(base.forward)
        def forward(self, *args: Any, **options: Any) -> WordOutput:
            wanted = bool(options.pop("output_hidden_states", False))
            said: Any = base.forward(self, *args, output_hidden_states=joint or wanted, **options)
            states: Any = said.hidden_states
            return WordOutput(
                logits=said.logits if joint else None,
                word_logits=self.word_classifier(states[-1]) if joint else said.logits,
                hidden_states=states if wanted else None,
                attentions=said.get("attentions"),
            )

    # The config of a saved model names its class, and this one is ours alone.
    Words.__name__ = Words.__qualname__ = base.__name__
    return Words


def gathered(word_logits: Tensor, places: Tensor) -> Tensor:
    """What a model says at the first pieces of words.

    Args:
        word_logits: Of every piece, [batch, length, word_outputs].
        places: Of the first pieces, 0 or more, [batch, words].

    Returns:
        [batch, words, word_outputs].
    """
    index = places[..., None].expand(-1, -1, word_logits.shape[-1])
    return torch.gather(word_logits, 1, index)
