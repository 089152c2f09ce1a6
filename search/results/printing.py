"""What a person sees of a command: on stdout its result as a table or as JSON, on stderr warnings, a line each."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..quantities import duration_text

if TYPE_CHECKING:
    from rich.console import Console

    from ...evaluators.training.final.judging import Judgement
    from ...evaluators.training.final.planning import Plan
    from ...evaluators.training.final.records import TrainedNetwork
    from ...predictors import Target
    from ..latency.looks import Looks
    from ..settings import SearchSettings
    from .search_result import SearchResult

RUN_FILES = ("front/", "best.json", "best.onnx", "best.safetensors", "training/", "report.html")


def stdout() -> Console:
    """Where tables are printed: lines wrap as a terminal is wide, and piped ones stay whole."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def print_json(value: object) -> None:
    """Prints a document on one line."""
    print(json.dumps(value, allow_nan=False), flush=True)


def print_lines(lines: Sequence[str]) -> None:
    """Prints sentences as they are, wrapped only by the terminal."""
    out = stdout()
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True, markup=False)


def print_result(result: SearchResult, before: SearchResult | None = None) -> None:
    """The table of a search, what must be known of it, and where it left what.

    `before` was printed already, before the answer was trained: then only what is new.
    """
    from .tables import result_table

    if before is None:
        stdout().print(result_table(result))
    known = () if before is None else before.notes
    print_lines([f"- {note}" for note in result.notes if note not in known])
    left = [name for name in RUN_FILES if (result.run / name).exists()]
    stdout().print(f"run folder: {result.run} ({', '.join(left)})", soft_wrap=True)


def print_plan(settings: SearchSettings, plan: Mapping[str, Any]) -> None:
    """What a search would do; `plan` has the fields of a `DryRun`."""
    share = f"{100 * plan['feasible_share']:.0f} % of random samples are within {settings.latency_budget_ms:g} ms"
    print(f"target:    {settings.target}")
    print(f"space:     {settings.space}, {plan['size']:.2e} combinations; {share}")
    extremes = f"{plan['fastest_ms']:.3g} to {plan['slowest_ms']:.3g} ms"
    print(f"latency:   {extremes}, fastest to slowest (quantile {settings.confidence:g} of the prediction)")
    trainings = (
        f"{plan['trainings']:.3g}, with {settings.workers} workers" if plan["trainings"] else "none (see --data)"
    )
    print(f"trainings: {trainings}; about {duration_text(plan['expected_s'])}")
    if settings.train_s is not None:
        print(f"then:      the answer is trained for {duration_text(settings.train_s)}")


def print_recipe(plan: Plan, *, result: bool = False) -> None:
    """Every choice of a final training: on stderr before a training, on stdout where that is the result."""
    from rich.console import Console

    from .tables import recipe_table

    said = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=120)
    (stdout() if result else said).print(recipe_table(plan))


def print_trained(trained: TrainedNetwork, folder: Path) -> None:
    """What a final training came to."""
    what = "validation" if trained.classes else "validation score"
    score = trained.validation_accuracy
    judged = "" if score is None else f", {what} {100 * score:.2f} %"
    print(f"trained:  {trained.epochs} epochs in {duration_text(trained.seconds)}{judged}")
    print(f"weights:  {folder / 'best.safetensors'}")
    print(f"next:     lownas evaluate --checkpoint {folder}; lownas export --run {folder}")


def print_judgement(judgement: Judgement) -> None:
    """A network's figures on a part of the data."""
    from .tables import judgement_tables

    for table in judgement_tables(judgement):
        stdout().print(table)


def print_calibration(target: str, profile: Path, known: Mapping[str, Any]) -> None:
    """How a calibration went, by the provenance of its profile."""
    percent = {name: f"{100 * value:.1f} %" for name, value in known.items() if isinstance(value, float)}
    helps = "would help" if known["more_looks_would_help"] else "would not help"
    facts = {
        "target": target,
        "measurements": f"{known['samples']} configs, {known['probes']} probes",
        "held-out error": f"{percent['held_out_error']} (MACs alone: {percent['macs_only_error']})",
        "its parts": f"{percent['held_out_rms']} in root mean square: {percent['noise_rms']} noise of the looks, "
        f"{percent['model_rms']} the model",
        "looks": f"{known['looks']}; more {helps}",
        "machine": f"{percent['slowness']} slower than undisturbed, on average",
        "profile": str(profile),
    }
    for name, text in facts.items():
        print(f"{name + ':':<16} {text}")


def print_measured(target: Target, looks: Looks, *, as_json: bool) -> None:
    """What looks at networks say of each, and how restless the machine was."""
    from .tables import measurement_record, measurement_table

    found = looks.latencies()
    if as_json:
        for name, measured in found.items():
            print_json(measurement_record(name, target, measured))
    elif found:
        stdout().print(measurement_table(target, found))
        print_lines([looks.restlessness] if looks.restlessness else [])


def print_targets(entries: Sequence[Mapping[str, Any]]) -> None:
    """The known targets, as `predictors.list_profiles` gives them."""
    from .tables import targets_table

    stdout().print(targets_table(entries))
    known = [entry for entry in entries if entry["path"] is not None]
    print_lines([f"{_name(entry)}: {entry['source'] if entry['usable'] else entry['reason']}" for entry in known])
    if missing := [_name(entry) for entry in entries if entry["path"] is None]:
        print_lines([f"no profile yet: {', '.join(missing)} (lownas calibrate --target NAME)"])


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["alias"] or entry["target"])


def print_facts(about: Mapping[str, Any]) -> None:
    """A mapping line by line; one in it, and sentences, stand below their name, and what is empty is left out."""
    for name, value in about.items():
        if isinstance(value, Mapping):
            lines = [f"{key:<18} {'not installed' if text is None else text}" for key, text in value.items()]
        elif isinstance(value, list) and any(" " in text for text in value):
            lines = [f"- {text}" for text in value]
        else:
            if value != []:
                print(f"{name:<18} {', '.join(value) if isinstance(value, list) else value}")
            continue
        if lines:
            print("\n  ".join([f"{name}:", *lines]))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows what is worth a warning as one line on stderr, without the source line that raised it."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        print(f"lownas: warning: {message}", file=sys.stderr)

    said = logging.StreamHandler()
    said.setLevel(logging.WARNING)
    said.setFormatter(logging.Formatter("lownas: warning: %(message)s"))
    logging.getLogger("lownas").addHandler(said)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings("ignore", category=category)
            warnings.showwarning = show
            yield
    finally:
        logging.getLogger("lownas").removeHandler(said)
