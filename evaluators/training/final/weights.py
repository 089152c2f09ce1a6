"""Networks before and after a final training: what they start from, and the file that holds their weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ....search_space import LowFormerConfig, build_model
from ....search_space.checkpoints import infer_config, lacks_head, load_checkpoint, read_state_dict
from ....search_space.model import LowFormer
from ... import tasks
from ..inherit import Source, inherit
from ..trainer import silence_residual_branches

FORMAT = "lownas-network-1"
IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MINE = 0.5  # share of a tensor's numbers from which on it counts as inherited


@dataclass(frozen=True)
class Pixels:
    """How pixels become a network's input: (pixel / 255 - mean) / spread, by channel."""

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]

    def to_dict(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "std": list(self.spread)}


@dataclass(frozen=True)
class Weights:
    """A network with its weights, and what must be known to use it.

    Attributes:
        model: on the CPU, in eval mode; None where the file holds a network that is no LowFormer.
        state: its tensors by their names.
        config: its architecture; None of a network that is no LowFormer.
        resolution: side of its images in pixels; None where the file does not say it.
        classes: names; empty where the file does not say them.
        pixels: how its input is made; None where the file does not say it.
        origin: where it is from, for messages.
        fresh_head: whether the file has a backbone alone, and the model's head is fresh.
    """

    model: LowFormer | None
    state: Mapping[str, Tensor]
    config: LowFormerConfig | None
    resolution: int | None
    classes: tuple[str, ...]
    pixels: Pixels | None
    origin: str
    fresh_head: bool = False


