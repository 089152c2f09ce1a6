"""`LatencyPredictor`: for one target, what a network will take, how sure that is, and where the numbers come from."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ...search_space.graph import OpGraph
from ...search_space.units import Unit, units
from .fusion import fuse, fuse_config, fuse_unit
from .kernel_model import KernelModel
from .kernels import KERNEL_CLASSES, PLAIN, Kernels
from .target import ALIASES, Target, profile_folders, user_profiles
from .transfer import StackedModel
from .uncertainty import LogErrors

SCHEMA = 2
"""Version of the profile files. Files of older versions are read, newer ones refused. 2: stacked models."""

OUTSIDE_WIDENING = 3.0
"""Factor on log errors for networks with operators or shapes outside of what was fitted."""
UNMODELLED_FACTOR = 10.0
"""On the upper end of the interval of networks with operators of no known kind, of which nothing but sizes is known."""

MAX_PROFILE_BYTES = 2_000_000

Item = LowFormerConfig | OpGraph | str | Path


@dataclass(frozen=True)
class LatencyPrediction:
    """One predicted latency.

    Attributes:
        latency_ms: median of the predictive distribution; per image if the target's batch is "max", else per batch.
        low_ms, high_ms: the interval that holds the measured latency with probability `coverage`.
        coverage: 0-1.
        source: what it rests on, for people.
        outside: kernel classes that the target's profile was not fitted on; "(shape)" if only their shapes were not,
            and operators of no known kind by their names.
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
        model: one of the target's own, or one that also leans on those of known devices.
        fingerprint: device model and runtime version that the profile belongs to; empty for devices elsewhere.
        allowed: of what `KernelModel.outside` can name, that which the errors already allow for (the priors of a
            profile from published measurements); it is still named, but widens no interval a second time.
    """

    def __init__(
        self,
        target: Target,
        model: KernelModel | StackedModel,
        errors: LogErrors,
        provenance: dict[str, Any],
        fingerprint: dict[str, str] | None = None,
        allowed: Iterable[str] = (),
    ) -> None:
        self.target = target
        self.model = model
        self.errors = errors
        self.provenance = provenance
        self.fingerprint = fingerprint or {}
        self.allowed = frozenset(allowed)
        stacked = model if isinstance(model, StackedModel) else StackedModel.of(model)
        self._parts = [(part.weight, part.model) for part in stacked.parts]
        self._overhead_ms = stacked.overhead_ms
        self._costs = [_UnitCosts(part, self.allowed) for _, part in self._parts]

    # --- profiles ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, target: str | Target, profiles: str | Path | None = None) -> Self:
        """The predictor for `target` from its profile.

        Args:
            target: a short or full target name.
            profiles: folder of the user's profiles instead of the default one; shipped profiles are always known.

        Raises:
            ValueError: unknown target, no profile, one that is broken, or one of another machine; says what to do.
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
        """The predictor in one profile file. Raises ValueError, in one line, for a file that cannot be trusted."""
        path = Path(path)
        data = _read_profile(path)
        try:
            target = Target.parse(data["target"])
            kind = StackedModel if "parts" in data["model"] else KernelModel
            model = kind.from_dict(data["model"])
            errors = LogErrors.from_errors(data["uncertainty"]["log_errors"])
            provenance, fingerprint = dict(data["provenance"]), dict(data["fingerprint"])
            allowed = [str(name) for name in data["uncertainty"].get("allows_for", [])]
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
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
        return cls(target, model, errors, provenance, fingerprint, allowed)

    def save(self, profiles: str | Path | None = None) -> Path:
        """Writes the profile into `profiles`, by default the user's own folder, over an older one; gives its path."""
        folder = Path(profiles) if profiles is not None else user_profiles()
        folder.mkdir(parents=True, exist_ok=True)
        allowed = {"allows_for": sorted(self.allowed)} if self.allowed else {}
        body = {
            "schema": SCHEMA,
            "target": str(self.target),
            "fingerprint": self.fingerprint,
            "provenance": self.provenance,
            "model": self.model.to_dict(),
            "uncertainty": self.errors.to_dict() | allowed,
        }
        text = json.dumps({**body, "checksum": _checksum(body)}, indent=1, allow_nan=False)
        path = folder / self.target.file_name
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return path

    @cached_property
    def source(self) -> str:
        """What predictions rest on, in one line."""
        p = self.provenance
        error = p.get("held_out_error")
        held_out = f", held-out error {error:.1%}" if isinstance(error, float) else ""
        return f"predicted: {p.get('source', 'unknown source')} ({p.get('samples', '?')} measurements{held_out})"

    # --- predicting -------------------------------------------------------------------------------------------------

    def predict(self, items: Iterable[Item], coverage: float = 0.9) -> list[LatencyPrediction]:
        """Latencies with intervals, for configs, operator graphs and ONNX files."""
        if isinstance(items, str | Path | LowFormerConfig | OpGraph):
            raise ValueError(f"predict takes several items, given one {type(items).__name__}: put it into a list")
        low, high = self.errors.interval(coverage)
        center = float(self.errors.quantile(0.5))
        result = []
        for item in items:
            item = self._checked(item)
            physical, outside = self._item_ms(item)
            strange = UNMODELLED_FACTOR if "other" in outside else 1.0
            widening = OUTSIDE_WIDENING if set(outside) - self.allowed else 1.0
            result.append(
                LatencyPrediction(
                    latency_ms=physical * math.exp(center),
                    low_ms=physical * math.exp(center + widening * (low - center)),
                    high_ms=strange * physical * math.exp(center + widening * (high - center)),
                    coverage=coverage,
                    source=self.source,
                    outside=_named(outside, item),
                )
            )
        return result

    def _checked(self, item: Item) -> LowFormerConfig | OpGraph:
        """`item`, read if it is a file; a warning if that computes in another precision than the target."""
        name = "a graph"
        if isinstance(item, str | Path):
            from ...search_space.graph.onnx_writer import op_graph_from_onnx

            name = str(item)
            item = op_graph_from_onnx(item)
        if not isinstance(item, OpGraph | LowFormerConfig):
            raise ValueError(f"predicted are configs, operator graphs and ONNX files, not {type(item).__name__}")
        mine = "fp16" if self.target.precision in ("fp16", "bf16", "amp") else self.target.precision
        if isinstance(item, OpGraph) and item.precision not in ("fp32", mine):
            warnings.warn(f"{name} computes in {item.precision}; predicted as if in {mine}", stacklevel=3)
        return item

    def _item_ms(self, item: LowFormerConfig | OpGraph) -> tuple[float, tuple[str, ...]]:
        """Time by the model, and what is outside of what it was fitted on."""
        total, outside = self._overhead_ms, []
        for number, (weight, model) in enumerate(self._parts):
            if isinstance(item, LowFormerConfig):
                kernels = fuse_config(item, model.runtime, model.block)
            else:
                kernels = fuse(item, model.runtime, model.block)
            total += weight * model.graph_ms(kernels)
            if number == 0:  # the device's own model
                outside = model.outside(kernels)
        return total, tuple(outside)

    def latency_ms(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.float64]:
        """(n,) predicted latencies, tens of thousands a second: what units cost is kept between calls."""
        return self._model_ms(configs)[0] * math.exp(float(self.errors.quantile(0.5)))

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float) -> NDArray[np.float64]:
        """(n,) `q`-quantiles of the predictive distributions."""
        physical, outside = self._model_ms(configs)
        center, error = float(self.errors.quantile(0.5)), float(self.errors.quantile(q))
        widening = np.where(outside, OUTSIDE_WIDENING, 1.0)
        return physical * np.exp(center + widening * (error - center))

    def probability_within(self, budget_ms: float, configs: Sequence[LowFormerConfig]) -> NDArray[np.float64]:
        """(n,) probabilities that the measured latency is at most `budget_ms`."""
        if not budget_ms > 0:
            raise ValueError(f"a latency budget is positive, given {budget_ms} ms")
        physical, outside = self._model_ms(configs)
        center = float(self.errors.quantile(0.5))
        widening = np.where(outside, OUTSIDE_WIDENING, 1.0)
        return self.errors.cdf(center + (np.log(budget_ms / physical) - center) / widening)

    def _model_ms(self, configs: Sequence[LowFormerConfig]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(n,) times by the model, and whether each is outside of what it was fitted on."""
        total, outside = np.full(len(configs), self._overhead_ms), np.zeros(len(configs), dtype=np.bool_)
        for number, ((weight, _), costs) in enumerate(zip(self._parts, self._costs, strict=True)):
            times, flags = costs.graphs(configs)
            total += weight * times
            if number == 0:  # the device's own model
                outside = flags
        return total, outside


class _UnitCosts:
    """What the units of configurations cost by one model, kept between calls: that is what makes bulk prediction fast.

    Attributes:
        model: whose costs they are.
        allowed: as in `LatencyPredictor`.
    """

    def __init__(self, model: KernelModel, allowed: frozenset[str]) -> None:
        self.model = model
        self.allowed = allowed
        # By layout of the input: unit -> (its row in what follows, layout of its output).
        self._known: tuple[dict[Unit, tuple[int, int]], ...] = ({}, {})
        self._ms = np.empty(0)
        self._outside = np.empty(0, dtype=np.bool_)
        self._new: list[Kernels] = []

    def graphs(self, configs: Sequence[LowFormerConfig]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(n,) times of whole networks, and whether each is outside of what the model was fitted on."""
        if not configs:
            return np.empty(0), np.empty(0, dtype=np.bool_)
        known = self._known
        rows: list[int] = []
        starts: list[int] = []
        with _collector_at_rest():
            for config in configs:
                layout = PLAIN
                starts.append(len(rows))
                for unit in units(config):
                    entry = known[layout].get(unit)
                    if entry is None:
                        entry = self._add(unit, layout)
                    row, layout = entry
                    rows.append(row)
        self._cost_new()
        sums = np.add.reduceat(self._ms[rows], starts)
        outside = np.logical_or.reduceat(self._outside[rows], starts)
        return self.model.overhead_ms + self.model.scale * sums, outside

    def _add(self, unit: Unit, layout: int) -> tuple[int, int]:
        """(its row, layout of its output) for a unit not known yet, whose input arrives in `layout`."""
        kernels, after = fuse_unit(unit, self.model.runtime, self.model.block, layout)
        entry = len(self._ms) + len(self._new), after
        self._known[layout][unit] = entry
        self._new.append(kernels)
        return entry

    def _cost_new(self) -> None:
        """Costs of all units added since the last time, at once."""
        if not self._new:
            return
        new, self._new = self._new, []
        kernels = Kernels(np.concatenate([unit.table for unit in new]))
        owner = np.repeat(np.arange(len(new)), [len(unit) for unit in new])
        codes = kernels.column("class")
        unseen, shape = self.model.beyond(kernels)
        allowed = np.array([name in self.allowed for name in KERNEL_CLASSES])
        allowed_shape = np.array([f"{name} (shape)" in self.allowed for name in KERNEL_CLASSES])
        flagged = (unseen & ~allowed[codes]) | (shape & ~allowed_shape[codes])
        times = np.bincount(owner, self.model.kernel_ms(kernels), minlength=len(new))
        self._ms = np.append(self._ms, times)
        self._outside = np.append(self._outside, np.bincount(owner, flagged, minlength=len(new)) > 0)


def _named(outside: tuple[str, ...], item: LowFormerConfig | OpGraph) -> tuple[str, ...]:
    """`outside` with the operators' own names in the place of "other"."""
    unmodelled = item.unmodelled if isinstance(item, OpGraph) else ()
    return tuple(part for name in outside for part in ((unmodelled or (name,)) if name == "other" else (name,)))


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Keeps the garbage collector from searching, again and again, what bulk prediction allocates and keeps."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _calibrate_command(target: Target, profiles: str | Path | None) -> str:
    where = f" --profiles {profiles}" if profiles is not None else ""
    return f"lownas calibrate --target {target.alias or target}{where}"


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_profile(path: Path) -> dict[str, Any]:
    """The content of a profile file, its form checked. Raises ValueError in one line."""
    try:
        if path.stat().st_size > MAX_PROFILE_BYTES:
            raise ValueError(f"not a profile: {path} has more than {MAX_PROFILE_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read profile {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"broken profile {path}: not JSON ({error!s:.100})") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int) or "checksum" not in data:
        raise ValueError(f"not a profile: {path} lacks schema and checksum")
    if data["schema"] > SCHEMA:
        raise ValueError(
            f"profile {path} is of schema {data['schema']}, newer than the {SCHEMA} that this version of lownas reads: "
            "update lownas, or calibrate again"
        )
    given = data.pop("checksum")
    if given != _checksum(data):
        raise ValueError(f"profile {path} was altered after it was saved (its checksum differs): calibrate again")
    return data


def list_profiles(profiles: str | Path | None = None) -> list[dict[str, Any]]:
    """Every known target with its profile, for `lownas targets`.

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
    for full in ALIASES.values():
        found.setdefault(
            full, {"target": full, "path": None, "usable": False, "reason": "no profile", "provenance": {}}
        )
    for entry in found.values():
        provenance = entry.pop("provenance")
        entry["alias"] = next((alias for alias, name in ALIASES.items() if name == entry["target"]), None)
        for key in ("source", "samples", "held_out_error", "macs_only_error"):
            entry[key] = provenance.get(key)
    return list(found.values())
