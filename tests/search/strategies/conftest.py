"""The stand-ins' search as the strategies' tests want it."""

from collections.abc import Callable

import pytest

from lownas.search.results.search_result import SearchResult


@pytest.fixture
def run_on_data(run_search) -> Callable[..., SearchResult]:
    """A search on data without rungs, so that every strategy can work and trains alike."""

    def run(**changes):
        return run_search(**{"data": "digits", "rungs": 1, "repeats": 2, **changes})

    return run
