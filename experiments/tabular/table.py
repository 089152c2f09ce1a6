"""The tabular benchmark: networks of the LowFormer space with their trainings and their latency.

from lownas.experiments.tabular import Table

table = Table.load()
network = table.networks[0]
table.query(network.config, epoch=3, seed=0).validation_accuracy
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...search_space import LowFormerConfig

SCHEMA = 1
TABLE = Path(__file__).with_name("table.jsonl.gz")


@dataclass(frozen=True)
class Training:
    """One training of one network.

    Attributes:
        id: of the network's configuration.
        schedule: "short" or "long" (`training.SCHEDULES`).
        seed: of weights, order and augmentation.
        train_loss: mean over each epoch, nats, label smoothing included.
        validation_loss: after each epoch, nats.
        validation_accuracy, test_accuracy: after each epoch, 0 to 1.
        device: that it ran on; the same seed draws the same on each.
    """

    id: str
    schedule: str
    seed: int
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    test_accuracy: tuple[float, ...]
    device: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in data.items()}
        return cls(**values)

    @property
    def accuracy(self) -> float:
        """At the end, on all 5,000 validation and 10,000 test images; none of them decides anything in the training."""
        return (self.validation_accuracy[-1] + 2 * self.test_accuracy[-1]) / 3

    @property
    def epochs(self) -> int:
        return len(self.validation_accuracy)


@dataclass(frozen=True)
class Point:
    """What a training had reached after an epoch; accuracies 0 to 1.

    `train_seconds` are those of the steps up to there on one core of the card's host, wherever the training ran.
    """

    validation_accuracy: float
    test_accuracy: float
    validation_loss: float
    train_loss: float
    train_seconds: float


@dataclass(frozen=True)
class Network:
    """One row of the table.

    Attributes:
        config: the architecture.
        role: "spread", "group_N" (near-equal latency), or the name of the published model whose shape it has.
        params: trainable parameters.
        macs: multiply-accumulates of one image.
        latency_ms: median over the looks of their medians; one image, one thread, onnxruntime, fp32.
        looks_ms: the raw times of each look, in order.
        epoch_seconds: what the steps of an epoch take on one core.
        trainings: by (schedule, seed).
    """

    config: LowFormerConfig
    role: str
    params: int
    macs: int
    looks_ms: tuple[tuple[float, ...], ...]
    epoch_seconds: float
    trainings: Mapping[tuple[str, int], Training]

    @cached_property
    def latency_ms(self) -> float:
        return float(np.median([np.median(look) for look in self.looks_ms]))

    def of(self, schedule: str) -> list[Training]:
        """Its trainings by a schedule, by seed."""
        return [self.trainings[key] for key in sorted(self.trainings) if key[0] == schedule]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the raw times to a tenth of a microsecond."""
        return {
            "id": self.config.id,
            "role": self.role,
            "config": self.config.to_dict(),
            "params": self.params,
            "macs": self.macs,
            "looks_ms": [[round(ms, 4) for ms in look] for look in self.looks_ms],
            "epoch_seconds": self.epoch_seconds,
            "trainings": [asdict(training) for training in self.trainings.values()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        trainings = [Training.from_dict(training) for training in data["trainings"]]
        return cls(
            config=LowFormerConfig.from_dict(data["config"]),
            role=data["role"],
            params=data["params"],
            macs=data["macs"],
            looks_ms=tuple(tuple(look) for look in data["looks_ms"]),
            epoch_seconds=data["epoch_seconds"],
            trainings={(training.schedule, training.seed): training for training in trainings},
        )


class Table:
    """All networks with their trainings.

    Attributes:
        networks: in the order of the file.
        card: hardware, versions and schedules, as noted when the file was packed.
    """

    def __init__(self, networks: Sequence[Network], card: Mapping[str, Any] | None = None) -> None:
        self.networks = tuple(networks)
        self.card = dict(card or {})
        self._by_id = {network.config.id: network for network in networks}
        if len(self._by_id) < len(self.networks):
            raise ValueError("a table holds each network once")

    @classmethod
    def load(cls, path: str | Path = TABLE) -> Self:
        """Reads the table of this package, or another file of its form. Raises ValueError for anything else."""
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                card, *lines = (json.loads(line) for line in file)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error, json.JSONDecodeError, ValueError) as error:
            raise ValueError(f"{path}: not a table: {error}") from None
        if not isinstance(card, dict) or card.get("schema") != SCHEMA:
            raise ValueError(f"{path}: not a table of schema {SCHEMA}")
        return cls([Network.from_dict(line) for line in lines], card)

    def write(self, path: str | Path) -> None:
        """Writes the file anew, or leaves it as it was."""
        temporary = Path(f"{path}.new")
        # Without a name and a time stamp in it, the same content is the same file.
        with temporary.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            for line in ({"schema": SCHEMA, **self.card}, *(network.to_dict() for network in self.networks)):
                file.write((json.dumps(line, separators=(",", ":")) + "\n").encode())
        temporary.replace(path)

    def __len__(self) -> int:
        return len(self.networks)

    def __contains__(self, config: object) -> bool:
        return isinstance(config, LowFormerConfig | str) and _id(config) in self._by_id

    def network(self, config: LowFormerConfig | str) -> Network:
        """The row of a configuration or id. Raises ValueError if there is none."""
        if (name := _id(config)) not in self._by_id:
            raise ValueError(f"network {name!r} is not one of the table's {len(self)}")
        return self._by_id[name]

    def query(
        self, config: LowFormerConfig | str, epoch: int | None = None, seed: int = 0, schedule: str = "short"
    ) -> Point:
        """What a training of a network had reached after `epoch` epochs, counted from 1; None is the last.

        Raises ValueError for a network, training or epoch that is not in the table, naming those that are.
        """
        trainings = self.network(config).trainings
        if (schedule, seed) not in trainings:
            raise ValueError(
                f"network {_id(config)!r} has no {schedule!r} training with seed {seed}; "
                f"there are {', '.join(f'{name} {number}' for name, number in trainings) or 'none'}"
            )
        training = trainings[schedule, seed]
        epoch = training.epochs if epoch is None else epoch
        if not 1 <= epoch <= training.epochs:
            raise ValueError(f"epoch: 1 to {training.epochs} of the {schedule!r} schedule, given {epoch}")
        return Point(
            validation_accuracy=training.validation_accuracy[epoch - 1],
            test_accuracy=training.test_accuracy[epoch - 1],
            validation_loss=training.validation_loss[epoch - 1],
            train_loss=training.train_loss[epoch - 1],
            train_seconds=self.network(config).epoch_seconds * epoch,
        )


def _id(config: LowFormerConfig | str) -> str:
    return config if isinstance(config, str) else config.id


def seed_noise(networks: Sequence[Network], schedule: str) -> float:
    """Standard deviation between seeds of an accuracy, 0 to 1, over the networks trained by `schedule` with two."""
    twice = [[training.accuracy for training in network.of(schedule)] for network in networks]
    differences = [found[0] - found[1] for found in twice if len(found) > 1]
    return float(np.sqrt(np.mean(np.square(differences)) / 2)) if differences else float("nan")


def true_spread(measured: NDArray[np.float64], noise: float) -> float:
    """Standard deviation of accuracies between networks, of which (n,) were `measured` with a `noise` like this."""
    return float(np.sqrt(max(float(np.var(measured, ddof=1)) - noise**2, 0.0)))


def ceiling(spread: float, noise: float, count: int, *, draws: int = 1000) -> float:
    """Mean tau of `count` networks' accuracies with what is measured of them: no estimate can be expected to be better.

    Args:
        spread: standard deviation of the accuracies between networks.
        noise: standard deviation of what was measured of each. Both are taken to be normal.
    """
    from scipy.stats import kendalltau  # type: ignore[import-untyped, unused-ignore]

    rng = np.random.default_rng(0)
    pairs = [(spread * rng.standard_normal(count), noise * rng.standard_normal(count)) for _ in range(draws)]
    return round(float(np.mean([kendalltau(truth, truth + error).statistic for truth, error in pairs])), 3)
