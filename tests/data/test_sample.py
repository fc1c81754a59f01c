from __future__ import annotations

from pocketlm.data.sample import few, passes, spread


def test_a_spread_is_even_and_has_both_ends() -> None:
    assert spread(5, 10) == [0, 1, 2, 3, 4]
    assert spread(101, 5) == [0, 25, 50, 75, 100]
    assert spread(1, 5) == [0] and spread(0, 5) == []
    assert few("abcde", 3) == ["a", "c", "e"] and few("", 3) == []


def test_passes_take_every_example_equally_often_and_in_another_order_each_time() -> None:
    order = passes(50, 120, seed=3)
    assert len(order) == 120 and order == passes(50, 120, seed=3) != passes(50, 120, seed=4)
    assert sorted(order[:50]) == sorted(order[50:100]) == list(range(50))
    assert order[:50] != order[50:100] and len(set(order[100:])) == 20
    assert passes(50, 0, seed=0) == []
