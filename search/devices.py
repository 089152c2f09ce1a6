"""Devices by name: measuring, calibrating and predicting latency.

Here predictors and evaluators meet: what the one side fits is handed the measuring function of the other.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..predictors import LatencyPredictor, Target, list_profiles
from ..predictors.accuracy.prior import AccuracyPrediction, AccuracyPrior
from ..predictors.latency.calibration import space_key
from ..predictors.latency.measuring import changed_settings
from ..predictors.latency.sampling import sentinel_config
from ..predictors.latency.sentinel_history import SentinelHistory
from ..predictors.latency.target import profile_folders
from ..search_space import PRESETS, LowFormerConfig, OnnxFile, OpGraph, SearchSpace
from ..search_space.graph.shaped_file import InputShapes
from .quantities import parse_duration, parse_percentage

if TYPE_CHECKING:
    from ..evaluators.device.measure import LatencyMeasurement
    from ..predictors.latency.calibration import Progress
    from .latency.looks import Looks, MeasuredLatency, Measuring

# What has a latency: a configuration, the name of a published model, the path of an ONNX or config file, a graph.
Network = LowFormerConfig | OpGraph | OnnxFile | str | Path
Device = str | Path | Target  # a target's name, its YAML file, or the target
SENTINEL_LIMIT_S, SENTINEL_RUNS = 0.4, 8  # of one look at the sentinel


def predict(
    networks: Network | Sequence[Network],
    target: Device,
    *,
    coverage: float = 0.9,
    accuracy: bool = False,
    input_shapes: InputShapes | None = None,
    profiles: str | Path | None = None,
) -> Any:
    """Predicts latency on a target, without the device.

    Args:
        networks: one network, or several: configurations, names of published models, ONNX files, config files, run
            folders.
        target: name of a target ("rtx3090", "cpu"), or its YAML file.
        coverage: probability that an interval holds the measured latency, or the accuracy.
        accuracy: whether to estimate ImageNet top-1 too, from what was published.
        input_shapes: of ONNX files' inputs, where they leave sizes open: {"images": (1, 3, 640, 640)}; under "" that of
            the only one.
        profiles: folder of the user's own target profiles.

    Returns a `LatencyPrediction` in ms with its interval for one network, a list of them for several. With `accuracy`
    each is a pair of that and an `AccuracyPrediction` in percent, or None for a network that is no configuration.

    Raises ValueError for an unknown target or network, a target without a profile, or if an accuracy is wanted and no
    network is a configuration.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: between 0 and 1, given {coverage}")
    predictor = load_predictor(Target.load(target), profiles)
    several = isinstance(networks, Sequence) and not isinstance(networks, str)
    wanted: Sequence[Network] = networks if several else [networks]  # type: ignore[assignment, list-item]
    known = [find_network(network, input_shapes) for network in wanted]
    found: list[Any] = predictor.predict(known, coverage=coverage)
    if accuracy:
        found = list(zip(found, predict_accuracy(known, coverage=coverage), strict=True))
    return found if several else found[0]


def predict_accuracy(
    networks: Sequence[LowFormerConfig | OpGraph | OnnxFile], *, coverage: float = 0.9
) -> list[AccuracyPrediction | None]:
    """Estimates ImageNet top-1 in percent; None for ONNX files and graphs, of which the prior knows too little.

    Raises ValueError if none of the networks is a configuration.
    """
    configs = [network for network in networks if isinstance(network, LowFormerConfig)]
    if networks and not configs:
        raise ValueError("estimated for configurations and published models only, of which none is given")
    found = iter(AccuracyPrior.load().predict(configs, coverage=coverage))
    return [next(found) if isinstance(network, LowFormerConfig) else None for network in networks]


def measure(
    network: Network,
    target: Device = "cpu",
    *,
    time_limit: str = "10s",
    input_shapes: InputShapes | None = None,
    profiles: str | Path | None = None,
) -> MeasuredLatency:
    """Measures latency on this machine, or over SSH on the one that the target's file names.

    Args:
        network: a configuration, the name of a published model, an ONNX file or a config file.
        target: name of a target at hand ("cpu"), or its YAML file.
        time_limit: looks at it are spread over this time; up to 6 times it on a restless machine.
        input_shapes: as in `predict`.
        profiles: folder of the user's own target profiles; what is known there of the machine's speed is used.

    Raises ValueError if the target cannot be measured, OSError if its machine cannot be reached.
    """
    limit_s = parse_duration(time_limit, "time_limit")
    found = find_network(network, input_shapes)
    with open_meter(Target.load(target)) as meter, meter.looks(profiles) as looks:
        looks.take({"": found}, limit_s)
        return looks.latencies()[""]


