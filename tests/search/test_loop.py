"""The trial loop: failures, rungs, interrupts, and trials that others enqueue."""

import json
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lownas.search.training.pool import DIED, STOPPED
from lownas.search.training.task import Evaluation
from lownas.search.trials.run_folder import read_results

from .conftest import facts, load_study, noisy_evaluate, rung_evaluate, states, stub_evaluate


def test_failed_candidates_are_recorded_and_replaced(run_search, evaluate) -> None:
    def sometimes(task):
        if task.trial == 1:
            raise RuntimeError("CUDA\nout of memory")
        if task.trial == 2:
            return Evaluation(float("nan"), reason="the loss is nan in epoch 1")
        if task.trial == 3:
            raise MemoryError
        return evaluate(task)

    outcome = run_search(evaluate=sometimes)
    failed = {result.trial: result for result in read_results(outcome.run) if result.status == "failed"}
    assert [failed[n].reason for n in (1, 2, 3)] == [
        "RuntimeError: CUDA out of memory",
        "the loss is nan in epoch 1",
        "out of memory: MemoryError",
    ]
    assert all(result.accuracy is None and result.objective is None for result in failed.values())
    assert outcome.counts == {"complete": 12, "failed": 3}
    assert states(outcome.run).count("FAIL") == 3
    assert any(note.startswith("3 trials failed") for note in outcome.notes)


def test_workers_that_cannot_start_leave_no_trial_running(run_search, monkeypatch) -> None:
    asked = []

    def interrupted(task):
        asked.append(task)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return rung_evaluate(task)

    outcome = run_search(evaluate=interrupted, data="digits")

    def refused(*_):
        raise ValueError("--ray-address: no cluster answers there")

    with monkeypatch.context() as patch:
        patch.setattr("lownas.search.loop.open_pool", refused)
        with pytest.raises(ValueError, match="no cluster answers"):
            run_search(data="digits", resume=True)
    assert "RUNNING" not in states(outcome.run)
    assert not run_search(evaluate=rung_evaluate, data="digits", resume=True).interrupted


@pytest.mark.parametrize("reason", [DIED, STOPPED])
def test_a_network_that_killed_its_workers_is_not_trained_under_another_number(run_search, space, reason: str) -> None:
    trained: Counter[str] = Counter()

    def deadly(task):
        trained[task.config.id] += 1
        return Evaluation(None, reason=reason) if task.trial == 2 else stub_evaluate(task)

    outcome = run_search(evaluate=deadly)
    (failed,) = [result for result in read_results(outcome.run) if result.status == "failed"]
    study = load_study(outcome.run)
    study.enqueue_trial(space.to_params(failed.config))
    outcome = run_search(evaluate=deadly, resume=True, trials=9)
    again = [result for result in read_results(outcome.run) if result.role == "enqueued"]
    assert [result.status for result in again] == ["failed"] and "not tried again: trial 2" in again[0].reason
    assert trained[failed.config_id] == 1


def test_interrupt_keeps_what_was_found_and_resume_goes_on(run_search, evaluate, tmp_path) -> None:
    def interrupted(task):
        if task.trial == 5:
            raise KeyboardInterrupt
        return evaluate(task)

    whole = run_search(run=str(tmp_path / "whole"))
    outcome = run_search(evaluate=interrupted)
    assert outcome.interrupted and len(outcome.candidates) == 5 and outcome.answer is not None
    assert any("--resume" in note for note in outcome.notes)
    assert "RUNNING" not in states(outcome.run)
    outcome = run_search(resume=True)
    assert not outcome.interrupted
    assert facts(outcome.run) == facts(whole.run)
    assert outcome.answer == whole.answer


@pytest.mark.parametrize("workers", [0, 2])
def test_rungs_stop_the_worse_and_the_better_go_on(run_search, workers: int) -> None:
    outcome = run_search(evaluate=rung_evaluate, data="digits", trials=18, repeats=1, workers=workers)
    results = read_results(outcome.run)
    status = Counter(result.status for result in results)
    assert status == {"pruned": 15, "complete": 3 + 1}, "18 start, 6 reach a third, 3 the end; one of them once more"
    assert Counter(states(outcome.run)) == {"PRUNED": 15, "COMPLETE": 4}
    lines = [json.loads(line) for line in (outcome.run / "rungs.jsonl").read_text().splitlines()]
    assert Counter(line["rung"] for line in lines) == {0: 18, 1: 6}
    first = {line["trial"]: line["accuracy"] for line in lines if line["rung"] == 0}
    gone_on = {line["trial"] for line in lines if line["rung"] == 1}
    assert np.mean([first[trial] for trial in gone_on]) > np.mean([first[trial] for trial in first.keys() - gone_on])
    pruned = [result for result in results if result.status == "pruned"]
    assert all(
        result.accuracy is None and result.objective is None and "stopped after" in result.reason for result in pruned
    )
    complete = next(result for result in results if result.status == "complete" and result.role != "repeat")
    assert [rung["share"] for rung in complete.details["rungs"]] == pytest.approx([1 / 9, 1 / 3])
    assert outcome.answer is not None and outcome.answer.accuracy > max(first.values())
    assert outcome.counts["pruned"] == 15
    assert not (outcome.run / "states").exists()