def network_bytes(
    model: nn.Module, *, resolution: int, classes: tuple[str, ...], pixels: Pixels, task: str, **facts: Any
) -> bytes:
    """The content of a safetensors file that `load_weights` reads: weights, architecture, classes, input.

    Args:
        facts: more that is to be known of it, as JSON values.
    """
    config = getattr(model, "config", None)
    about = {"resolution": resolution, "classes": list(classes), **pixels.to_dict(), "task": task, **facts}
    metadata = {"format": FORMAT, "about": json.dumps(about)}
    if isinstance(config, LowFormerConfig):
        metadata["config"] = json.dumps(config.to_dict())
    return save_tensors(plain_tensors(model.state_dict()), metadata)


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors files take them: on the CPU, contiguous, and none in memory that another one has too.

    Modules may have a parameter under two names.
    """
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if place in places else plain
        places.add(place)
    return found


def load_weights(spec: str | Path) -> Weights:
    """Reads a checkpoint: one of a final training, of a LowFormer in any format, or `timm:NAME` from the hub.

    Raises ValueError, in one line: no file, no plain tensors, no LowFormer (and none that was trained here), numbers
    that are not finite.
    """
    if isinstance(spec, str) and spec.startswith("timm:"):
        return _timm_weights(spec)
    path = Path(spec)
    if path.is_dir():
        path = trained_file(path)
    metadata = _metadata(path)
    about = _about(metadata, path)
    state = read_state_dict(path, as_it_is=bool(about))
    _check_finite(state, str(path))
    pixels = Pixels(about["mean"], about["std"]) if about else None
    resolution, classes = (about["resolution"], tuple(about["classes"])) if about else (None, ())
    if about and "config" not in metadata:
        return Weights(None, state, None, resolution, classes, pixels, str(path))
    try:
        text = metadata.get("config")
        config = infer_config(state) if text is None else LowFormerConfig.from_json(text)
        model = load_checkpoint(config, state, fresh_head=True).eval()
        fresh_head = lacks_head(config, state)
    except (ValueError, RuntimeError) as error:  # torch's for tensors that cannot be copied (sparse, quantized)
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    return Weights(model, state, config, resolution, classes, pixels, str(path), fresh_head)


def trained_file(folder: Path) -> Path:
    """The trained network in the folder of a final training or of a search. Raises ValueError if there is none."""
    for path in (folder / "training" / "best.safetensors", folder / "best.safetensors"):  # the former may be newer
        if is_trained_file(path):
            return path
    unfinished = any((folder / name).is_file() for name in ("state.safetensors", "training/state.safetensors"))
    reason = "its training has not ended (--resume goes on)" if unfinished else "no best.safetensors is there"
    raise ValueError(f"{folder} has no trained network: {reason}")


def is_trained_file(path: Path) -> bool:
    """Whether a file is there and holds a network of a final training; one that was exported may have fresh weights."""
    return _metadata(path).get("format") == FORMAT


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call, unused-ignore]
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {' '.join(str(error).split())}") from None


def _about(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What a file of a final training says of itself; empty of another file."""
    if metadata.get("format") != FORMAT:
        return {}
    try:
        about = json.loads(metadata["about"])
        for name in ("mean", "std"):
            one, two, three = map(float, about[name])
            about[name] = (one, two, three)
        return {**about, "resolution": int(about["resolution"]), "classes": [str(name) for name in about["classes"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: what it says of itself is damaged: {error}") from None


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{where}: {len(broken)} tensors have numbers that are not finite, the first of them {broken[0]}"
        )


def _timm_weights(spec: str) -> Weights:
    name = spec.removeprefix("timm:")
    try:
        import timm  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ValueError(f"{spec} needs timm: pip install 'lownas[timm]'") from None
    try:
        model = timm.create_model(name, pretrained=True)
    # Whatever timm and the network raise: an unknown name, no weights, no hub.
    except Exception as error:
        raise ValueError(f"{spec} cannot be loaded: {' '.join(str(error).split()):.200}") from None
    state = model.state_dict()
    try:
        config = infer_config(state)
        loaded = load_checkpoint(config, state).eval()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{spec}: {' '.join(str(error).split())}") from None
    known = getattr(model, "pretrained_cfg", {})
    pixels = Pixels(tuple(known.get("mean", IMAGENET_MEAN)), tuple(known.get("std", IMAGENET_SPREAD)))
    return Weights(loaded, state, config, config.resolution, (), pixels, spec)


# --- before a training


@dataclass(frozen=True)
class Prepared:
    """A network as its training starts.

    Attributes:
        inherited: names of the parameters that came from other weights.
        frozen: names of those that are not trained.
    """

    model: nn.Module
    inherited: frozenset[str]
    frozen: frozenset[str]


def prepared_network(
    network: LowFormerConfig | nn.Module,
    drop_path: float,
    *,
    task: tasks.Task,
    start: Weights | None = None,
    classes: tuple[str, ...] = (),
    freeze: bool = False,
) -> Prepared:
    """Builds a network as its training starts: weights by torch's generator, or inherited as far as they correspond.

    Args:
        network: with the head and the outputs that the data ask for; a module's copy is trained.
        start: what it inherits from. Its classifier is inherited if its classes are those of the data, or unknown.
        freeze: whether all but the head stays as it is.

    Raises ValueError, in one line, if that cannot be done.
    """
    if isinstance(network, nn.Module):
        if start is not None:
            raise ValueError("a torch module is trained from the weights that it has: load others into it before")
        frozen = _backbone_names(network) if freeze else frozenset()
        return Prepared(copy.deepcopy(network), frozen, frozen)  # steps that are only timed must not change it
    model = build_model(network, drop_path)
    silence_residual_branches(model)
    task.start(model)
    inherited: frozenset[str] = frozenset()
    if start is not None:
        inherited = _inherited(model, start, classes)
    if not freeze:
        return Prepared(model, inherited, frozenset())
    frozen = _backbone_names(model)
    if start is not None:
        _check_is_its(model, frozen, inherited, start)
    return Prepared(model, inherited, frozen)


def _inherited(model: LowFormer, start: Weights, classes: tuple[str, ...]) -> frozenset[str]:
    if start.model is None:
        raise ValueError(f"{start.origin}: not a LowFormer, whose weights could be inherited")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    last = {name for name, _ in model.named_parameters() if name.startswith(_classifier_name(model))}
    inherit(model, Source(start.model, start.origin))
    other = bool(start.classes) and start.classes != classes
    names = set()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if other and name in last:
                value.copy_(before[name])
            elif float((value != before[name]).float().mean()) >= MINE:
                names.add(name)
    return frozenset(names)


def _check_is_its(model: LowFormer, frozen: frozenset[str], inherited: frozenset[str], start: Weights) -> None:
    """Raises ValueError if weights that will not be trained are not the checkpoint's either."""
    assert start.model is not None
    theirs = dict(start.model.named_parameters())
    weights = {name: value for name, value in model.named_parameters() if name in frozen and value.ndim > 1}
    fresh = [
        name
        for name, value in weights.items()
        if name not in inherited and not (name in theirs and torch.equal(value, theirs[name]))
    ]
    if fresh:
        raise ValueError(
            f"{start.origin}: {len(fresh)} of {len(weights)} weights of the backbone are not there, so that it cannot "
            f"be frozen (the first is {fresh[0]})"
        )


def _classifier_name(model: nn.Module) -> str:
    classifier = model.get_classifier()  # type: ignore[operator]
    return next(name for name, module in model.named_modules() if module is classifier) + "."


def _backbone_names(model: nn.Module) -> frozenset[str]:
    """The parameters that belong to no head."""
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, LowFormer):
        return frozenset(name for name in names if name.startswith(("stem.", "stages.")))
    if not hasattr(model, "get_classifier"):
        raise ValueError("this module has no get_classifier(), so it is not known what of it is the head")
    head = {id(parameter) for parameter in model.get_classifier().parameters()}  # type: ignore[operator]
    return frozenset(name for name, value in model.named_parameters() if id(value) not in head)


def tensors_of(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content. Raises ValueError for something else."""
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{where} is not a safetensors file: {' '.join(str(error).split())}") from None
