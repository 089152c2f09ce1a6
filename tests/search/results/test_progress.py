"""The progress line."""

import io
from typing import get_args

from rich.console import Console

from lownas.evaluators.training.final.records import TrainingStatus
from lownas.search.results.progress import SearchProgress, TrainingProgress, _accuracy
from lownas.search.trials.run_folder import read_results
from lownas.search.trials.status import Phase, SearchStatus


def test_every_phase_can_be_shown() -> None:
    with SearchProgress(Console(file=io.StringIO(), width=140)) as progress:
        for phase in get_args(Phase):
            progress(SearchStatus(phase, 1, 4, 1, 1, None, 1.0, 200.0))


def test_the_best_is_shown_as_in_the_table_at_the_end(run_search) -> None:
    top1 = run_search(trials=3, repeats=0)
    first = read_results(top1.run)[0]
    known = next(candidate for candidate in top1.candidates if candidate.trial == first.trial)
    assert first.status == "complete"
    assert _accuracy(first) == f"{known.prior_top1:.1f} % ({known.low_top1:.1f} to {known.high_top1:.1f})"
    on_data = run_search(trials=3, repeats=0, data="digits", rungs=1, run=f"{top1.run}-data")
    assert "to" not in _accuracy(read_results(on_data.run)[0])


def test_a_final_training_is_shown() -> None:
    shown = io.StringIO()
    row = {"epoch": 3, "train_loss": 0.4567, "validation_accuracy": 0.912}
    with TrainingProgress(Console(file=shown, width=140, force_terminal=True)) as progress:
        progress(TrainingStatus(4, 30, 5, 10, 60.0, 540.0))
        progress(TrainingStatus(4, 30, 10, 10, 65.0, 530.0, {**row, "validation_accuracy": None}))
        progress(TrainingStatus(4, 30, 10, 10, 65.0, 530.0, row))
    text = shown.getvalue()
    assert "epoch 4 of 30" in text and "loss 0.457, validation 91.2 %" in text and "about 9 min left" in text
