"""Tiny teachers of every architecture with random weights, and prepared data for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MegatronBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
)

from pocketlm.artifact import Artifact
from pocketlm.data.examples import Examples
from pocketlm.models.heads import new_model
from pocketlm.models.load import ATTENTION, Classifier
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import words_of
from tests.tiny import ALPHABET, WORDS, sentences, tokenizer, wordpiece

Architecture = Literal[
    "bert", "roberta", "distilbert", "electra", "mpnet", "albert", "deberta-v2", "megatron-bert"
]
ARCHITECTURES: tuple[Architecture, ...] = ("bert", "roberta", "distilbert", "electra", "mpnet")
# All that a student can be cut out of.
FAMILIES: tuple[Architecture, ...] = (*ARCHITECTURES, "albert", "deberta-v2", "megatron-bert")
# Those whose layers have the names of BERT's.
BERT_LIKE: tuple[Architecture, ...] = ("bert", "roberta", "electra", "mpnet")

SINGLE = Task("classification", pair=False, labels=("rotten", "fresh", "neither"))
PAIR = Task("classification", pair=True, labels=("no", "yes"))
VALUE = Task("regression", pair=False)
MANY = Task("multilabel", pair=False, labels=("bad", "good", "seen"))
TAGGED = Task("tokens", pair=False, tags=("B-mood", "I-mood", "O"))
JOINT = Task("joint", pair=False, labels=("bad", "good", "film"), tags=("B-mood", "I-mood", "O"))
QUESTION = Task("qa", pair=True)
ON_WORDS = (TAGGED, JOINT, QUESTION)
MAX_LENGTH = 16
WIDTH, HEADS, NEURONS = 32, 4, 48


def tokenizer_of(architecture: Architecture) -> Tokenizer:
    """The type of tokenizer that teachers of this architecture have."""
    if architecture == "roberta":
        return tokenizer("byte-bpe")
    if architecture == "mpnet":
        # As of the real one: WordPiece, but with padding at 1, where positions are counted from.
        specials = ("<pad>", "[UNK]", "<s>", "</s>", "<mask>")
        pieces = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *ALPHABET, *WORDS, *("##" + c for c in ALPHABET)]
        return wordpiece(specials, {piece: index for index, piece in enumerate(dict.fromkeys(pieces))})
    return tokenizer("wordpiece")


def config_of(architecture: Architecture, vocabulary: int, layers: int, positions: int) -> PretrainedConfig:
    common = {
        "vocab_size": vocabulary, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "num_hidden_layers": layers, "intermediate_size": NEURONS, "max_position_embeddings": positions,
    }  # fmt: skip
    if architecture == "bert":
        return BertConfig(**common)
    if architecture == "electra":
        return ElectraConfig(**common, embedding_size=WIDTH)
    if architecture == "roberta":
        return RobertaConfig(**{**common, "max_position_embeddings": positions + 2}, type_vocab_size=1)
    if architecture == "mpnet":
        return MPNetConfig(**{**common, "max_position_embeddings": positions + 2})
    if architecture == "albert":
        return AlbertConfig(**common, embedding_size=WIDTH // 2, inner_group_num=1, hidden_act="gelu")
    if architecture == "megatron-bert":
        return MegatronBertConfig(**common)
    if architecture == "deberta-v2":
        # As of the real ones: positions only as relative ones, in buckets, under their own norm.
        return DebertaV2Config(
            **common, relative_attention=True, position_buckets=4, norm_rel_ebd="layer_norm", pad_token_id=0,
            share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0,
        )  # fmt: skip
    return DistilBertConfig(
        vocab_size=vocabulary, dim=WIDTH, hidden_dim=NEURONS, n_layers=layers, n_heads=HEADS,
        max_position_embeddings=positions,
    )  # fmt: skip


def classifier(
    architecture: Architecture = "bert",
    task: Task = SINGLE,
    layers: int = 3,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    **config: Any,
) -> Classifier:
    """A classifier whose every weight, bias and norm is random and large enough to be told apart."""
    tokens = tokenizer_of(architecture)
    shape = config_of(architecture, tokens.get_vocab_size(), layers, positions=max_length + 8)
    shape.num_labels = task.outputs
    for name, value in config.items():
        setattr(shape, name, value)
    torch.manual_seed(seed)
    if task.word_outputs:
        model = new_model(shape, task)
        model.set_attn_implementation(ATTENTION)
    else:
        model = AutoModelForSequenceClassification.from_config(shape, attn_implementation=ATTENTION)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return Classifier(model.eval(), tokens, task, max_length)


def examples_of(task: Task, count: int, seed: int = 0) -> Examples:
    """Texts of 1 to 9 words; a label that can be seen in the text (good, bad, neither; how often good)."""
    first, second = sentences(count, seed), sentences(count, seed + 1000)
    marks = [("bad", "good", "film")[index % 3] for index in range(count)]
    texts = [(f"{mark} {text}",) for mark, text in zip(marks, first, strict=True)]
    labels: Any = [("bad", "good", "film").index(mark) % max(task.outputs, 1) for mark in marks]
    if task.kind == "regression":
        labels = [100.0 + 50.0 * (mark == "good") - 50.0 * (mark == "bad") for mark in marks]
    if task.kind == "multilabel":
        labels = [([0], [1], [0, 2])[place] for place in labels]
    if task.kind == "qa":
        contexts = [f"{other} {mark} {text}" for other, mark, text in zip(second, marks, first, strict=True)]
        wanted = [len(words_of(task, ("", other))) for other in second]
        answers = [
            {"answers": [mark], "start": place, "end": place}
            for mark, place in zip(marks, wanted, strict=True)
        ]
        return Examples([("a mood", context) for context in contexts], answers)
    if task.tags:
        tags = [["B-mood", *["O"] * len(text.split())] for text in first]
        whole = [{"intent": place, "tags": own} for place, own in zip(labels, tags, strict=True)]
        return Examples(texts, tags if task.kind == "tokens" else whole)
    if task.pair:
        texts = [(text, other) for (text,), other in zip(texts, second, strict=True)]
    return Examples(texts=texts, labels=labels)


def prepared(folder: Path, task: Task, train: int = 24, valid: int = 12) -> Artifact:
    """An artifact whose data are prepared below `folder`."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"train": train, "valid": valid, "test": valid}.items()):
        examples_of(task, count, seed).save(data / f"{name}.jsonl")
    return Artifact(
        digest="tiny",
        parts={"data": data},
        figures={"task": task.to_dict(), "max_length": MAX_LENGTH, "data_name": "tiny"},
    )
