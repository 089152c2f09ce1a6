"""Sentences on an answer whose accuracy is estimated."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lownas.search.results.estimate_notes import PublishedPoint, _as_good, _beside_best, _in_words, _outside
from lownas.search_space.config import LowFormerConfig
from lownas.search_space.presets import PRESETS

B1 = PublishedPoint("lowformer_b1", PRESETS["lowformer_b1"].replace(resolution=256), 80.26, published=True)


class Certain:
    """A prior that says how much better an answer is."""

    def __init__(self, middle: float, low: float, high: float) -> None:
        self._gain = middle, low, high

    def gain(self, configs: Any, reference: Any) -> Any:
        return tuple(np.array([one]) for one in self._gain)

    def imagenet_top1(self, configs: Any) -> np.ndarray:
        return np.full(len(configs), 80.0)


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((0.8, 0.2, 1.4), "estimated to be 0.8 points better (90 % interval +0.2 to +1.4)."),
        ((0.5, -0.3, 1.2), "0.5 points better (90 % interval -0.3 to +1.2): it may be no better."),
        ((0.5, 0.01, 1.2), "(90 % interval +0.0 to +1.2): it may be no better."),
        ((-0.2, -1.0, 0.7), "0.2 points worse (90 % interval -1.0 to +0.7): it may be no better."),
        ((-22.6, -27.8, -17.3), "estimated to be 22.6 points worse (90 % interval -27.8 to -17.3)."),
    ],
)
def test_an_answer_is_set_beside_the_best_published_model(outcome, gain, said) -> None:
    answer = replace(outcome.answer, prior_top1=80.0)
    note = _beside_best(answer, B1, Certain(*gain))
    assert note.startswith(
        "The best published model within the budget is lowformer_b1 at 256 pixels (80.26 % published)"
    )
    assert note.endswith(said)


def test_latency_is_compared_at_the_answers_resolution(outcome, predictor) -> None:
    b1 = PRESETS["lowformer_b1"].replace(resolution=256)
    data = b1.to_dict()
    data["stages"][2]["depth"] += 2
    deeper = replace(outcome.answer, config=LowFormerConfig.from_dict(data), nearest="lowformer_b1")
    ratio = predictor.latency_ms([deeper.config])[0] / predictor.latency_ms([b1])[0]
    note = _in_words(deeper, SimpleNamespace(predictor=predictor))
    assert "It is lowformer_b1 at 256 pixels, but 7 instead of 5 blocks in stage 3" in note
    assert note.endswith(f"; it is predicted to take {ratio:.2f} times as long.")
    note = _in_words(replace(outcome.answer, config=b1), SimpleNamespace(predictor=predictor))
    assert note.endswith("It is lowformer_b1 at 256 pixels.")


@pytest.mark.parametrize(
    ("outside", "said"),
    [
        ((), None),
        (("width",), "in width."),
        (("width", "activations"), "in width and activations."),
        (("width", "activations", "compute", "parameters"), "in width, activations, compute and more."),
    ],
)
def test_features_beyond_all_published_models_are_named(outcome, outside, said) -> None:
    prior = SimpleNamespace(predict=lambda configs: [SimpleNamespace(outside=outside)])
    expected = [f"It lies beyond all published LowFormers and CPUBones {said}"] if said else []
    assert _outside(outcome.answer, prior) == expected


def test_a_single_other_candidate_is_not_counted(outcome) -> None:
    answer, other = (replace(one, prior_top1=80.0) for one in outcome.candidates[:2])
    said = _as_good(answer, [answer, other], Certain(-0.1, -0.5, 0.3))
    assert said == ["The other candidate may be as good, for all that is known."]
    third = replace(outcome.candidates[2], prior_top1=80.0)
    assert _as_good(answer, [answer, other, third], Certain(-0.1, -0.5, 0.3)) == [
        "2 of the 2 other candidates may be as good, for all that is known."
    ]
    assert _as_good(answer, [answer, other], Certain(-1.0, -1.5, -0.3)) == []


def test_what_trainings_moved_counts(outcome) -> None:
    answer = replace(outcome.answer, prior_top1=80.5)
    assert "1.3 points better (90 % interval +0.7 to +1.9)" in _beside_best(answer, B1, Certain(0.8, 0.2, 1.4))


def test_a_published_model_that_is_the_answer_is_said_to_be(outcome) -> None:
    note = _beside_best(replace(outcome.answer, config=B1.config), B1, Certain(0.0, 0.0, 0.0))
    assert "nothing better can be said with confidence" in note
    assert _beside_best(outcome.answer, None, Certain(0.0, 0.0, 0.0)) == "No published model is within the budget."


def test_with_data_nothing_is_said_of_published_models(run_search) -> None:
    outcome = run_search(data="digits", trials=4, repeats=0)
    assert outcome.objective.name == "accuracy" and outcome.answer is not None
    assert not any("published" in note or "top-1" in note for note in outcome.notes)
