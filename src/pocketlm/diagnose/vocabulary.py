"""Do the pieces of a tokenizer belong to the rows of the embedding table?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from pocketlm.diagnose.finding import Finding, Side
from pocketlm.models.load import Classifier
from pocketlm.tokenization.trim import count_pieces

COMPARED = 400
"""Pieces whose neighbourhoods are compared, the most frequent ones that both models have."""
FEWEST = 30
UNRELATED = 0.05
"""Correlation of two tables' similarities below which one of them is of other pieces."""
MANY_UNKNOWN = 0.02

Texts = Sequence[tuple[str, ...]]


def of_vocabulary(pocket: Classifier, teacher: Classifier, texts: Texts) -> list[Finding]:
    """What is wrong with a pocket's pieces, seen from its teacher's.

    Args:
        pocket: The model that the pocket was made of.
        teacher: Its teacher.
        texts: Real inputs.
    """
    rows, pieces = _table(pocket).shape[0], pocket.tokenizer.get_vocab_size()
    if pieces > rows:
        text = (
            f"tokenizer.json has {pieces} pieces and the embedding table {rows} rows: they are of two models"
        )
        return [Finding("vocabulary", True, f"{text}; make the pocket anew")]
    found = [*_unknown("pocket", pocket, texts), *_unknown("teacher", teacher, texts)]
    related = relation(pocket, teacher, texts)
    if related is not None and related < UNRELATED:
        found.append(
            Finding(
                "vocabulary",
                True,
                f"what is alike to the teacher is not to the pocket: the similarities of their common pieces "
                f"correlate at {related:.2f}; tokenizer.json is of another model than the weights, or the "
                "table was trained from nothing; make the pocket anew",
            )
        )
    return found


def relation(pocket: Classifier, teacher: Classifier, texts: Texts) -> float | None:
    """Correlation of the cosines between pieces that both models have, which need not be of one width.

    Kriegeskorte et al. 2008, representational similarity analysis (https://doi.org/10.3389/neuro.06.004.2008).

    Returns:
        -1 to 1; None where they share too few pieces.
    """
    counts = count_pieces(pocket.tokenizer, texts)
    ours, theirs = _words(pocket.tokenizer), _words(teacher.tokenizer)
    by_use = sorted(ours.keys() & theirs.keys(), key=lambda piece: (-counts[ours[piece]], piece))
    common = [piece for piece in by_use[:COMPARED] if counts[ours[piece]]]
    if len(common) < FEWEST:
        return None
    one = _cosines(_table(pocket)[[ours[piece] for piece in common]])
    other = _cosines(_table(teacher)[[theirs[piece] for piece in common]])
    return float(np.corrcoef(one, other)[0, 1])


def _words(tokenizer: Tokenizer) -> dict[str, int]:
    """Pieces of letters alone, without the marks that say where in a word they stand."""
    found: dict[str, int] = {}
    for piece, index in tokenizer.get_vocab().items():
        if piece.lower().strip("Ġ▁").isalpha():
            found.setdefault(piece.lower().strip("Ġ▁"), index)
    return found


def _table(classifier: Classifier) -> torch.Tensor:
    weight = classifier.model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().float()  # [pieces, width]


def _cosines(rows: torch.Tensor) -> np.ndarray:
    """Of every pair of rows, their mean taken off, [pairs]."""
    unit = F.normalize(rows - rows.mean(dim=0), dim=1)
    above = torch.triu_indices(len(rows), len(rows), 1)
    return (unit @ unit.T)[above[0], above[1]].numpy()


def _unknown(side: Side, classifier: Classifier, texts: Texts) -> list[Finding]:
    known = classifier.tokenizer.get_vocab()
    unknown = {known[piece] for piece in ("[UNK]", "<unk>") if piece in known}
    ids = [index for row in classifier.encode(texts).ids for index in row]
    share = sum(index in unknown for index in ids) / max(len(ids), 1)
    if share <= MANY_UNKNOWN:
        return []
    text = f"{share:.1%} of the pieces that the {side} reads are unknown to it"
    patch = None
    if side == "pocket":
        text += "; keep more pieces, and all scripts, in its vocabulary"
        patch = {"student": {"vocabulary": None}}
    return [Finding("unknown", False, text, patch)]
