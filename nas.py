"""The command line of lownas: `python nas.py --target rtx3090 --latency-budget 2ms`, or `lownas` once installed.

It parses, loads, calls and prints; everything else is in the packages. Results go to stdout, progress and warnings to
stderr. Exit codes: 0 done, 1 it failed, 2 the request was wrong.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich.markup import escape
    from typer.exceptions import TyperException

    import lownas
    from lownas.search.command_options import EVALUATE, TRAIN, CommandOption
    from lownas.search.results.printing import (
        plain_warnings,
        print_calibration,
        print_facts,
        print_json,
        print_judgement,
        print_lines,
        print_measured,
        print_plan,
        print_recipe,
        print_result,
        print_targets,
        print_trained,
        stdout,
    )
except ImportError as missing:
    sys.exit(
        f"lownas is not installed ({missing.name} is missing): "
        "run `pip install -c constraints.txt -e .` in the folder of nas.py"
    )

if TYPE_CHECKING:
    from lownas.predictors import Target
    from lownas.search import SearchResult
    from lownas.search_space import LowFormerConfig, OnnxFile, OpGraph

app = typer.Typer(
    name="lownas",
    help="Hardware-aware neural architecture search over the LowFormer space. Without a command, `search` is meant.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it


def _option(*names: str, help: str, group: str | None = None) -> Any:
    """An option; square brackets in its help stay as they are, which Typer takes for markup."""
    return typer.Option(*names, help=escape(help), rich_help_panel=group)


TargetOption = Annotated[
    str | None, _option("--target", help="Device and setting: rtx3090, cpu (`lownas targets`), or a YAML file.")
]
Profiles = Annotated[Path | None, _option("--profiles", help="Folder of your own target profiles.")]
Json = Annotated[bool, _option("--json", help="JSON on stdout, one document a line, and nothing else there.")]
Configs = Annotated[
    list[Path] | None, _option("--config", help="A config file (JSON) or a run folder; may be repeated.")
]
Presets = Annotated[list[str] | None, _option("--preset", help="A published model, or `all`; may be repeated.")]
Timm = Annotated[
    list[str] | None, _option("--timm", help="A model of timm (pip install timm), by name; may be repeated.")
]
Onnx = Annotated[list[Path] | None, _option("--onnx", help="An ONNX file; may be repeated.")]
InputShapes = Annotated[
    list[str] | None,
    _option("--input-shape", help="Of an ONNX file's input: 1x3x640x640, or NAME=1x3x640x640; may be repeated."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lownas {lownas.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _search_parameters() -> list[inspect.Parameter]:
    """The options of `search`: those of the settings, then those of the command line alone."""
    from lownas.search.settings import options

    kinds: dict[str, Any] = {"flag": bool | None, "budgets": list[str] | None}
    kinds |= dict.fromkeys(("seconds", "milliseconds", "amount", "bytes"), str | None)
    found: list[tuple[str, Any, Any]] = []
    for name, (_, field, option) in options().items():
        if not option.group:
            continue
        kind = kinds.get(option.kind) or (field.annotation | None)  # type: ignore[operator]
        default, dashed = option.shown_default(field), name.replace("_", "-")
        text = f"{option.help} [{default}]" if default else option.help
        flags = f"--{dashed}/--no-{dashed}" if option.kind == "flag" else f"--{dashed}"
        found.append((name, Annotated[kind, _option(flags, help=text, group=option.group)], None))
    own: tuple[tuple[str, Any, str, Any], ...] = (
        ("resume", bool, "Go on with the run in --run.", False),
        ("replay", Path | None, "Search again with the settings of this run.json.", None),
        ("profiles", Path | None, "Folder of your own target profiles.", None),
        ("dry_run", bool, "Only say what would be done.", False),
        ("json", bool, "JSON on stdout, and nothing else there.", False),
    )
    for name, kind, text, preset in own:
        found.append((name, Annotated[kind, _option(f"--{name.replace('_', '-')}", help=text, group="Run")], preset))
    only = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, only, default=default, annotation=kind) for name, kind, default in found]


def _signed(function: Any, parameters: list[inspect.Parameter]) -> None:
    """Makes a function a command with these options."""
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command()(function)


def search(*, resume: bool, replay: Path | None, profiles: Path | None, dry_run: bool, **given: Any) -> None:
    """Search for the most accurate backbone within a latency budget on a device."""
    from lownas.search.api import search_from

    as_json = given.pop("json")
    given = {name: value for name, value in given.items() if value not in (None, [], ())}
    if resume and "run" not in given:
        raise ValueError("--resume: name the run to go on with (--run DIR)")
    if resume and replay:
        raise ValueError("--resume and --replay: one or the other")
    earlier = Path(given["run"]) if resume else replay
    if dry_run:
        _print_dry_run(given, profiles, earlier, as_json=as_json)
        return
    said: list[SearchResult] = []

    def searched(result: SearchResult) -> None:
        if not as_json:
            print_result(result)
            said.append(result)

    with _second_interrupt_ends():
        result = search_from(given, profiles=profiles, progress=True, earlier=earlier, resume=resume, searched=searched)
    if as_json:
        print_json(result.to_dict())
    else:
        print_result(result, *said)
    if result.answer is None:
        raise RuntimeError("the search found no answer: see the notes above and log.txt in the run folder")


_signed(search, _search_parameters())


def _command_parameters(options: Sequence[CommandOption]) -> list[inspect.Parameter]:
    found = []
    for option in options:
        kind: Any = option.kind if option.kind is bool else option.kind | None
        default = False if option.kind is bool else None
        annotation = Annotated[kind, _option(option.flags, help=option.help, group=option.group)]
        found.append(
            inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return found


def train(*, dry_run: bool, json: bool, **given: Any) -> None:
    """Train a run's answer, or another network, to its final weights."""
    from lownas.search.final.commands import plan_from, train_from

    if dry_run:
        plan = plan_from(given)
        print_json(plan.to_dict()) if json else print_recipe(plan, result=True)
        return
    with _second_interrupt_ends():
        trained = train_from(given, announce=print_recipe)
    print_json(trained.to_dict()) if json else print_trained(trained, trained.folder)


