"""The networks that the study compares: what each arm is, how it is scaled to a budget, written, and measured.

python -m lownas.experiments.case_study.arms TASK KIND BUDGET_MS WORK     # one search (`study.py searches` calls it)
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.evaluators.device.agent.models import time_model
from lownas.evaluators.device.runtimes.onnxruntime import onnx_job
from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.calibration import calibrate
from lownas.search.results.files import run_config
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph
from lownas.search_space.graph.onnx_writer import write_onnx
from lownas.search_space.scaling import scaled

if TYPE_CHECKING:
    from torch import nn

TARGET = Target.parse("cpu")
SPACE, CLASSES = "tiny", 10
SEARCH: Mapping[str, Any] = {"space": SPACE, "proxy_budget": "20m", "trials": 24, "seed": 0}
"""What all searches have in common."""
KINDS: Mapping[str, Mapping[str, Any]] = {
    "search": {},
    "random": {"strategy": "random"},
    "macs": {},
    "no rungs": {"rungs": 1},
    "no surrogate": {"strategy": "evolution"},
}
ELSEWHERE = "rtx3090"
"""Target of the searches by MACs."""
WIDTHS = np.geomspace(0.06, 1.5, 160)
NEAR = (0.8, 1.12)
"""Predicted shares of the budget within which networks are measured."""
LOOK_S, LEAST_RUNS, TRUTH_QUANTILE = 0.3, 12, 0.1
CHOICE_ROUNDS, CHOICE_PAUSE_S = 12, 2.0
MOST_MEASURED = 12


@dataclass(frozen=True)
class Task:
    """What is trained on, within which budgets.

    Attributes:
        data: the source; its rows lie in a folder of that name.
        pixels: side of the pictures of scaled networks.
        larger_pixels: the same of their second form: larger pictures, narrower networks.
        epochs: of every training.
        searches: kinds of searches by budget in ms, the most important ones first.
        others: models of timm's that are scaled in width.
    """

    data: str
    pixels: int
    larger_pixels: int
    epochs: int
    searches: Mapping[float, Sequence[str]]
    others: Sequence[str] = ()

    @property
    def budgets_ms(self) -> tuple[float, ...]:
        return tuple(self.searches)

    @property
    def rows(self) -> Path:
        """The folder of its rows."""
        return Path(__file__).parent / "rows" / self.data

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What all trainings have in common."""
        return {"epochs": self.epochs, "recipe": {"precision": "bf16"}, "train_on": "train+validation"}


TASKS: Mapping[str, Task] = {
    task.data: task
    for task in (
        Task(
            "fashion-mnist",
            pixels=48,  # its 28 are enlarged
            larger_pixels=64,
            epochs=8,
            searches={0.15: ("search", "random", "macs"), 0.6: tuple(KINDS)},
            others=("mobilenetv3_small", "efficientnet_lite0", "resnet18"),
        ),
        Task("scenes", pixels=64, larger_pixels=96, epochs=16, searches={0.6: ("search", "random")}),
    )
}


