"""The progress line."""

import io
from typing import get_args

from rich.console import Console

from lownas.search.results.progress import SearchProgress
from lownas.search.trials.status import Phase, SearchStatus


def test_every_phase_can_be_shown() -> None:
    with SearchProgress(Console(file=io.StringIO(), width=140)) as progress:
        for phase in get_args(Phase):
            progress(SearchStatus(phase, 1, 4, 1, 1, None, 1.0, 200.0))