def evaluate(*, json: bool, **given: Any) -> None:
    """Judge a trained network: accuracy, classes, confusions, calibration."""
    from lownas.search.final.commands import evaluate_from

    judgement = evaluate_from(given)
    print_json(judgement.to_dict()) if json else print_judgement(judgement)


_signed(train, _command_parameters(TRAIN))
_signed(evaluate, _command_parameters(EVALUATE))


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


def _print_dry_run(given: dict[str, Any], profiles: Path | None, earlier: Path | None, *, as_json: bool) -> None:
    import dataclasses

    from lownas.search.api import dry_run

    settings, plan = dry_run(given, profiles=profiles, earlier=earlier)
    if as_json:
        budget = {"target": settings.target, "latency_budget_ms": settings.latency_budget_ms}
        print_json({**dataclasses.asdict(plan), **budget})
        return
    print_plan(settings, dataclasses.asdict(plan))


def _target(name: str | None) -> Target:
    from lownas.predictors import Target

    if name is None:
        raise ValueError("--target is missing: which device? (rtx3090, cpu, ...; `lownas targets` lists them)")
    return Target.load(name)


@app.command()
def predict(
    target: Annotated[
        list[str] | None, _option("--target", help="Device and setting; may be repeated. [all that have a profile]")
    ] = None,
    config: Configs = None,
    preset: Presets = None,
    onnx: Onnx = None,
    input_shape: InputShapes = None,
    timm: Timm = None,
    accuracy: Annotated[
        bool, _option("--accuracy", help="Estimate ImageNet top-1 too, of configurations and published models.")
    ] = False,
    coverage: Annotated[float, _option(help="Probability that an interval holds what it is for.")] = 0.9,
    plot: Annotated[Path | None, _option(help="Write a chart (HTML) of the latencies with their intervals.")] = None,
    profiles: Profiles = None,
    as_json: Json = False,
) -> None:
    """Predict latency on one target or several, without the device, and ImageNet top-1."""
    from lownas.search.devices import known_targets, load_predictor, predict_accuracy, timm_graph
    from lownas.search.given import given_networks, naming
    from lownas.search.results.comparison import comparison_table, write_chart
    from lownas.search.results.tables import accuracy_record, prediction_record, prediction_table

    chosen = [_target(name) for name in target or ()] or known_targets(profiles)
    if not 0 < coverage < 1:
        raise ValueError(f"--coverage: between 0 and 1, given {coverage}")
    given: list[tuple[str, LowFormerConfig | OpGraph | OnnxFile]] = [*given_networks(config, preset, onnx, input_shape)]
    if not given and not timm:
        raise ValueError("nothing to do: name models with --preset, --config, --onnx or --timm")
    predictors, found = {full: load_predictor(full, profiles) for full in chosen}, {}
    for full, predictor in predictors.items():
        # PyTorch in eager mode executes copies that compilers remove.
        items = given + [(name, timm_graph(name, copies=full.fusion == "torch-amp")) for name in timm or ()]
        predictions = predictor.predict([item for _, item in items], coverage=coverage)
        found[full] = [(name, prediction) for (name, _), prediction in zip(items, predictions, strict=True)]
    with naming("--accuracy"):
        estimates = predict_accuracy([item for _, item in items], coverage=coverage) if accuracy else None
    if plot is not None:
        write_chart(found, coverage, plot)
    if as_json:
        for full, rows in found.items():
            for (name, prediction), expected in zip(rows, estimates or [None] * len(rows), strict=True):
                record = prediction_record(name, full, prediction)
                print_json({**record, "accuracy": accuracy_record(expected)} if accuracy else record)
    elif len(found) > 1:
        stdout().print(comparison_table(found, coverage, estimates))
    for full, predictor in predictors.items() if len(found) == 1 and not as_json else ():
        stdout().print(prediction_table(full, found[full], coverage, estimates))
        print_lines([predictor.source])


