from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.data.split import check_fraction, cut, sample
from pocketlm.errors import DataError, RecipeError

KEYS = st.lists(st.sampled_from([f"film {n}" for n in range(30)]), min_size=2, max_size=120).filter(
    lambda keys: len(set(keys)) > 1
)
FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 5)


@given(KEYS, FRACTIONS, SEEDS, st.booleans(), st.data())
def test_groups_never_part_and_no_side_is_empty(keys, fraction, seed, stratified, data) -> None:
    strata = [data.draw(st.sampled_from("xy")) for _ in keys] if stratified else None
    try:
        held = cut(keys, fraction, seed, strata)
    except DataError:
        assert stratified
        assert len(set(keys)) == 2
        return
    out = {key for key, side in zip(keys, held, strict=True) if side}
    stay = {key for key, side in zip(keys, held, strict=True) if not side}
    assert out
    assert stay
    assert not out & stay


@given(KEYS, FRACTIONS, SEEDS, st.booleans(), st.data())
def test_the_order_of_rows_does_not_matter(keys, fraction, seed, stratified, data) -> None:
    keys = [*keys, "one more", "and another"]
    strata = ["even" if len(key) % 2 == 0 else "odd" for key in keys] if stratified else None
    order = data.draw(st.permutations(range(len(keys))))
    held = cut(keys, fraction, seed, strata)
    moved = cut([keys[n] for n in order], fraction, seed, strata and [strata[n] for n in order])
    assert moved == [held[n] for n in order]


@given(KEYS, FRACTIONS, SEEDS)
def test_the_fraction_is_of_groups(keys, fraction, seed) -> None:
    groups = len(set(keys))
    held = {key for key, side in zip(keys, cut(keys, fraction, seed), strict=True) if side}
    assert abs(len(held) - min(max(fraction * groups, 1), groups - 1)) <= 0.5 + 1e-9


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), FRACTIONS, SEEDS)
def test_each_stratum_gives_its_share_within_one_group_and_keeps_one(counts, fraction, seed) -> None:
    pairs = [
        (f"{stratum}/{n}", str(stratum)) for stratum, count in enumerate([*counts, 2]) for n in range(count)
    ]
    keys, strata = zip(*pairs, strict=True)
    held = cut(keys, fraction, seed, strata)
    out = Counter(stratum for stratum, side in zip(strata, held, strict=True) if side)
    for stratum, groups in Counter(strata).items():
        assert abs(out[stratum] - fraction * groups) <= 1 or sum(out.values()) == 1
        assert out[stratum] < groups


def test_many_small_strata_still_give_the_fraction() -> None:
    strata = [str(n // 4) for n in range(600)]
    assert sum(cut([str(n) for n in range(600)], 0.1, 0, strata)) == 60


def test_a_group_counts_for_its_most_frequent_label() -> None:
    keys = [f"g{n}" for n in range(40) for _ in range(3)]
    strata = [stratum for n in range(40) for stratum in (f"rare {n}", *("aa" if n < 20 else "bb"))]
    held = cut(keys, 0.25, 0, strata)
    out = defaultdict(set)
    for key, side in zip(keys, held, strict=True):
        if side:
            out["a" if int(key[1:]) < 20 else "b"].add(key)
    assert len(out["a"]) == len(out["b"]) == 5


def test_the_cut_is_pinned_and_the_seed_changes_it() -> None:
    keys = [str(n) for n in range(20)]
    # sha256("0:<key>") ranks these two lowest; computed with coreutils' sha256sum
    assert [key for key, side in zip(keys, cut(keys, 0.1, 0), strict=True) if side] == ["15", "18"]
    assert cut(keys, 0.5, 0) != cut(keys, 0.5, 1)


def test_too_few_groups() -> None:
    with pytest.raises(DataError, match=r"cannot cut 3 rows in 1 group\(s\).*at least 2"):
        cut(["a", "a", "a"], 0.1, 0)
    with pytest.raises(DataError, match="each of the 3 labels has one group only"):
        cut(["a", "b", "c"], 0.1, 0, ["x", "y", "z"])


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_out_of_range(value: float) -> None:
    with pytest.raises(RecipeError, match=r"valid_fraction=.* allowed: more than 0 and less than 1"):
        check_fraction("valid_fraction", value)
    with pytest.raises(RecipeError, match="fraction="):
        cut(["a", "b"], value, 0)


@given(st.lists(st.text(max_size=3), unique=True, min_size=1), st.integers(1, 20), SEEDS, st.data())
def test_a_sample_is_stable(keys, count, seed, data) -> None:
    chosen = sample(keys, count, seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(keys))
    names = {keys[n] for n in chosen}
    order = data.draw(st.permutations(keys))
    assert {order[n] for n in sample(order, count, seed)} == names
    assert names <= {keys[n] for n in sample(keys, count + 1, seed)}
    rest = [key for key in keys if key in names or data.draw(st.booleans())]
    assert {rest[n] for n in sample(rest, count, seed)} == names
