"""The search with stand-ins for predictor and training: its flow, its answers, and how it survives."""

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from scipy.stats import kendalltau

from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.predictors.costs import total_macs
from lownas.search.latency.finalists import ROUNDS
from lownas.search.loop import Driver
from lownas.search.objectives.experience import Experience
from lownas.search.results.outcome import SearchOutcome, SearchStatus
from lownas.search.run_search import dry_run, search
from lownas.search.strategies.base import division
from lownas.search.training.pools import DIED, STOPPED
from lownas.search.trials.database import PatientStorage
from lownas.search.trials.history import Journal
from lownas.search.trials.run_folder import RunFolder, read_results
from lownas.search_space import LowFormerConfig, SearchSpace, op_graph

from .conftest import StubMeasurement, stub_evaluate


class Killed(BaseException):
    """As sudden as a SIGKILL: nothing in the driver catches it."""


def facts(path: str | Path) -> list[dict[str, Any]]:
    return [result.to_dict() for result in read_results(path)]


def states(path: str | Path) -> list[str]:
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{path}/study.db")
    return [trial.state.name for trial in study.trials]


def test_whole_search(run_search, settings, space, predictor) -> None:
    seen: list[SearchStatus] = []
    outcome = run_search(trials=16, repeats=5, evaluations=2000, progress=seen.append)
    results = read_results(outcome.run)
    assert [result.trial for result in results] == list(range(21))
    assert {result.status for result in results} == {"complete"}
    assert len({result.config_id for result in results}) == 16
    assert Counter(result.role for result in results) == {"explore": 6, "exploit": 5, "child": 5, "repeat": 5}
    macs = [result.macs for result in results]
    assert max(macs) / min(macs) >= 3
    repeated = [result for result in results if result.role == "repeat"]
    for result in repeated:
        assert any(other.config_id == result.config_id and other.seed != result.seed for other in results)
    # The answer uses the budget and beats the best of 1,000 random feasible configurations under the same prior.
    assert outcome.answer is not None
    assert 0.9 * 0.8 <= outcome.answer.quantile_ms <= 0.8
    rng = np.random.default_rng(1)
    samples = [space.sample(rng) for _ in range(3000)]
    feasible = [c for c, q in zip(samples, predictor.quantile_ms(samples, 0.9), strict=True) if q <= 0.8][:1000]
    assert len(feasible) == 1000
    assert outcome.answer.prior_top1 > AccuracyPrior().imagenet_top1(feasible).max()
    assert outcome.answer.latency_source == "predicted"
    assert any("predicted, not measured" in note for note in outcome.notes)
    assert any("Nothing was trained on your data" in note for note in outcome.notes)
    assert seen[-1].done == 21 and seen[-1].phase == "done"
    about = json.loads((outcome.run / "run.json").read_text())
    assert about["proxy"] == {"epochs": 3, "configs": 16}
    assert about["settings"]["latency_budget_ms"] == 0.8
    assert states(outcome.run) == ["COMPLETE"] * 21
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{outcome.run}/study.db")
    assert all(trial.constraints["latency"] <= 0 for trial in study.trials)
    assert study.trials[0].params == space.to_params(results[0].config)


def test_division_adds_up() -> None:
    for trials in range(1, 40):
        assert sum(division(trials)) == trials
        assert division(trials)[1] >= 1
    assert division(16) == (6, 5, 5)