def calibrate(
    target: Device = "cpu",
    *,
    samples: int | None = None,
    until: str | None = None,
    space: str | Path | SearchSpace = "default",
    time_limit: str | None = None,
    seed: int = 0,
    profiles: str | Path | None = None,
    progress: bool | Callable[[Progress], None] = False,
    adds: bool = False,
) -> LatencyPredictor:
    """Measures a sample of a space on a device, fits a latency model, and saves it as the target's profile.

    Args:
        target: name of a target at hand ("cpu"), or the YAML file of a device.
        samples: configurations to measure; 40, or with `until` at most 200.
        until: stop once the held-out error is below this, at 90 % confidence: "3%".
        space: what they are drawn from.
        time_limit: no measurement begins later: "4m".
        seed: of the sample.
        profiles: folder of the user's own target profiles.
        progress: True shows a bar; a function is told how far it is.
        adds: configurations that were measured before, of other spaces, are kept and fitted on too.

    Returns the predictor; `provenance` has its held-out error. A calibration that broke off goes on where it stopped.

    Raises ValueError if the target cannot be measured, OSError if its machine cannot be reached.
    """
    from ..predictors.latency.calibration import calibrate as fit_profile
    from .results.progress import CalibrationBar

    full = Target.load(target)
    options: dict[str, Any] = {"space": space, "seed": seed, "profiles": profiles, "adds": adds}
    if samples is not None:
        options["samples"] = samples
    if until is not None:
        options["until"] = parse_percentage(until, "until")
    if time_limit is not None:
        options["time_limit_s"] = parse_duration(time_limit, "time_limit")
    with open_meter(full) as meter:
        known: Mapping[str, str] = {}
        with suppress(ValueError):  # of a broken profile another may be made
            known = LatencyPredictor.read(profile_folders(profiles)[0] / full.file_name).fingerprint
        check_same_machine(meter.target, known, profiles)
        options["look_at_sentinel"] = meter.look_at_sentinel
        if callable(progress):
            return fit_profile(meter.target, meter.measure_for_calibration, progress=progress, **options)
        with CalibrationBar(shown=progress) as bar:
            return fit_profile(meter.target, meter.measure_for_calibration, progress=bar, **options)


# --- networks by name


def find_network(network: Network, input_shapes: InputShapes | None = None) -> LowFormerConfig | OpGraph | OnnxFile:
    """A configuration, a graph, or an ONNX file, with the shapes of its inputs if they are given.

    Configurations are found by names of published models, and in config files and run folders.

    Raises ValueError, in one line, for what is none of these.
    """
    if isinstance(network, LowFormerConfig | OpGraph):
        return network
    if isinstance(network, OnnxFile):
        return OnnxFile(network.path, {**network.input_shapes, **(input_shapes or {})})
    path = Path(network)
    if path.suffix == ".json" or path.is_dir():
        return read_config(path)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise ValueError(f"no ONNX file at {path}")
        return OnnxFile(path, input_shapes or {})
    return preset(str(network))


def preset(name: str) -> LowFormerConfig:
    """A published model. Raises ValueError, with the nearest known names, for an unknown one."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(PRESETS)} and all"
    raise ValueError(f"unknown model {name!r}: {hint}")


def read_config(path: Path) -> LowFormerConfig:
    """Reads a config file (what `export` and best.json hold, or an entry of front/), or the answer of a run folder."""
    path = path / "best.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        data = json.loads(text)
        if isinstance(data, dict) and isinstance(data.get("config"), dict) and "objective" in data:
            data = data["config"]
        return LowFormerConfig.from_dict(data)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def timm_graph(name: str, *, copies: bool) -> OpGraph:
    """The graph of a model of timm at its own input size, traced without weights.

    `copies` says whether copies are kept, which compilers remove and PyTorch in eager mode executes.

    Raises ValueError, in one line, if timm is not there or has no such model.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"--timm needs timm (pip install timm): {error}") from None
    except RuntimeError as error:  # torchvision's, of a build for another torch
        raise ValueError(f"--timm: timm cannot be imported ({error}): torchvision must fit torch") from None
    import torch

    from ..search_space import op_graph_from_torch

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise ValueError(f"--timm: unknown model {name!r}: {hint}")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    size = tuple(model.pretrained_cfg["input_size"])
    return op_graph_from_torch(model, size, copies=copies, channels_last=copies)


# --- devices at hand, and their profiles


@dataclass(frozen=True)
class Meter:
    """What measures a target at hand.

    Attributes:
        target: with what was found out about the device.
        measure: (network, target, time_limit_s=...) to one look at it.
        measure_for_calibration: (network, target) to a short one, with kernel times where there are any.
        settings: what the machine's speed depends on (`agent.machine_state`).
    """

    target: Target
    measure: Callable[..., LatencyMeasurement]
    measure_for_calibration: Callable[[LowFormerConfig | OpGraph, Target], LatencyMeasurement]
    settings: Mapping[str, str]

    def look_at_sentinel(self, target: Target) -> float:
        """What the sentinel takes now, in ms, as far as one short look tells."""
        look = self.measure(sentinel_config(), target, time_limit_s=SENTINEL_LIMIT_S, min_runs=SENTINEL_RUNS)
        return look.undisturbed_ms

    @contextmanager
    def measuring(self, profiles: str | Path | None = None, rest_s: float = 0.0) -> Iterator[Measuring]:
        """How networks are measured with it; what the sentinel takes meanwhile is remembered for later measurements.

        `profiles` is the folder of the user's own target profiles, `rest_s` what lies between two looks at a network.
        """
        from .latency.looks import Measuring

        history = SentinelHistory.of(self.target, self.target.fingerprint(), self.settings, profiles)
        sentinels_ms: list[float] = []

        def look(network: LowFormerConfig | OpGraph | Path, **limits: Any) -> LatencyMeasurement:
            return self.measure(network, self.target, **limits)

        def look_at_sentinel() -> float:
            sentinels_ms.append(self.look_at_sentinel(self.target))
            return sentinels_ms[-1]

        try:
            yield Measuring(look, look_at_sentinel, history.known_ms(), rest_s)
        finally:
            history.add(sentinels_ms)

    @contextmanager
    def looks(self, profiles: str | Path | None = None) -> Iterator[Looks]:
        """Looks at networks in turn; see `measuring`."""
        from .latency.looks import Looks

        with self.measuring(profiles) as measuring:
            yield Looks(measuring, str(self.target))


