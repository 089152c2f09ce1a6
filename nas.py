"""The command line of lownas: `python nas.py --target rtx3090 --latency-budget 2ms`, or `lownas` once installed.

It parses, loads, calls and prints; everything else is in the packages. Results go to stdout, progress and warnings to
stderr. Exit codes: 0 done, 1 it failed, 2 the request was wrong.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

try:
    import typer
    from typer.exceptions import TyperException

    import lownas
except ImportError as missing:
    sys.exit(
        f"lownas is not installed ({missing.name} is missing): "
        "run `pip install -c constraints.txt -e .` in the folder of nas.py"
    )

if TYPE_CHECKING:
    from rich.console import Console

    from lownas.evaluators.device.measurement import LatencyMeasurement
    from lownas.predictors import LatencyPredictor, Target
    from lownas.search.settings import SearchSettings
    from lownas.search_space import LowFormerConfig, OpGraph

app = typer.Typer(
    name="lownas",
    help="Hardware-aware neural architecture search over the LowFormer space. Without a command, `search` is meant.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

REST_S = 6.0  # between two measurements of a network
INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|µs|ms|s|m|min|h)")
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str, what: str) -> float:
    """A positive duration such as "2ms", "800us", "0.5s" or "10m", in seconds."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{what}: a positive duration such as 800us, 2ms, 0.5s or 10m, given {text!r}")
    return seconds


def parse_percentage(text: str, what: str) -> float:
    """A percentage such as "3%", as a fraction."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*%", text.strip())
    share = float(match[1]) / 100 if match else math.nan
    if not 0 < share < 1:
        raise ValueError(f"{what}: between 0% and 100%, such as 3% or 2.5%, given {text!r}")
    return share


def parse_quantity(text: str, what: str, unit: str = "") -> float:
    """A positive number such as "600M", "1.5G" or, with a unit, "50MB"."""
    match = re.fullmatch(rf"(\d+(?:\.\d*)?|\.\d+)\s*([kKMG]?){unit}", text.strip())
    value = float(match[1]) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[match[2].replace("K", "k")] if match else math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{what}: a positive number such as 600k{unit}, 5M{unit} or 1.5G{unit}, given {text!r}")
    return value


def parse_budgets(texts: Sequence[str]) -> dict[str, float]:
    """Latency budgets in ms of targets such as "cpu=20ms", by the targets' full names."""
    budgets = {}
    for text in texts:
        name, equals, budget = text.rpartition("=")
        if not equals:
            raise ValueError(f"--also: a target and its latency budget, such as cpu=20ms, given {text!r}")
        budgets[str(_target(name))] = round(1e3 * parse_duration(budget, f"--also {name}"), 9)
    return budgets


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _stdout() -> Console:
    from rich.console import Console

    # Piped output keeps whole lines; a terminal tells its own width.
    return Console() if sys.stdout.isatty() else Console(width=120)


def _print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False), flush=True)


Target_ = Annotated[
    str | None, typer.Option("--target", help="Device and setting: rtx3090, cpu (`lownas targets`), or a YAML file.")
]
Profiles = Annotated[Path | None, typer.Option("--profiles", help="Folder of your own target profiles.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, one document a line, and nothing else there.")]
Configs = Annotated[list[Path] | None, typer.Option("--config", help="A config file (JSON); may be repeated.")]
Presets = Annotated[list[str] | None, typer.Option("--preset", help="A published model, or `all`; may be repeated.")]
Timm = Annotated[
    list[str] | None, typer.Option("--timm", help="A model of timm (pip install timm), by name; may be repeated.")
]
Onnx = Annotated[list[Path] | None, typer.Option("--onnx", help="An ONNX file; may be repeated.")]


