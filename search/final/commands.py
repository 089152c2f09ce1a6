"""`lownas train` and `lownas evaluate`: from the options of the command line to the functions of these names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...evaluators.training.final.judging import Judgement
from ...evaluators.training.final.planning import Plan
from ...search_space import LowFormerConfig
from ..devices import preset, read_config
from .evaluate import evaluate
from .train import FinalTraining, plan_of, train


def train_from(given: Mapping[str, Any], *, announce: Callable[[Plan], None] | None = None) -> FinalTraining:
    """Trains as `train` does, with options as the command line has them. Raises as `train`."""
    return train(**_arguments(given), progress=True, announce=announce)


def plan_from(given: Mapping[str, Any]) -> Plan:
    """What `train_from` would do, without training or writing. Raises as `train`."""
    arguments = _arguments(given)
    for name in ("workers", "ray_address", "insecure", "track", "resume", "out"):
        arguments.pop(name, None)
    return plan_of(**arguments)


def evaluate_from(given: Mapping[str, Any]) -> Judgement:
    """Judges as `evaluate` does, with options as the command line has them. Raises as `evaluate`."""
    arguments = {name: value for name, value in given.items() if value is not None}
    named = [arguments.pop(name) for name in ("run", "checkpoint", "onnx") if name in arguments]
    if len(named) != 1:
        raise ValueError("evaluate: name one network: a run (--run), a checkpoint (--checkpoint) or a file (--onnx)")
    for name in ("mean", "std"):
        if name in arguments:
            arguments[name] = _numbers(arguments[name], f"--{name}")
    return evaluate(named[0], **arguments)


def _numbers(text: str, what: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{what}: three numbers such as 0.5,0.5,0.5, given {text!r}") from None


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `train`."""
    # A number 0 is something that was said: it equals False, but is another thing.
    said = {name: value for name, value in given.items() if value is not None and value is not False}
    arguments = {name: value for name, value in said.items() if value != []}
    named = [name for name in ("run", "config", "preset") if name in arguments]
    if len(named) > 1:
        raise ValueError(f"train: one network, and --{' and --'.join(named)} are {len(named)}")
    if network := _network(arguments.pop("config", None), arguments.pop("preset", None)):
        arguments["network"] = network
    if pairs := arguments.pop("set", None):
        arguments["recipe"] = _choices(pairs)
    if "track" in arguments:
        arguments["track"] = [name.strip() for name in arguments["track"].split(",") if name.strip()]
    return arguments


def _network(config: Path | None, published: str | None) -> LowFormerConfig | None:
    option = "--config" if config is not None else "--preset"
    try:
        if config is not None:
            return read_config(config)
        return None if published is None else preset(published)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _choices(pairs: Sequence[str]) -> dict[str, str]:
    """Choices of the recipe, from texts such as "mixup=0.2"."""
    choices = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set: a choice of the recipe such as mixup=0.2, given {pair!r}")
        choices[name.strip().replace("-", "_")] = value.strip()
    return choices
