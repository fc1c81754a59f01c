"""Prepared examples: texts and encoded labels, as JSON lines on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlm.artifact import Artifact

MADE = "augmented.jsonl"
"""File of the part `augmented`: texts made of others, any beginning of which covers train."""


@dataclass(frozen=True)
class Examples:
    """One split, ready to tokenize.

    Args:
        texts: One or two strings an example.
        labels: Class indices in the order of the task's labels, or numbers in regression; lists of
            ascending indices (multilabel); tag names of the words (tokens); `intent`, an index or -1 for
            one that train lacks, and `tags`, names (joint); `answers`, texts, with `start` and `end`, the
            first and last word of the first of them (qa).
    """

    texts: list[tuple[str, ...]]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Examples:
        """The examples at `indices`, in that order."""
        return Examples(
            texts=[self.texts[index] for index in indices], labels=[self.labels[index] for index in indices]
        )

    def save(self, path: Path) -> None:
        """Write `{"texts": […], "label": …}` a line, aside and then renamed: whole or absent."""
        rows = zip(self.texts, self.labels, strict=True)
        _write(path, ({"texts": texts, "label": label} for texts, label in rows))

    @classmethod
    def load(cls, path: Path) -> Examples:
        """The inverse of `save`."""
        rows = _read(path)
        return cls(texts=[tuple(row["texts"]) for row in rows], labels=[row["label"] for row in rows])


@dataclass(frozen=True)
class Pool:
    """All texts that the teacher may label, those of train first.

    Args:
        texts: One or two strings an example: train, then the user's unlabelled texts, then augmented ones.
        labels: Of train alone, in the order of its rows: `labels[i]` belongs to `texts[i]`.
    """

    texts: list[tuple[str, ...]]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.texts)


def load_pool(artifact: Artifact) -> Pool:
    """The pool of an artifact: what there is of train, unlabelled and augmented texts, in that order."""
    train = load_split(artifact.parts["data"], "train")
    texts = list(train.texts)
    unlabeled = artifact.parts["data"] / "unlabeled.jsonl"
    if unlabeled.exists():
        texts += load_texts(unlabeled)
    if "augmented" in artifact.parts:
        texts += load_texts(artifact.parts["augmented"] / MADE)
    return Pool(texts, list(train.labels))


def save_texts(texts: Iterable[Sequence[str]], path: Path) -> None:
    """Write `{"texts": […]}` a line: examples without labels."""
    _write(path, ({"texts": list(example)} for example in texts))


def load_texts(path: Path) -> list[tuple[str, ...]]:
    """The texts of what `save_texts` or `Examples.save` wrote."""
    return [tuple(row["texts"]) for row in _read(path)]


def load_split(folder: Path, name: str) -> Examples:
    """One split of a prepared data folder.

    Args:
        folder: The `data` part of an artifact.
        name: `train`, `valid` or `test`.
    """
    return Examples.load(folder / f"{name}.jsonl")


def _write(path: Path, rows: Iterable[Any]) -> None:
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(aside, path)


def _read(path: Path) -> list[Any]:
    with path.open(encoding="utf-8", newline="\n") as stream:
        return [json.loads(line) for line in stream]
