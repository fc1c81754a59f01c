"""What the teacher says of every text of the pool, computed once and kept on disk.

Hidden states are stored at the student's positions (see `pocketlm.tokenization.align`) in float16,
logits in float32, both memory-mapped: an epoch of distillation reads them and never runs the teacher.
A state costs 2 · width bytes a position: 50,000 texts of 30 pieces, 4 states of width 768, 9 GB; at a
`width` of 192, 2.3 GB; no states, the logits alone. Attention scores and relations are not stored but
computed from a layer's input state (see `pocketlm.distill.states`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from pocketlm.artifact import Artifact, write_json
from pocketlm.data.examples import load_pool
from pocketlm.distill.pairs import Said, layer_map_of
from pocketlm.distill.states import depth_of, width_of
from pocketlm.distill.words import WordStore, fill_words, word_offsets
from pocketlm.errors import RecipeError, storage_errors
from pocketlm.models.load import EVALUATION_BATCH, Classifier
from pocketlm.models.saliency import principal_directions
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.tokenization.align import UNALIGNED, align
from pocketlm.tokenization.encode import Encoded, load_tokenizer
from pocketlm.train import Precision, computes_half

SAVE_EVERY_BATCHES = 20
BASIS_TEXTS = 512


@dataclass(frozen=True)
class TeacherOutputs:
    """Run the teacher over the pool and keep its logits and hidden states.

    Args:
        states: The teacher's states to keep, 0 for the output of the embeddings and i for that of its
            layer i - 1. None keeps what hidden states are compared with by default: the embeddings'
            and those of the layers that the student kept, or evenly spread ones. An empty tuple keeps
            logits only, and the stage may then stand before `student`: all students share the answers.
        layer_inputs: Keep with every state the input of the layer that ends in it too: attention
            scores and relations are computed from it.
        width: Keep states in the space of so many directions, those in which the teacher's states are
            longest; None keeps them whole.
        precision: `bf16` computes matrix products in bfloat16; `auto` does where the CPU has it.
    """

    states: tuple[int, ...] | None = None
    layer_inputs: bool = False
    width: int | None = None
    precision: Precision = "auto"

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `teacher_outputs` and the figure `teacher_states`.

        Raises:
            RecipeError: `states` or `width` does not fit the teacher.
        """
        task, max_length = artifact.task, artifact.figures["max_length"]
        teacher = Classifier.load(artifact.master, task, max_length)
        depth, width = depth_of(teacher.model), width_of(teacher.model)
        states = self.states
        if states is None:
            shape = artifact.figures["shape"]
            states = layer_map_of(None, shape, shape["layers"], depth)
        if any(not 0 <= state <= depth for state in states):
            raise RecipeError(f"states={list(states)} are not all states of the teacher: 0 to {depth}")
        if self.width is not None and not 1 <= self.width <= width:
            raise RecipeError(
                f"width={self.width} is out of range; the teacher's states have {width}, so allowed: 1 to "
                f"{width}, or null"
            )
        inputs = [state - 1 for state in states if state > 0] if self.layer_inputs else []
        states = tuple(sorted({*states, *inputs}))
        texts = load_pool(artifact).texts
        # Without states nothing stands at a piece, and the teacher's own pieces will do.
        pieces = load_tokenizer(artifact.parts["student"]) if states else teacher.tokenizer
        students = Classifier(teacher.model, pieces, task, max_length)
        half = torch.autocast("cpu", torch.bfloat16, enabled=computes_half(self.precision))
        with storage_errors(context.folder), half:
            compute(teacher, teacher.encode(texts), students.encode(texts), states, context, self.width)
        return artifact.with_part("teacher_outputs", context.folder).with_figures(teacher_states=list(states))


