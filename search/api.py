"""The one way in for code: `search`, `resume`, `replay` and `dry_run`, in the words of the command line.

Parts are found by their names here (predictor, space, data, strategy, objective, task), then `run_search` searches.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..evaluators import tasks
from ..evaluators.data import sources
from ..evaluators.data.sources import Data, DataSource
from ..predictors import LatencyPredictor, Target
from ..search_space import SearchSpace
from .devices import (
    Device,
    check_same_machine,
    load_or_calibrate,
    load_predictor,
    open_meter,
    warn_of_other_settings,
)
from .latency.correction import Predictor
from .loop import Callback
from .objectives import Objective
from .paths import absolute, absolute_data, check_writable, new_folder
from .results.files import with_training, write_result
from .results.search_result import SearchResult
from .run_search import (
    DryRun,
    Parts,
    check_classes,
    check_space,
    describe_search,
    resolve_choices,
    run_search,
    whole_range_ms,
)
from .settings import SearchSettings, options, read_options
from .strategies import Strategy
from .training.task import Evaluate
from .trials.database import check_storage
from .trials.run_folder import check_free, read_about
from .trials.status import Progress

REST_S = 6.0  # between two looks at a network
LOOK_IMAGES, LOOK_PIXELS = 64, 32  # how much of the data is looked at before anything starts
_WHOLE_RANGE = "whole_range"  # in run.json: that no budget was given, and the front is of the whole space
_UNBOUNDED_MS = 1e9  # in the place of the budget of a front without one, until the predictor has said what that is


def search(
    target: Device | None = None,
    latency_budget: str | None = None,
    *,
    space: str | Path | SearchSpace | None = None,
    data: Data | None = None,
    task: str | tasks.Task | None = None,
    strategy: str | Strategy | None = None,
    objective: str | type[Objective] | None = None,
    predictor: Predictor | None = None,
    evaluate: Evaluate | None = None,
    callback: Callback | None = None,
    progress: bool | Progress = False,
    profiles: str | Path | None = None,
    run: str | Path | None = None,
    **settings: Any,
) -> SearchResult:
    """Searches for the most accurate backbone within a latency budget on a device.

        result = search("cpu", "20ms", data="imagefolder:pictures", run="runs/a")

    It does what `lownas search` does, and leaves everything in the run folder: a device at hand that has no profile is
    calibrated, candidates are found, with `data` trained and told to an Optuna study, the best are measured, and the
    answer, the front and the report are written.

    Without `data` ImageNet top-1 is maximized as far as published results let it be predicted, and nothing trains: the
    best predicted networks, `trials` of them, are the candidates (`accuracy` None, `seeds` 0). They are trained too if
    `proxy_budget`, `proxy_epochs`, `init_from`, `rungs`, `strategy` or `evaluate` is given.

    Args:
        target: name of a target ("rtx3090", "cpu"), or the YAML file of a device.
        latency_budget: what the latency must not exceed: "2ms". Not needed with `pareto=True`.
        space: "default", "tiny", a YAML file, or a `SearchSpace`.
        data: what to train on: a specification ("imagefolder:DIR"), a `DataSource`, or arrays (images, labels).
        task: name of a task, or a `Task`.
        strategy: name of a strategy, or a `Strategy`.
        objective: name of an objective, or a subclass of `Objective`.
        predictor: of the target's latency, in the place of its profile.
        evaluate: judges a candidate in the place of proxy training: a `TrainingTask` to an `Evaluation` or an accuracy.
        callback: is called with each `EvaluationResult`, of a trial or a predicted network; the search ends early if it
            gives True.
        progress: True shows a bar; a function is called with each `SearchStatus`.
        profiles: folder of the user's own target profiles.
        run: the run folder; runs/TARGET-BUDGET-N if None.
        settings: all other settings of the command line by their names: `max_params="5M"`, `trials=40`, `workers=0`.

    Returns what was found; `answer` is None if nothing fits.

    Raises:
        ValueError: the request is wrong; one line says what was given and what is allowed.
        OSError: the run folder or the device cannot be used.
        RuntimeError: every candidate failed.
    """
    given = {"target": _named_target(target), "latency_budget": latency_budget, "run": run, **settings}
    given |= {"space": space, "data": data, "task": task, "strategy": strategy, "objective": objective}
    asked = _Asked(given, predictor, evaluate, callback, progress, profiles)
    return _search(asked)


def resume(
    run: str | Path,
    *,
    space: str | Path | SearchSpace | None = None,
    data: Data | None = None,
    task: str | tasks.Task | None = None,
    strategy: str | Strategy | None = None,
    objective: str | type[Objective] | None = None,
    predictor: Predictor | None = None,
    evaluate: Evaluate | None = None,
    callback: Callback | None = None,
    progress: bool | Progress = False,
    profiles: str | Path | None = None,
    **settings: Any,
) -> SearchResult:
    """Goes on with the search in a run folder, from what was finished.

    A run that trains nothing finds its networks again, and with more `trials` keeps more of them. Objects that were
    passed to `search` must be passed again. Of the settings only those may change that do not decide what the run's
    numbers mean: `trials`, `repeats`, `workers`, `time_budget` and the like.

    Raises as `search`; ValueError also if there is no run, or another process works on it.
    """
    given = {"run": run, **settings}
    given |= {"space": space, "data": data, "task": task, "strategy": strategy, "objective": objective}
    asked = _Asked(given, predictor, evaluate, callback, progress, profiles, earlier=Path(run), resume=True)
    return _search(asked)


def replay(
    earlier: str | Path,
    *,
    target: Device | None = None,
    latency_budget: str | None = None,
    predictor: Predictor | None = None,
    evaluate: Evaluate | None = None,
    callback: Callback | None = None,
    progress: bool | Progress = False,
    profiles: str | Path | None = None,
    **settings: Any,
) -> SearchResult:
    """Searches again with the settings of an earlier run, given as its folder or its run.json.

    A run that trained nothing trains if that is asked for now (`proxy_budget="30m"`, `data=...`). Settings and objects
    given here, as `search` takes them, replace those of the run. Raises as `search`.
    """
    given = {"target": _named_target(target), "latency_budget": latency_budget, **settings}
    asked = _Asked(given, predictor, evaluate, callback, progress, profiles, earlier=Path(earlier))
    return _search(asked)


def dry_run(
    given: Mapping[str, Any], *, profiles: str | Path | None = None, earlier: Path | None = None
) -> tuple[SearchSettings, DryRun]:
    """Says what a search with these settings (as `search` takes them) would do, without training or writing.

    Raises as `search`.
    """
    prepared = _prepare(_Asked(given, None, None, None, False, profiles, earlier=earlier), calibrate=False)
    plan = describe_search(prepared.settings, prepared.parts)
    if not plan.trainings:
        _warn_without_effect(given)
    return prepared.settings, plan


def search_from(
    given: Mapping[str, Any],
    *,
    profiles: str | Path | None = None,
    progress: bool | Progress = False,
    earlier: Path | None = None,
    resume: bool = False,
    searched: Callable[[SearchResult], None] | None = None,
) -> SearchResult:
    """Searches, resumes or replays with settings as the command line has them: what `nas.py` calls.

    `searched` is told what was found before the answer is trained, where that follows.
    """
    asked = _Asked(given, None, None, None, progress, profiles, earlier=earlier, resume=resume, searched=searched)
    return _search(asked)


# The names that are in **settings, for whoever asks what `search` takes.
def _documented(function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in options()
        if name not in signature.parameters
    ]
    function.__signature__ = signature.replace(parameters=[*named, *more])  # type: ignore[attr-defined]


for _function in (search, resume, replay):
    _documented(_function)


# --- from names to parts


@dataclass(frozen=True)
class _Asked:
    """What the caller gave: settings as people write them, with objects where these have names."""

    given: Mapping[str, Any]
    predictor: Predictor | None
    evaluate: Evaluate | None
    callback: Callback | None
    progress: bool | Progress
    profiles: str | Path | None
    earlier: Path | None = None
    resume: bool = False
    searched: Callable[[SearchResult], None] | None = None


@dataclass(frozen=True)
class _Prepared:
    """The settings and parts of a search whose device is not opened yet."""

    settings: SearchSettings
    parts: Parts
    target: Target
    predictor: Predictor


def _search(asked: _Asked) -> SearchResult:
    prepared = _prepare(asked)
    with ExitStack() as stack:
        parts, target = prepared.parts, prepared.target
        if target.can_be_measured:
            meter = stack.enter_context(open_meter(target))
            if isinstance(prepared.predictor, LatencyPredictor):
                check_same_machine(meter.target, prepared.predictor.fingerprint, asked.profiles)

            if isinstance(prepared.predictor, LatencyPredictor) and not target.is_local:
                warn_of_other_settings(prepared.predictor, meter.settings)
            measuring = stack.enter_context(meter.measuring(asked.profiles, REST_S))
            parts = replace(parts, measuring=measuring)
        if asked.progress is True:
            from .results.progress import SearchProgress

            parts = replace(parts, progress=stack.enter_context(SearchProgress()))
        elif callable(asked.progress):
            parts = replace(parts, progress=asked.progress)
        result = run_search(prepared.settings, parts, resume=asked.resume)
    result = with_training(result)
    write_result(result)
    result.report()
    if result.candidates and not result.trained:
        _warn_without_effect(asked.given)
    return result if prepared.settings.train_s is None else _trained(result, prepared, asked)


def _trained(result: SearchResult, prepared: _Prepared, asked: _Asked) -> SearchResult:
    """The result with its answer trained, if it was not before; the run's files then hold the trained network."""
    if result.answer is None or result.cut_short:
        return result
    from .final.after_search import AfterSearch, train_answer
    from .results.printing import print_recipe

    if asked.searched is not None and result.final is None:
        asked.searched(result)
    parts, shown = prepared.parts, asked.progress is True
    after = AfterSearch(
        prepared.target,
        prepared.predictor,
        parts.data if parts.data is not None else str(prepared.settings.data),
        parts.task if parts.task is not None else prepared.settings.task,
        asked.profiles,
        shown,
        print_recipe if shown else None,
    )
    done = train_answer(result, after)
    if done is not result:
        write_result(done)
        done.report()
    return done


