"""Successive halving: who goes on from rung to rung."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from lownas.search.strategies.rungs import MOST_COMPARED, Rungs


def test_shares_and_costs() -> None:
    assert Rungs(3).shares == pytest.approx((1 / 9, 1 / 3, 1))
    assert Rungs(1).shares == (1.0,)
    assert Rungs(1).trainings(16) == 16
    # 18 candidates: 18 at a ninth, 6 at a third, 2 to the end.
    assert Rungs(3).trainings(18) == pytest.approx(18 / 9 + 6 * (1 / 3 - 1 / 9) + 2 * (2 / 3))
    assert Rungs(3).reach_end(18) == 2 and Rungs(1).reach_end(18) == 18
    assert Rungs(3, least=3).reach_end(18) == 3 and Rungs(3, least=3).reach_end(2) == 2
    with pytest.raises(ValueError, match="at least 1"):
        Rungs(0)


def test_the_better_third_goes_on() -> None:
    rungs = Rungs(3)
    first = {number: (accuracy,) for number, accuracy in enumerate((0.1, 0.5, 0.3, 0.4, 0.2))}
    assert rungs.promotable([first, {}, {}]) == 1, "one of five may go on"
    assert rungs.promotable([first, {1: (0.6,)}, {}]) is None
    assert rungs.promotable([first, {}, {}], {1: 1}) is None, "it trains"
    assert rungs.promotable([{**first, 5: (0.45,)}, {1: (0.6,)}, {}]) == 5
    assert rungs.promotable([{0: (0.1,), 1: (0.2,)}, {}, {}]) is None


def test_a_stream_of_ever_better_candidates_costs_no_more() -> None:
    rungs = Rungs(3)
    judged: list[dict[int, tuple[float]]] = [{}, {}, {}]
    for number in range(18):
        judged[0][number] = (float(number),)
        while (name := rungs.promotable(judged)) is not None:
            rung = sum(name in level for level in judged)
            judged[rung][name] = (float(name),)
    while (name := rungs.promotable(judged, closing=True)) is not None:
        judged[sum(name in level for level in judged)][name] = (float(name),)
    assert [len(level) for level in judged] == [18, 6, 2]
    assert 17 in judged[2]


def test_the_highest_rung_goes_first() -> None:
    rungs = Rungs(3)
    first = {number: (number / 10,) for number in range(12)}
    second = {11: (0.7,), 10: (0.8,), 9: (0.6,)}
    assert rungs.promotable([first, second, {}]) == 10


def test_rungs_close_from_below_once_nothing_new_comes() -> None:
    rungs = Rungs(3)
    first = {number: (number / 10,) for number in range(4)}
    assert rungs.promotable([first, {3: (0.5,)}, {}]) is None
    assert rungs.promotable([first, {3: (0.5,)}, {}], closing=True) == 2
    assert rungs.promotable([first, {3: (0.5,)}, {}], {2: 1}, closing=True) is None, "2 may yet be better than 3"
    assert rungs.promotable([first, {3: (0.5,), 2: (0.6,)}, {}], closing=True) == 2
    assert rungs.promotable([first, {3: (0.5,)}, {}], {4: 0}, closing=True) is None
    # Every run ends with one that was trained to the end.
    assert rungs.promotable([{0: (0.1,)}, {}, {}], closing=True) == 0
    assert rungs.promotable([{0: (0.1,)}, {0: (0.1,)}, {}], closing=True) == 0
    assert rungs.promotable([{0: (0.1,)}, {0: (0.1,)}, {0: (0.1,)}], closing=True) is None


def test_one_rung_promotes_nothing() -> None:
    assert Rungs(1).promotable([{0: (0.5,)}]) is None
    assert Rungs(1).promotable([{0: (0.5,)}], closing=True) is None


def test_several_objectives_are_promoted_by_fronts() -> None:
    rungs = Rungs(2)
    judged = {0: (0.5, -1.0), 1: (0.6, -2.0), 2: (0.4, -3.0), 3: (0.3, -4.0), 4: (0.2, -5.0), 5: (0.1, -6.0)}
    first = rungs.promotable([judged, {}])
    assert first in (0, 1)
    assert {first, rungs.promotable([judged, {first: (0.0, 0.0)}])} == {0, 1}


def test_candidates_are_compared_by_what_they_are_worth_and_only_the_latest() -> None:
    rungs = Rungs(2)
    first = {number: (number / 10,) for number in range(6)}

    def reversed_order(rung: int, names: Sequence[int]) -> NDArray[np.float64]:
        assert rung == 0
        return -np.array([first[name] for name in names])

    assert rungs.promotable([first, {}]) == 5
    assert rungs.promotable([first, {}], worth=reversed_order) == 0
    assert rungs.promotable([first, {0: (0.0,)}], worth=reversed_order) == 1
    many = {number: (-float(number),) for number in range(MOST_COMPARED + 10)}
    assert rungs.promotable([many, {}]) == 10, "0 to 9 came too long ago"
