"""Texts to ids, the same way in training as in the runtime: through `tokenizer.json` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from pocketlm.errors import TeacherError

PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


@dataclass(frozen=True)
class Encoded:
    """Tokenized examples.

    Args:
        ids: Piece ids of every example, special tokens included, not padded.
        type_ids: Segment of every piece, as the model is told it.
        origins: Which text every piece comes from: 0 or 1; -1 for special tokens.
        spans: Start and end character of every piece in its own text; (0, 0) for special tokens.
    """

    ids: list[list[int]]
    type_ids: list[list[int]]
    origins: list[list[int]]
    spans: list[list[tuple[int, int]]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Pieces per example."""
        return [len(ids) for ids in self.ids]


def encode(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], max_length: int) -> Encoded:
    """Encode single texts or pairs, cut to `max_length` pieces (the longer text first).

    The tokenizer is left with that truncation: a copy of it for each call would take longer than the
    model does for a short text.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    inputs = [text[0] if len(text) == 1 else (text[0], text[1]) for text in texts]
    encodings = tokenizer.encode_batch(inputs)
    return Encoded(
        ids=[encoding.ids for encoding in encodings],
        type_ids=[encoding.type_ids for encoding in encodings],
        origins=[[-1 if text is None else text for text in encoding.sequence_ids] for encoding in encodings],
        spans=[encoding.offsets for encoding in encodings],
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
