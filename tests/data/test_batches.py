from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.data.batches import batch_order, pad, shard
from pocketlm.errors import InputError

LENGTHS = st.lists(st.integers(0, 512), max_size=200)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.integers(1, 6))
def test_every_index_exactly_once_in_full_batches(lengths, batch_size, seed, epoch, shuffle, bucket) -> None:
    batches = batch_order(lengths, batch_size, seed, epoch, shuffle, bucket)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    sizes = sorted(map(len, batches), reverse=True)
    assert all(size == batch_size for size in sizes[:-1])
    assert all(type(index) is int for batch in batches for index in batch)
    assert batch_order(lengths, batch_size, seed, epoch, shuffle, bucket) == batches
    for batch in batches:
        assert [lengths[index] for index in batch] == sorted(lengths[index] for index in batch)


def test_seed_and_epoch_change_the_order_and_evaluation_has_one() -> None:
    lengths = [n % 7 for n in range(100)]
    orders = [
        batch_order(lengths, 4, seed, epoch, bucket=3) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert all(a != b for n, a in enumerate(orders) for b in orders[:n])
    assert batch_order(lengths, 4, 0, 0, shuffle=False) == batch_order(lengths, 4, 1, 5, shuffle=False)


def test_without_shuffle_chunks_stay_in_order() -> None:
    assert batch_order([3, 1, 2, 9, 8, 7, 5], 2, 0, 0, shuffle=False, bucket=2) == [
        [1, 2],
        [0, 3],
        [6, 5],
        [4],
    ]


def test_bucketing_pads_less_and_batches_are_not_sorted_by_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 120, 4000).tolist()

    def waste(bucket: int) -> int:
        return sum(
            sum(max(lengths[i] for i in b) - lengths[i] for i in b)
            for b in batch_order(lengths, 32, 0, 0, bucket=bucket)
        )

    assert waste(50) < 0.1 * waste(1)
    first = [lengths[batch[0]] for batch in batch_order(lengths, 32, 0, 0)]
    assert first != sorted(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 0), "batch_size=0 is out of range; allowed: 1 or more"),
        ((1, -1, 0), "seed=-1 is out of range; allowed: 0 or more"),
        ((1, 0, -1), "epoch=-1 is out of range"),
        ((1, 0, 0, True, 0), "bucket=0 is out of range"),
    ],
)
def test_sizes_out_of_range(arguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        batch_order([1, 2], *arguments)


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_shards_make_up_the_batch(batch: list[int], world: int) -> None:
    shards = [shard(batch, rank, world) for rank in range(world)]
    assert sorted(index for part in shards for index in part) == sorted(batch)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(st.lists(st.lists(st.integers(0, 30000), max_size=12), max_size=6), st.integers(0, 3))
def test_the_mask_keeps_exactly_the_sequences(sequences: list[list[int]], value: int) -> None:
    ids, mask = pad(sequences, value)
    assert ids.dtype == np.int64
    assert mask.dtype == np.bool_
    assert ids.shape == mask.shape == (len(sequences), max(map(len, sequences), default=0))
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == sequences
    assert (ids[~mask] == value).all()
    assert all((np.diff(keep.astype(int)) <= 0).all() for keep in mask)