def test_an_interrupted_run_goes_on_from_its_rungs(run_search, tmp_path) -> None:
    whole = run_search(evaluate=rung_evaluate, data="digits", run=str(tmp_path / "whole"))
    asked: list[tuple[int, float]] = []

    def noting(task):
        asked.append((task.trial, task.until))
        if len(asked) == 9:
            raise KeyboardInterrupt
        return rung_evaluate(task)

    outcome = run_search(evaluate=noting, data="digits")
    assert outcome.interrupted
    assert set(states(outcome.run)) <= {"WAITING", "COMPLETE", "PRUNED"}
    for file in outcome.run.glob("study.db*"):  # even so: rungs.jsonl is the truth
        file.unlink()
    outcome = run_search(evaluate=noting, data="digits", resume=True)
    assert asked.count(asked[8]) == 2 and len(set(asked)) == len(asked) - 1, "only what was cut off is trained again"
    assert facts(outcome.run) == facts(whole.run)
    assert outcome.answer == whole.answer


def test_time_budget(run_search, evaluate) -> None:
    began: list[float] = []

    def slow(task):
        began.append(time.monotonic())
        time.sleep(0.3)
        return replace(evaluate(task), seconds=0.3)

    started = time.monotonic()
    outcome = run_search(evaluate=slow, time_budget_s=4, trials=500)
    assert outcome.interrupted and 0 < len(outcome.candidates) < 500
    assert max(began) - started < 4, "no training starts that would end later"


@pytest.mark.parametrize("strategy", ["tpe", "gp"])
def test_a_trial_enqueued_from_outside_that_waits_at_a_rung_is_known_to_the_sampler(
    run_search, space, predictor, tmp_path, strategy: str
) -> None:
    asked: list[int] = []

    def interrupted(task):
        asked.append(task.trial)
        if len(asked) in (3, 9):
            raise KeyboardInterrupt
        return rung_evaluate(task)

    options = {"data": "digits", "strategy": strategy, "rungs": 2, "evaluate": interrupted}
    outcome = run_search(**options)
    study = load_study(outcome.run)
    rng = np.random.default_rng(0)
    while predictor.quantile_ms([config := space.sample(rng)], 0.9)[0] > 0.8:
        pass
    study.enqueue_trial(space.to_params(config))
    assert run_search(resume=True, **options).interrupted
    outcome = run_search(resume=True, **options)
    assert not outcome.interrupted and "RUNNING" not in states(outcome.run)
    (enqueued,) = [r for r in read_results(outcome.run) if r.role == "enqueued"]
    assert enqueued.config_id == config.id and enqueued.status in ("complete", "pruned")


def test_trial_enqueued_from_outside_over_the_budget_is_infeasible(run_search, space, predictor) -> None:
    outcome = run_search(trials=2, repeats=0)
    rng = np.random.default_rng(0)
    samples = [space.sample(rng) for _ in range(500)]
    slow = samples[int(np.argmax(predictor.latency_ms(samples)))]
    study = load_study(outcome.run)
    study.enqueue_trial(space.to_params(slow))
    study.enqueue_trial(study.trials[0].params)
    run_search(trials=2, repeats=0, resume=True)
    over, known = read_results(outcome.run)[2:]
    assert (over.status, over.accuracy) == ("infeasible", None)
    assert "over the budget" in over.reason
    assert (known.status, known.reason) == ("complete", "the same as trial 0")
    assert states(outcome.run)[2:] == ["PRUNED", "COMPLETE"]
    assert load_study(outcome.run).trials[2].constraints["latency"] > 0


def test_what_was_reached_at_rungs_counts_when_a_run_is_stopped(run_search) -> None:
    trained = []

    def stopped(task):
        trained.append(task)
        if len(trained) == 30:
            raise KeyboardInterrupt
        return noisy_evaluate(task)

    outcome = run_search(data="digits", rungs=3, strategy="random", trials=30, evaluate=stopped)
    assert outcome.interrupted and len(outcome.candidates) < 8
    assert any("all trainings together" in note for note in outcome.notes)


def test_a_callback_sees_each_trial_and_can_end_the_search(run_search) -> None:
    seen: list[int] = []

    def enough(result) -> bool:
        seen.append(result.trial)
        return len(seen) == 3

    outcome = run_search(callback=enough)
    assert seen == [0, 1, 2] and outcome.interrupted and len(outcome.candidates) == 3
    assert outcome.answer is not None and set(states(outcome.run)) == {"COMPLETE"}
    outcome = run_search(callback=lambda result: seen.append(result.trial), resume=True)
    assert seen == list(range(12)) and not outcome.interrupted
