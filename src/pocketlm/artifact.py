"""What stages hand to each other: named folders, what was found on the way, and its history."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pocketlm.tasks.task import Task


@dataclass(frozen=True)
class Artifact:
    """The state of a recipe between two stages.

    Args:
        digest: Hash of everything that led here: inputs, stages, their fields and their code.
        parts: Name to folder or file: `data`, `teacher`, `student`, `teacher_outputs`, `onnx`, …
        figures: What stages found: scores, sizes, minutes. JSON values only.
        history: `repr` of every stage applied, in order.
    """

    digest: str
    parts: Mapping[str, Path] = field(default_factory=dict[str, Path])
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])
    history: tuple[str, ...] = ()

    def with_part(self, name: str, path: Path) -> Artifact:
        """The same artifact with one part added or replaced."""
        return replace(self, parts={**self.parts, name: path})

    def with_figures(self, **figures: Any) -> Artifact:
        """The same artifact with figures added or replaced."""
        return replace(self, figures={**self.figures, **figures})

    @property
    def task(self) -> Task:
        """The task, known once the data are prepared."""
        return Task.from_dict(self.figures["task"])

    @property
    def master(self) -> Path:
        """The model that a student is cut out of and learns from: the assistant, or else the teacher."""
        return self.parts["assistant"] if "assistant" in self.parts else self.parts["teacher"]

    def save(self, path: Path, root: Path) -> None:
        """Write as JSON, parts relative to `root`, in one rename: the file is whole or absent."""
        values = {
            "digest": self.digest,
            "parts": {name: os.path.relpath(part, root) for name, part in self.parts.items()},
            "figures": dict(self.figures),
            "history": list(self.history),
        }
        write_json(path, values)

    @classmethod
    def load(cls, path: Path, root: Path) -> Artifact:
        """The inverse of `save`."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            digest=values["digest"],
            parts={name: Path(os.path.normpath(root / part)) for name, part in values["parts"].items()},
            figures=values["figures"],
            history=tuple(values["history"]),
        )


def write_json(path: Path, values: Any) -> None:
    """Write JSON aside, then rename: a reader sees the old file or the new one, never a half."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
