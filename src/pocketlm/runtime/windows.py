"""A context that is longer than a model's input, read in windows that overlap.

Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), read SQuAD's long paragraphs so: the question
stands before each window.

Deviation: what a word gets from several windows is averaged, where BERT takes the window with the most
context around the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Encoding, Tokenizer

from pocketlm.tasks.words import Span

OVERLAP = 4
"""Neighbouring windows share one piece in so many."""


@dataclass(frozen=True)
class Window:
    """One input of a model.

    Args:
        ids: Piece ids, special tokens included.
        type_ids: Segment of every piece.
        origins: Which text every piece comes from; -1 for special tokens.
        spans: Characters of every piece in its own text; (0, 0) for special tokens.
    """

    ids: list[int]
    type_ids: list[int]
    origins: list[int]
    spans: list[Span]

    def __len__(self) -> int:
        return len(self.ids)


def windows(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], max_length: int) -> list[list[Window]]:
    """Encode questions with their contexts, each context in as many windows as it needs.

    A question keeps at most half of the pieces; what is over is cut off.

    Args:
        tokenizer: Without padding or truncation of its own. It is not changed, so threads may share it.
        pairs: Question and context.
        max_length: Pieces of a window, the question and special tokens included.

    Returns:
        One or more windows a pair.
    """
    special = tokenizer.num_special_tokens_to_add(True)
    plain = cast(Any, tokenizer).encode_batch
    questions: list[Encoding] = plain([question for question, _ in pairs], add_special_tokens=False)
    contexts: list[Encoding] = plain([context for _, context in pairs], add_special_tokens=False)
    found: list[list[Window]] = []
    for question, context in zip(questions, contexts, strict=True):
        question.truncate(max(1, (max_length - special) // 2))
        room = max(1, max_length - special - len(question))
        context.truncate(room, stride=room // OVERLAP)
        parts: list[Encoding] = [context, *cast(Any, context).overflowing]
        found.append([_window(tokenizer, question, part) for part in parts])
    return found


def _window(tokenizer: Tokenizer, question: Encoding, part: Encoding) -> Window:
    """Question and context with the special tokens around them.

    What the processor makes of origins and offsets is not used: it forgets the question's origin, and takes
    a blank off the same offset twice.
    """
    processed = tokenizer.post_process(question, part)
    origins, spans = [-1] * len(processed), [(0, 0)] * len(processed)
    places = [place for place, special in enumerate(processed.special_tokens_mask) if not special]
    own = [(0, span) for span in question.offsets] + [(1, span) for span in part.offsets]
    for place, (origin, span) in zip(places, own, strict=True):
        origins[place], spans[place] = origin, span
    return Window(processed.ids, processed.type_ids, origins, spans)
