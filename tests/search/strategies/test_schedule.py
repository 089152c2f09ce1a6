"""When what is trained: second seeds, and runs that are small."""

from collections import Counter

import pytest

from lownas.search.strategies.schedule import _spread_over
from lownas.search.trials.run_folder import read_results

from ..conftest import rung_evaluate


@pytest.mark.parametrize("rungs", [1, 3])
def test_second_seeds_that_fail_are_not_tried_without_end(run_search, rungs: int) -> None:
    trained: Counter[str] = Counter()

    def once(task):
        name = task.config.id
        if task.until == 1.0:
            trained[name] += 1
            if trained[name] > 1:
                raise RuntimeError("it took too long")
        return rung_evaluate(task)

    outcome = run_search(evaluate=once, data="digits", rungs=rungs, trials=12, repeats=3)
    assert max(trained.values()) == 2
    assert 0 < outcome.counts["failed"] <= 2 + (12 + 3) // 4 + 1
    assert outcome.answer is not None


def test_second_seeds_of_controls_lie_evenly_and_more_of_them_keep_those_there_are() -> None:
    for count in range(12):
        order = _spread_over(count)
        assert sorted(order) == list(range(count))
        assert set(order[:2]) == {0, count - 1} or count < 2
    assert _spread_over(6)[:3] == [5, 0, 2]


def test_a_single_training_is_of_the_best_not_of_the_smallest(run_search) -> None:
    outcome = run_search(data="digits", trials=1, repeats=0, rungs=1)
    assert [result.role for result in read_results(outcome.run)] == ["exploit"]
