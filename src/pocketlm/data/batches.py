"""Which examples go together into a batch, and padding: numpy only.

Texts of like length share a batch, so little is padded; the order depends on (seed, epoch) alone,
so a resumed or sharded run meets the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocketlm.errors import InputError


def batch_order(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, shuffle: bool = True, bucket: int = 50
) -> list[list[int]]:
    """Batches of indices, each index exactly once.

    Shuffled indices are cut into chunks of `bucket * batch_size`; each chunk is sorted by length and
    cut into batches, and the batches are shuffled.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples a batch; one batch has fewer if they do not divide.
        seed: With `epoch`, all that the order depends on.
        epoch: Counted from 0.
        shuffle: False leaves chunks and batches in order, for evaluation.
        bucket: Batches a chunk: more means less padding, and less mixing.

    Raises:
        InputError: a size is below 1, or seed or epoch is negative.
    """
    for name, value, least in (
        *(("batch_size", batch_size, 1), ("bucket", bucket, 1)),
        *(("seed", seed, 0), ("epoch", epoch, 0)),
    ):
        if value < least:
            raise InputError(f"{name}={value} is out of range; allowed: {least} or more")
    generator = np.random.default_rng((seed, epoch))
    count = len(lengths)
    order = generator.permutation(count) if shuffle else np.arange(count)
    sizes = np.asarray(lengths, dtype=np.int64)
    batches: list[list[int]] = []
    for start in range(0, count, bucket * batch_size):
        chunk = order[start : start + bucket * batch_size]
        chunk = chunk[np.argsort(sizes[chunk], kind="stable")]
        batches += [chunk[first : first + batch_size].tolist() for first in range(0, len(chunk), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))] if shuffle else batches


def shard(batch: list[int], rank: int, world: int) -> list[int]:
    """The part of a batch that process `rank` of `world` takes; the parts together are the batch."""
    return batch[rank::world]


def pad(sequences: Sequence[Sequence[int]], value: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Fill sequences up to the longest.

    Args:
        sequences: Token ids of each example.
        value: Id of the padding token.

    Returns:
        ids, int64 [batch, length], and mask, bool [batch, length]: True keeps.
    """
    longest = max(map(len, sequences), default=0)
    ids = np.full((len(sequences), longest), value, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.bool_)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return ids, mask
