"""Torch modules of any kind and tasks without classes: what is trained, and what is refused before anything begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lownas.evaluators.training.final.modules import look_at
from lownas.evaluators.training.final.records import FinalSettings
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import train_network
from lownas.search_space import SearchSpace, heads

from ...toys import Brightness, MeanHead, Regression


class Net(nn.Module):
    """A small network whose last layer has two names, for images of one size if that is given."""

    def __init__(self, outputs: int = 10, size: int | None = None, *, twice: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.Linear(8, outputs)
        self.head = self.last
        self.size, self.twice = size, twice

    def forward(self, x: torch.Tensor) -> Any:
        if self.size not in (None, x.shape[-1]):
            raise AssertionError(f"{self.size} pixels\nare expected")
        found = self.last(self.norm(self.conv(x)).relu().mean((2, 3)))
        return (found, found) if self.twice else found


def trained(module: nn.Module, folder: Path, resolution: int = 16, **choices: Any) -> Any:
    settings = FinalSettings(epochs=1, choices={"batch_size": 64, **choices})
    return train_network(module, "digits", LocalStore(folder), settings, resolution=resolution)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Net(1000), r"gives \(1, 1000\) for an image, expected is \(1, 10\), one output for each class"),
        (Net(5), r"gives \(1, 5\) for an image"),
        (Net(twice=True), "gives a tuple for an image"),
        (Net(size=32), r"does not take images \(1, 3, 16, 16\): 32 pixels are expected"),
    ],
)
def test_modules_that_do_not_fit_the_data(module: nn.Module, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        trained(module, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_layer_under_two_names_is_kept_and_loaded(tmp_path: Path) -> None:
    network = trained(Net(), tmp_path)
    assert network.model.head is network.model.last
    again = train_network(
        Net(),
        "digits",
        LocalStore(tmp_path),
        FinalSettings(epochs=1, choices={"batch_size": 64}),
        resolution=16,
        resume=True,
    )
    assert all(map(torch.equal, network.model.state_dict().values(), again.model.state_dict().values()))


def test_a_network_for_one_size_sees_no_other(tmp_path: Path) -> None:
    assert look_at(Net(size=72), 72, 10).one_size and not look_at(Net(), 72, 10).one_size
    network = trained(Net(size=72), tmp_path, resolution=72)
    assert network.recipe.sides == (1.0,) and network.why["sides"] == "the network takes no other size"


@pytest.fixture
def regression(monkeypatch: pytest.MonkeyPatch) -> Regression:
    monkeypatch.setitem(heads.HEADS, "toy_mean", MeanHead())
    return Regression()


def test_a_task_without_classes_has_the_outputs_it_asks_for(tmp_path: Path, regression: Regression) -> None:
    config = SearchSpace.load("tiny").sample(np.random.default_rng(3)).replace(resolution=32)
    store, settings = LocalStore(tmp_path / "out"), FinalSettings(epochs=1)
    network = train_network(config, Brightness(60), store, settings, task=regression)
    assert network.config is not None and (network.config.classes, network.config.head) == (1, "toy_mean")
    assert network.validation_accuracy is not None and network.classes == ()
    taught = FinalSettings(epochs=1, teacher=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="only classifications can be taught, not toy_regression"):
        train_network(config, Brightness(60), LocalStore(tmp_path / "taught"), taught, task=regression)


@pytest.mark.parametrize("choices", [{"mixup": 0.2}, {"balance": "sampling"}, {"loss": "bce"}, {"agreement": 1.0}])
def test_what_only_classes_have_is_refused_for_others(
    choices: dict[str, Any], tmp_path: Path, regression: Regression
) -> None:
    config = SearchSpace.load("tiny").sample(np.random.default_rng(3)).replace(resolution=32)
    settings = FinalSettings(epochs=1, choices=choices)
    with pytest.raises(ValueError, match="is for classifications only"):
        train_network(config, Brightness(60), LocalStore(tmp_path / "out"), settings, task=regression)
    assert not (tmp_path / "out").exists()
