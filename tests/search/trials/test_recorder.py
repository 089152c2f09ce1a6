"""The three records of a run: whatever is lost or cut off, they agree again, and the run ends as it would have."""

from typing import Any

import pytest

from lownas.search.loop import TrialLoop
from lownas.search.trials.database import PatientStorage
from lownas.search.trials.optuna_study import OptunaStudy
from lownas.search.trials.recorder import TrialRecorder
from lownas.search.trials.run_folder import RunFolder, read_results

from ..conftest import facts, states


class Killed(BaseException):
    """As sudden as a SIGKILL: nothing in the driver catches it."""


@pytest.mark.parametrize(
    ("rungs", "data"),
    [
        pytest.param(1, None, marks=pytest.mark.slow),
        pytest.param(3, None, marks=pytest.mark.slow),
        (3, "digits"),
    ],
)
def test_killed_anywhere_the_resumed_run_ends_the_same(
    run_search, tmp_path, monkeypatch, rungs: int, data: str | None
) -> None:
    changes: dict[str, Any] = {"rungs": rungs, "data": data, "trials": 10, "repeats": 2}
    whole = run_search(run=str(tmp_path / "whole"), **changes)
    expected = facts(whole.run)
    victims: dict[str, Any] = {
        "_finish": TrialLoop,
        "_submit": TrialLoop,
        "_record": TrialLoop,
        "_tell": TrialRecorder,
        "add": TrialRecorder,
        "finish": OptunaStudy,
        "create_new_trial": PatientStorage,
        "append_result": RunFolder,
        **({"append_rung": RunFolder} if rungs > 1 else {}),
    }
    attempt = 0
    done = False
    while not done:
        # Every time, die in another place: before or after the call, on its second use (its first if that is rare).
        name, after = list(victims)[attempt % len(victims)], attempt // len(victims) % 2 == 1
        owner = victims[name]
        original = getattr(owner, name)
        last = 1 if name in ("_finish", "_tell", "append_result") else 2
        calls = 0

        def dying(self, *args, original=original, after=after, last=last):
            nonlocal calls
            calls += 1
            if calls == last and not after:
                raise Killed
            result = original(self, *args)
            if calls == last:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying)
            patch.setattr(TrialRecorder, "close_open_trials", lambda self: None)  # a killed driver settles nothing
            try:
                outcome = run_search(resume=attempt > 0, **changes)
                done = True
            except Killed:
                pass
        attempt += 1
        assert attempt < 80
    assert attempt > 6
    assert facts(outcome.run) == expected
    assert outcome.answer == whole.answer
    assert states(outcome.run) == states(whole.run)
    if rungs == 1:
        assert states(outcome.run) == ["COMPLETE"] * len(expected)


def test_broken_last_line_is_set_aside(run_search, evaluate, tmp_path) -> None:
    whole = run_search(run=str(tmp_path / "whole"))

    def interrupted(task):
        if task.trial == 4:
            raise KeyboardInterrupt
        return evaluate(task)

    path = run_search(evaluate=interrupted).run / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    outcome = run_search(resume=True)
    assert (path.parent / "results.jsonl.broken").exists()
    assert facts(outcome.run) == facts(whole.run)
    assert len(states(outcome.run)) == len(facts(whole.run))


def test_lost_study_is_rebuilt_from_the_results(run_search, evaluate, tmp_path) -> None:
    outcome = run_search(trials=3, repeats=0)
    for file in outcome.run.glob("study.db*"):
        file.unlink()
    again = run_search(trials=4, repeats=0, resume=True)
    assert [result.trial for result in read_results(again.run)] == [0, 1, 2, 3]
    assert states(again.run) == ["COMPLETE"] * 4
