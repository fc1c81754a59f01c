"""Prepared examples: texts and encoded labels, as JSON lines on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
        aside = path.with_name(path.name + ".partial")
        with aside.open("w", encoding="utf-8", newline="\n") as stream:
            for texts, label in zip(self.texts, self.labels, strict=True):
                stream.write(json.dumps({"texts": texts, "label": label}, ensure_ascii=False) + "\n")
        os.replace(aside, path)

    @classmethod
    def load(cls, path: Path) -> Examples:
        """The inverse of `save`."""
        with path.open(encoding="utf-8", newline="\n") as stream:
            rows = [json.loads(line) for line in stream]
        return cls(texts=[tuple(row["texts"]) for row in rows], labels=[row["label"] for row in rows])


def load_split(folder: Path, name: str) -> Examples:
    """One split of a prepared data folder.

    Args:
        folder: The `data` part of an artifact.
        name: `train`, `valid` or `test`.
    """
    return Examples.load(folder / f"{name}.jsonl")
