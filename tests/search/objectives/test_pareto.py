"""Fronts of accuracy against latency, and what a candidate adds to one."""

import itertools

import numpy as np
import pytest

from lownas.search.objectives.pareto import expected_front_improvement, expected_improvement, order

from .candidates import area


def test_expected_front_improvement_is_that_of_the_area() -> None:
    rng = np.random.default_rng(0)
    seen, seen_ms = rng.normal(size=6), rng.uniform(0.2, 1.0, 6)
    mean, spread = np.array([0.5, 1.5, -3.0]), np.array([0.4, 0.05, 0.1])
    latency_ms = np.array([0.3, 0.1, 0.9])
    found = expected_front_improvement(mean, spread, latency_ms, seen, seen_ms, 1.0)
    before = area(seen, seen_ms, seen.min(), 1.0)
    for i in range(3):
        draws = rng.normal(mean[i], spread[i], 300)
        gains = [area([*seen, draw], [*seen_ms, latency_ms[i]], seen.min(), 1.0) - before for draw in draws]
        error = 4 * np.std(gains) / np.sqrt(len(gains)) + 1e-4
        assert found[i] == pytest.approx(np.mean(gains), abs=error)
    assert found[2] < 1e-6  # hopeless


def test_expected_improvement_is_that_of_a_normal_variable() -> None:
    mean, spread = np.array([0.0, 1.0, -2.0]), np.array([1.0, 0.5, 0.1])
    draws = mean + spread * np.random.default_rng(0).standard_normal((200_000, 3))
    assert expected_improvement(mean, spread, 0.5) == pytest.approx(np.maximum(draws - 0.5, 0).mean(axis=0), abs=0.005)


def test_order_by_one_objective_is_descending() -> None:
    values = np.array([[0.2], [0.9], [0.2], [0.5]])
    assert order(values).tolist() == [1, 3, 0, 2]


def test_order_by_several_objectives_is_by_pareto_fronts() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2))
    place = {int(index): rank for rank, index in enumerate(order(values))}
    for a, b in itertools.permutations(range(60), 2):
        if (values[a] >= values[b]).all() and (values[a] > values[b]).any():
            assert place[a] < place[b], "who dominates comes first"
    front = [i for i in range(60) if not ((values >= values[i]).all(axis=1) & (values > values[i]).any(axis=1)).any()]
    assert set(order(values)[: len(front)].tolist()) == set(front)
    # Front by front, also with equal ones, as its definition has it.
    values = np.vstack([rng.integers(0, 6, size=(80, 2)), values])
    ranked, left = [], list(range(len(values)))
    while left:
        here = values[left]
        beaten = ((here[None] >= here[:, None]).all(2) & (here[None] > here[:, None]).any(2)).any(1)
        ranked.append({i for i, dominated in zip(left, beaten, strict=True) if not dominated})
        left = [i for i in left if i not in ranked[-1]]
    ordered = order(values).tolist()
    for members in ranked:
        assert {ordered.pop(0) for _ in members} == members
    values = values[80:]
    # The ends of a front are the most isolated.
    assert {int(values[front, 0].argmax()), int(values[front, 1].argmax())} == {
        front.index(i) for i in order(values)[:2]
    }
