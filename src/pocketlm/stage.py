"""The stage protocol: a frozen dataclass whose fields are its hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pocketlm.artifact import Artifact
from pocketlm.progress import Progress, Quiet


@dataclass(frozen=True)
class Context:
    """Where and how a stage runs; nothing here but `threads` may change its result.

    Args:
        folder: The stage's own folder for its results. It survives a kill.
        checkpoints: Where training keeps its checkpoints: one folder for all processes of a stage.
        progress: Shows how far the stage is.
        threads: CPU threads for measuring, by a stage that is `timed`.
    """

    folder: Path
    checkpoints: Path
    progress: Progress = field(default_factory=Quiet)
    threads: int = 2


class Stage(Protocol):
    """One step of a recipe.

    A stage is a frozen dataclass. Its `repr` goes into the history, and its result is cached
    under the hash of its inputs, its fields and its code. It writes only below `context.folder`,
    and may find there what an earlier, killed run of itself left. A stage that trains sets
    `distributed` to True: under `accelerate launch` every process runs it. One that measures speed sets
    `timed` to True: its result belongs to a number of threads and a processor.
    """

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Return the artifact that follows from `artifact`."""
        ...
