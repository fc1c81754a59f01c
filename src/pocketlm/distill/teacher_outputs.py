"""What the teacher says of every training example, computed once and kept on disk.

Hidden states are stored at the student's positions (see `pocketlm.tokenization.align`) in float16,
logits in float32, both memory-mapped: an epoch of distillation reads them and never runs the teacher.
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
from pocketlm.data.examples import load_split
from pocketlm.distill.words import WordStore, fill_words, word_offsets
from pocketlm.errors import RecipeError, storage_errors
from pocketlm.models.load import EVALUATION_BATCH, Classifier
from pocketlm.stage import Context
from pocketlm.task import Task
from pocketlm.tokenization.align import UNALIGNED, align
from pocketlm.tokenization.encode import Encoded, load_tokenizer

SAVE_EVERY_BATCHES = 20


@dataclass(frozen=True)
class TeacherOutputs:
    """Run the teacher over the training examples and keep its logits and hidden states.

    Args:
        layer_map: Which of the teacher's hidden states every state of the student is compared with:
            one number for the embeddings' output and one for each student layer, where 0 is the
            teacher's embedding output and i its layer i - 1. None maps every kept layer to itself.
            An empty tuple stores logits only.
    """

    layer_map: tuple[int, ...] | None = None

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `teacher_outputs` and the figure `layer_map`.

        Raises:
            RecipeError: `layer_map` does not fit the two models.
        """
        task, max_length = artifact.task, artifact.figures["max_length"]
        teacher = Classifier.load(artifact.parts["teacher"], task, max_length)
        shape = artifact.figures["shape"]
        layer_map = self.layer_map
        if layer_map is None:
            layer_map = (0, *(layer + 1 for layer in shape["teacher_layers"]))
        depth = teacher.model.config.num_hidden_layers
        fits = not layer_map or len(layer_map) == shape["layers"] + 1
        if not fits or any(not 0 <= state <= depth for state in layer_map):
            raise RecipeError(
                f"layer_map={list(layer_map)} does not fit: give one of the teacher's states 0 to {depth} "
                f"for the student's embeddings and for each of its {shape['layers']} layers"
            )
        texts = load_split(artifact.parts["data"], "train").texts
        students = Classifier(teacher.model, load_tokenizer(artifact.parts["student"]), task, max_length)
        with storage_errors(context.folder):
            compute(teacher, teacher.encode(texts), students.encode(texts), layer_map, context)
        return artifact.with_part("teacher_outputs", context.folder).with_figures(layer_map=list(layer_map))


@torch.no_grad()
def compute(
    teacher: Classifier, encoded: Encoded, student: Encoded, layer_map: Sequence[int], context: Context
) -> None:
    """Fill the store of `context.folder`, going on where a killed run stopped."""
    offsets = np.concatenate([[0], np.cumsum(student.lengths)]).astype(np.int64)
    folder, width = context.folder, teacher.model.config.hidden_size
    np.save(folder / "offsets.npy", offsets)
    logits = _memmap(folder / "logits.npy", (len(encoded), teacher.task.outputs), np.float32)
    hidden = _memmap(folder / "hidden.npy", (int(offsets[-1]), len(layer_map), width), np.float16)
    known = _memmap(folder / "known.npy", (int(offsets[-1]),), np.bool_)
    words = _word_store(folder, teacher.task, encoded.texts)
    kept = [logits, hidden, known, *((words.logits, words.known) if words else ())]
    order = np.argsort(encoded.lengths, kind="stable")
    batches = [order[start : start + EVALUATION_BATCH] for start in range(0, len(order), EVALUATION_BATCH)]
    done_path = folder / "done.json"
    done = json.loads(done_path.read_text()) if done_path.exists() else 0
    teacher.model.eval()
    with context.progress.task("ask the teacher", len(batches), done) as advance:
        for number in range(done, len(batches)):
            indices = batches[number].tolist()
            output = teacher.model(**teacher.inputs(encoded, indices), output_hidden_states=bool(layer_map))
            if teacher.task.outputs:
                logits[indices] = output.logits.float().numpy()
            if words is not None:
                fill_words(words, output.word_logits, encoded, indices)
            for row, index in enumerate(indices):
                at = slice(int(offsets[index]), int(offsets[index + 1]))
                states = [output.hidden_states[layer][row] for layer in layer_map]
                _fill(hidden[at], known[at], states, align(student, encoded, index))
            if (number + 1) % SAVE_EVERY_BATCHES == 0 or number + 1 == len(batches):
                for array in cast(list[np.memmap], kept):
                    array.flush()
                write_json(done_path, number + 1)
            advance(1)


def _fill(hidden: np.ndarray, known: np.ndarray, states: Sequence[Tensor], aligned: Sequence[int]) -> None:
    """Fill one example's part of the store from the teacher's states, each [teacher's length, width]."""
    positions = torch.tensor(aligned)
    known[:] = (positions != UNALIGNED).numpy()
    for column, state in enumerate(states):
        hidden[:, column] = state[positions.clamp_min(0)].half().numpy()


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
        logits: [examples, outputs].
        hidden: Teacher's states at the student's positions, [positions, mapped layers, width].
        known: False at positions without a counterpart, [positions].
        offsets: First position of every example, [examples + 1].
        words: The teacher's logits of words; None where the task has none.
    """

    logits: np.ndarray
    hidden: np.ndarray
    known: np.ndarray
    offsets: np.ndarray
    words: WordStore | None = None

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Map the arrays of a folder."""
        arrays = [
            np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("logits", "hidden", "known", "offsets")
        ]
        return cls(*arrays, words=WordStore.open(folder))

    def hidden_of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States [batch, length, mapped layers, width] in float32 and their mask [batch, length]."""
        spans = [(int(self.offsets[index]), int(self.offsets[index + 1])) for index in indices]
        length = max(end - start for start, end in spans)
        states = np.zeros((len(spans), length, *self.hidden.shape[1:]), dtype=np.float32)
        mask = np.zeros((len(spans), length), dtype=np.bool_)
        for row, (start, end) in enumerate(spans):
            states[row, : end - start] = self.hidden[start:end]
            mask[row, : end - start] = self.known[start:end]
        return torch.from_numpy(states), torch.from_numpy(mask)