def _prepare(asked: _Asked, *, calibrate: bool = True) -> _Prepared:
    """Reads the settings and finds all parts; what is wrong with them is said before anything starts."""
    about = read_about(asked.earlier) if asked.earlier is not None else None
    if asked.resume and asked.earlier is not None:
        check_free(asked.earlier)
    given, objects = _names(asked.given)
    target, budgeted, values = _values(given, about, resume=asked.resume)
    settings = SearchSettings.from_dict({"latency_budget_ms": _UNBOUNDED_MS, **values})
    check_storage(settings.storage)
    task = tasks.task(objects.get("task", settings.task))
    objective, _, _ = resolve_choices(settings, objects.get("strategy"), objects.get("objective"), task)
    space = _space(objects.get("space"), settings, None if "space" in given or "resolution" in given else about)
    space = _with_head(space, task)
    judged = settings.data is not None or asked.evaluate is not None or asked.resume  # by something else, or before
    if objective.is_imagenet_top1 and not judged:
        check_classes(space, shipped="space" not in objects and not Path(settings.space).is_file())
    if about is not None and asked.resume:
        check_space(space, about)
    facts = _checked_inputs(settings, target, objects.get("data"), task)
    if not budgeted or (about is not None and about.get(_WHOLE_RANGE) and asked.resume):
        facts[_WHOLE_RANGE] = True
    if calibrate:
        _check_run_folder(Path(settings.run), resume=asked.resume)
    say = _speaker(asked.progress)
    calibrated_on = objects.get("space") or (SearchSpace.load(settings.space) if about is None else None)
    predictor = asked.predictor or _predictor(target, asked, say, calibrated_on, calibrate=calibrate)
    if settings.budget_on != "undisturbed" and not target.can_be_measured:
        raise ValueError(
            f"--budget-on {settings.budget_on}: {target} is not at hand, and predicted latencies are undisturbed ones"
        )
    if not budgeted:
        budget_ms = whole_range_ms(settings, predictor, space, measurable=target.can_be_measured)
        settings = settings.replace(latency_budget_ms=budget_ms)
    also = {
        name: _predictor(Target.load(name), asked, say, calibrated_on, calibrate=calibrate) for name in settings.also
    }
    if isinstance(predictor, LatencyPredictor):
        facts["latency_profile"] = predictor.provenance
        say(f"target {target}: {predictor.source}")
    parts = Parts(
        predictor=predictor,
        space=space,
        also=also,
        strategy=objects.get("strategy"),
        objective=objects.get("objective"),
        data=objects.get("data"),
        task=task,
        callback=asked.callback,
        about=facts,
    )
    if asked.evaluate is not None:
        parts = replace(parts, evaluate=asked.evaluate)
    return _Prepared(settings, parts, target, predictor)


