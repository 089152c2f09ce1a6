"""The networks that the study compares: what each arm is, how it is scaled to a budget, written, and measured.

python -m lownas.experiments.case_study.arms KIND BUDGET_MS WORK     # one search (`study.py searches` calls it)
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

ROWS = Path(__file__).parent / "rows"
BUDGETS_MS = (0.15, 0.6)
ALL_SEARCHES_AT_MS = 0.6
"""The budget at which the search without one of its parts runs too."""
TARGET = Target.parse("cpu")
SPACE, DATA = "tiny", "fashion-mnist"
CLASSES = 10
SEARCH: Mapping[str, Any] = {"space": SPACE, "data": DATA, "proxy_budget": "20m", "trials": 24, "seed": 0}
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
PIXELS = 48
"""Side of the pictures, where nothing else is said: Fashion-MNIST's 28 are enlarged."""
WIDTHS = np.geomspace(0.06, 1.5, 160)
NEAR, LEAST_SHARE = (0.8, 1.12), 0.98
"""Predicted shares of the budget within which networks are measured; the least measured share that is asked for."""
LOOK_S, LEAST_RUNS, TRUTH_QUANTILE = 0.3, 12, 0.1
CHOICE_ROUNDS, CHOICE_PAUSE_S = 12, 2.0
MOST_MEASURED = 12


