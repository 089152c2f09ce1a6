"""`LatencyPredictor`: predicts the latency of networks on one target, with intervals and the source of the numbers."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ...search_space.graph import OpGraph
from ...search_space.graph.shaped_file import OnnxFile
from ..model_files import read_model, write_model
from .fusion import fuse, fuse_config
from .kernel_model import KernelModel
from .runtimes import runtime
from .sizes import Sizes, log_sizes
from .stacked_model import StackedModel
from .target import Target, full_names, profile_folders, user_profiles
from .uncertainty import LogErrors
from .unit_costs import UnitCosts

SCHEMA = 5
OTHER_KINDS_SINCE = 5
"""The schema from which on a calibrated profile knows the errors of other people's networks."""
_PRECISION_IN_NAME = re.compile(r"(?<![a-z0-9])(int8|quant\w*|qdq|fp16|float16|half|bf16)(?![a-z0-9])", re.IGNORECASE)
"""Version of the profile files. Files of older versions are read, newer ones refused.

2: stacked models. 3: models of their own for networks of further spaces. 4: weights beyond the caches. 5: errors on
networks of other kinds.
"""
OUTSIDE_WIDENING = 3.0
"""Factor on log errors for networks with operators or shapes beyond those fitted on."""
UNMODELLED_FACTORS = (1 / 1.5, 10.0)
"""Factors on the ends of the interval for networks with operators of no known kind, known by their sizes alone."""
LEVELS = np.arange(1, 200) / 200
"""At which the quantiles of error distributions that are made of others are kept."""

Floats = NDArray[np.float64]
Item = LowFormerConfig | OpGraph | str | Path | OnnxFile