def _warn_without_effect(given: Mapping[str, Any]) -> None:
    """Says which options do nothing where nothing trains."""
    about_trainings = ("repeats", "workers", "gpu_fraction", "trial_timeout", "ray_address", "insecure", "time_budget")
    idle = [name for name in (*about_trainings, "storage") if given.get(name) is not None]
    if idle:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        warnings.warn(f"no effect: {names}; nothing trains without --data or --proxy-budget", stacklevel=2)


def _named_target(target: Device | None) -> str | None:
    """The name of a target, or the file of one on another machine."""
    if isinstance(target, Target) and target.box is not None and target.box.file is not None:
        return str(target.box.file)
    return None if target is None else str(target)


def _names(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings with names in the place of objects, and the objects."""
    values, objects = {name: value for name, value in given.items() if value is not None}, {}
    for name, kind in (("strategy", Strategy), ("task", tasks.Task), ("space", SearchSpace)):
        if isinstance(values.get(name), kind):
            objects[name] = values[name]
            values[name] = objects[name].name
    if isinstance(values.get("objective"), type):
        objects["objective"] = values["objective"]
        values["objective"] = objects["objective"].name
    if not isinstance(values.get("data"), str | None):
        objects["data"] = sources.source(values["data"])
        values["data"] = objects["data"].spec
    for name in ("run", "space", "init_from"):
        if isinstance(values.get(name), Path):
            values[name] = str(values[name])
    return values, objects


def _values(
    given: dict[str, Any], about: dict[str, Any] | None, *, resume: bool
) -> tuple[Target, bool, dict[str, Any]]:
    """The target, whether there is a budget, and the values of the settings: those of the earlier run, then `given`."""
    target, budget = given.pop("target", None), given.pop("latency_budget", None)
    values = dict(about["settings"]) if about is not None else {}
    # The range of a front without a budget is that of the run's device: of another one it is another.
    ranged = about is not None and about.get(_WHOLE_RANGE, False) and not resume
    if ranged:
        values.pop("latency_budget_ms", None)
    budgeted = budget is not None or "latency_budget_ms" in values
    if about is not None:
        file, known = about.get("target_file"), values.get("target")
        if target is None and isinstance(file, str) and not Path(file).is_file():
            raise ValueError(f"the run's target file {file} is gone: name it, or {known}, with --target")
        target = target or file or known
    if target is None:
        raise ValueError("--target is missing: which device? (rtx3090, cpu, ...; `lownas targets` lists them)")
    if not budgeted and not given.get("pareto", values.get("pareto")):
        raise ValueError("--latency-budget is missing: how long may one image take? (2ms, 800us; or --pareto)")
    full = Target.load(target)
    values |= read_options({**given, "latency_budget": budget})
    if "also" in given:
        values["also"] = {str(Target.load(name)): budget_ms for name, budget_ms in values["also"].items()}
    if values.get("ray_address") is not None and "workers" not in values:
        raise ValueError("--ray-address: say with --workers how many candidates train there at once")
    values.setdefault("workers", _cores())
    for name, found in (("space", absolute), ("init_from", absolute), ("data", absolute_data)):
        if name in given:
            values[name] = found(str(values[name]))
    values["target"] = str(full)
    if "run" not in given:
        if budgeted and not isinstance(values["latency_budget_ms"], int | float):
            raise ValueError(f"latency_budget_ms: a number is expected, given {values['latency_budget_ms']!r:.80}")
        shown = f"{values['latency_budget_ms']:g}ms" if budgeted else "front"
        values["run"] = str(_new_run(full, shown))
    return full, budgeted, values


def _space(given: SearchSpace | None, settings: SearchSettings, about: dict[str, Any] | None) -> SearchSpace:
    """The space given, that of the earlier run as run.json holds it, or the one that the settings name."""
    if given is not None:
        return given
    if about is not None and isinstance(about.get("space"), dict):
        return SearchSpace.from_dict(about["space"], "of the earlier run")
    return SearchSpace.load(settings.space, settings.resolution)


def _with_head(space: SearchSpace, task: tasks.Task) -> SearchSpace:
    """The same space of networks with the head that the task needs."""
    if space.choices.head == task.head:
        return space
    return SearchSpace(space.choices.model_copy(update={"head": task.head}))


def _checked_inputs(
    settings: SearchSettings, target: Target, data: DataSource | None, task: tasks.Task
) -> dict[str, Any]:
    """Facts for run.json beside the settings; looks at the data and the weights that are inherited."""
    facts: dict[str, Any] = {}
    if settings.data is not None:
        from ..evaluators.data.loading import load_data

        few = {"train_images": LOOK_IMAGES, "validation_images": LOOK_IMAGES}
        load_data(data or settings.data, LOOK_PIXELS, settings.seed, **few, task=task)
    if settings.init_from is not None:
        from ..evaluators.training.inherit import load_source

        facts["init_from"] = load_source(settings.init_from).identity
    if target.box is not None:
        facts["target_file"] = str(Path(target.box.file or "").absolute())
    return facts


def _predictor(
    target: Target, asked: _Asked, say: Callable[[str], None], space: SearchSpace | None, *, calibrate: bool
) -> LatencyPredictor:
    if calibrate:
        return load_or_calibrate(target, asked.profiles, say, space=space, progress=asked.progress is True)
    return load_predictor(target, asked.profiles)


def _speaker(progress: bool | Progress) -> Callable[[str], None]:
    """Gives a function that prints a line to stderr, or does nothing unless progress is to be shown."""
    if progress is not True:
        return lambda line: None
    from rich.console import Console

    console = Console(stderr=True)
    return lambda line: console.print(line, highlight=False)


def _check_run_folder(run: Path, *, resume: bool) -> None:
    """Refuses early what the search would refuse after calibrating."""
    if (run / "run.json").exists() and not resume:
        raise ValueError(f"there is already a run in {run}: go on with it (--resume) or name another folder (--run)")
    check_writable(run, "the run folder")


def _new_run(target: Target, what: str) -> Path:
    name = f"{target.alias or target.device}-{what}".replace(":", "-")
    return new_folder(Path("runs"), name)


def _cores() -> int:
    import psutil

    return max(1, psutil.cpu_count(logical=False) or 1)
