"""`elements`: measures design elements on a target, and writes what they cost and what that says of the guidelines."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...predictors import LatencyPredictor, Target
from ...search_space import PRESETS, SearchSpace, op_graph, op_graph_from_onnx
from ..devices import open_meter
from ..quantities import parse_duration
from ..trials.run_folder import write_text
from .costs import (
    ElementCost,
    NetworkCost,
    measured_costs,
    measured_networks,
    predicted_costs,
    write_csv,
    write_networks_csv,
)
from .figures import draw_figures
from .findings import Comparison, Costs, Finding, findings, of_settings, per_mac
from .looks_file import LooksFile
from .measuring import ElementsProgress, Setting, measure_elements, settings
from .page import write_page
from .smaller_space import LeftOut, smaller_space, smaller_space_yaml

TIME_LIMIT, QUICK_TIME_LIMIT = "18m", "3m"
"""For all looks; with three of each, which are taken anyway, and the figures it is some minutes more."""
QUICK_NETWORKS = ("lowformer_b0", "lowformer_b1", "lowformer_e1", "cpubone_nano", "cpubone_t0", "cpubone_b3")


@dataclass(frozen=True)
class ElementsResult:
    """What `elements` found.

    Attributes:
        target: the device and the setting that was asked for.
        measured: whether it was measured; else it is a profile's prediction, and there are no findings.
        costs: of the elements in all settings.
        networks: whole networks.
        findings: what the costs say of the guidelines.
        left_out: what the emitted space lacks; None if none was asked for.
        files: what was written.
    """

    target: Target
    measured: bool
    costs: Sequence[ElementCost]
    networks: Sequence[NetworkCost]
    findings: Sequence[Finding]
    left_out: Sequence[LeftOut] | None
    files: Sequence[Path]

    @property
    def slowdowns(self) -> dict[str, list[Comparison]]:
        """By setting: how many times slower per MAC elements are than a dense convolution."""
        return {name: per_mac(Costs(mine)) for name, mine in of_settings(self.costs)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; the rows are in the CSV files."""
        slowdowns = {name: [each.to_dict() for each in found] for name, found in self.slowdowns.items()}
        left_out = None if self.left_out is None else [vars(each) for each in self.left_out]
        return {
            "target": str(self.target),
            "measured": self.measured,
            "elements": len(self.costs),
            "failed": [f"{c.setting} {c.element.key}: {c.failed}" for c in self.costs if c.failed],
            "findings": [each.to_dict() for each in self.findings],
            "per_mac": slowdowns,
            "left_out": left_out,
            "files": [str(path) for path in self.files],
        }


def elements(
    target: str | Path | Target = "cpu",
    *,
    out: str | Path | None = None,
    quick: bool = False,
    time_limit: str | None = None,
    onnx: Sequence[str | Path] = (),
    emit_space: str | Path | None = None,
    space: str | Path = "default",
    profiles: str | Path | None = None,
    progress: Callable[[ElementsProgress], object] = lambda progress: None,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
) -> ElementsResult:
    """Measures what design elements cost on a target, and says which of the papers' guidelines hold there.

    Writes elements.csv, networks.csv, findings.json, report.html and figures/ into a folder. A run that broke off goes
    on with the same call. A target that cannot be measured is predicted by its profile, and no findings are drawn.

    Args:
        target: name of a target, or the YAML file of a device.
        out: the folder; "elements-" and the target's name if None.
        quick: at few places, in a fifth of the time.
        time_limit: for the looks; "18m", of a quick run "3m". Every chain is looked at three times anyway.
        onnx: files of whole networks to measure beside the published LowFormers.
        emit_space: file for a space without what is dominated.
        space: the space that this is made from.
        profiles: folder of the user's own target profiles.
        progress: is told how far it is.
        say: is told of what does not run.

    Raises:
        ValueError: a target that can be neither measured nor predicted, or a wrong argument.
        OSError: the device is lost, or a file cannot be written; what was measured is kept.
    """
    full = Target.load(target)
    if emit_space is not None and not full.can_be_measured:
        raise ValueError(f"--emit-space: {full} cannot be measured here, and nothing is left out by predictions")
    limit_s = parse_duration(time_limit or (QUICK_TIME_LIMIT if quick else TIME_LIMIT), "time_limit")
    given = SearchSpace.load(space)  # before anything is measured
    if onnx and not full.can_be_measured:
        raise ValueError(f"--onnx: {full} cannot be measured here; `lownas predict --onnx` predicts files for it")
    networks = _networks(onnx, quick=quick)
    folder = Path(out) if out is not None else Path(f"elements-{full.file_name.removesuffix('.json')}")
    predictor = None
    with suppress(ValueError):
        predictor = LatencyPredictor.load(full, profiles)
    planned = settings(full, quick=quick)
    if full.can_be_measured:
        with open_meter(full) as meter:
            about = {"target": str(full), "machine": meter.target.fingerprint(), "quick": quick}
        file, contents = LooksFile(folder / "looks.jsonl", about), _contents(networks)
        known_ms = measure_elements(
            planned,
            file,
            time_limit_s=limit_s,
            networks={f"{name}{contents.get(name, '')}": network for name, network in networks.items()},
            profiles=profiles,
            progress=progress,
            say=say,
        )
        costs = measured_costs(planned, file.looks, known_ms)
        macs, predicted = _macs(networks), _predicted(predictor, networks)
        measured = measured_networks(full, file.looks, known_ms.get(str(full)), macs, predicted, contents)
    else:
        if predictor is None:
            raise ValueError(f"{full} can be neither measured here nor predicted: it has no profile (`lownas targets`)")
        planned = planned[:1]
        costs, measured = predicted_costs(planned[0], predictor, folder / "models"), []
    return _written(folder, full, planned, costs, measured, given if emit_space else None, emit_space)