def test_budget_below_the_fastest_leaves_nothing_behind(run_search, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"budget of 0.01 ms: the fastest .* takes 0\.\d+ ms at confidence 0.9"):
        run_search(latency_budget_ms=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_fails_leaves_nothing_behind(run_search, tmp_path) -> None:
    def no_data(settings, configs):
        raise ValueError("data: no such folder")

    with pytest.raises(ValueError, match="no such folder"):
        run_search(plan=no_data)
    assert list(tmp_path.iterdir()) == []


def test_existing_run_needs_resume(run_search) -> None:
    run_search(trials=1, repeats=0)
    with pytest.raises(ValueError, match="already a run"):
        run_search(trials=1, repeats=0)
    with pytest.raises(ValueError, match=r"cannot resume with latency_budget_ms = 0\.9: the run was started with 0\.8"):
        run_search(trials=1, repeats=0, latency_budget_ms=0.9, resume=True)


def test_resume_without_a_run(run_search, tmp_path) -> None:
    with pytest.raises(ValueError, match="no run to resume"):
        run_search(resume=True)


def test_second_driver_is_refused(run_search, settings, evaluate) -> None:
    run_search(trials=1, repeats=0)
    with RunFolder.open(settings().run, resume=True):
        started = time.monotonic()
        with pytest.raises(ValueError, match="another search is at work"):
            run_search(trials=2, repeats=0, resume=True)
        assert time.monotonic() - started < 1


def test_failed_candidates_are_recorded_and_replaced(run_search, evaluate) -> None:
    def sometimes(task):
        if task["trial"] == 1:
            raise RuntimeError("CUDA\nout of memory")
        if task["trial"] == 2:
            return {"accuracy": float("nan"), "reason": "the loss is nan in epoch 1"}
        if task["trial"] == 3:
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


@pytest.mark.parametrize("rungs", [1, 3])
def test_second_seeds_that_fail_are_not_tried_without_end(run_search, rungs: int) -> None:
    trained: Counter[str] = Counter()

    def once(task):
        name = LowFormerConfig.from_dict(task["config"]).id
        if task["until"] == 1.0:
            trained[name] += 1
            if trained[name] > 1:
                raise RuntimeError("it took too long")
        return rung_evaluate(task)

    outcome = run_search(evaluate=once, data="digits", rungs=rungs, trials=12, repeats=3)
    assert max(trained.values()) == 2
    assert 0 < outcome.counts["failed"] <= 2 + (12 + 3) // 4 + 1
    assert outcome.answer is not None


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
        trained[LowFormerConfig.from_dict(task["config"]).id] += 1
        return {"reason": reason} if task["trial"] == 2 else stub_evaluate(task)

    outcome = run_search(evaluate=deadly)
    (failed,) = [result for result in read_results(outcome.run) if result.status == "failed"]
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{outcome.run}/study.db")
    study.enqueue_trial(space.to_params(failed.config))
    outcome = run_search(evaluate=deadly, resume=True, trials=9)
    again = [result for result in read_results(outcome.run) if result.role == "enqueued"]
    assert [result.status for result in again] == ["failed"] and "not tried again: trial 2" in again[0].reason
    assert trained[failed.config_id] == 1


def test_a_single_training_is_of_the_best_not_of_the_smallest(run_search) -> None:
    outcome = run_search(data="digits", trials=1, repeats=0, rungs=1)
    assert [result.role for result in read_results(outcome.run)] == ["exploit"]


def test_if_all_fail_the_search_ends_with_the_reason(run_search) -> None:
    def broken(task):
        raise OSError("no such device")

    with pytest.raises(RuntimeError, match=r"all \d+ candidates failed; the first: OSError: no such device"):
        run_search(evaluate=broken)


def test_interrupt_keeps_what_was_found_and_resume_goes_on(run_search, evaluate, tmp_path) -> None:
    def interrupted(task):
        if task["trial"] == 5:
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


@pytest.mark.parametrize(("rungs", "data"), [(1, None), (3, None), (3, "digits")])
def test_killed_anywhere_the_resumed_run_ends_the_same(
    run_search, tmp_path, monkeypatch, rungs: int, data: str | None
) -> None:
    changes: dict[str, Any] = {"rungs": rungs, "data": data, "trials": 10, "repeats": 2}
    whole = run_search(run=str(tmp_path / "whole"), **changes)
    expected = facts(whole.run)
    victims: dict[str, Any] = {
        "_finish": Driver,
        "_submit": Driver,
        "_record": Driver,
        "_tell": Journal,
        "add": Journal,
        "finish": PatientStorage,
        "_create_new_trial": PatientStorage,
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
            patch.setattr(Journal, "settle", lambda self: None)  # a killed driver settles nothing
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


def rung_evaluate(task: Mapping[str, Any]) -> dict[str, Any]:
    """Learns as the training goes on; the order at a rung is nearly that at the end."""
    result = stub_evaluate(task)
    return {**result, "accuracy": result["accuracy"] * (0.5 + 0.5 * task["until"]), "seconds": 9 * task["until"]}


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
        asked.append((task["trial"], task["until"]))
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


def test_a_resumed_run_inherits_from_the_same_weights(settings, space, predictor, evaluate, plan) -> None:
    def run(identity: str, trials: int, resume: bool) -> SearchOutcome:
        asked = settings(trials=trials, repeats=0, init_from="/weights.pth")
        stand_ins = {"predictor": predictor, "space": space, "evaluate": evaluate, "plan": plan}
        return search(asked, resume=resume, about={"init_from": identity}, **stand_ins)

    run("abc", 1, False)
    with pytest.raises(ValueError, match=r"/weights.pth is not the checkpoint that the run started with"):
        run("def", 2, True)
    assert len(run("abc", 2, True).candidates) == 2


def test_broken_last_line_is_set_aside(run_search, evaluate, tmp_path) -> None:
    whole = run_search(run=str(tmp_path / "whole"))

    def interrupted(task):
        if task["trial"] == 4:
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


def test_resume_keeps_the_proxy_plan(run_search, evaluate) -> None:
    tasks = []

    def noting(task):
        tasks.append(task)
        return evaluate(task)

    def other(settings, configs):
        raise AssertionError("a resumed run is not timed again")

    run_search(trials=1, repeats=0)
    run_search(trials=2, repeats=0, resume=True, plan=other, evaluate=noting)
    assert [task["proxy"] for task in tasks] == [{"epochs": 3, "configs": 1}]
    assert json.loads(json.dumps(tasks)) == tasks  # plain values only


def test_time_budget(run_search, evaluate) -> None:
    def slow(task: Mapping[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        return {**evaluate(task), "seconds": 0.3}

    outcome = run_search(evaluate=slow, time_budget_s=3, trials=50)
    assert outcome.interrupted and 0 < len(outcome.candidates) < 50
    assert outcome.seconds < 4.5


def test_the_answer_is_the_best_one_measured_within_the_budget(run_search, predictor) -> None:
    measured = []

    def slower(config):
        measured.append(config.id)
        return StubMeasurement(1.3 * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=slower)
    assert outcome.answer is not None
    assert outcome.answer.latency_source == "measured" and outcome.answer.latency_ms <= 0.8
    assert outcome.answer.high_ms <= 0.8
    assert Counter(measured)[outcome.answer.config.id] == ROUNDS
    before = len(measured)
    again = run_search(measure=slower, resume=True)
    assert again.answer == outcome.answer
    assert len(measured) == before  # what is known is not measured again


def test_what_is_measured_corrects_the_predictor_during_the_run(run_search, predictor, tmp_path) -> None:
    """On a device 1.3 times as slow as predicted all candidates after the anchors fit the budget as measured."""
    at = []

    def slower(config):
        at.append((config, len(read_results(tmp_path / "run"))))
        return StubMeasurement(1.3 * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=slower, trials=12)
    truth = [1.3 * float(predictor.latency_ms([candidate.config])[0]) for candidate in outcome.candidates]
    assert len(truth) == 12 and max(truth) <= 0.8 * 1.02
    assert max(truth) > 0.8 * 0.85  # and the budget is used
    assert {when for _, when in at} >= {0, 6}  # before the first training and half-way
    assert any("corrected the latency predictor" in note for note in outcome.notes)
    for candidate in outcome.candidates:
        if candidate.latency_source == "predicted":
            true_ms = 1.3 * float(predictor.latency_ms([candidate.config])[0])
            assert candidate.latency_ms == pytest.approx(true_ms, rel=0.03)


def test_one_bad_round_is_a_disturbance_and_two_are_not(run_search, predictor) -> None:
    measured: list[str] = []
    finalists: list[str] = []

    def disturbed(config):
        measured.append(config.id)
        latency_ms = float(predictor.latency_ms([config])[0])
        if len(measured) <= 18:  # anchors, and the best half-way
            return StubMeasurement(latency_ms)
        if config.id not in finalists:
            finalists.append(config.id)
        last_two = measured.count(config.id) > ROUNDS - (1 if config.id == finalists[0] else 2)
        return StubMeasurement((3.0 if last_two else 1.0) * latency_ms)

    outcome = run_search(measure=disturbed)
    assert outcome.answer is not None and outcome.answer.config.id == finalists[0]


def test_nothing_fits_when_measured(run_search, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"nothing fits 0\.8 ms: networks measured now took .* calibrate it again"):
        run_search(measure=lambda config: StubMeasurement(50.0))
    assert not (tmp_path / "run").exists()


def test_no_finalist_within_the_budget(run_search, predictor) -> None:
    """The device gets slower after the run began."""
    count = 0

    def ever_slower(config):
        nonlocal count
        count += 1
        return StubMeasurement((1.0 if count <= 18 else 5.0) * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=ever_slower)
    assert outcome.answer is None
    assert any("None of the" in note and "calibrate" in note for note in outcome.notes)


@pytest.mark.parametrize("strategy", ["evolution", "surrogate", "tpe"])
def test_once_nothing_fits_as_measured_nothing_more_is_proposed(run_search, predictor, strategy: str) -> None:
    count = 0

    def ever_slower(config):
        nonlocal count
        count += 1
        return StubMeasurement((1.0 if count <= 9 else 60.0) * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=ever_slower, data="digits", rungs=1, strategy=strategy)
    assert outcome.answer is None and outcome.counts == {"complete": 4}
    assert any("nothing more was proposed" in note for note in outcome.notes)
    again = run_search(measure=ever_slower, data="digits", rungs=1, strategy=strategy, resume=True)
    assert again.answer is None and again.counts == {"complete": 4}


def test_without_the_users_data_rungs_stop_candidates_by_the_prior(run_search) -> None:
    def reversed_evaluate(task):
        return {"accuracy": 1 - stub_evaluate(task)["accuracy"], "seconds": 0.5}

    outcome = run_search(evaluate=reversed_evaluate, rungs=2, strategy="random", trials=12, repeats=0)
    results = read_results(outcome.run)
    best = sorted((r for r in results if r.status != "failed"), key=lambda r: -r.prior_top1)
    assert {r.trial for r in results if r.status == "complete"} >= {r.trial for r in best[:3]}
    assert any(r.status == "pruned" for r in results)


def test_a_space_that_has_changed_is_not_gone_on_with(settings, predictor, space, evaluate, plan) -> None:
    stand_ins = {"predictor": predictor, "evaluate": evaluate, "plan": plan}
    search(settings(trials=1, repeats=0), space=space, **stand_ins)
    other = SearchSpace(space.choices.model_copy(update={"stem_width": (8, 12)}))
    with pytest.raises(ValueError, match="the space 'tiny' is not as it was when the run started"):
        search(settings(trials=2, repeats=0), space=other, resume=True, **stand_ins)
    assert len(search(settings(trials=2, repeats=0), space=space, resume=True, **stand_ins).candidates) == 2


@pytest.mark.parametrize("strategy", ["tpe", "gp"])
def test_a_trial_enqueued_from_outside_that_waits_at_a_rung_is_known_to_the_sampler(
    run_search, space, predictor, tmp_path, strategy: str
) -> None:
    asked: list[int] = []

    def interrupted(task):
        asked.append(task["trial"])
        if len(asked) in (3, 9):
            raise KeyboardInterrupt
        return rung_evaluate(task)

    options = {"data": "digits", "strategy": strategy, "rungs": 2, "evaluate": interrupted}
    outcome = run_search(**options)
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{outcome.run}/study.db")
    rng = np.random.default_rng(0)
    while predictor.quantile_ms([config := space.sample(rng)], 0.9)[0] > 0.8:
        pass
    study.enqueue_trial(space.to_params(config))
    assert run_search(resume=True, **options).interrupted
    outcome = run_search(resume=True, **options)
    assert not outcome.interrupted and "RUNNING" not in states(outcome.run)
    (enqueued,) = [r for r in read_results(outcome.run) if r.role == "enqueued"]
    assert enqueued.config_id == config.id and enqueued.status in ("complete", "pruned")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_without_finalists_measured_the_answer_keeps_the_budget_as_known_by_then(run_search, predictor, error) -> None:
    """Half-way it shows that the device has got slower, which some of those trained before do not survive."""
    count = 0

    def slower_then_gone(config):
        nonlocal count
        count += 1
        if count > 18:
            raise error("the device is gone")
        return StubMeasurement((1.0 if count <= 9 else 1.5) * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=slower_then_gone, data="digits", rungs=1)
    assert outcome.interrupted == (error is KeyboardInterrupt)
    assert max(candidate.quantile_ms for candidate in outcome.candidates) > 0.8
    assert outcome.answer is not None and outcome.answer.latency_source == "predicted"
    assert outcome.answer.quantile_ms <= 0.8
    assert all(candidate.quantile_ms <= 0.8 for candidate in outcome.front)


def test_a_measurement_that_fails_leaves_a_predicted_answer(run_search) -> None:
    def broken(config):
        raise RuntimeError("the device is gone")

    outcome = run_search(measure=broken)
    assert outcome.answer is not None and outcome.answer.latency_source == "predicted"


def test_a_budget_that_nothing_exceeds_is_said(run_search) -> None:
    outcome = run_search(latency_budget_ms=1000.0)
    assert any(note.startswith("Nothing in the space 'tiny' exceeds the budget") for note in outcome.notes)


def noisy(task):
    """A training that says little of its network: half of what it reaches is the luck of its seed. Small ones are best,
    which no prior expects."""
    config = LowFormerConfig.from_dict(task["config"])
    luck = 0.06 * float(np.random.default_rng(task["seed"]).standard_normal())
    accuracy = 0.7 - 0.2 * math.log10(op_graph(config).macs / 1e5) + luck
    return {"accuracy": accuracy, "loss": -math.log(accuracy), "seconds": 0.5}


def test_on_user_data_the_objective_is_the_accuracy_as_all_trainings_tell(run_search, tmp_path) -> None:
    few = run_search(data="digits", rungs=1, trials=3, repeats=0, run=str(tmp_path / "few"))
    assert all(candidate.objective == pytest.approx(100 * candidate.accuracy) for candidate in few.candidates)
    assert not any("all trainings together" in note for note in few.notes)
    outcome = run_search(data="digits", rungs=1, strategy="random", trials=40, evaluate=noisy)
    assert any("all trainings together" in note and "seeds" in note for note in outcome.notes)
    assert outcome.answer == outcome.candidates[0]
    known = [-candidate.macs for candidate in outcome.candidates]
    alone, learned = (
        kendalltau([getattr(candidate, name) for candidate in outcome.candidates], known).statistic
        for name in ("accuracy", "objective")
    )
    assert learned > alone + 0.05
    repeated = [candidate for candidate in outcome.candidates if candidate.seeds == 2]
    assert len(repeated) == 4


@pytest.mark.parametrize("rungs", [1, 3])
def test_a_finished_run_concludes_the_same_when_it_is_resumed(run_search, rungs: int) -> None:
    """Results come in another order than trials, and what a surrogate learns depends on the order."""
    changes = {"data": "digits", "rungs": rungs, "strategy": "random", "trials": 40, "evaluate": noisy}
    first = run_search(**changes)
    again = run_search(**changes, resume=True)
    assert {c.config.id: c.objective for c in first.candidates} == {c.config.id: c.objective for c in again.candidates}


def test_what_was_reached_at_rungs_counts_when_a_run_is_stopped(run_search) -> None:
    trained = []

    def stopped(task):
        trained.append(task)
        if len(trained) == 30:
            raise KeyboardInterrupt
        return noisy(task)

    outcome = run_search(data="digits", rungs=3, strategy="random", trials=30, evaluate=stopped)
    assert outcome.interrupted and len(outcome.candidates) < 8
    assert any("all trainings together" in note for note in outcome.notes)


@pytest.mark.parametrize("fewest", [True, False])
def test_who_goes_on_from_a_rung_is_decided_by_all_trainings(run_search, monkeypatch, fewest: bool) -> None:
    def worth(_: Experience, configs: Sequence[LowFormerConfig]) -> Any:
        return (-1e-8 if fewest else 1e-8) * total_macs(configs)

    monkeypatch.setattr(Experience, "worth", worth)
    outcome = run_search(data="digits", rungs=2, strategy="random", trials=18, evaluate=noisy)
    lines = [json.loads(line) for line in (outcome.run / "rungs.jsonl").read_text().splitlines()]
    macs = {line["trial"]: op_graph(LowFormerConfig.from_dict(line["config"])).macs for line in lines}
    gone_on = {result.trial for result in read_results(outcome.run) if result.status == "complete"} & macs.keys()
    assert len(gone_on) == 6
    extreme = sorted(macs, key=lambda trial: macs[trial] if fewest else -macs[trial])[:6]
    assert len(gone_on & set(extreme)) >= 4, "one goes on of the first three, so not all six extremes can"


def test_trial_enqueued_from_outside_over_the_budget_is_infeasible(run_search, space, predictor) -> None:
    outcome = run_search(trials=2, repeats=0)
    rng = np.random.default_rng(0)
    samples = [space.sample(rng) for _ in range(500)]
    slow = samples[int(np.argmax(predictor.latency_ms(samples)))]
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{outcome.run}/study.db")
    study.enqueue_trial(space.to_params(slow))
    study.enqueue_trial(study.trials[0].params)
    run_search(trials=2, repeats=0, resume=True)
    over, known = read_results(outcome.run)[2:]
    assert (over.status, over.accuracy) == ("infeasible", None)
    assert "over the budget" in over.reason
    assert (known.status, known.reason) == ("complete", "the same as trial 0")
    assert states(outcome.run)[2:] == ["PRUNED", "COMPLETE"]
    assert optuna.load_study(study_name="lownas", storage=study._storage).trials[2].constraints["latency"] > 0


def test_dry_run(settings, space, predictor, tmp_path) -> None:
    result = dry_run(settings(proxy_budget_s=60), predictor=predictor, space=space)
    assert result.size == space.size
    assert 0 < result.feasible_share <= 1
    assert result.fastest_ms < 0.8 < result.slowest_ms
    assert result.trainings == 12 and 60 < result.expected_s < 120
    assert list(tmp_path.iterdir()) == []


def test_only_workers_imports_ray() -> None:
    package = Path(sys.modules["lownas"].__path__[0])
    for folder in ("search", "search_space", "predictors", "evaluators"):
        for file in (package / folder).glob("*.py"):
            text = file.read_text()
            assert ("import ray" in text) == (folder == "search" and file.name == "workers.py"), file


def test_a_search_in_process_imports_no_ray_and_no_torch() -> None:
    code = "import sys, lownas.search.run_search; print({'torch', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
