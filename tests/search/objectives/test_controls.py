"""Published models trained beside the candidates: what trainings may correct, and by how much."""

from dataclasses import replace

import numpy as np
import pytest

from lownas.evaluators.tasks import task
from lownas.predictors.accuracy.prior import AccuracyPrediction, AccuracyPrior
from lownas.search.objectives import BestWithinBudget, ImageNetPrior
from lownas.search.objectives.controls import CONTROLS, MIN_CONTROLS, TrainedControl, controls_of, correct
from lownas.search.objectives.estimates import TrainedCandidate
from lownas.search.training.task import Evaluation
from lownas.search.trials.records import FIRST_CONTROL
from lownas.search.trials.run_folder import read_results
from lownas.search_space import PRESETS, PUBLISHED, SearchSpace

from ..conftest import load_study

SPREAD = 0.03  # of ln(100 - top-1): about half a point
CANDIDATES = 16


def logistic(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def prediction(top1: float) -> AccuracyPrediction:
    low, high = (100 - (100 - top1) * np.exp(sign * 1.645 * SPREAD) for sign in (1, -1))
    return AccuracyPrediction(top1, float(low), float(high), 0.9, "lowformer_b3", ())


class World:
    """Networks whose true accuracies depart from the prior, and trainings that see as much of it as is wanted."""

    def __init__(self, seed: int, *, informative: float, noise: float = 0.0, seeds: int = 1, controls: int = 6) -> None:
        rng = np.random.default_rng(seed)
        space = SearchSpace.load("default")
        configs = [PRESETS[name] for name in CONTROLS[:controls]]
        configs += [space.sample(rng) for _ in range(CANDIDATES)]
        expected = np.concatenate([np.linspace(73, 84, controls), rng.uniform(76, 84, CANDIDATES)])
        self.departs = SPREAD * rng.standard_normal(len(configs))
        self.expected = [prediction(top1) for top1 in expected.tolist()]
        logits = -np.log(100 - expected) + 3 + informative * self.departs
        seen = logits[:, None] + SPREAD * noise * rng.standard_normal((len(configs), seeds))
        trained = [
            TrainedCandidate(config, top1, tuple(map(logistic, row)))
            for config, top1, row in zip(configs, expected.tolist(), seen.tolist(), strict=True)
        ]
        true = 100 - (100 - expected) * np.exp(-self.departs)
        self.controls = [
            TrainedControl(one, top1, before)
            for one, top1, before in zip(trained[:controls], true.tolist(), self.expected, strict=False)
        ]
        self.candidates = trained[controls:]
        self.departs = self.departs[controls:]
        self.correction = correct(self.candidates, self.expected[controls:], self.controls)

    def gains(self) -> np.ndarray:
        """(n,) what the candidates' ln(100 - top-1) was lowered by."""
        return np.array([self.correction.gain.get(one.config_id, 0.0) for one in self.candidates])


def test_trainings_that_equal_the_truth_are_believed() -> None:
    worlds = [World(seed, informative=1.0) for seed in range(20)]
    assert np.mean([world.correction.weight for world in worlds]) == pytest.approx(1.0, abs=0.15)
    assert np.mean([world.correction.explained for world in worlds]) > 0.75
    missed = [((world.departs - world.gains()) ** 2).mean() / (world.departs**2).mean() for world in worlds]
    assert np.mean(missed) < 0.3
    assert np.median([value for world in worlds for value in world.correction.narrower.values()]) < 0.6


def test_noise_moves_nothing_much() -> None:
    worlds = [World(seed, informative=0.0, noise=1.0) for seed in range(200)]
    weights = np.array([world.correction.weight for world in worlds])
    assert (weights >= 0).all() and (weights == 0).mean() > 0.8
    assert np.mean([np.abs(world.gains()).mean() for world in worlds]) < 0.1 * SPREAD
    narrower = [value for world in worlds for value in world.correction.narrower.values()]
    assert max(narrower) <= 1.0


def test_what_is_half_noise_helps_and_second_seeds_help_more() -> None:
    def left(seeds: int) -> float:
        """Mean square of what is missed after the correction, as a share of that before."""
        worlds = [World(seed, informative=1.0, noise=0.7, seeds=seeds) for seed in range(100)]
        missed = [((world.departs - world.gains()) ** 2).mean() / (world.departs**2).mean() for world in worlds]
        return float(np.mean(missed))

    assert left(2) < left(1) < 1.0


def test_trainings_that_say_the_contrary_of_the_truth_are_not_turned_round() -> None:
    assert World(0, informative=-1.0).correction.weight == 0.0


@pytest.mark.parametrize("controls", [0, 4])
def test_too_few_controls_correct_nothing(controls: int) -> None:
    world = World(0, informative=1.0, controls=controls)
    assert world.correction.weight == 0.0 and world.correction.controls == controls < MIN_CONTROLS
    assert not world.gains().any()


def test_quantiles_keep_their_order_and_what_is_known_is_not_moved() -> None:
    world = World(3, informative=1.0)
    known = replace(prediction(80.0), low_top1=79.999, high_top1=80.001)
    one = world.candidates[0]
    correction = correct(world.candidates[:1], [known], world.controls)
    assert abs(correction.gain[one.config_id]) < 1e-4
    for candidate, expected in zip(world.candidates, world.expected[6:], strict=True):
        low, middle, high = (
            world.correction.top1(candidate.config_id, top1, expected.top1)
            for top1 in (expected.low_top1, expected.top1, expected.high_top1)
        )
        assert low < middle < high and high - low < expected.high_top1 - expected.low_top1


def test_what_differs_between_two_trainings_of_a_network_cannot_be_known() -> None:
    world = World(3, informative=1.0)
    expected = world.expected[6:]
    correction = correct(world.candidates, expected, world.controls, noise_sd=0.8 * SPREAD)
    assert min(correction.narrower.values()) > 0.75
    certain = correct(world.candidates, expected, world.controls, noise_sd=1.01 * SPREAD)
    assert not any(certain.gain.values()) and set(certain.narrower.values()) == {1.0}


def test_controls_are_known_by_their_configurations() -> None:
    left_out = {name: prediction(80.0) for name in CONTROLS}
    trained = [TrainedCandidate(config, 80.0, (0.5,)) for config in PRESETS.values()]
    found = controls_of(trained, left_out)
    assert {control.top1 for control in found} == {PUBLISHED[name].top1[224] for name in CONTROLS}


# --- in a search


@pytest.fixture
def search_imagenet(run_search):
    """A search over the default space, where controls train."""

    def run(**changes):
        return run_search(space="default", latency_budget_ms=20.0, trials=6, repeats=4, **changes)

    return run


@pytest.fixture
def parts(parts):
    return replace(parts, space=SearchSpace.load("default"))


@pytest.fixture(scope="module")
def objective() -> ImageNetPrior:
    return ImageNetPrior(BestWithinBudget(), AccuracyPrior.load(), task("classification").metric)


@pytest.mark.parametrize("rungs", [1, 2])
def test_controls_train_first_and_are_no_candidates(search_imagenet, rungs: int) -> None:
    trained = []

    def evaluate(task):
        trained.append(task.config.id)
        return Evaluation(0.5 * task.until, seconds=0.5)

    outcome = search_imagenet(evaluate=evaluate, rungs=rungs)
    names = {PRESETS[name].id for name in CONTROLS}
    assert set(trained[:8]) == names, "six, and two of them with a second seed"
    results = read_results(outcome.run)
    controls = [result for result in results if result.role == "control"]
    assert [result.trial for result in controls] == list(range(FIRST_CONTROL, FIRST_CONTROL + 8))
    assert all(result.status == "complete" and result.objective is None for result in controls)
    assert len({result.seed for result in controls}) == 8
    assert [result.details["model"] for result in controls[:6]] == list(CONTROLS)
    assert sum(result.role == "repeat" for result in results) == 2
    numbers = {candidate.trial for candidate in outcome.candidates}
    assert numbers and max(numbers) < FIRST_CONTROL
    assert outcome.counts["complete"] == len(results) - 8 - outcome.counts.get("pruned", 0)
    assert len(load_study(outcome.run).trials) == len(results) - 8


def truth(objective: ImageNetPrior):
    """A training that sees what the prior misses: what was published, and of other networks a taste of its own."""
    known = {PUBLISHED[name].config.id: PUBLISHED[name].top1[224] for name in CONTROLS}

    def evaluate(task):
        top1 = known.get(task.config.id)
        if top1 is None:
            departs = 0.05 * np.sin(7 * sum(stage.depth for stage in task.config.stages))
            expected = float(objective.prior.imagenet_top1([task.config])[0])
            top1 = 100 - (100 - expected) * float(np.exp(-departs))
        return Evaluation(logistic(3 - np.log(100 - top1)), seconds=0.5)

    return evaluate


def test_trainings_reorder_candidates_and_the_run_says_by_how_much(search_imagenet, objective) -> None:
    outcome = search_imagenet(evaluate=truth(objective))
    note = next(note for note in outcome.notes if note.startswith("Trainings moved the estimates by at most"))
    assert "over 6 published models they explain" in note
    before = objective.before_training([candidate.config for candidate in outcome.candidates])
    assert np.abs(before - [candidate.objective for candidate in outcome.candidates]).max() > 0.1
    assert [candidate.objective for candidate in outcome.candidates] == sorted(
        (candidate.objective for candidate in outcome.candidates), reverse=True
    )
    for candidate in outcome.candidates:
        assert candidate.low_top1 <= candidate.objective <= candidate.prior_top1 <= candidate.high_top1


def test_a_resumed_run_corrects_alike(search_imagenet, objective, tmp_path) -> None:
    evaluate = truth(objective)
    whole = search_imagenet(evaluate=evaluate, run=str(tmp_path / "whole"))
    for stops in (FIRST_CONTROL + 3, 2):

        def interrupted(task, stops=stops):
            if task.trial == stops:
                raise KeyboardInterrupt
            return evaluate(task)

        search_imagenet(evaluate=interrupted, run=str(tmp_path / f"cut-{stops}"))
        again = search_imagenet(evaluate=evaluate, run=str(tmp_path / f"cut-{stops}"), resume=True)
        assert [r.to_dict() for r in read_results(again.run)] == [r.to_dict() for r in read_results(whole.run)]
        assert again.answer == whole.answer and not again.interrupted


def test_small_images_and_the_users_data_have_no_controls(run_search, objective, tmp_path) -> None:
    assert not objective.controls(64) and len(objective.controls(224)) == 6
    outcome = run_search(space="tiny", data="digits", objective="imagenet", trials=3, repeats=0)
    assert not any(result.role == "control" for result in read_results(outcome.run))