@contextmanager
def open_meter(target: Target) -> Iterator[Meter]:
    """Opens what measures a target: this machine, or a box over SSH.

    Raises ValueError or OSError if it cannot be measured.
    """
    from ..evaluators.device.measure import check_measurable, measure_for_calibration, measure_latency

    if target.box is None:
        check_measurable(target)
        yield Meter(target, measure_latency, measure_for_calibration, _settings_here(target))
        return
    from ..evaluators.device.remote import RemoteBox

    with RemoteBox(target.box) as box:
        known = replace(target.box, fingerprint=box.fingerprint(target))
        yield Meter(replace(target, box=known), box.measure_latency, box.measure_for_calibration, box.settings)


def _settings_here(target: Target) -> dict[str, str]:
    from ..evaluators.device.agent.machine_state import machine_state

    return machine_state(gpu=target.device == "cuda").settings


def warn_of_other_settings(predictor: LatencyPredictor, settings: Mapping[str, str]) -> None:
    """Warns if the machine's settings are not those that a profile was made with: it may be faster or slower now."""
    known = predictor.provenance.get("settings")
    if known is not None and (changed := changed_settings(known, settings)):
        warnings.warn(
            f"since {predictor.target} was calibrated, {changed}: latencies may be others (`lownas calibrate`)",
            stacklevel=3,
        )


def check_same_machine(target: Target, known: Mapping[str, str], profiles: str | Path | None) -> None:
    """Raises ValueError if a box is not the machine that its profile's fingerprint names."""
    if target.box is not None and known and known != (here := target.fingerprint()):
        differing = "; ".join(f"{key} {known.get(key)!r} there, {here[key]!r} on {target.box.host}" for key in here)
        path = profile_folders(profiles)[0] / target.file_name
        raise ValueError(
            f"the profile of {target} is another machine's ({differing}): name this device otherwise, or remove {path}"
        )


def load_predictor(target: Target, profiles: str | Path | None = None) -> LatencyPredictor:
    """Loads a target's profile. Raises ValueError, saying what to do, if it has none."""
    if target.box is not None and not has_profile(target, profiles):
        where = "" if profiles is None else f" --profiles {profiles}"
        command = f"lownas calibrate --target {target.box.file}{where}"
        raise ValueError(f"no profile of {target} yet: make one with `{command}`")
    predictor = LatencyPredictor.load(target, profiles)
    if target.is_local:
        warn_of_other_settings(predictor, _settings_here(target))
    return predictor


def load_or_calibrate(
    target: Target,
    profiles: str | Path | None,
    say: Callable[[str], None],
    *,
    space: SearchSpace | None = None,
    progress: bool,
) -> LatencyPredictor:
    """Loads a target's profile. A device at hand that has none is calibrated; one that has none of `space` yet, too.

    `space` is where networks are searched; None if any profile will do.
    """
    if not target.can_be_measured:
        return LatencyPredictor.load(target, profiles)
    where = "on this machine " if target.is_local else ""
    drawn = "default" if space is None else space
    if not has_profile(target, profiles):
        say(f"no profile of {target} {where}yet: calibrating (at most 4 minutes, once)")
        return calibrate(target, space=drawn, profiles=profiles, progress=progress)
    predictor = load_predictor(target, profiles)
    spaces = predictor.provenance.get("spaces")
    if space is None or spaces is None or space_key(space) in spaces:
        return predictor
    say(f"{target} was calibrated on other networks than those of the space {space.name!r}: adding some (once)")
    return calibrate(target, space=space, profiles=profiles, progress=progress, adds=True)


def known_targets(profiles: str | Path | None) -> list[Target]:
    """All targets with a profile that can be used here. Raises ValueError if there is none."""
    found = [Target.parse(entry["target"]) for entry in list_profiles(profiles) if entry["usable"]]
    if not found:
        raise ValueError("--target is missing, and there is no profile that can be used (`lownas targets`)")
    return found


def has_profile(target: Target, profiles: str | Path | None) -> bool:
    """Whether there is a profile of the target, usable or not."""
    return any((folder / target.file_name).is_file() for folder in profile_folders(profiles))