@app.command()
def measure(
    target: TargetOption = "cpu",
    config: Configs = None,
    preset: Presets = None,
    onnx: Onnx = None,
    input_shape: InputShapes = None,
    time_limit: Annotated[
        str, _option(help="Looks at one model are spread over this time, up to 6 times it on a restless machine.")
    ] = "10s",
    profiles: Profiles = None,
    as_json: Json = False,
) -> None:
    """Measure latency on this machine, or on the one that a target's file names."""
    from lownas.search.devices import open_meter
    from lownas.search.given import given_networks
    from lownas.search.quantities import parse_duration

    full = _target(target)
    limit_s = parse_duration(time_limit, "--time-limit")
    items = given_networks(config, preset, onnx, input_shape)
    if not items:
        raise ValueError("nothing to do: name models with --preset, --config or --onnx")
    with open_meter(full) as meter, meter.looks(profiles) as looks:
        try:
            looks.take(dict(items), limit_s, partial(print, file=sys.stderr))
        finally:  # also of what was measured before an interrupt or a model that cannot run
            print_measured(full, looks, as_json=as_json)


@app.command()
def calibrate(
    target: TargetOption = "cpu",
    samples: Annotated[int | None, _option(help="Configs to measure [40; with --until at most 200].")] = None,
    until: Annotated[
        str | None, _option(help="Stop once the held-out error is below this, at 90 % confidence: 3%.")
    ] = None,
    space: Annotated[str, _option(help="What to draw them from.")] = "default",
    time_limit: Annotated[str | None, _option(help="No measurement begins later.")] = None,
    seed: Annotated[int, _option(help="Of the sample.")] = 0,
    profiles: Profiles = None,
    as_json: Json = False,
) -> None:
    """Measure a sample of the space on a device, fit a latency model, report its held-out error, save a profile."""
    from lownas.predictors.latency.target import profile_folders
    from lownas.search.devices import calibrate as run_calibration

    full = _target(target)
    predictor = run_calibration(
        full,
        samples=samples,
        until=until,
        space=space,
        time_limit=time_limit,
        seed=seed,
        profiles=profiles,
        progress=True,
    )
    known = predictor.provenance
    path = profile_folders(profiles)[0] / full.file_name
    if as_json:
        print_json({"target": str(full), "profile": str(path), **known})
        return
    print_calibration(str(full), path, known)