@dataclass(frozen=True)
class Network:
    """One network of the study: a configuration of ours, or a model of timm's with scaled channels.

    Attributes:
        name: of the arm and the budget.
        config: None for a model of timm's.
        timm: its name, the factor on its channels, and the resolution; None for a configuration.
        share: latency over budget, by the looks when it was chosen; None for what a search answers.
        about: what else is to be kept of it.
    """

    name: str
    config: LowFormerConfig | None = None
    timm: tuple[str, float, int] | None = None
    share: float | None = None
    about: Mapping[str, Any] | None = None

    def to_row(self) -> dict[str, Any]:
        config = None if self.config is None else self.config.to_dict()
        return {"name": self.name, "config": config, "timm": self.timm, "share": self.share, **(self.about or {})}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        config = None if row["config"] is None else LowFormerConfig.from_dict(row["config"])
        return cls(row["name"], config, tuple(row["timm"]) if row["timm"] else None, row["share"])

    @property
    def resolution(self) -> int:
        return self.config.resolution if self.config is not None else (self.timm or ("", 1.0, 0))[2]

    def model(self) -> LowFormerConfig | nn.Module:
        """What `train` takes."""
        return self.config if self.config is not None else timm_model(*(self.timm or ("", 1.0, 0))[:2])

    def trained(self, folder: Path) -> dict[str, Any]:
        """What `evaluate` takes of a finished training."""
        if self.config is not None:
            return {"network": folder}
        from lownas.evaluators.training.final.weights import load_weights

        weights, model = load_weights(folder), timm_model(*(self.timm or ("", 1.0, 0))[:2])
        model.load_state_dict(weights.state)
        pixels = {} if weights.pixels is None else weights.pixels.to_dict()
        return {"network": model, "resolution": self.resolution, **pixels}

    def write(self, folder: Path) -> Path:
        """The network as an ONNX file, to be measured."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name.replace('/', '-').replace(' ', '-')}.onnx"
        if not path.exists():
            if self.config is not None:
                write_onnx(self.config, path)
            else:
                export(timm_model(*(self.timm or ("", 1.0, 0))[:2]), self.resolution, path)
        return path


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


def measured_ms(networks: Sequence[Network]) -> list[float]:
    """Undisturbed latencies, by looks that are spread over a minute: the lower decile of their medians."""
    looks: dict[str, list[float]] = {str(place): [] for place in range(len(networks))}
    with tempfile.TemporaryDirectory() as folder:
        files = {str(place): replace(each, name=str(place)).write(Path(folder)) for place, each in enumerate(networks)}
        look_in_rounds(files, CHOICE_ROUNDS, CHOICE_PAUSE_S, lambda name, ms: looks[name].append(ms))
    return [float(np.quantile(values, TRUTH_QUANTILE)) for values in looks.values()]


# --- arms that need no search ----------------------------------------------------------------------------------------


class ScaledArm(ABC):
    """What is published, scaled to a budget."""

    def __init__(self, name: str, work: Path) -> None:
        self.name, self.work = name, work

    @abstractmethod
    def at(self, width: float) -> Network:
        """The network with this factor on its widths."""

    def network(self, name: str, budget_ms: float) -> Network:
        """The slowest one within the budget, by looks at those that are predicted to be near."""
        predictor, found = profile(self.work), {}
        for width in WIDTHS:
            network = self.at(float(width))
            found.setdefault(str(network.to_row()), network)
        candidates = list(found.values())
        with tempfile.TemporaryDirectory() as folder:
            files = [replace(each, name=str(place)).write(Path(folder)) for place, each in enumerate(candidates)]
            predicted = np.array([each.latency_ms for each in predictor.predict(files)])
        shares = predicted / budget_ms
        near = [place for place in np.argsort(shares) if NEAR[0] <= shares[place] <= NEAR[1]]
        if not near:
            raise SystemExit(f"{name}: no width gives a network near {budget_ms} ms")
        chosen = [
            candidates[near[place]]
            for place in np.unique(np.linspace(0, len(near) - 1, MOST_MEASURED).round()).astype(int)
        ]
        measured = np.array(measured_ms(chosen)) / budget_ms
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

    def __init__(self, model: str, work: Path) -> None:
        super().__init__(f"{model}/width", work)
        self.model = model

    def at(self, width: float) -> Network:
        return Network(self.name, timm=(self.model, round(width, 4), PIXELS))


LARGER_PIXELS = 64
"""Side of the pictures in the second form: larger pictures, narrower networks."""


def scaled_arms(work: Path) -> Iterator[ScaledArm]:
    for preset in ("lowformer_b0", "lowformer_b1", "lowformer_e1", "cpubone_nano"):
        yield ScaledPreset(preset, PIXELS, "width", work)
        yield ScaledPreset(preset, LARGER_PIXELS, "resolution", work)
    for model in ("mobilenetv3_small", "efficientnet_lite0", "resnet18"):
        yield ScaledTimm(model, work)


# --- searches --------------------------------------------------------------------------------------------------------


def searches() -> Iterator[tuple[float, str]]:
    """Budgets and kinds of the searches, the most important ones first."""
    for kind in KINDS:
        for budget_ms in BUDGETS_MS:
            if kind in ("search", "random", "macs") or budget_ms == ALL_SEARCHES_AT_MS:
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


def run_folder(kind: str, budget_ms: float, work: Path) -> Path:
    return work / "runs" / f"{kind.replace(' ', '-')}-{budget_ms:g}"


def run(kind: str, budget_ms: float, work: Path) -> None:
    """One search; it goes on where it was interrupted."""
    from lownas.search import resume, search

    folder = run_folder(kind, budget_ms, work)
    profile(work)
    target, budget = str(TARGET), f"{budget_ms}ms"
    about: dict[str, Any] = {"profiles": work / "profiles", "progress": True}
    if kind == "macs":  # of a target that is not at hand, so that nothing is measured
        target, budget = ELSEWHERE, f"{median_macs(work, budget_ms):.6g}ms"
        about["predictor"] = MacsPredictor()
    if (folder / "run.json").exists():
        resume(folder, **about)
    else:
        search(target, budget, run=folder, **SEARCH, **KINDS[kind], **about)


def found_by(kind: str, budget_ms: float, work: Path, name: str) -> Network:
    """What a search answered."""
    config = run_config(run_folder(kind, budget_ms, work))
    return Network(name, config=config, about={"macs": op_graph(config).macs})


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
