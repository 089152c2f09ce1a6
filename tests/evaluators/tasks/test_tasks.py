"""A contract that every task keeps, and a task from outside the package that is trained without an edit in it."""

import math
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lownas.evaluators import tasks
from lownas.evaluators.data.loading import data_card, load_data
from lownas.evaluators.data.records import FoundData, LabelledImages
from lownas.evaluators.data.sources import ArraySource
from lownas.evaluators.tasks.classification import Classification
from lownas.evaluators.training.budget import choose_settings
from lownas.evaluators.training.inherit import Source, inherit
from lownas.evaluators.training.proxy import load_proxy_data, prepared_model, train_proxy
from lownas.evaluators.training.settings import ProxySettings
from lownas.search_space import LowFormerConfig, StageConfig

from ..toys import Brightness, Regression

TINY = LowFormerConfig(
    resolution=32,
    stem_width=8,
    stages=tuple(StageConfig(width=width, depth=1, down_expansion=2) for width in (8, 12, 16, 24)),
    head_widths=(32, 32),
)
QUICK = ProxySettings(
    data="brightness:600", resolution_scale=1.0, epochs=6, train_images=96, batch_size=16, task="toy_regression"
)


@dataclass(frozen=True)
class Case:
    """A task with data that it can learn from and outputs (N, ...) that are all right for these labels."""

    task: Any
    data: Any
    perfect: Any


CASES = [
    Case(Classification(), "digits", lambda labels: torch.nn.functional.one_hot(labels, 10).float() * 20),
    Case(Regression(), Brightness(), lambda labels: labels[:, None].clone()),
]


@pytest.fixture(params=CASES, ids=lambda case: case.task.name)
def case(request: pytest.FixtureRequest, toys: None) -> Case:
    return request.param


def test_it_is_a_task_that_can_be_sent(case: Case) -> None:
    assert isinstance(case.task, tasks.Task)
    assert tasks.task(case.task) is case.task and case.task.name in tasks.task_names()
    assert hash(pickle.loads(pickle.dumps(case.task))) == hash(case.task)


def test_scores_are_0_to_1_and_keep_the_order_of_the_values(case: Case) -> None:
    metric = case.task.metric
    low, high = (min(max(bound, -3.0), 3.0) for bound in metric.range)
    values = np.linspace(low, high, 20)
    scores = [metric.score(value) for value in (values if metric.higher_is_better else values[::-1])]
    assert all(0 <= score <= 1 for score in scores) and np.all(np.diff(scores) > 0)
    assert [metric.from_score(metric.score(value)) for value in values] == pytest.approx(values.tolist())
    assert metric.name and metric.name == metric.name.lower()


def test_right_outputs_score_1_and_wrong_ones_less(case: Case) -> None:
    data = load_data(case.data, 16, train_images=60, validation_images=30, task=case.task)
    labels = torch.from_numpy(data.validation_labels)
    right, metric = case.perfect(labels), case.task.metric
    wrong = right.roll(1, dims=0)
    assert right.shape[1] == case.task.outputs(data)
    assert metric.score(metric.value(right, labels)) == pytest.approx(1)
    assert metric.score(metric.value(wrong, labels)) < 0.95
    assert case.task.summed_score(right, labels).item() == pytest.approx(len(labels))
    assert case.task.loss(right, labels).item() < case.task.loss(wrong, labels).item()
    assert case.task.loss(right, labels, ProxySettings()).ndim == 0


def test_parts_do_not_overlap_and_are_drawn_from_the_seed(case: Case) -> None:
    found = case.task.prepared(load_case(case), "spec")
    train, validation = case.task.split(found.train, 0.25, found.classes or (), "spec", np.random.default_rng(0))
    numbers = [set(part.images[:, 0, 0].tolist()) for part in (train, validation)]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == len(found.train)
    assert abs(len(validation) - 0.25 * len(found.train)) <= 2
    again, _ = case.task.split(found.train, 0.25, found.classes or (), "spec", np.random.default_rng(0))
    assert np.array_equal(train.images, again.images) and np.array_equal(train.labels, again.labels)
    index = case.task.subset(train.labels, 10, np.random.default_rng(1))
    assert len(index) == 10 and np.all(np.diff(index) > 0)
    assert np.array_equal(index, case.task.subset(train.labels, 10, np.random.default_rng(1)))


def load_case(case: Case) -> FoundData:
    """Images whose first pixel is their number, with labels of the case's data."""
    from lownas.evaluators.data.records import DataRequest
    from lownas.evaluators.data.sources import source

    found = source(case.data).read(DataRequest(16, 0))
    images = np.zeros((60, 4, 4), np.uint8)
    images[:, 0, 0] = np.arange(60)
    return replace(found, train=LabelledImages(images, found.train.labels[:60]), validation=None)


def test_labels_that_it_cannot_learn_from_are_one_clear_line(case: Case) -> None:
    labels = np.full(20, np.nan)
    found = FoundData(LabelledImages(np.zeros((20, 8, 8), np.uint8), labels), None, None)
    with pytest.raises(ValueError, match=r"^some data: .*expected") as caught:
        case.task.prepared(found, "some data")
    assert "\n" not in str(caught.value)


