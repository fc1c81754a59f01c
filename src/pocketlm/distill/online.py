"""A teacher that is asked anew for every batch, and texts without labels to ask it about.

General distillation sees every text a few times at most, so nothing is gained by storing what the
teacher says of it: a state of a whole corpus would fill a disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pocketlm.artifact import Artifact
from pocketlm.data.batches import pad
from pocketlm.data.examples import load_pool, load_split
from pocketlm.data.read import read_table, table_format
from pocketlm.data.unlabeled import normalised
from pocketlm.distill.pairs import Said
from pocketlm.distill.states import width_of
from pocketlm.errors import DataError
from pocketlm.models.load import Classifier
from pocketlm.tokenization.align import UNALIGNED, align
from pocketlm.tokenization.encode import Encoded

TEXT_COLUMN = "text"


@dataclass(frozen=True)
class Online:
    """Some texts and the teacher that is run over them, batch by batch, in evaluation mode.

    Args:
        teacher: Its head is not run.
        encoded: The texts in the teacher's pieces.
        student: The same in the student's.
    """

    teacher: Classifier
    encoded: Encoded
    student: Encoded

    @property
    def width(self) -> int:
        """Features of a state."""
        return width_of(self.teacher.model)

    @torch.no_grad()
    def states_of(self, indices: Sequence[int], states: Sequence[int]) -> Said:
        """The teacher's states at the student's positions.

        Args:
            indices: Texts, padded together as the student's inputs are.
            states: Which ones.
        """
        rows = list(indices)
        self.teacher.model.eval()
        output = self.teacher.model.base_model(
            **self.teacher.inputs(self.encoded, rows), output_hidden_states=True
        )
        aligned, _ = pad([align(self.student, self.encoded, row) for row in rows], UNALIGNED)
        positions = torch.from_numpy(np.asarray(aligned))
        at = positions.clamp_min(0)[..., None].expand(-1, -1, self.width)  # [batch, length, width]
        values = {state: output.hidden_states[state].float().gather(1, at) for state in states}
        return Said(values, positions)


def load_corpus(artifact: Artifact) -> list[tuple[str, ...]]:
    """Texts for general distillation: those of the recipe's `data.corpus`, else the pool's.

    A text that valid or test hold too is left out, whatever its case and white space.

    Raises:
        DataError: the corpus is of no kind that is read here, or nothing is left of it.
    """
    source = artifact.parts.get("corpus_source")
    if source is None:
        return load_pool(artifact).texts
    kept_apart = {
        normalised((text,))
        for split in ("valid", "test")
        for texts in load_split(artifact.parts["data"], split).texts
        for text in texts
    }
    texts = [(text,) for text in corpus_texts(source) if normalised((text,)) not in kept_apart]
    if not texts:
        raise DataError(f"{source.name}: no text that is not in valid or test; give a corpus of its own")
    return texts


def corpus_texts(path: Path) -> list[str]:
    """The texts of a corpus file, each once and none empty.

    Args:
        path: A table with a column `text`, or of one column; or plain text in `.txt`, one text a line.

    Raises:
        DataError: the file is of another kind, or has no such column.
    """
    if path.suffix.lower() == ".txt":
        try:
            texts = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name} is not UTF-8 ({error}); save it as UTF-8") from error
    elif path.is_file() and table_format(path):
        table = read_table(path)
        column = table.columns[0] if len(table.columns) == 1 else TEXT_COLUMN
        if column not in table.columns:
            raise DataError(
                f"{path.name}: the columns are {', '.join(table.columns)}; call the corpus's texts "
                f"{TEXT_COLUMN!r}, or give a file of one column"
            )
        texts = [str(row[column] or "").strip() for row in table.rows]
    else:
        raise DataError(f"{path.name} is not a corpus; give a table with a column {TEXT_COLUMN!r}, or a .txt")
    return [text for text in dict.fromkeys(texts) if text]