@dataclass(frozen=True)
class Network:
    """One network of the study: a configuration of ours, or a model of timm's with scaled channels.

    Attributes:
        name: of the arm and the budget.
        config: None for a model of timm's.
        timm: its name, the factor on its channels, and the resolution; None for a configuration.
        pruned: name of a file of weights under `PRUNED` with fewer channels than the configuration has; or None.
        share: latency over budget, by the looks when it was chosen; None for what a search answers.
        about: what else is to be kept of it.
    """

    name: str
    config: LowFormerConfig | None = None
    timm: tuple[str, float, int] | None = None
    pruned: str | None = None
    share: float | None = None
    about: Mapping[str, Any] | None = None

    def to_row(self) -> dict[str, Any]:
        config = None if self.config is None else self.config.to_dict()
        made_of = {"config": config, "timm": self.timm, "pruned": self.pruned}
        return {"name": self.name, **made_of, "share": self.share, **(self.about or {})}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        config = None if row["config"] is None else LowFormerConfig.from_dict(row["config"])
        timm = tuple(row["timm"]) if row["timm"] else None
        return cls(row["name"], config, timm, row["pruned"], row["share"])

    @property
    def resolution(self) -> int:
        return self.config.resolution if self.config is not None else (self.timm or ("", 1.0, 0))[2]

    @property
    def is_module(self) -> bool:
        """Whether it is a torch module of its own, not a configuration."""
        return self.config is None or self.pruned is not None

    def module(self, work: Path) -> nn.Module:
        """The network with fresh weights, or pruned ones."""
        if self.pruned is not None and self.config is not None:
            from lownas.experiments.case_study.pruned import read_pruned

            return read_pruned(self.config, work / PRUNED / f"{self.pruned}.safetensors")
        assert self.timm is not None
        return timm_model(*self.timm[:2])

    def model(self, work: Path) -> LowFormerConfig | nn.Module:
        """What `train` takes."""
        return self.module(work) if self.is_module or self.config is None else self.config

    def trained(self, folder: Path, work: Path) -> dict[str, Any]:
        """What `evaluate` takes of a finished training."""
        if not self.is_module:
            return {"network": folder}
        from lownas.evaluators.training.final.weights import load_weights

        weights, model = load_weights(folder), self.module(work)
        model.load_state_dict(weights.state)
        pixels = {} if weights.pixels is None else weights.pixels.to_dict()
        return {"network": model, "resolution": self.resolution, **pixels}

    def write(self, folder: Path, work: Path) -> Path:
        """The network as an ONNX file, to be measured."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name.replace('/', '-').replace(' ', '-')}.onnx"
        if path.exists():
            return path
        if self.is_module or self.config is None:
            export(self.module(work), self.resolution, path)
        else:
            write_onnx(self.config, path)
        return path


PRUNED = "pruned"
"""Folder of the weights of pruned networks."""

# --- timm's ----------------------------------------------------------------------------------------------------------


def timm_model(name: str, width: float) -> nn.Module:
    """A model of timm's with scaled channels and fresh weights, for 10 classes."""
    if name == "mobilenetv3_small":
        from timm.models.mobilenetv3 import _gen_mobilenet_v3

        return _gen_mobilenet_v3("mobilenetv3_small_100", width, num_classes=CLASSES)
    if name == "efficientnet_lite0":
        from timm.models.efficientnet import _gen_efficientnet_lite

        return _gen_efficientnet_lite("efficientnet_lite0", width, 1.0, num_classes=CLASSES)
    from timm.models.resnet import BasicBlock, ResNet

    channels = [max(8, 8 * round(each * width / 8)) for each in (64, 128, 256, 512)]
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=CLASSES, channels=channels, stem_width=channels[0])


def export(model: nn.Module, pixels: int, path: Path) -> None:
    """Writes a torch module as an ONNX file, in inference mode."""
    import warnings

    import torch

    partial = path.with_suffix(".partial")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (torch.zeros(1, 3, pixels, pixels),), partial, dynamo=False, opset_version=17)
    partial.rename(path)


# --- looks -----------------------------------------------------------------------------------------------------------


def look(path: Path) -> float:
    """The median of some runs, ms."""
    timed, _ = time_model(str(path), onnx_job(TARGET, path.stem, LOOK_S, LEAST_RUNS, False), print)
    return float(np.median(timed.times_ms))


def look_in_rounds(files: Mapping[str, Path], rounds: int, pause_s: float, tell: Callable[[str, float], None]) -> None:
    """Looks at every file once a round, in an order of its own in each."""
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(sorted(files)):
            tell(str(name), round(look(files[str(name)]), 5))
        time.sleep(pause_s)


def measured_ms(networks: Sequence[Network], work: Path) -> list[float]:
    """Undisturbed latencies, by looks that are spread over a minute: the lower decile of their medians."""
    looks: dict[str, list[float]] = {str(place): [] for place in range(len(networks))}
    with tempfile.TemporaryDirectory() as folder:
        named = {str(place): replace(each, name=str(place)) for place, each in enumerate(networks)}
        files = {place: each.write(Path(folder), work) for place, each in named.items()}
        look_in_rounds(files, CHOICE_ROUNDS, CHOICE_PAUSE_S, lambda name, ms: looks[name].append(ms))
    return [float(np.quantile(values, TRUTH_QUANTILE)) for values in looks.values()]


# --- arms that need no search ----------------------------------------------------------------------------------------


class ScaledArm(ABC):
    """What is published, scaled to a budget.

    Attributes:
        widths: factors that are tried.
    """

    widths: Sequence[float] = tuple(WIDTHS.tolist())

    def __init__(self, name: str, work: Path) -> None:
        self.name, self.work = name, work

    @abstractmethod
    def at(self, width: float) -> Network | None:
        """The network with this factor on its widths; None where there is none."""

    def network(self, name: str, budget_ms: float) -> Network:
        """The slowest one within the budget, by looks at those that are predicted to be near."""
        predictor, found = profile(self.work), {}
        for width in self.widths:
            if (network := self.at(width)) is not None:
                found.setdefault(str(network.to_row()), network)
        candidates = list(found.values())
        with tempfile.TemporaryDirectory() as folder:
            named = [replace(each, name=str(place)) for place, each in enumerate(candidates)]
            files = [each.write(Path(folder), self.work) for each in named]
            predicted = np.array([each.latency_ms for each in predictor.predict(files)])
        shares = predicted / budget_ms
        near = [place for place in np.argsort(shares) if NEAR[0] <= shares[place] <= NEAR[1]]
        if not near:
            raise SystemExit(f"{name}: no width gives a network near {budget_ms} ms")
        chosen = [
            candidates[near[place]]
            for place in np.unique(np.linspace(0, len(near) - 1, MOST_MEASURED).round()).astype(int)
        ]
        measured = np.array(measured_ms(chosen, self.work)) / budget_ms
        within = np.where(measured <= 1, measured, 0)
        best = int(np.argmax(within))
        if not within[best]:
            raise SystemExit(f"{name}: none of {len(chosen)} networks near {budget_ms} ms is within it")
        return replace(chosen[best], name=name, share=round(float(measured[best]), 4))