@torch.no_grad()
def compute(
    teacher: Classifier,
    encoded: Encoded,
    student: Encoded,
    states: Sequence[int],
    context: Context,
    width: int | None = None,
) -> None:
    """Fill the store of `context.folder`, going on where a killed run stopped."""
    offsets = np.concatenate([[0], np.cumsum(student.lengths)]).astype(np.int64)
    folder, whole = context.folder, width_of(teacher.model)
    width = None if width == whole else width
    np.save(folder / "offsets.npy", offsets)
    write_json(folder / "states.json", {"states": list(states), "depth": depth_of(teacher.model)})
    teacher.model.eval()
    bases = _bases(folder / "bases.npy", teacher, encoded, states, width)
    logits = _memmap(folder / "logits.npy", (len(encoded), teacher.task.outputs), np.float32)
    hidden = _memmap(folder / "hidden.npy", (int(offsets[-1]), len(states), width or whole), np.float16)
    positions = _memmap(folder / "positions.npy", (int(offsets[-1]),), np.int32)
    words = _word_store(folder, teacher.task, encoded.texts)
    arrays = [logits, hidden, positions, *((words.logits, words.known) if words else ())]
    order = np.argsort(encoded.lengths, kind="stable")
    batches = [order[start : start + EVALUATION_BATCH] for start in range(0, len(order), EVALUATION_BATCH)]
    done_path = folder / "done.json"
    done = json.loads(done_path.read_text()) if done_path.exists() else 0
    with context.progress.task("ask the teacher", len(batches), done) as advance:
        for number in range(done, len(batches)):
            indices = batches[number].tolist()
            output = teacher.model(**teacher.inputs(encoded, indices), output_hidden_states=bool(states))
            if teacher.task.outputs:
                logits[indices] = output.logits.float().numpy()
            if words is not None:
                fill_words(words, output.word_logits, encoded, indices)
            kept = [output.hidden_states[state].float() for state in states]
            if width is not None:
                kept = [state @ basis for state, basis in zip(kept, bases, strict=True)]
            for row, index in enumerate(indices):
                at = slice(int(offsets[index]), int(offsets[index + 1]))
                positions[at] = aligned = align(student, encoded, index)
                _fill(hidden[at], [state[row] for state in kept], aligned)
            if (number + 1) % SAVE_EVERY_BATCHES == 0 or number + 1 == len(batches):
                for array in cast(list[np.memmap], arrays):
                    array.flush()
                write_json(done_path, number + 1)
            advance(1)


def _fill(hidden: np.ndarray, states: Sequence[Tensor], aligned: Sequence[int]) -> None:
    """Fill one example's part of the store from the teacher's states, each [teacher's length, width]."""
    positions = torch.tensor(aligned).clamp_min(0)
    limit = float(np.finfo(np.float16).max)
    for column, state in enumerate(states):
        hidden[:, column] = state[positions].clamp(-limit, limit).half().numpy()


def _bases(
    path: Path, teacher: Classifier, encoded: Encoded, states: Sequence[int], width: int | None
) -> list[Tensor]:
    """The space that every state is kept in, [teacher's width, width] each; none where they are whole.

    A run that goes on must find the very same space, so the
    file of the first one is taken.
    """
    if width is None or not states:
        return []
    whole = width_of(teacher.model)
    shape = (len(states), whole, width)
    found = _found(path)
    if found is None or found.shape != shape:
        moments = torch.zeros(len(states), whole, whole, dtype=torch.float64)
        # Spread over the pool: its first rows are all labelled, its last all made up.
        sample = np.unique(np.linspace(0, len(encoded) - 1, BASIS_TEXTS).astype(np.int64))
        for start in range(0, len(sample), EVALUATION_BATCH):
            inputs = teacher.inputs(encoded, sample[start : start + EVALUATION_BATCH].tolist())
            mask = inputs["attention_mask"].bool()
            output = teacher.model(**inputs, output_hidden_states=True)
            for moment, state in zip(moments, states, strict=True):
                rows = output.hidden_states[state][mask].double()  # [pieces, width]
                moment += rows.T @ rows
        aside = path.with_name("bases.partial.npy")
        bases = torch.stack([principal_directions(moment, width) for moment in moments])
        np.save(aside, bases.float().numpy())
        os.replace(aside, path)
    return list(torch.from_numpy(np.load(path)))