def _written(
    folder: Path,
    target: Target,
    planned: Sequence[Setting],
    costs: Sequence[ElementCost],
    networks: Sequence[NetworkCost],
    space: SearchSpace | None,
    emit_space: str | Path | None,
) -> ElementsResult:
    """Writes everything; gives the result."""
    first = [cost for cost in costs if str(cost.setting) == str(target)]
    found = findings(first, networks) if target.can_be_measured else []
    left_out: list[LeftOut] | None = None
    files = [folder / "elements.csv", folder / "networks.csv", folder / "findings.json", folder / "report.html"]
    write_csv(costs, files[0])
    write_networks_csv(networks, files[1])
    if space is not None and emit_space is not None:
        content, left_out = smaller_space(space, first)
        write_text(Path(emit_space), smaller_space_yaml(content, left_out, target))
        files.append(Path(emit_space))
    result = ElementsResult(target, target.can_be_measured, costs, networks, found, left_out, files)
    write_text(files[2], json.dumps(result.to_dict(), indent=1) + "\n")
    write_page(
        files[3],
        title=str(target),
        about=_about(target, planned, costs, left_out),
        costs=costs,
        networks=networks,
        found=found,
        slowdowns=result.slowdowns,
        figures=draw_figures(costs, networks, folder / "figures"),
    )
    return result


def _about(
    target: Target, planned: Sequence[Setting], costs: Sequence[ElementCost], left_out: Sequence[LeftOut] | None
) -> list[str]:
    """What was measured, in sentences."""
    failed = sum(1 for cost in costs if cost.failed)
    looks = [cost.looks for cost in costs if cost.looks]
    errors = sorted(cost.error for cost in costs if cost.ms is not None)
    lines = [f"{len(costs)} elements in {len(planned)} settings, {failed} of which gave no time."]
    if not target.can_be_measured:
        return [*lines, "Predicted by the target's profile, not measured: no findings are drawn from that."]
    machine = "; ".join(f"{key}: {value}" for key, value in target.fingerprint().items()) or str(target)
    if looks:
        often = f"{min(looks)} to {max(looks)}"
        lines.append(f"Measured on {machine}: undisturbed times, from {often} looks at chains inside small networks.")
    if errors:
        lines.append(f"Median standard error of a time over looks: {100 * errors[len(errors) // 2]:.1f} %.")
    for each in left_out or ():
        lines.append(f"Left out of the emitted space: {each.parameter} = {each.value} ({each.reason}).")
    return lines


def _networks(onnx: Sequence[str | Path], *, quick: bool) -> dict[str, Any]:
    """The whole networks to measure, by name."""
    found: dict[str, Any] = {name: PRESETS[name] for name in PRESETS if not quick or name in QUICK_NETWORKS}
    for path in map(Path, onnx):
        if not path.is_file():
            raise ValueError(f"--onnx: no file at {path}")
        if path.stem in found:
            raise ValueError(f"--onnx: another network is called {path.stem!r:.80} already: rename {path}")
        found[path.stem] = path
    return found


def _contents(networks: Mapping[str, Any]) -> dict[str, str]:
    """What tells a network from another one of its name: of files the hash of what is in them."""
    files = {name: path for name, path in networks.items() if isinstance(path, Path)}
    return {name: f" {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}" for name, path in files.items()}


def _macs(networks: Mapping[str, Any]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name, network in networks.items():
        found[name] = None
        with suppress(ValueError):
            found[name] = (op_graph_from_onnx(network) if isinstance(network, Path) else op_graph(network)).macs
    return found


def _predicted(predictor: LatencyPredictor | None, networks: Mapping[str, Any]) -> dict[str, float]:
    """What the profile says of the networks that it can predict."""
    found: dict[str, float] = {}
    for name, network in networks.items() if predictor is not None else ():
        with suppress(ValueError):
            found[name] = predictor.predict([network])[0].latency_ms  # type: ignore[union-attr]
    return found
