"""Texts to ids, the same way in training as in the runtime: through `tokenizer.json` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from pocketlm.errors import TeacherError
from pocketlm.runtime.windows import Window, windows
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import first_pieces, inputs_of, text_of_words, words_of

PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


@dataclass(frozen=True)
class Encoded:
    """Tokenized examples.

    Args:
        ids: Piece ids of every example, special tokens included, not padded.
        type_ids: Segment of every piece, as the model is told it.
        origins: Which text every piece comes from: 0 or 1; -1 for special tokens.
        spans: Start and end character of every piece in its own text; (0, 0) for special tokens.
        words: Place of the first piece of every word, `pocketlm.tasks.words.MISSING` where the input was cut
            before it; empty where the task has no words.
        texts: The examples themselves.
    """

    ids: list[list[int]]
    type_ids: list[list[int]]
    origins: list[list[int]]
    spans: list[list[tuple[int, int]]]
    words: list[list[int]] = field(default_factory=list[list[int]])
    texts: Sequence[Sequence[str]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Pieces per example."""
        return [len(ids) for ids in self.ids]


def encode(
    tokenizer: Tokenizer, texts: Sequence[Sequence[str]], max_length: int, task: Task | None = None
) -> Encoded:
    """Encode single texts or pairs, cut to `max_length` pieces (the longer text first).

    Of a question and a long context the context is cut. With a task on words, the places of their first
    pieces are found, too.

    The tokenizer is left with that truncation: a copy of it for each call would take longer than the
    model does for a short text.
    """
    if task is not None and task.kind == "qa":
        return _encoded([own[0] for own in _windows(tokenizer, texts, max_length)], texts, task)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings = tokenizer.encode_batch(inputs_of(texts))
    origins = [[-1 if text is None else text for text in encoding.sequence_ids] for encoding in encodings]
    found = [
        Window(encoding.ids, encoding.type_ids, origin, encoding.offsets)
        for encoding, origin in zip(encodings, origins, strict=True)
    ]
    return _encoded(found, texts, task)


def encode_windows(
    tokenizer: Tokenizer, texts: Sequence[Sequence[str]], max_length: int, task: Task
) -> tuple[Encoded, list[int]]:
    """Encode questions with all of their contexts, a long one in several windows that overlap.

    Returns:
        The windows, and which example each is of.
    """
    found = _windows(tokenizer, texts, max_length)
    owners = [example for example, own in enumerate(found) for _ in own]
    flat = [window for own in found for window in own]
    return _encoded(flat, [texts[owner] for owner in owners], task), owners


def _windows(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], max_length: int) -> list[list[Window]]:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return windows(tokenizer, [(text[0], text[1]) for text in texts], max_length)


def _encoded(inputs: Sequence[Window], texts: Sequence[Sequence[str]], task: Task | None) -> Encoded:
    words: list[list[int]] = []
    if task is not None and task.word_outputs:
        words = [
            first_pieces(words_of(task, text), text_of_words(task), one.origins, one.spans)
            for text, one in zip(texts, inputs, strict=True)
        ]
    return Encoded(
        ids=[one.ids for one in inputs],
        type_ids=[one.type_ids for one in inputs],
        origins=[one.origins for one in inputs],
        spans=[one.spans for one in inputs],
        words=words,
        texts=texts,
    )


def pad_id(tokenizer: Tokenizer) -> int:
    """Id of the padding piece.

    Raises:
        TeacherError: the tokenizer has none of the usual padding pieces.
    """
    for token in PAD_TOKENS:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return found
    raise TeacherError(
        f"the tokenizer has no padding piece; looked for {', '.join(PAD_TOKENS)}; "
        "add one to its tokenizer.json"
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json`, or make it from the older vocabulary files with transformers.

    Raises:
        TeacherError: the folder holds no tokenizer that can be read.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise TeacherError(f"{path} is not a tokenizer: {error}; fetch the model again") from error
    else:
        from transformers import AutoTokenizer

        try:
            made = cast(Any, AutoTokenizer.from_pretrained(str(folder), local_files_only=True))
            tokenizer = cast(Tokenizer, made.backend_tokenizer)
        except (OSError, ValueError, AttributeError) as error:
            raise TeacherError(
                f"{folder} has no tokenizer.json, and none can be made from its vocabulary: {error}"
            ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
