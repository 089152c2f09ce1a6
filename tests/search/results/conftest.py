"""A finished search."""

import pytest

from lownas.search.results.search_result import SearchResult
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings


@pytest.fixture(scope="package")
def outcome(tmp_path_factory, space, predictor) -> SearchResult:
    settings = SearchSettings(
        target="stub/none/fp32/b1/t1",
        latency_budget_ms=0.8,
        space="tiny",
        trials=4,
        repeats=0,
        evaluations=600,
        run=str(tmp_path_factory.mktemp("results") / "run"),
    )
    parts = Parts(predictor, space, evaluate=lambda task: 0.3 + task.trial / 100, plan=lambda request: {})
    return run_search(settings, parts)