@app.command()
def elements(
    target: TargetOption = "cpu",
    out: Annotated[Path | None, _option(help="Folder for the results [elements- and the target].")] = None,
    quick: Annotated[bool, _option("--quick", help="At few places, in 4 minutes.")] = False,
    time_limit: Annotated[str | None, _option(help="For all looks [18m, quick 3m].")] = None,
    onnx: Onnx = None,
    emit_space: Annotated[Path | None, _option(help="Write a space without what is dominated here.")] = None,
    space: Annotated[str, _option(help="What that space is made from.")] = "default",
    profiles: Profiles = None,
    as_json: Json = False,
) -> None:
    """Measure what design elements cost on a device, and which of the papers' guidelines hold there."""
    from lownas.search.elements.api import elements as measure_elements
    from lownas.search.elements.shown import ElementsBar, print_elements

    full, files = _target(target), onnx or ()
    with ElementsBar() as bar:
        found = measure_elements(
            full, out=out, quick=quick, time_limit=time_limit, onnx=files, emit_space=emit_space, space=space,
            profiles=profiles, progress=bar, say=bar.say,
        )  # fmt: skip
    print_json(found.to_dict()) if as_json else print_elements(found)


@app.command()
def targets(profiles: Profiles = None, as_json: Json = False) -> None:
    """List the known targets: setting, measurements, held-out error, where they come from."""
    from lownas.predictors import list_profiles

    entries = list_profiles(profiles)
    if as_json:
        for entry in entries:
            print_json(entry)
        return
    print_targets(entries)


@app.command()
def export(
    run: Annotated[Path | None, _option(help="The run folder, or that of a training.")] = None,
    trial: Annotated[int | None, _option(help="A trial instead of the answer.")] = None,
    preset: Annotated[str | None, _option(help="A published model instead of a run's.")] = None,
    format: Annotated[str, _option("--format", help="config, onnx, weights; several with commas.")] = "config,onnx",
    out: Annotated[Path | None, _option(help="Where to, without suffix [the config's id].")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's answer, one of its trials or a trained network: with trained weights where it has some."""
    from lownas.search.devices import preset as published
    from lownas.search.given import naming
    from lownas.search.results.exporters import export_config
    from lownas.search.results.files import Exportable, exportable

    if (run is None) == (preset is None):
        raise ValueError("export: name either a run (--run) or a published model (--preset)")
    if preset is not None and (trial is not None or preset == "all"):
        raise ValueError("export: --preset names one published model, and has no trials")
    if run is not None:
        chosen = exportable(run, trial)
    else:
        with naming("--preset"):
            chosen = Exportable(published(str(preset)))
    config, formats = chosen.config, [part.strip() for part in format.split(",")]
    written = export_config(config, out or Path(config.id), formats=formats, model=chosen.model, about=chosen.about)
    if as_json:
        print_json({"id": config.id, "files": [str(path) for path in written], "weights": chosen.weights})
    else:
        print_lines([*map(str, written), chosen.weights])


@app.command()
def doctor(profiles: Profiles = None, as_json: Json = False) -> None:
    """Say what this machine is, which versions are installed, and what can be measured here."""
    from lownas.search.doctor import describe_machine

    about = describe_machine(profiles)
    if as_json:
        print_json(about)
        return
    print_facts(about)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0].startswith("-") and words[0] not in ("--help", "-h", "--version"):
        words.insert(0, "search")
    try:
        with plain_warnings():
            result = app(words, prog_name="lownas", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        return _fail("interrupted", code) if code == INTERRUPTED else code
    except TyperException as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        if not text:  # the help was asked for
            return 0
        # Of a choice typer says what pydantic says of it.
        return _fail(text.replace("Value error, ", ""), getattr(error, "exit_code", 2))
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