class ScaledPreset(ScaledArm):
    """A published model, scaled in width, at a resolution."""

    def __init__(self, preset: str, pixels: int, form: str, work: Path) -> None:
        super().__init__(f"{preset}/{form}", work)
        self.preset, self.pixels = preset, pixels

    def at(self, width: float) -> Network:
        config = scaled(PRESETS[self.preset], width=width, resolution=self.pixels).replace(classes=CLASSES)
        return Network(self.name, config=config)


class ScaledTimm(ScaledArm):
    """A model of timm's."""

    def __init__(self, model: str, pixels: int, work: Path) -> None:
        super().__init__(f"{model}/width", work)
        self.model, self.pixels = model, pixels

    def at(self, width: float) -> Network:
        return Network(self.name, timm=(self.model, round(width, 4), self.pixels))


def scaled_arms(task: Task, work: Path) -> Iterator[ScaledArm]:
    for preset in ("lowformer_b0", "lowformer_b1", "lowformer_e1", "cpubone_nano"):
        yield ScaledPreset(preset, task.pixels, "width", work)
        yield ScaledPreset(preset, task.larger_pixels, "resolution", work)
    for model in task.others:
        yield ScaledTimm(model, task.pixels, work)


# --- searches --------------------------------------------------------------------------------------------------------


def searches(task: Task) -> Iterator[tuple[float, str]]:
    """Budgets and kinds of the searches, the most important ones first."""
    for kind in KINDS:
        for budget_ms, kinds in task.searches.items():
            if kind in kinds:
                yield budget_ms, kind


def profile(work: Path) -> LatencyPredictor:
    """The profile that all searches use; calibrated once."""
    folder = work / "profiles"
    try:
        return LatencyPredictor.load(TARGET, folder)
    except ValueError:
        return calibrate(TARGET, space=SPACE, profiles=folder)


class MacsPredictor:
    """Says MACs, in millions, where a search asks for milliseconds."""

    def predict(self, items: Sequence[LowFormerConfig]) -> list[MacsPrediction]:
        return [MacsPrediction(float(value)) for value in self.quantile_ms(items, 0.5)]

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float) -> np.ndarray:
        return np.array([op_graph(config).macs / 1e6 for config in configs])


@dataclass(frozen=True)
class MacsPrediction:
    """What `MacsPredictor` gives: a number without uncertainty."""

    latency_ms: float

    @property
    def low_ms(self) -> float:
        return self.latency_ms

    @property
    def high_ms(self) -> float:
        return self.latency_ms


def median_macs(work: Path, budget_ms: float) -> float:
    """Median MACs, in millions, of random networks whose predicted latency is within 5 % of the budget."""
    rng, space, predictor = np.random.default_rng(0), SearchSpace.load(SPACE), profile(work)
    configs = [space.sample(rng) for _ in range(20_000)]
    near = np.abs(predictor.latency_ms(configs) / budget_ms - 1) <= 0.05
    return float(np.median([op_graph(config).macs / 1e6 for config, one in zip(configs, near, strict=True) if one]))


def run_folder(task: Task, kind: str, budget_ms: float, work: Path) -> Path:
    return work / "runs" / task.data / f"{kind.replace(' ', '-')}-{budget_ms:g}"


def run(task: Task, kind: str, budget_ms: float, work: Path) -> None:
    """One search; it goes on where it was interrupted."""
    from lownas.search import resume, search

    folder = run_folder(task, kind, budget_ms, work)
    profile(work)
    target, budget = str(TARGET), f"{budget_ms}ms"
    about: dict[str, Any] = {"profiles": work / "profiles", "progress": True}
    if kind == "macs":  # of a target that is not at hand, so that nothing is measured
        target, budget = ELSEWHERE, f"{median_macs(work, budget_ms):.6g}ms"
        about["predictor"] = MacsPredictor()
    if (folder / "run.json").exists():
        resume(folder, **about)
    else:
        search(target, budget, run=folder, data=task.data, **SEARCH, **KINDS[kind], **about)


def found_by(task: Task, kind: str, budget_ms: float, work: Path, name: str) -> Network:
    """What a search answered."""
    config = run_config(run_folder(task, kind, budget_ms, work))
    return Network(name, config=config, about={"macs": op_graph(config).macs})


if __name__ == "__main__":
    run(TASKS[sys.argv[1]], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