@app.command()
def search(
    target: Target_ = None,
    latency_budget: Annotated[str | None, typer.Option(help="What the latency must not exceed: 2ms, 800us.")] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Find the front of accuracy against latency, up to the budget if given.")
    ] = False,
    also: Annotated[
        list[str] | None, typer.Option(help="A further target that must hold too: cpu=20ms; may be repeated.")
    ] = None,
    max_params: Annotated[str | None, typer.Option(help="Most parameters: 5M.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Most multiply-accumulates of one image: 600M.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Most memory for weights and activations: 50MB.")] = None,
    space: Annotated[str | None, typer.Option(help="`default`, `tiny`, or a YAML file of your own.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Fixes the input resolution, in pixels.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="What to train on: imagefolder:DIR, arrays:PATH, hf:NAME, cifar10:PATH, ... Without: ImageNet prior."
        ),
    ] = None,
    proxy_budget: Annotated[str | None, typer.Option(help="Time for all proxy trainings together [6m].")] = None,
    proxy_epochs: Annotated[int | None, typer.Option(help="Pins the epochs of a proxy training.")] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Checkpoint of a LowFormer whose weights all candidates start from.")
    ] = None,
    rungs: Annotated[
        int | None,
        typer.Option(
            help="Points of a training at which the best third goes on [3 with --data (--pareto: 2), else 1]."
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="surrogate, evolution, tpe, nsga2, gp or random [surrogate with --data, else evolution]."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Distinct candidates to train [16].")] = None,
    repeats: Annotated[int | None, typer.Option(help="Candidates trained again with a second seed [5].")] = None,
    time_budget: Annotated[str | None, typer.Option(help="No training starts that would end later: 5m, 2h.")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray workers; 0 trains in this process [one per core].")] = None,
    gpu_fraction: Annotated[
        float | None, typer.Option(help="Share of a GPU that each worker has [the GPUs are shared evenly].")
    ] = None,
    trial_timeout: Annotated[str | None, typer.Option(help="A training that takes longer has failed: 10m.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster that is there: auto, ray://HOST:PORT [workers start here].")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Accept a cluster without authentication.")] = False,
    confidence: Annotated[float | None, typer.Option(help="Feasible: P(latency <= budget) >= this [0.9].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random [0].")] = None,
    run: Annotated[Path | None, typer.Option(help="The run folder [runs/TARGET-BUDGET-N].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run.")] = False,
    replay: Annotated[Path | None, typer.Option(help="Search again with the settings of this run.json.")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL instead of the run's study.db.")] = None,
    profiles: Profiles = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Search for the most accurate backbone within a latency budget on a device."""
    from lownas.search.run_search import check_space
    from lownas.search.trials.run_folder import check_free, read_about, read_settings
    from lownas.search_space import SearchSpace

    given: dict[str, Any] = {
        "pareto": pareto or None,
        "also": parse_budgets(also) if also else None,
        "max_params": None if max_params is None else parse_quantity(max_params, "--max-params"),
        "max_macs": None if max_macs is None else parse_quantity(max_macs, "--max-macs"),
        "max_memory_bytes": None if max_memory is None else parse_quantity(max_memory, "--max-memory", "B"),
        "space": _absolute(space) if space is not None and Path(space).suffix else space,
        "resolution": resolution,
        "data": data,
        "proxy_budget_s": None if proxy_budget is None else parse_duration(proxy_budget, "--proxy-budget"),
        "proxy_epochs": proxy_epochs,
        "init_from": None if init_from is None else str(init_from.absolute()),
        "rungs": rungs,
        "strategy": strategy,
        "trials": trials,
        "repeats": repeats,
        "time_budget_s": None if time_budget is None else parse_duration(time_budget, "--time-budget"),
        "workers": workers,
        "gpu_fraction": gpu_fraction,
        "trial_timeout_s": None if trial_timeout is None else parse_duration(trial_timeout, "--trial-timeout"),
        "ray_address": ray_address,
        "insecure": insecure or None,
        "confidence": confidence,
        "seed": seed,
        "storage": storage,
    }
    if resume and run is None:
        raise ValueError("--resume: name the run to go on with (--run DIR)")
    if resume and replay:
        raise ValueError("--resume and --replay: one or the other")
    budget_ms: float | None = None
    if resume or replay:
        assert run is not None or replay is not None
        earlier: Path = replay or run  # type: ignore[assignment]
        base = read_settings(earlier)
        if resume:
            check_free(earlier)
        about = read_about(earlier)
        if replay and space is None and resolution is None:
            check_space(SearchSpace.load(base.space, base.resolution), about)
        file = about.get("target_file")
        if target is None and isinstance(file, str) and not Path(file).is_file():
            raise ValueError(f"the run's target file {file} is gone: name it, or {base.target}, with --target")
        target = target or file or base.target
        budget_ms = base.latency_budget_ms
        given = {**base.to_dict(), **{name: value for name, value in given.items() if value is not None}}
    elif target is None:
        raise ValueError("--target is missing: which device? (rtx3090, cpu, ...; `lownas targets` lists them)")
    elif latency_budget is None and not pareto:
        raise ValueError("--latency-budget is missing: how long may one image take? (2ms, 800us; or --pareto)")
    if latency_budget is not None:
        budget_ms = round(1e3 * parse_duration(latency_budget, "--latency-budget"), 9)
    full = _target(target)
    given = {name: value for name, value in given.items() if value is not None}
    if ray_address is not None and "workers" not in given:
        raise ValueError("--ray-address: say with --workers how many candidates train there at once")
    given.setdefault("workers", _cores())
    name = f"{budget_ms:g}ms" if budget_ms is not None else "front"
    given |= {"target": str(full), "run": str(run or _new_run(full, name))}
    if budget_ms is not None:
        given["latency_budget_ms"] = budget_ms
    _search(given, full, profiles, resume=resume, dry_run=dry_run, as_json=as_json)


def _absolute(file: str) -> str:
    """A file that a run names: it may be resumed or replayed from another folder."""
    return str(Path(file).absolute()) if Path(file).is_file() else file


def _search(
    given: dict[str, Any], target: Target, profiles: Path | None, *, resume: bool, dry_run: bool, as_json: bool
) -> None:
    from lownas.search.run_search import dry_run as describe
    from lownas.search.run_search import search as run_search
    from lownas.search.run_search import whole_range_ms
    from lownas.search.settings import SearchSettings
    from lownas.search.trials.database import check_storage
    from lownas.search_space import SearchSpace

    # A front without a budget spans the space; how far that is, the predictor says below.
    settings = SearchSettings.from_dict({"latency_budget_ms": 1e9, **given})
    check_storage(settings.storage)
    space = SearchSpace.load(settings.space, settings.resolution)
    if settings.data is not None:
        from lownas.evaluators.data.loading import load_data

        # What is wrong with it is said before anything starts.
        load_data(settings.data, 32, settings.seed, train_images=64, validation_images=64)
    inherited = None
    if settings.init_from is not None:
        from lownas.evaluators.training.inherit import load_source

        inherited = load_source(settings.init_from).identity
    if not dry_run:
        _check_run_folder(Path(settings.run), resume=resume)
    predictor = _predictor(target, profiles, calibrate_if_missing=not dry_run)
    if "latency_budget_ms" not in given:
        measurable = target.can_be_measured
        budget_ms = whole_range_ms(settings, predictor=predictor, space=space, measurable=measurable)
        settings = settings.replace(latency_budget_ms=budget_ms)
    others = {name: _predictor(_target(name), profiles, calibrate_if_missing=not dry_run) for name in settings.also}
    if dry_run:
        plan = describe(settings, predictor=predictor, space=space, also=others)
        _print_dry_run(plan, settings, as_json=as_json)
        return

    from lownas.search.results.export import export_outcome, outcome_to_dict
    from lownas.search.results.progress import SearchProgress, outcome_table
    from lownas.search.results.report import published_rows, write_report

    console = _stderr()
    console.print(f"target {target}: {predictor.source}", highlight=False)
    about: dict[str, Any] = {"latency_profile": predictor.provenance}
    if inherited is not None:
        about["init_from"] = inherited
    if target.box is not None:
        about["target_file"] = str(Path(target.box.file or "").absolute())
    with ExitStack() as stack:
        stack.enter_context(_second_interrupt_ends())
        measure = None
        if target.can_be_measured:
            meter = stack.enter_context(_meter(target))
            _check_same_box(meter.target, predictor.fingerprint, profiles)

            def measure(config: LowFormerConfig) -> LatencyMeasurement:
                return meter.measure(config, meter.target)

        progress = stack.enter_context(SearchProgress(console))
        outcome = run_search(
            settings,
            predictor=predictor,
            space=space,
            resume=resume,
            also=others,
            measure=measure,
            rest_s=REST_S,
            progress=progress,
            about=about,
        )
    export_outcome(outcome)
    published = published_rows(predictor)
    write_report(outcome, published)
    if as_json:
        _print_json(outcome_to_dict(outcome))
    else:
        out = _stdout()
        out.print(outcome_table(outcome, published))
        for note in outcome.notes:
            out.print(f"- {note}", highlight=False, soft_wrap=True)
        left = [name for name in ("front/", "best.json", "best.onnx", "report.html") if (outcome.run / name).exists()]
        out.print(f"run folder: {outcome.run} ({', '.join(left)})", soft_wrap=True)
    if outcome.answer is None:
        raise RuntimeError("the search found no answer: see the notes above and log.txt in the run folder")


@contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """The first Ctrl-C ends the search in order; a second one ends this process and those that it started, at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt
        import psutil

        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print_dry_run(plan: Any, settings: SearchSettings, *, as_json: bool) -> None:
    import dataclasses

    if as_json:
        budget = {"target": settings.target, "latency_budget_ms": settings.latency_budget_ms}
        _print_json({**dataclasses.asdict(plan), **budget})
        return
    from lownas.search.results.progress import duration

    share = f"{100 * plan.feasible_share:.0f} % of random samples are within {settings.latency_budget_ms:g} ms"
    time = f"about {duration(plan.expected_s)}"
    print(f"target:    {settings.target}")
    print(f"space:     {settings.space}, {plan.size:.2e} combinations; {share}")
    extremes = f"{plan.fastest_ms:.3g} to {plan.slowest_ms:.3g} ms"
    print(f"latency:   {extremes}, fastest to slowest (quantile {settings.confidence:g} of the prediction)")
    print(f"trainings: {plan.trainings:.3g}, with {settings.workers} workers; time: {time}")


def _check_run_folder(run: Path, *, resume: bool) -> None:
    """Refuses early what the search would refuse after calibrating."""
    if (run / "run.json").exists() and not resume:
        raise ValueError(f"there is already a run in {run}: go on with it (--resume) or name another folder (--run)")
    nearest = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "is not a folder" if not nearest.is_dir() else "is not writable"
        raise OSError(f"cannot write the run folder {run}: {nearest} {what}")


def _new_run(target: Target, what: str) -> Path:
    name = f"{target.alias or target.device}-{what}".replace(":", "-")
    number = 1
    while (path := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return path


def _cores() -> int:
    import psutil

    return max(1, psutil.cpu_count(logical=False) or 1)


def _target(name: str | None) -> Target:
    from lownas.predictors import Target

    if name is None:
        raise ValueError("--target is missing: which device? (rtx3090, cpu, ...; `lownas targets` lists them)")
    return Target.load(name)


class _Meter(NamedTuple):
    """What measures a target, and the target with what was found out about the device."""

    target: Target
    measure: Callable[..., LatencyMeasurement]
    measure_for_calibration: Callable[[LowFormerConfig | OpGraph, Target], LatencyMeasurement]


@contextmanager
def _meter(target: Target) -> Iterator[_Meter]:
    """This machine, or a box over SSH. Raises ValueError or OSError if it cannot measure `target`."""
    from lownas.evaluators.device.measure import check_measurable, measure_for_calibration, measure_latency

    if target.box is None:
        check_measurable(target)
        yield _Meter(target, measure_latency, measure_for_calibration)
        return
    from dataclasses import replace

    from lownas.evaluators.device.remote import RemoteBox

    with RemoteBox(target.box) as box:
        known = replace(target.box, fingerprint=box.fingerprint(target))
        yield _Meter(replace(target, box=known), box.measure_latency, box.measure_for_calibration)


def _check_same_box(target: Target, known: Mapping[str, str], profiles: Path | None) -> None:
    """Raises ValueError if a box is not the machine that its profile's fingerprint names."""
    from lownas.predictors.latency.target import profile_folders

    if target.box is not None and known and known != (here := target.fingerprint()):
        differing = "; ".join(f"{key} {known.get(key)!r} there, {here[key]!r} on {target.box.host}" for key in here)
        path = profile_folders(profiles)[0] / target.file_name
        raise ValueError(
            f"the profile of {target} is another machine's ({differing}): name this device otherwise, or remove {path}"
        )


def _predictor(target: Target, profiles: Path | None, *, calibrate_if_missing: bool = False) -> LatencyPredictor:
    from lownas.predictors import LatencyPredictor
    from lownas.predictors.latency.target import profile_folders

    known = any((folder / target.file_name).is_file() for folder in profile_folders(profiles))
    if not known and not calibrate_if_missing and target.box is not None:
        where = "" if profiles is None else f" --profiles {profiles}"
        command = f"lownas calibrate --target {target.box.file}{where}"
        raise ValueError(f"no profile of {target} yet: make one with `{command}`")
    if known or not calibrate_if_missing or not target.can_be_measured:
        return LatencyPredictor.load(target, profiles)
    where = "on this machine " if target.is_local else ""
    said = f"no profile of {target} {where}yet: calibrating (at most 4 minutes, once)"
    _stderr().print(said, highlight=False)
    return _calibrate(target, profiles)


def _calibrate(target: Target, profiles: Path | None, **options: Any) -> LatencyPredictor:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from lownas.predictors import LatencyPredictor
    from lownas.predictors.latency.calibration import Progress, calibrate
    from lownas.predictors.latency.target import profile_folders

    columns = (TextColumn("measuring"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar = Bar(*columns, TimeElapsedColumn(), console=_stderr())
    with _meter(target) as meter, ExitStack() as stack:
        known: Mapping[str, str] = {}
        with suppress(ValueError):  # of a broken profile another may be made
            known = LatencyPredictor.read(profile_folders(profiles)[0] / target.file_name).fingerprint
        _check_same_box(meter.target, known, profiles)
        task = bar.add_task("", total=None)

        def show(progress: Progress) -> None:
            if not bar.live.is_started:  # not before the request was found to be right
                stack.enter_context(bar)
            bar.update(task, completed=progress.done, total=progress.samples, description=progress.message)
            if progress.message.startswith("resumed"):
                bar.console.print(progress.message, highlight=False, soft_wrap=True)

        try:
            return calibrate(meter.target, meter.measure_for_calibration, profiles=profiles, progress=show, **options)
        except KeyboardInterrupt:
            if bar.live.is_started:
                bar.console.print("what was measured is kept: the same command goes on from there", soft_wrap=True)
            raise


def _items(
    configs: Sequence[Path] | None, presets: Sequence[str] | None, onnx: Sequence[Path] | None
) -> list[tuple[str, LowFormerConfig | Path]]:
    """What the user named, with the names to show."""
    items = _given(configs, presets, onnx)
    if not items:
        raise ValueError("nothing to do: name models with --preset, --config or --onnx")
    return items


def _given(
    configs: Sequence[Path] | None, presets: Sequence[str] | None, onnx: Sequence[Path] | None
) -> list[tuple[str, LowFormerConfig | Path]]:
    import difflib

    from lownas.search_space import PRESETS

    items: list[tuple[str, LowFormerConfig | Path]] = []
    for name in presets or ():
        if name == "all":
            items.extend(PRESETS.items())
        elif name in PRESETS:
            items.append((name, PRESETS[name]))
        else:
            near = difflib.get_close_matches(name, PRESETS, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(PRESETS)} and all"
            raise ValueError(f"--preset: unknown model {name!r}: {hint}")
    items.extend((str(path), _read_config(path)) for path in configs or ())
    for path in onnx or ():
        if not path.is_file():
            raise ValueError(f"--onnx: no file at {path}")
        items.append((str(path), path))
    return items


def _timm_graph(name: str, *, copies: bool) -> OpGraph:
    """A model of timm at its own input size, traced without weights; `copies` as in `op_graph_from_torch`."""
    import difflib

    try:
        import timm
    except ImportError as error:
        raise ValueError(f"--timm needs timm (pip install timm): {error}") from None
    except RuntimeError as error:  # torchvision's, of a build for another torch
        raise ValueError(f"--timm: timm cannot be imported ({error}): torchvision must fit torch") from None
    import torch

    from lownas.search_space import op_graph_from_torch

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise ValueError(f"--timm: unknown model {name!r}: {hint}")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    size = tuple(model.pretrained_cfg["input_size"])
    return op_graph_from_torch(model, size, copies=copies, channels_last=copies)


def _read_config(path: Path) -> LowFormerConfig:
    """A config file: what `export` and a run's best.json hold, or an entry of front/."""
    from lownas.search_space import LowFormerConfig

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        data = json.loads(text)
        if isinstance(data, dict) and isinstance(data.get("config"), dict) and "objective" in data:
            data = data["config"]
        return LowFormerConfig.from_dict(data)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@app.command()
def predict(
    target: Target_ = None,
    config: Configs = None,
    preset: Presets = None,
    onnx: Onnx = None,
    timm: Timm = None,
    coverage: Annotated[float, typer.Option(help="Probability that the interval holds the measured latency.")] = 0.9,
    profiles: Profiles = None,
    as_json: Json = False,
) -> None:
    """Predict latency on a target, without the device."""
    full = _target(target)
    if not 0 < coverage < 1:
        raise ValueError(f"--coverage: between 0 and 1, given {coverage}")
    items: list[tuple[str, LowFormerConfig | OpGraph | Path]] = [*_given(config, preset, onnx)]
    # PyTorch in eager mode executes copies that compilers remove.
    items += [(name, _timm_graph(name, copies=full.fusion == "torch-amp")) for name in timm or ()]
    if not items:
        raise ValueError("nothing to do: name models with --preset, --config, --onnx or --timm")
    predictor = _predictor(full, profiles)
    predictions = predictor.predict([item for _, item in items], coverage=coverage)
    if as_json:
        for (name, _), found in zip(items, predictions, strict=True):
            _print_json(
                {
                    "input": name,
                    "target": str(full),
                    "latency_ms": found.latency_ms,
                    "low_ms": found.low_ms,
                    "high_ms": found.high_ms,
                    "coverage": found.coverage,
                    "source": found.source,
                    "outside": list(found.outside),
                }
            )
        return
    from rich.table import Table

    per = " per image" if full.batch is None else ""
    table = Table(title=f"predicted latency on {full}")
    for column in ("model", f"ms{per}", f"{100 * coverage:g} % interval", "outside of what was measured"):
        table.add_column(column, justify="left" if column in ("model", "outside of what was measured") else "right")
    for (name, _), found in zip(items, predictions, strict=True):
        interval = f"{found.low_ms:.3g} - {found.high_ms:.3g}"
        table.add_row(name, f"{found.latency_ms:.4g}", interval, ", ".join(found.outside))
    out = _stdout()
    out.print(table)
    out.print(predictor.source, highlight=False, soft_wrap=True)


@app.command()
def measure(
    target: Target_ = "cpu",
    config: Configs = None,
    preset: Presets = None,
    onnx: Onnx = None,
    time_limit: Annotated[str, typer.Option(help="Warm-up and runs of one model end by then.")] = "10s",
    as_json: Json = False,
) -> None:
    """Measure latency on this machine, or on the one that a target's file names."""
    full = _target(target)
    limit_s = parse_duration(time_limit, "--time-limit")
    items = _items(config, preset, onnx)
    found: list[tuple[str, LatencyMeasurement]] = []
    try:
        for name, measurement in _measured(full, items, limit_s):
            found.append((name, measurement))
            if not as_json:
                continue
            _print_json(
                {
                    "input": name,
                    "target": str(full),
                    "median_ms": measurement.median_ms,
                    "iqr_ms": measurement.iqr_ms,
                    "p90_ms": measurement.p90_ms,
                    "p99_ms": measurement.p99_ms,
                    "runs": measurement.runs,
                    "noisy": measurement.noisy,
                }
            )
    finally:  # also of what was measured before an interrupt or a model that cannot run
        if found and not as_json:
            _print_measured(full, found)


def _measured(
    target: Target, items: Sequence[tuple[str, LowFormerConfig | Path]], limit_s: float
) -> Iterator[tuple[str, LatencyMeasurement]]:
    with _meter(target) as meter:
        for name, item in items:
            yield name, meter.measure(item, meter.target, time_limit_s=limit_s)


def _print_measured(target: Target, found: list[tuple[str, LatencyMeasurement]]) -> None:
    from rich.table import Table

    table = Table(title=f"measured latency on {target}")
    table.add_column("model")
    for column in ("median ms", "IQR ms", "p90 ms", "p99 ms", "runs"):
        table.add_column(column, justify="right")
    table.add_column("doubt")
    for name, m in found:
        numbers = (f"{value:.4g}" for value in (m.median_ms, m.iqr_ms, m.p90_ms, m.p99_ms))
        table.add_row(name, *numbers, str(m.runs), "noisy" if m.noisy else "")
    _stdout().print(table)


@app.command()
def calibrate(
    target: Target_ = "cpu",
    samples: Annotated[int | None, typer.Option(help="Configs to measure (40; with --until at most 200).")] = None,
    until: Annotated[
        str | None, typer.Option(help="Stop once the held-out error is below this, at 90 % confidence: 3%.")
    ] = None,
    space: Annotated[str, typer.Option(help="What to draw them from.")] = "default",
    time_limit: Annotated[str | None, typer.Option(help="No measurement begins later.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    profiles: Profiles = None,
    as_json: Json = False,
) -> None:
    """Measure a sample of the space on a device, fit a latency model, report its held-out error, save a profile."""
    full = _target(target)
    options: dict[str, Any] = {"space": space, "seed": seed}
    if samples is not None:
        options["samples"] = samples
    if until is not None:
        options["until"] = parse_percentage(until, "--until")
    if time_limit is not None:
        options["time_limit_s"] = parse_duration(time_limit, "--time-limit")
    predictor = _calibrate(full, profiles, **options)
    known = predictor.provenance
    from lownas.predictors.latency.target import profile_folders

    path = profile_folders(profiles)[0] / full.file_name
    if as_json:
        _print_json({"target": str(full), "profile": str(path), **known})
        return
    print(f"target:          {full}")
    print(f"measurements:    {known['samples']} configs, {known['probes']} probes")
    error, baseline = 100 * known["held_out_error"], 100 * known["macs_only_error"]
    print(f"held-out error:  {error:.1f} % (MACs alone: {baseline:.1f} %)")
    print(f"profile:         {path}")


@app.command()
def targets(profiles: Profiles = None, as_json: Json = False) -> None:
    """List the known targets: setting, measurements, held-out error, where they come from."""
    from lownas.predictors import list_profiles

    entries = list_profiles(profiles)
    if as_json:
        for entry in entries:
            _print_json(entry)
        return
    from rich.table import Table

    table = Table(title="targets")
    for column in ("name", "setting", "measured", "mean held-out error", "MACs alone"):
        table.add_column(column, justify="left" if column in ("name", "setting") else "right", no_wrap=True)
    missing, sources = [], []
    for entry in entries:
        name = entry["alias"] or entry["target"]
        if entry["path"] is None:
            missing.append(name)
            continue
        errors = [entry["held_out_error"], entry["macs_only_error"]]
        table.add_row(
            entry["alias"] or "",
            entry["target"],
            "not usable" if entry["samples"] is None else str(entry["samples"]),
            *("" if error is None else f"{100 * error:.1f} %" for error in errors),
        )
        sources.append(f"{name}: {entry['source'] if entry['usable'] else entry['reason']}")
    out = _stdout()
    out.print(table)
    for line in sources:
        out.print(line, highlight=False, soft_wrap=True)
    if missing:
        out.print(
            f"no profile yet: {', '.join(missing)} (lownas calibrate --target NAME)", highlight=False, soft_wrap=True
        )


@app.command()
def export(
    run: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    trial: Annotated[int | None, typer.Option(help="A trial instead of the answer.")] = None,
    preset: Annotated[str | None, typer.Option(help="A published model instead of a run's.")] = None,
    format: Annotated[str, typer.Option("--format", help="config, onnx; several with commas.")] = "config,onnx",
    out: Annotated[Path | None, typer.Option(help="Where to, without suffix [the config's id].")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's answer, or one of its trials, as a config file and an ONNX file (fresh weights)."""
    from lownas.search.results.export import export_config, run_config

    if (run is None) == (preset is None):
        raise ValueError("export: name either a run (--run) or a published model (--preset)")
    if preset is not None and (trial is not None or preset == "all"):
        raise ValueError("export: --preset names one published model, and has no trials")
    if run is not None:
        chosen = run_config(run, trial)
    else:
        ((_, chosen),) = _items(None, [str(preset)], None)  # type: ignore[assignment]
    formats = [part.strip() for part in format.split(",")]
    written = export_config(chosen, out or Path(chosen.id), formats=formats)
    if as_json:
        _print_json({"id": chosen.id, "files": [str(path) for path in written]})
    else:
        for path in written:
            print(path)


@app.command()
def doctor(profiles: Profiles = None, as_json: Json = False) -> None:
    """Say what this machine is, which versions are installed, and what can be measured here."""
    import platform

    import psutil

    from lownas.predictors import Target, list_profiles
    from lownas.predictors.latency.machine import cpu_name
    from lownas.predictors.latency.target import ALIASES
    from lownas.search.trials.run_folder import versions

    measurable: dict[str, str] = {}
    from lownas.evaluators.device.measure import check_measurable

    for alias in ALIASES:
        target = Target.parse(alias)
        if target.is_local:
            try:
                check_measurable(target)
            except ValueError as error:
                measurable[alias] = str(error)
            else:
                measurable[alias] = "can be measured here"
    usable = [entry["alias"] or entry["target"] for entry in list_profiles(profiles) if entry["usable"]]
    about: dict[str, Any] = {
        "lownas": lownas.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(psutil.getloadavg()[0], 2),
        "versions": versions(),
        "devices": measurable,
        "profiles": usable,
    }
    if as_json:
        _print_json(about)
        return
    for name, value in about.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, text in value.items():
                print(f"  {key:<16} {text or 'not installed'}")
        else:
            print(f"{name:<16} {', '.join(value) if isinstance(value, list) else value}")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our own warnings as one line on stderr, without the source line that raised them."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        print(f"lownas: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.showwarning = show
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0].startswith("-") and words[0] not in ("--help", "-h"):
        words.insert(0, "search")
    try:
        with _plain_warnings():
            result = app(words, prog_name="lownas", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        return _fail("interrupted", code) if code == INTERRUPTED else code
    except TyperException as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        if not text:  # the help was asked for
            return 0
        return _fail(text, getattr(error, "exit_code", 2))
    except ValueError as error:
        return _fail(str(error), 2)
    except (OSError, RuntimeError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def _fail(message: str, code: int) -> int:
    print(f"lownas: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