@dataclass(frozen=True)
class LatencyPrediction:
    """The predicted latency of one network.

    Attributes:
        latency_ms: median of the predictive distribution; per image if the target's batch is "max", else per batch.
        low_ms, high_ms: the interval that holds the measured latency with probability `coverage`.
        coverage: 0-1.
        source: the measurements that it rests on, as a sentence.
        outside: kernel classes that the profile was not fitted on, with "(shape)" if only their shapes were not, and
            the names of operators of no known kind.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    coverage: float
    source: str
    outside: tuple[str, ...]


class LatencyPredictor:
    """Predicts latency on one target from its profile.

    Attributes:
        target: device and setting that every number refers to.
        provenance: where the measurements come from: at least "source" (a sentence), "samples" (how many),
            "held_out_error" (mean absolute relative error on graphs not fitted on) and "macs_only_error" (the same of a
            line in log MACs).
        model: the target's own latency model, or that stacked with those of known targets.
        errors: distribution of the model's errors.
        other_kinds: the same on other people's networks with operators or shapes beyond those fitted on, where that is
            known.
        fingerprint: device model and runtime version that the profile belongs to; empty for devices elsewhere.
        allowed: names, as `KernelModel.outside` gives them, for which `errors` allows already (the priors of a profile
            from published measurements). They are still named, but widen no interval.
        sizes: of the networks that the model was fitted on, where there are further models.
        further: predictors of networks of other sizes on the same target, by models of their own.
        former: whether it was read from a calibration of a former version, which knows no `other_kinds`.
    """

    def __init__(
        self,
        target: Target,
        model: KernelModel | StackedModel,
        errors: LogErrors,
        provenance: dict[str, Any],
        fingerprint: dict[str, str] | None = None,
        allowed: Iterable[str] = (),
        sizes: Sizes | None = None,
        further: Sequence[LatencyPredictor] = (),
        other_kinds: LogErrors | None = None,
    ) -> None:
        if further and not (sizes and all(each.sizes for each in further)):
            raise ValueError("where there are models for networks of other sizes, all say of which")
        self.sizes: Sizes | None = sizes
        self.further: tuple[LatencyPredictor, ...] = tuple(further)
        self.target = target
        self.former = False
        self.model = model
        self.errors = errors
        self.other_kinds = other_kinds
        self.provenance = provenance
        self.fingerprint = fingerprint or {}
        self.allowed = frozenset(allowed)
        stacked = model if isinstance(model, StackedModel) else StackedModel.of(model)
        self._parts = [(part.weight, part.model) for part in stacked.parts]
        self._overhead_ms, self._least_ms = stacked.overhead_ms, stacked.least_ms
        self._costs = [UnitCosts(part) for _, part in self._parts]

    # --- profiles ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, target: str | Target, profiles: str | Path | None = None) -> Self:
        """Reads the profile of `target`.

        Args:
            target: a short or full target name.
            profiles: folder of the user's profiles instead of the default one; shipped profiles are always known.

        Raises:
            ValueError: unknown target, no profile, a broken one, or one of another machine; says what to do.
        """
        target = Target.parse(target)
        for folder in profile_folders(profiles):
            path = folder / target.file_name
            if path.is_file():
                return cls.read(path)
        name = target.alias or str(target)
        if target.is_local:
            raise ValueError(
                f"no profile of {target} on this machine yet: make one with `{_calibrate_command(target, profiles)}`"
            )
        known = [str(entry["target"]) for entry in list_profiles(profiles) if entry["usable"]]
        raise ValueError(f"no profile of {name} ({target}); there are profiles of {', '.join(known) or 'no target'}")

    @classmethod
    def read(cls, path: str | Path, *, check_host: bool = True) -> Self:
        """Reads one profile file. Raises ValueError, in one line, for one that is broken or of another machine."""
        path = Path(path)
        data = read_model(path, "profile", SCHEMA, "calibrate again")
        try:
            target = Target.parse(data["target"])
            kind = StackedModel if "parts" in data["model"] else KernelModel
            model = kind.from_dict(data["model"])
            errors = LogErrors.from_errors(data["uncertainty"]["log_errors"])
            provenance, fingerprint = dict(data["provenance"]), dict(data["fingerprint"])
            allowed = [str(name) for name in data["uncertainty"].get("allows_for", [])]
            sizes = Sizes.from_dict(data["sizes"]) if "sizes" in data else None
            others = data["uncertainty"].get("other_kinds")
            other_kinds = None if others is None else LogErrors.from_errors(others)
            further = [
                cls(
                    target,
                    KernelModel.from_dict(each["model"]),
                    LogErrors.from_errors(each["uncertainty"]["log_errors"]),
                    provenance,
                    sizes=Sizes.from_dict(each["sizes"]),
                    other_kinds=other_kinds,
                )
                for each in data.get("further", [])
            ]
        except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise ValueError(f"broken profile {path}: {what:.200}") from None
        if check_host and target.is_local and (here := target.fingerprint()) != fingerprint:
            differing = "; ".join(
                f"{key} {fingerprint.get(key, 'unknown')!r} there, {value!r} here"
                for key, value in here.items()
                if fingerprint.get(key) != value
            )
            command = _calibrate_command(target, None if path.parent == user_profiles() else path.parent)
            raise ValueError(f"the profile of {target} is another machine's ({differing}): make one with `{command}`")
        found = cls(target, model, errors, provenance, fingerprint, allowed, sizes, further, other_kinds)
        found.former = target.is_local and data["schema"] < OTHER_KINDS_SINCE
        return found

    def save(self, profiles: str | Path | None = None) -> Path:
        """Writes the profile into folder `profiles` (default: the user's own) over an older one. Returns its path."""
        folder = Path(profiles) if profiles is not None else user_profiles()
        folder.mkdir(parents=True, exist_ok=True)
        more: dict[str, Any] = {"allows_for": sorted(self.allowed)} if self.allowed else {}
        if self.other_kinds is not None:
            more["other_kinds"] = self.other_kinds.to_dict()["log_errors"]
        content: dict[str, Any] = {
            "target": str(self.target),
            "fingerprint": self.fingerprint,
            "provenance": self.provenance,
            "model": self.model.to_dict(),
            "uncertainty": self.errors.to_dict() | more,
        }
        if self.sizes is not None:
            content["sizes"] = self.sizes.to_dict()
        if self.further:
            content["further"] = [
                {"model": each.model.to_dict(), "uncertainty": each.errors.to_dict(), "sizes": each.sizes.to_dict()}
                for each in self.further
                if each.sizes is not None
            ]
        path = folder / self.target.file_name
        write_model(path, content, SCHEMA)
        return path

    @cached_property
    def source(self) -> str:
        """The measurements that predictions rest on, in one line."""
        p = self.provenance
        error = p.get("held_out_error")
        held_out = f", held-out error {error:.1%}" if isinstance(error, float) else ""
        former = "; of a former version, intervals as they were: calibrate again" if self.former else ""
        return (
            f"predicted: {p.get('source', 'unknown source')} ({p.get('samples', '?')} measurements{held_out}{former})"
        )

    # --- predicting -------------------------------------------------------------------------------------------------

    def predict(self, items: Iterable[Item], coverage: float = 0.9) -> list[LatencyPrediction]:
        """Predicts latencies with intervals, for configurations, operator graphs and ONNX files."""
        if isinstance(items, str | Path | LowFormerConfig | OpGraph | OnnxFile):
            raise ValueError(f"predict takes several items, given one {type(items).__name__}: put it into a list")
        checked = [self._checked(item) for item in items]
        found: dict[int, LatencyPrediction] = {}
        whose = self._whose(checked)
        for predictor in (self, *self.further):
            mine = [place for place, owner in enumerate(whose) if owner is predictor]
            configs = [(place, item) for place in mine if isinstance(item := checked[place], LowFormerConfig)]
            predictions = predictor._predict_configs([config for _, config in configs], coverage)
            found |= {place: prediction for (place, _), prediction in zip(configs, predictions, strict=True)}
            found |= {place: predictor._predict(checked[place], coverage) for place in mine if place not in found}
        return [found[place] for place in range(len(checked))]

    def _predict_configs(self, configs: Sequence[LowFormerConfig], coverage: float) -> list[LatencyPrediction]:
        """The predictions for configurations by the model of this predictor itself, in bulk."""
        low, high = self.errors.interval(coverage)
        center = float(self.errors.quantile(0.5))
        physical, outside = self._model_ms(configs)
        widening = np.where(self._beyond(outside), OUTSIDE_WIDENING, 1.0)
        middle, ends = physical * math.exp(center), (low - center, high - center)
        least, most = (physical * np.exp(center + widening * end) for end in ends)
        names, source = self._costs[0].names, self.source
        shorter, longer = (self._by_unmodelled(outside, factor) for factor in UNMODELLED_FACTORS)
        columns = (each.tolist() for each in (middle, least * shorter, most * longer, outside))
        return [
            LatencyPrediction(ms, low_ms, high_ms, coverage, source, names(number))
            for ms, low_ms, high_ms, number in zip(*columns, strict=True)
        ]

    def _by_unmodelled(self, outside: NDArray[np.uint64], factor: float) -> Floats:
        """(n,) `factor` where networks have operators without a cost model, 1 elsewhere."""
        return self._by_names(outside, lambda names: factor if "other" in names else 1.0)

    def _beyond(self, outside: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(n,) whether what networks have outside of what was fitted on is more than `errors` allows for."""
        return self._by_names(outside, lambda names: bool(set(names) - self.allowed))

    def _by_names(self, outside: NDArray[np.uint64], rule: Callable[[tuple[str, ...]], Any]) -> NDArray[Any]:
        """(n,) what `rule` says of the kernel classes that each number of `outside` stands for."""
        different, place = np.unique(outside, return_inverse=True)
        return np.array([rule(self._costs[0].names(int(each))) for each in different])[place]

    def _predict(self, item: LowFormerConfig | OpGraph, coverage: float) -> LatencyPrediction:
        """The prediction for one network by the model of this predictor itself."""
        physical, outside = self._item_ms(item)
        errors = self.errors
        if set(outside) - self.allowed:
            errors = self._errors_elsewhere if isinstance(item, OpGraph) else self._widened_errors
        low, high = errors.interval(coverage)
        shorter, longer = UNMODELLED_FACTORS if "other" in outside else (1.0, 1.0)
        return LatencyPrediction(
            latency_ms=physical * math.exp(float(errors.quantile(0.5))),
            low_ms=shorter * physical * math.exp(low),
            high_ms=longer * physical * math.exp(high),
            coverage=coverage,
            source=self.source,
            outside=_named(outside, item),
        )

    @cached_property
    def _widened_errors(self) -> LogErrors:
        """`errors` on networks of the space with operators or shapes beyond those fitted on."""
        center = float(self.errors.quantile(0.5))
        return LogErrors.from_errors(center + OUTSIDE_WIDENING * (self.errors.quantile(LEVELS) - center))

    @cached_property
    def _errors_elsewhere(self) -> LogErrors:
        """Errors on other networks with operators or shapes beyond those fitted on.

        At each level those of `other_kinds`, or the widened ones if they are further from the middle.
        """
        if self.other_kinds is None:
            return self._widened_errors
        known, wide = (each.quantile(LEVELS) for each in (self.other_kinds, self._widened_errors))
        outer = np.where(LEVELS < 0.5, np.minimum(wide, known), np.maximum(wide, known))
        return LogErrors.from_errors(np.where(LEVELS == 0.5, known, outer))

    def _whose(self, networks: Sequence[LowFormerConfig | OpGraph]) -> list[LatencyPredictor]:
        """For each network the predictor whose model was fitted on networks of its size."""
        if self.sizes is None or not self.further:
            return [self] * len(networks)
        all_of_them = (self, *self.further)
        sizes = log_sizes(networks)
        nearest = np.argmax([each.sizes.log_density(sizes) for each in all_of_them if each.sizes], axis=0)
        return [all_of_them[place] for place in nearest.tolist()]

    def _in_parts(
        self, configs: Sequence[LowFormerConfig], predicted: Callable[[LatencyPredictor, Any], Floats]
    ) -> Floats:
        """(n,) what `predicted` gives for the configurations of each predictor."""
        if not self.further:
            return predicted(self, configs)
        whose, result = self._whose(configs), np.empty(len(configs))
        for predictor in (self, *self.further):
            places = [place for place, owner in enumerate(whose) if owner is predictor]
            if places:
                result[places] = predicted(predictor, [configs[place] for place in places])
        return result

    def _checked(self, item: Item) -> LowFormerConfig | OpGraph:
        """`item`, read if it is a file. Warns if the file computes in another precision than the target."""
        name = "a graph"
        if isinstance(item, str | Path | OnnxFile):
            from ...search_space.graph.onnx_reader import op_graph_from_onnx

            name = str(item.path if isinstance(item, OnnxFile) else item)
            item = op_graph_from_onnx(item)
        if not isinstance(item, OpGraph | LowFormerConfig):
            raise ValueError(f"predicted are configs, operator graphs and ONNX files, not {type(item).__name__}")
        mine = "fp16" if self.target.precision in ("fp16", "bf16", "amp") else self.target.precision
        if isinstance(item, OpGraph) and item.precision not in ("fp32", mine):
            remedy = ""
            if item.precision in runtime(self.target.runtime).precisions:
                alias = replace(self.target, precision=item.precision).alias
                remedy = f" ({alias} predicts it as it is)" if alias else ""
            warnings.warn(f"{name} computes in {item.precision}; predicted as if in {mine}{remedy}", stacklevel=3)
        elif isinstance(item, OpGraph) and item.precision == "fp32" and _PRECISION_IN_NAME.search(Path(name).stem):
            warnings.warn(f"{name} computes in fp32, whatever its name says", stacklevel=3)
        return item

    def _item_ms(self, item: LowFormerConfig | OpGraph) -> tuple[float, tuple[str, ...]]:
        """The time by the model, and the kernel classes that it was not fitted on."""
        total, outside = self._overhead_ms, []
        for number, (weight, model) in enumerate(self._parts):
            if isinstance(item, LowFormerConfig):
                kernels = fuse_config(item, model.fusion, model.block)
            else:
                kernels = fuse(item, model.fusion, model.block)
            total += weight * model.graph_ms(kernels)
            if number == 0:  # the target's own model
                outside = model.outside(kernels)
        return max(total, self._least_ms), tuple(outside)

    def latency_ms(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.float64]:
        """(n,) predicted latencies (medians), tens of thousands a second: unit costs are kept between calls."""
        return self._in_parts(
            configs, lambda own, some: own._model_ms(some)[0] * math.exp(float(own.errors.quantile(0.5)))
        )

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float) -> NDArray[np.float64]:
        """(n,) `q`-quantiles of the predictive distributions."""
        return self._in_parts(configs, lambda own, some: own._quantile_ms(some, q))

    def _quantile_ms(self, configs: Sequence[LowFormerConfig], q: float) -> Floats:
        physical, outside = self._model_ms(configs)
        center, error = float(self.errors.quantile(0.5)), float(self.errors.quantile(q))
        widening = np.where(self._beyond(outside), OUTSIDE_WIDENING, 1.0)
        return physical * np.exp(center + widening * (error - center))

    def probability_within(self, budget_ms: float, configs: Sequence[LowFormerConfig]) -> NDArray[np.float64]:
        """(n,) probabilities that the measured latency is at most `budget_ms`."""
        if not budget_ms > 0:
            raise ValueError(f"a latency budget is positive, given {budget_ms} ms")
        return self._in_parts(configs, lambda own, some: own._probability_within(budget_ms, some))

    def _probability_within(self, budget_ms: float, configs: Sequence[LowFormerConfig]) -> Floats:
        physical, outside = self._model_ms(configs)
        center = float(self.errors.quantile(0.5))
        widening = np.where(self._beyond(outside), OUTSIDE_WIDENING, 1.0)
        return self.errors.cdf(center + (np.log(budget_ms / physical) - center) / widening)

    def _model_ms(self, configs: Sequence[LowFormerConfig]) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        """(n,) times by the model, and (n,) which kernels networks have that the model was not fitted on."""
        total, outside = np.full(len(configs), self._overhead_ms), np.zeros(len(configs), dtype=np.uint64)
        for number, ((weight, _), costs) in enumerate(zip(self._parts, self._costs, strict=True)):
            times, flags = costs.graphs(configs)
            total += weight * times
            if number == 0:  # the target's own model
                outside = flags
        return np.maximum(total, self._least_ms), outside


def _named(outside: tuple[str, ...], item: LowFormerConfig | OpGraph) -> tuple[str, ...]:
    """`outside` with the names of the operators of no known kind in place of "other"."""
    unmodelled = item.unmodelled if isinstance(item, OpGraph) else ()
    return tuple(part for name in outside for part in ((unmodelled or (name,)) if name == "other" else (name,)))


def _calibrate_command(target: Target, profiles: str | Path | None) -> str:
    where = f" --profiles {profiles}" if profiles is not None else ""
    return f"lownas calibrate --target {target.alias or target}{where}"


def list_profiles(profiles: str | Path | None = None) -> list[dict[str, Any]]:
    """Lists every known target with its profile, for `lownas targets`.

    Each entry: "target" (full name), "alias", "path" (None without profile), "usable" here, "reason" if not, "samples",
    "held_out_error", "macs_only_error", "source".
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in profile_folders(profiles):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            name = path.stem.replace("__", "/")
            if name in found:
                continue
            entry: dict[str, Any] = {"target": name, "path": str(path), "usable": True, "reason": None}
            try:
                predictor = LatencyPredictor.read(path)
            except ValueError as error:
                entry |= {"usable": False, "reason": str(error), "provenance": {}}
            else:
                entry |= {"target": str(predictor.target), "provenance": predictor.provenance}
            found[name] = entry
    known = full_names()
    for full in known.values():
        found.setdefault(
            full, {"target": full, "path": None, "usable": False, "reason": "no profile", "provenance": {}}
        )
    for entry in found.values():
        provenance = entry.pop("provenance")
        entry["alias"] = next((alias for alias, name in known.items() if name == entry["target"]), None)
        for key in ("source", "samples", "held_out_error", "macs_only_error"):
            entry[key] = provenance.get(key)
    return list(found.values())