def _word_store(folder: Path, task: Task, texts: Sequence[Sequence[str]]) -> WordStore | None:
    """Arrays for what is said of words, to be filled; None where the task has none."""
    if not task.word_outputs:
        return None
    offsets = word_offsets(task, texts)
    np.save(folder / "word_offsets.npy", offsets)
    logits = _memmap(folder / "word_logits.npy", (int(offsets[-1]), task.word_outputs), np.float32)
    return WordStore(logits, _memmap(folder / "word_known.npy", (int(offsets[-1]),), np.bool_), offsets)


def _memmap(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """Open an array of this shape for writing; one of another shape or a half-made one is made anew."""
    array = _found(path)
    if array is None or array.shape != shape or array.dtype != dtype:
        array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # Writing to a map on a full disk kills the process; asking for the blocks first is an error to tell.
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _found(path: Path) -> np.memmap | None:
    try:
        return open_memmap(path, mode="r+") if path.exists() else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Store:
    """The store that `TeacherOutputs` wrote, memory-mapped.

    Args:
        states: Which of the teacher's states are kept.
        depth: Layers of the teacher.
        logits: [examples, outputs].
        hidden: Teacher's states at the student's positions, [positions, states, width].
        positions: Where every position's counterpart stands in the teacher's input; -1 without one.
        offsets: First position of every example, [examples + 1].
        bases: The space of every state, [states, teacher's width, width]; None where they are whole.
        words: The teacher's logits of words; None where the task has none.
    """

    states: tuple[int, ...]
    depth: int
    logits: np.ndarray
    hidden: np.ndarray
    positions: np.ndarray
    offsets: np.ndarray
    bases: Tensor | None = None
    words: WordStore | None = None

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Map the arrays of a folder."""
        about = json.loads((folder / "states.json").read_text(encoding="utf-8"))
        bases = folder / "bases.npy"
        return cls(
            tuple(about["states"]),
            about["depth"],
            *(
                np.load(folder / f"{name}.npy", mmap_mode="r")
                for name in ("logits", "hidden", "positions", "offsets")
            ),
            bases=torch.from_numpy(np.load(bases)) if bases.exists() else None,
            words=WordStore.open(folder),
        )

    @property
    def width(self) -> int:
        """Features of a kept state."""
        return self.hidden.shape[2]

    def logits_of(self, indices: Sequence[int]) -> Tensor:
        """The teacher's logits, [batch, outputs]."""
        return torch.from_numpy(self.logits[list(indices)])

    def states_of(self, indices: Sequence[int], states: Sequence[int]) -> Said:
        """What the teacher's states are at the student's positions.

        Args:
            indices: Examples, padded together.
            states: Which of the kept ones.
        """
        columns = [self.states.index(state) for state in states]
        spans = [(int(self.offsets[index]), int(self.offsets[index + 1])) for index in indices]
        length = max(end - start for start, end in spans)
        kept = np.zeros((len(columns), len(spans), length, self.width), dtype=np.float32)
        positions = np.full((len(spans), length), UNALIGNED, dtype=np.int64)
        for row, (start, end) in enumerate(spans):
            rows = self.hidden[start:end]
            for place, column in enumerate(columns):
                kept[place, row, : end - start] = rows[:, column]
            positions[row, : end - start] = self.positions[start:end]
        bases = {} if self.bases is None else dict(zip(states, self.bases[columns], strict=True))
        values = dict(zip(states, torch.from_numpy(kept), strict=True))
        return Said(values, torch.from_numpy(positions), bases)

    def need(self, states: Sequence[int], what: str) -> None:
        """Check that states are kept.

        Args:
            states: Which ones.
            what: What they are needed for, in an error.

        Raises:
            RecipeError: some are not.
        """
        missing = sorted({*states} - {*self.states})
        if missing:
            wanted = sorted({*states, *self.states})
            raise RecipeError(
                f"{what} needs the teacher's states {sorted({*states})}, and {missing} were not kept; set "
                f"states: {wanted} in the teacher_outputs stage, or leave the term out"
            )
