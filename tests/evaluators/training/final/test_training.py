"""Final trainings on scikit-learn's digits: they learn, go on after any interruption, and fail in one line."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lownas.evaluators.training.final import training
from lownas.evaluators.training.final.records import FinalSettings, TrainedNetwork, TrainingStatus
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import TrainingFailed, train_network
from lownas.evaluators.training.final.weights import load_weights
from lownas.search_space import LowFormerConfig, SearchSpace

EVERYTHING = {
    "batch_size": 128,
    "mixup": 0.2,
    "cutmix": 0.2,
    "randaugment_layers": 1,
    "randaugment_magnitude": 3.0,
    "erasing": 0.2,
    "drop_path": 0.1,
    "agreement": 1.0,
    "matrix_rate": 0.02,
    "sides": (0.5, 1.0),
    "crop": 0.5,
}


@pytest.fixture(scope="module")
def config() -> LowFormerConfig:
    config = SearchSpace.load("tiny").sample(np.random.default_rng(3))
    widths, depths = (12, 16, 24, 32), (1, 1, 1, 1)
    stages = tuple(
        stage.model_copy(update={"width": width, "depth": depth, "down_expansion": 2, "expansion": 2})
        for stage, width, depth in zip(config.stages, widths, depths, strict=True)
    )
    return config.replace(stem_width=8, stem_depth=0, resolution=24, head_widths=(32, 40), stages=stages)


def trained(config: Any, folder: Path, epochs: int | None = 2, **given: Any) -> TrainedNetwork:
    known = {
        name: given.pop(name) for name in ("resume", "on_step", "report", "announce", "resolution") if name in given
    }
    choices = given.pop("choices", {"batch_size": 128})
    return train_network(
        config, "digits", LocalStore(folder), FinalSettings(epochs=epochs, choices=choices, **given), **known
    )


class Killed(Exception):
    pass


def killed_at(step: int) -> Any:
    def on_step(number: int, loss: float) -> None:
        if number == step:
            raise Killed

    return on_step


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(map(torch.equal, states[0].values(), states[1].values()))


def test_learns_and_leaves_a_network_that_can_be_loaded(config: LowFormerConfig, tmp_path: Path) -> None:
    seen: list[TrainingStatus] = []
    network = trained(config, tmp_path, epochs=6, choices={"batch_size": 64}, report=seen.append)
    assert network.validation_accuracy is not None and network.validation_accuracy > 0.8
    assert [row["epoch"] for row in network.history] == [1, 2, 3, 4, 5, 6]
    assert [status.row is not None for status in seen].count(True) == 6 and seen[-1].seconds_left == 0

    loaded = load_weights(tmp_path)
    assert loaded.config == network.config and loaded.model is not None and same(loaded.model, network.model)
    assert loaded.classes == tuple("0123456789") and loaded.resolution == 24 and loaded.pixels == network.pixels
    assert {path.name for path in tmp_path.iterdir()} == {
        *("training.json", "log.csv", "best.safetensors", "result.json"),
    }
    about = json.loads((tmp_path / "training.json").read_text())
    assert about["data"] == "digits" and about["plan"]["why"]["batch_size"] == "given"
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 7


def test_an_interrupted_training_ends_as_if_it_had_not_been(
    config: LowFormerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVED_EVERY_S", 0.0)
    whole = trained(config, tmp_path / "whole", epochs=3, choices=EVERYTHING)
    for step in (0, 11, 20):
        with pytest.raises(Killed):
            trained(config, tmp_path / "parts", 3, choices=EVERYTHING, resume=True, on_step=killed_at(step))
    parts = trained(config, tmp_path / "parts", 3, choices=EVERYTHING, resume=True)
    assert same(whole.model, parts.model)
    assert [row["train_loss"] for row in whole.history] == [row["train_loss"] for row in parts.history]
    other = trained(config, tmp_path / "other", epochs=3, choices=EVERYTHING, seed=1)
    assert not same(whole.model, other.model)


def test_what_the_time_allows_is_settled_once(
    config: LowFormerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        trained(config, tmp_path, None, budget_s=8.0, on_step=killed_at(2))
    settled = json.loads((tmp_path / "training.json").read_text())["plan"]
    assert settled["recipe"]["epochs"] >= 1 and settled["epoch_s"] > 0
    monkeypatch.setattr(training.Planner, "for_time", None)  # is not asked again
    network = trained(config, tmp_path, None, budget_s=8.0, resume=True)
    assert network.epochs == settled["recipe"]["epochs"]


def test_a_time_shorter_than_an_epoch_says_what_one_takes(config: LowFormerConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.01 s is shorter than one epoch: with 1151 images that takes about"):
        trained(config, tmp_path, None, budget_s=0.01)
    assert not list(tmp_path.iterdir())


class Exploding(nn.Module):
    """A linear network that gives NaN in the steps it is told to, those of all its copies counted together."""

    calls = 0

    def __init__(self, at: set[int]) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 10)
        self.at, Exploding.calls = at, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x.flatten(1))
        if self.training:
            Exploding.calls += 1
            if Exploding.calls in self.at:
                out = out * float("nan")
        return out


def test_a_loss_that_is_not_finite_goes_back_with_half_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "SAVED_EVERY_S", 0.0)
    network = trained(Exploding({10}), tmp_path, 3, resolution=8)
    assert network.epochs == 3 and "back to epoch 1 with 0.5 of the learning rate" in caplog.text
    rates = [row["learning_rate"] for row in network.history]
    assert rates[1] < 0.6 * trained(Exploding(set()), tmp_path / "good", 3, resolution=8).history[1]["learning_rate"]


def test_after_going_back_twice_it_fails_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVED_EVERY_S", 0.0)
    with pytest.raises(TrainingFailed, match="not finite in epoch 2, also after going back 2 times") as failure:
        trained(Exploding(set(range(10, 100))), tmp_path, 3, resolution=8)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "best.safetensors").exists() and (tmp_path / "state.safetensors").exists()


def test_weights_that_end_as_nan_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = training.Learner.step

    def step(self: Any, *arguments: Any) -> Any:
        found = update(self, *arguments)
        next(iter(self.averaged.model.parameters())).fill_(float("nan"))
        return found

    monkeypatch.setattr(training.Learner, "step", step)
    with pytest.raises(TrainingFailed, match="numbers that are not finite"):
        trained(Exploding(set()), tmp_path, 1, resolution=8, train_on="train+validation")
    assert not (tmp_path / "best.safetensors").exists()


def test_a_full_disk_leaves_the_last_good_state(
    config: LowFormerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVED_EVERY_S", 0.0)
    whole = trained(config, tmp_path / "whole")
    write, count = LocalStore.write, 0

    def full(self: LocalStore, name: str, content: bytes) -> None:
        nonlocal count
        count += name == "state.safetensors"
        if count == 3:
            monkeypatch.setattr("os.fsync", raising)
        write(self, name, content)

    def raising(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "write", full)
        with pytest.raises(OSError, match=r"cannot write .*state\.safetensors: No space left on device"):
            trained(config, tmp_path / "full")
    monkeypatch.undo()
    assert not list((tmp_path / "full").glob(".*"))  # nothing half-written
    assert same(trained(config, tmp_path / "full", resume=True).model, whole.model)


def test_a_read_only_folder_is_one_line(config: LowFormerConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot (read|write) "):
        trained(config, tmp_path / "file" / "training")


def test_another_training_in_the_folder_is_not_gone_on_with(config: LowFormerConfig, tmp_path: Path) -> None:
    trained(config, tmp_path, epochs=1)
    with pytest.raises(ValueError, match="there is already a training"):
        trained(config, tmp_path, epochs=1)
    with pytest.raises(ValueError, match="cannot go on with another seed: 5 is not 0"):
        trained(config, tmp_path, epochs=1, seed=5, resume=True)
    with pytest.raises(ValueError, match="cannot go on with another epochs: 2 is not 1"):
        trained(config, tmp_path, epochs=2, resume=True)


@pytest.mark.parametrize("lost", ["plan", "pixels", "settings", "schema"])
def test_a_damaged_description_is_one_line(config: LowFormerConfig, tmp_path: Path, lost: str) -> None:
    trained(config, tmp_path, epochs=1)
    about = json.loads((tmp_path / "training.json").read_text())
    del about[lost]
    (tmp_path / "training.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"training.json is damaged: '{lost}'"):
        trained(config, tmp_path, epochs=1, resume=True)
    with pytest.raises(ValueError, match='cannot go on with another colour: none is not "red"'):
        about["settings"] = {**FinalSettings(epochs=1, choices={"batch_size": 128}).to_dict(), "colour": "red"}
        for name in ("device", "threads", "loaders"):
            del about["settings"][name]
        (tmp_path / "training.json").write_text(json.dumps({"schema": 1, **about}))
        trained(config, tmp_path, epochs=1, resume=True)


def test_any_torch_module_is_trained(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10))
    before = [value.clone() for value in module.state_dict().values()]
    network = trained(module, tmp_path, epochs=8, resolution=8, choices={"batch_size": 32})
    assert network.config is None and network.validation_accuracy is not None and network.validation_accuracy > 0.6
    assert load_weights(tmp_path).model is None
    assert all(torch.equal(*pair) for pair in zip(before, module.state_dict().values(), strict=True))  # a copy learned
    with pytest.raises(ValueError, match="a torch module does not say the size of its images"):
        trained(module, tmp_path / "other")


def test_inherited_weights_learn_faster_at_lower_rates(config: LowFormerConfig, tmp_path: Path) -> None:
    trained(config, tmp_path / "first", epochs=6, choices={"batch_size": 64})
    first = str(tmp_path / "first" / "best.safetensors")
    fresh = trained(config, tmp_path / "fresh", epochs=1)
    inherited = trained(config, tmp_path / "inherited", epochs=1, init_from=first)
    assert inherited.validation_accuracy > fresh.validation_accuracy + 0.1  # type: ignore[operator]
    assert inherited.recipe.inherited_rate < 1 and inherited.why["inherited_rate"] == "weights were inherited"


def test_a_frozen_backbone_stays_as_it_is(config: LowFormerConfig, tmp_path: Path) -> None:
    first = trained(config, tmp_path / "first", epochs=3, choices={"batch_size": 64})
    path = str(tmp_path / "first")
    frozen = trained(config, tmp_path / "frozen", epochs=2, init_from=path, freeze=True)
    before, after = first.model.state_dict(), frozen.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name]) and "num_batches" not in name}
    assert changed and not [name for name in changed if name.startswith(("stem.", "stages."))]
    with pytest.raises(ValueError, match="a frozen backbone needs weights to start from"):
        trained(config, tmp_path / "none", freeze=True)
    deeper = config.stages[0].model_copy(update={"depth": 3})
    with pytest.raises(ValueError, match=r"weights of the backbone are not there, so that it cannot be frozen"):
        trained(config.replace(stages=(deeper, *config.stages[1:])), tmp_path / "deep", init_from=path, freeze=True)
    assert not (tmp_path / "deep").exists()


def test_a_checkpoint_that_nothing_can_be_inherited_from_leaves_no_folder(
    config: LowFormerConfig, tmp_path: Path
) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    trained(module, tmp_path / "module", epochs=1, resolution=8)
    with pytest.raises(ValueError, match="not a LowFormer"):
        trained(config, tmp_path / "out", init_from=str(tmp_path / "module"))
    with pytest.raises(ValueError, match="has no get_classifier"):
        trained(module, tmp_path / "out", resolution=8, freeze=True)
    assert not (tmp_path / "out").exists()


def test_a_teacher_is_learned_from(config: LowFormerConfig, tmp_path: Path) -> None:
    trained(config, tmp_path / "teacher", epochs=8, choices={"batch_size": 64})
    teacher = str(tmp_path / "teacher")
    alone = trained(config, tmp_path / "alone", choices={"batch_size": 64}, seed=1)
    taught = trained(
        config, tmp_path / "taught", choices={"batch_size": 64, "teacher_share": 0.9}, seed=1, teacher=teacher
    )
    assert taught.history != alone.history
    with pytest.raises(ValueError, match="is for images of 24 pixels, the network for 32"):
        trained(config.replace(resolution=32), tmp_path / "larger", teacher=teacher)


def test_a_teacher_with_other_classes_is_refused(config: LowFormerConfig, tmp_path: Path) -> None:
    train_network(config, "formula:3", LocalStore(tmp_path / "three"), FinalSettings(epochs=1))
    with pytest.raises(ValueError, match=r"--teacher .* has 3 classes, the data have 10"):
        trained(config, tmp_path / "taught", teacher=str(tmp_path / "three"))


def test_learns_from_the_validation_part_too_if_asked(config: LowFormerConfig, tmp_path: Path) -> None:
    network = trained(config, tmp_path, epochs=1, train_on="train+validation")
    assert network.validation_accuracy is None and network.history[0]["validation_loss"] is None
    assert network.history[0]["train_loss"] > 0


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_rare_classes_weigh_more(config: LowFormerConfig, tmp_path: Path, balance: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 600 + [1] * 20)
    images = np.where(labels[:, None, None] == 0, 100, 120) + rng.integers(0, 60, (620, 28, 28))
    data = (images.astype(np.uint8), labels)

    def recall(name: str) -> float:
        choices = {"balance": name, "batch_size": 32, "flip": False, "label_smoothing": 0.0}
        network = train_network(config, data, LocalStore(tmp_path / name), FinalSettings(epochs=2, choices=choices))
        x = torch.from_numpy(images[labels == 1]).float()[:, None].expand(-1, 3, -1, -1) / 255
        mean, spread = (torch.tensor(v).view(1, 3, 1, 1) for v in (network.pixels.mean, network.pixels.spread))
        with torch.no_grad():
            return network.model((x - mean) / spread).softmax(1)[:, 1].mean().item()

    assert recall(balance) > recall("none")


def test_pictures_that_cannot_be_read_are_passed_over_and_a_class_without_any_is_said(
    config: LowFormerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(level + rng.normal(0, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    for number in range(20):
        (tmp_path / "pictures" / "light" / f"{number}.png").write_bytes(b"no picture")
    data = f"imagefolder:{tmp_path / 'pictures'}"
    settings = FinalSettings(epochs=2, choices={"batch_size": 16})
    network = train_network(config, data, LocalStore(tmp_path / "some"), settings)
    assert network.validation_accuracy is not None and caplog.text.count("images that cannot be read are left out") <= 2
    assert re.search(r"the first is .*light/\d+\.png: cannot identify image file", caplog.text)
    for number in range(40):
        (tmp_path / "pictures" / "light" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="class 'light' has no readable training image"):
        train_network(config, data, LocalStore(tmp_path / "none"), settings)
