"""The strategy "evolution"."""

from lownas.search.strategies.evolution import division


def test_division_adds_up() -> None:
    for trials in range(1, 40):
        assert sum(division(trials)) == trials
        assert division(trials)[1] >= 1
    assert division(16) == (6, 5, 5)