def test_nothing_readable_is_too_little_to_train_on(case: Case) -> None:
    data = load_data(case.data, 16, train_images=60, validation_images=30, task=case.task)
    case.task.check_readable(data.train_labels, data.train_labels, data.classes, "some data")
    with pytest.raises(ValueError, match=r"^some data: ") as caught:
        case.task.check_readable(data.train_labels, data.train_labels[:0], data.classes, "some data")
    assert "\n" not in str(caught.value)


def test_the_data_card_says_what_a_constant_guess_scores(case: Case) -> None:
    import json

    card = data_card(load_data(case.data, 16, train_images=60, validation_images=30, task=case.task))
    assert 0 <= card["chance"] <= 1 and card["train_images"] == 60
    json.dumps(card, allow_nan=False)


def test_augmentation_keeps_shapes_and_follows_the_seed(case: Case) -> None:
    data = load_data(case.data, 16, train_images=20, validation_images=10, task=case.task)
    images = torch.from_numpy(data.train_images).permute(0, 3, 1, 2).float()
    labels = torch.from_numpy(data.train_labels)
    augment = case.task.augmentation(ProxySettings(max_shift=0.2), 16)
    torch.manual_seed(0)
    moved, kept = augment(images, labels)
    torch.manual_seed(0)
    again, _ = augment(images, labels)
    assert moved.shape == images.shape and kept.shape == labels.shape
    assert torch.equal(moved, again) and not torch.equal(moved, images)


def test_a_training_learns_and_is_the_same_in_parts(case: Case, tmp_path: Path) -> None:
    spec = case.data if isinstance(case.data, str) else case.data.spec
    settings = replace(QUICK, data=spec, task=case.task.name, train_images=240, validation_images=100, epochs=8)
    data = load_proxy_data(settings, TINY.resolution, case.data, case.task)
    whole = train_proxy(TINY, data, settings, 1, task=case.task)
    assert whole.status == "complete", whole.reason
    assert whole.accuracy is not None and 0 <= whole.accuracy <= 1
    assert whole.accuracy > 1.05 * data.card["chance"]
    assert whole.history[-1].train_accuracy > whole.history[0].train_accuracy
    state = tmp_path / "state.safetensors"
    paused = train_proxy(TINY, case.data, settings, 1, until=0.45, state=state, task=case.task)
    assert paused.status == "paused" and state.exists()
    rest = train_proxy(TINY, None, settings, 1, state=state)  # all by name
    assert (rest.accuracy, rest.loss, rest.history) == (whole.accuracy, whole.loss, whole.history)


def test_settings_are_chosen_for_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = choose_settings([TINY], case.data, 2.0, trials=2, workers=1, task=case.task)
    assert settings.task == case.task.name and settings.train_images <= 1500
    assert ProxySettings.from_json(settings.to_json()) == settings


def test_heads_of_one_kind_are_inherited(case: Case) -> None:
    config = TINY.replace(classes=2, head=case.task.head)
    torch.manual_seed(0)
    source = Source(prepared_model(config, "cpu", task=case.task), "0123456789ab")
    torch.nn.init.normal_(source.model.get_classifier().weight)
    heir = prepared_model(config, "cpu", task=case.task)
    assert inherit(heir, source).share == 1
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(heir.eval()(images), source.model.eval()(images))
    other = prepared_model(
        config.replace(head="toy_mean" if case.task.head != "toy_mean" else "classification"), "cpu", task=Other()
    )
    assert 0.1 < inherit(other, source).share < 1


class Other(Classification):
    """Leaves every head as it is."""

    def start(self, model: Any) -> None:
        pass


def test_arrays_of_floats_are_labels_of_a_regression_and_no_classes(toys: None) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 12, 12, 3), dtype=np.uint8), rng.random(40)
    data = load_data((images, labels), 16, task="toy_regression")
    assert data.train_labels.dtype == np.float32 and data.classes == ()
    assert data.spec == ArraySource(images, labels).spec
    with pytest.raises(ValueError, match="expected are integers"):
        load_data((images, labels), 16)


def test_runs_that_know_no_task_keep_their_settings() -> None:
    assert "task" not in ProxySettings().to_dict()
    assert ProxySettings.from_dict(ProxySettings().to_dict()).task == "classification"
    assert replace(ProxySettings(), task="other").to_dict()["task"] == "other"


def test_unknown_and_taken_names(toys: None) -> None:
    with pytest.raises(ValueError, match="unknown task 'segmentation'; allowed are classification, toy_regression"):
        tasks.task("segmentation")
    with pytest.raises(ValueError, match="registered already"):
        tasks.register_task(Other())
    with pytest.raises(TypeError, match="a name or a Task"):
        tasks.task(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown task"):
        train_proxy(TINY, "digits", ProxySettings(), task="no such")


def test_accuracy_is_its_own_score() -> None:
    metric = Classification().metric
    outputs, labels = torch.eye(4)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 3])
    assert metric.value(outputs, labels) == 0.75 == metric.score(0.75) == metric.from_score(0.75)
    assert math.isclose(Classification().summed_score(outputs, labels).item(), 3)
