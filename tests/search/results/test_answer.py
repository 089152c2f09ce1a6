"""What a search concludes from its trials."""

import pytest


def test_if_all_fail_the_search_ends_with_the_reason(run_search) -> None:
    def broken(task):
        raise OSError("no such device")

    with pytest.raises(RuntimeError, match=r"all \d+ candidates failed; the first: OSError: no such device"):
        run_search(evaluate=broken)


def test_a_budget_that_nothing_exceeds_is_said(run_search) -> None:
    outcome = run_search(latency_budget_ms=1000.0)
    assert any(note.startswith("Nothing in the space 'tiny' exceeds the budget") for note in outcome.notes)
