"""How a network is trained to its final weights: every choice is one field, and says what made it.

There are two bases. "papers" is the recipe that LowFormer's authors published for ImageNet, which differs by model.
"compact" is for what most people have: less data, a time budget, a few to some hundred epochs. What regularizes grows
there with the epochs, up to what the papers use for 300.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args, get_type_hints

from ....search_space import LowFormerConfig, op_graph
from ....search_space.presets import PUBLISHED, published_name

PAPERS_EPOCHS = 300
FEW_EPOCHS = 30
"""With so few epochs a network has not learned its images by heart, and what regularizes only slows it down."""
MAX_EPOCHS = 300  # that a time budget is filled with
LARGE_DATA = 200_000  # images from which on the papers' recipe is taken, if there are epochs for it
LONG_TRAINING = 100  # epochs from which on it is
SHIFTED_EPOCHS = 12
"""From so many epochs on small pictures are shifted: before, it only slows learning (experiments/short_training/)."""
SMALL_PICTURES = 64  # pixels up to which images are shifted, not cropped: there is little to see in a part of them
MATRIX_RATE = 0.02  # with it networks learn about twice as much in a step as with AdamW alone (../orthogonal.py)
LOPSIDED = 10.0  # largest over smallest class from which on rare classes weigh more

Loss = Literal["ce", "bce"]
Precision = Literal["fp32", "fp16", "bf16"]
Balance = Literal["none", "weights", "sampling"]


@dataclass(frozen=True)
class TrainingRecipe:
    """All choices of a final training.

    Attributes:
        base: "papers" or "compact", what the other choices began with.
        epochs: passes over the training images.
        batch_size: images of one optimizer step, over all workers.
        accumulation: parts that a step's images are split into, where memory does not hold them at once.
        learning_rate: AdamW's at its peak.
        matrix_rate: that of orthogonalized steps (`orthogonal.py`), which matrices but the last layer's then make in
            the place of AdamW's; 0: all are AdamW's.
        full_rate_fan_in: weights of more inputs get the rate times sqrt(full_rate_fan_in / inputs); 0: all get it.
        inherited_rate: share of the rate for weights that were inherited.
        warmup_share: share of the steps in which the rate rises linearly; then it falls to zero as a cosine does.
        weight_decay: on weights, not on norms and biases.
        second_moment_decay: AdamW's beta 2.
        clip_norm: bound on the norm of the gradient.
        sides: sizes of the training images as shares of the network's own, alternating from batch to batch.
        crop: least area of a random crop, as a share of the image; 1 for none.
        flip: whether images are mirrored left to right at random.
        max_shift: largest random shift, as a share of the side.
        randaugment_layers, randaugment_magnitude: operations an image goes through, and their strength, 0 to 10 (Cubuk
            et al., arXiv 1909.13719).
        mixup, cutmix: parameters of the beta distributions (arXiv 1710.09412, 1905.04899); 0 for none. With both, each
            batch has one of them.
        erasing: probability that a rectangle of an image is erased (arXiv 1708.04896).
        drop_path: rate of stochastic depth in the last block; it rises linearly.
        loss: cross-entropy, or binary cross-entropy of each class.
        label_smoothing: share of the target that is spread over all classes.
        balance: "weights": images of rare classes weigh more (by the root of their rarity); "sampling": they come more
            often, as often as others.
        ema: decay per step of the averaged weights, which are the result.
        agreement: weight of the agreement with the averaged weights' own predictions, in the last three quarters of
            the epochs (MESA, arXiv 2205.14083); 0 for none.
        teacher_share: share of the loss that is the agreement with a teacher, where there is one.
        temperature: that outputs are divided by for that (arXiv 1503.02531).
        batch_norm_images: on which BatchNorm's statistics are recomputed at the end; 0: they stay as averaged.
        judged_share: share of an image's side that is looked at in judging: its centre.
        precision: of the computation.
    """

    base: Literal["papers", "compact"] = "compact"
    epochs: int = 30
    batch_size: int = 128
    accumulation: int = 1
    learning_rate: float = 4e-3
    matrix_rate: float = 0.0
    full_rate_fan_in: int = 64
    inherited_rate: float = 0.3
    warmup_share: float = 0.1
    weight_decay: float = 0.05
    second_moment_decay: float = 0.99
    clip_norm: float = 2.0
    sides: tuple[float, ...] = (1.0,)
    crop: float = 1.0
    flip: bool = True
    max_shift: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    drop_path: float = 0.0
    loss: Loss = "ce"
    label_smoothing: float = 0.1
    balance: Balance = "none"
    ema: float = 0.998
    agreement: float = 0.0
    teacher_share: float = 0.5
    temperature: float = 2.0
    batch_norm_images: int = 16_000
    judged_share: float = 1.0
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        self._check_counts()
        for name in ("learning_rate", "clip_norm", "temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise _impossible(name, "positive", getattr(self, name))
        for name in ("matrix_rate", "weight_decay", "mixup", "cutmix", "agreement"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise _impossible(name, "at least 0", getattr(self, name))
        for name in ("second_moment_decay", "warmup_share", "max_shift", "drop_path", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise _impossible(name, "at least 0 and below 1", getattr(self, name))
        for name in ("erasing", "teacher_share", "inherited_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise _impossible(name, "0 to 1", getattr(self, name))
        for name in ("crop", "judged_share"):
            if not 0 < getattr(self, name) <= 1:
                raise _impossible(name, "above 0 and at most 1", getattr(self, name))
        if 2 * self.accumulation > self.batch_size:
            raise _impossible("accumulation", f"at most half of batch_size {self.batch_size}", self.accumulation)
        if not self.sides or not all(0 < side <= 2 for side in self.sides):
            raise _impossible("sides", "shares above 0 and at most 2", list(self.sides))
        if not 0 <= self.randaugment_magnitude < 10:
            raise _impossible("randaugment_magnitude", "at least 0 and below 10", self.randaugment_magnitude)
        hints = get_type_hints(type(self))
        for name in ("base", "loss", "balance", "precision"):
            if getattr(self, name) not in get_args(hints[name]):
                raise _impossible(name, "one of " + ", ".join(get_args(hints[name])), getattr(self, name))

    def _check_counts(self) -> None:
        for name, least in (
            *(("epochs", 1), ("batch_size", 2), ("accumulation", 1), ("full_rate_fan_in", 0)),
            *(("randaugment_layers", 0), ("batch_norm_images", 0)),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise _impossible(name, f"an integer of at least {least}", value)

    def steps_per_epoch(self, images: int) -> int:
        """Optimizer steps of an epoch; an incomplete last batch is left out."""
        return max(1, images // self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sides": list(self.sides)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises ValueError for unknown names and impossible values."""
        return replace(cls(), **read_choices(values))


def _impossible(name: str, allowed: str, value: object) -> ValueError:
    return ValueError(f"recipe: {name} must be {allowed}, given {value!r}")


def read_choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """Choices as people give them (texts such as "0.2", "0.5/1", "no" are read) as values of the recipe's fields.

    Raises ValueError for an unknown name or a text that cannot be read.
    """
    hints = get_type_hints(TrainingRecipe)
    known = {field.name for field in fields(TrainingRecipe)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"recipe: unknown {', '.join(unknown)}; allowed are {', '.join(sorted(known))}")
    return {name: _read(name, value, hints[name]) for name, value in values.items()}


def _read(name: str, value: Any, kind: Any) -> Any:
    try:
        if name == "sides":
            parts = value.split("/") if isinstance(value, str) else value
            return tuple(float(part) for part in parts)
        if kind is bool:
            words = {"yes": True, "true": True, "no": False, "false": False}
            return words[value.lower()] if isinstance(value, str) else bool(value)
        if kind is int:
            number = float(value)
            if number != int(number):
                raise ValueError
            return int(number)
        return kind(value) if kind is float else str(value)
    except (TypeError, ValueError, KeyError, OverflowError):
        kinds = {bool: "yes or no", int: "an integer", float: "a number"}
        said = "shares such as 0.5/0.75/1" if name == "sides" else kinds.get(kind, "a word")
        raise ValueError(f"recipe: {name} takes {said}, given {value!r}") from None


# --- the choices


@dataclass(frozen=True)
class _Published:
    """What the papers say of one group of models: rate per image of a step and what regularizes."""

    rate: float
    batch: int
    layers: int
    magnitude: float
    mix: float
    drop_path: float
    erasing: float = 0.0
    agreement: float = 0.0


# Per-GPU batch, rate and accumulation as published; the rate of a step grows with its images.
_LIGHT = _Published(3.32e-4 / 170, 170, 1, 3, 0.1, 0.05)
_MIDDLE = _Published(1.66e-4 / 170, 170, 2, 6, 0.3, 0.1)
_E1 = _Published(1e-4 / 200, 200, 2, 6, 0.3, 0.1)
_LARGE = _Published(9.4e-5 / 300, 300, 2, 5, 0.2, 0.1, erasing=0.2, agreement=2.0)
_PAPERS: Mapping[str, _Published] = {
    "lowformer_b0": _LIGHT,
    "lowformer_b1": replace(_LIGHT, rate=2.5e-4 / 128, batch=128),
    "lowformer_b15": _MIDDLE,
    "lowformer_b2": _MIDDLE,
    "lowformer_e1": _E1,
    "lowformer_b3": _LARGE,
    "lowformer_e2": replace(_LARGE, rate=1e-4 / 200, batch=200),
    "lowformer_e3": replace(_LARGE, rate=6.25e-5 / 400, batch=400, mix=0.3),
}


@dataclass(frozen=True)
class TrainingFacts:
    """What a recipe is chosen for.

    Attributes:
        config: the network; None for one of another kind.
        images: training images there are.
        side: of the network's images, pixels.
        lopsidedness: images of the largest class over those of the smallest; 1 where labels are no classes.
        mirrored, max_shift: what the data allow (`DataSource`).
        on_gpu: whether it trains on a GPU.
        inherited: whether it starts from other weights.
        frozen: whether only the head is trained.
        mixes: whether labels can be mixed and smoothed: those of a classification.
        orthogonal_images: what orthogonalizing a step costs, in images that pass forward and backward.
        one_size: whether the network takes images of no other size than its own.
    """

    config: LowFormerConfig | None
    images: int
    side: int
    lopsidedness: float = 1.0
    mirrored: bool = True
    max_shift: float = 0.0
    on_gpu: bool = False
    inherited: bool = False
    frozen: bool = False
    mixes: bool = True
    orthogonal_images: float = math.inf
    one_size: bool = False


def choose_recipe(
    facts: TrainingFacts, epochs: int, given: Mapping[str, Any] | None = None
) -> tuple[TrainingRecipe, dict[str, str]]:
    """The recipe for a training of so many epochs, and for each field what made the choice.

    Args:
        given: choices of the user's by their names; "base" is among them where one is forced.

    Raises ValueError for unknown names, impossible values, and choices that only a classification has.
    """
    chosen = read_choices(given or {})
    if not facts.mixes:
        _check_unmixed(chosen)
    like = nearest_published(facts.config)
    long = facts.images >= LARGE_DATA and epochs >= LONG_TRAINING and not facts.inherited
    base = chosen.get("base", "papers" if long else "compact")
    recipe, why = (_papers if base == "papers" else _compact)(facts, epochs, like)
    why = {field.name: why.get(field.name, f"{base} recipe") for field in fields(recipe)}
    adapted: list[tuple[str, dict[str, Any]]] = []
    if not facts.mixes:
        whole = {"crop": 1.0, "randaugment_layers": 0, "randaugment_magnitude": 0.0, "erasing": 0.0}
        adapted.append(("no classification", {**_UNMIXED, **whole}))
    if facts.one_size:
        adapted.append(("the network takes no other size", {"sides": (1.0,)}))
    if facts.frozen:
        rates = {"drop_path": 0.0, "ema": min(recipe.ema, 0.99), "sides": (1.0,)}
        adapted.append(("only the head is trained", rates))
    for reason, values in adapted:
        recipe, why = replace(recipe, **values), why | dict.fromkeys(values, reason)
    recipe = replace(recipe, **{"precision": "fp16" if facts.on_gpu else "fp32", **chosen})
    why["precision"] = "a GPU: fp16 with loss scaling" if facts.on_gpu else "a CPU"
    return recipe, why | dict.fromkeys(chosen, "given")


# What only a classification has, as it is for other tasks.
_UNMIXED: Mapping[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "loss": "ce", "balance": "none", "agreement": 0.0}


def _check_unmixed(chosen: Mapping[str, Any]) -> None:
    """Raises ValueError for a choice that would have no effect where labels are no classes."""
    for name, value in _UNMIXED.items():
        if chosen.get(name, value) != value:
            raise ValueError(f"recipe: {name}={chosen[name]} is for classifications only; this task has {name}={value}")


def nearest_published(config: LowFormerConfig | None) -> str:
    """The LowFormer with a published recipe that is most like a network: in MACs, parameters and use of attention."""
    if config is None:
        return "lowformer_b1"
    name = published_name(config.replace(classes=1000, head="classification"))
    if name in _PAPERS:
        return str(name)
    graph = op_graph(config.replace(resolution=224))
    attends = _attends(config)

    def distance(other: str) -> float:
        model = PUBLISHED[other]
        sizes = abs(math.log(graph.macs / model.macs)) + abs(math.log(graph.params / model.params))
        return sizes + (attends != _attends(model.config))

    return min(_PAPERS, key=distance)


def _attends(config: LowFormerConfig) -> bool:
    return any(stage.attention is not None for stage in config.stages)


def _papers(facts: TrainingFacts, epochs: int, like: str) -> tuple[TrainingRecipe, dict[str, str]]:
    published = _PAPERS[like]
    recipe = TrainingRecipe(
        base="papers",
        epochs=epochs,
        batch_size=published.batch,
        learning_rate=published.rate * published.batch,
        full_rate_fan_in=0,
        warmup_share=20 / PAPERS_EPOCHS,
        weight_decay=0.1,
        second_moment_decay=0.999,
        sides=(4 / 7, 5 / 7, 6 / 7, 1.0),
        crop=0.08,
        flip=facts.mirrored,
        randaugment_layers=published.layers,
        randaugment_magnitude=published.magnitude,
        mixup=published.mix,
        cutmix=published.mix,
        erasing=published.erasing,
        drop_path=published.drop_path,
        loss="bce",
        ema=0.9998,
        agreement=published.agreement,
        judged_share=0.95,
    )
    why = dict.fromkeys((field.name for field in fields(recipe)), f"as published for {like}")
    return recipe, why | {"epochs": "given or by the time", "flip": "the data"}


def _compact(facts: TrainingFacts, epochs: int, like: str) -> tuple[TrainingRecipe, dict[str, str]]:
    published = _PAPERS[like]
    strength = math.log(max(epochs, FEW_EPOCHS) / FEW_EPOCHS) / math.log(PAPERS_EPOCHS / FEW_EPOCHS)
    strength = min(1.0, strength)
    small = facts.side <= SMALL_PICTURES
    batch = 128 if facts.images >= 10_000 else 64 if facts.images >= 2_000 else 32
    if facts.on_gpu and facts.images >= 50_000:
        batch = 256
    steps = epochs * max(1, facts.images // batch)
    rate = 4e-3 * math.sqrt(batch / 128)
    if facts.inherited:
        rate /= 2
    lopsided = facts.lopsidedness >= LOPSIDED
    # On a CPU dense products are some four times as fast as these convolutions: it takes a fifth of the time at most.
    cheap = facts.orthogonal_images <= batch
    recipe = TrainingRecipe(
        base="compact",
        epochs=epochs,
        batch_size=min(batch, max(2, facts.images)),
        learning_rate=float(f"{rate:.3g}"),
        matrix_rate=(MATRIX_RATE / 2 if facts.inherited else MATRIX_RATE) if cheap else 0.0,
        sides=(1.0,) if small else (4 / 7, 5 / 7, 6 / 7, 1.0),
        crop=1.0 if small else 0.35,
        flip=facts.mirrored,
        max_shift=facts.max_shift if small and epochs >= SHIFTED_EPOCHS else 0.0,
        randaugment_layers=published.layers if strength else 0,
        randaugment_magnitude=round(published.magnitude * strength, 2),
        mixup=round(published.mix * strength, 3),
        cutmix=round(published.mix * strength, 3),
        erasing=round(published.erasing * strength, 3),
        drop_path=round(published.drop_path * strength, 3),
        balance="weights" if lopsided else "none",
        ema=round(min(0.9998, max(0.9, 1 - 20 / steps)), 5),
        judged_share=1.0 if small else 0.95,
    )
    regularized = f"{100 * strength:.0f} % of what is published for {like}, for {epochs} epochs"
    names = ("randaugment_layers", "randaugment_magnitude", "mixup", "cutmix", "erasing", "drop_path")
    why = dict.fromkeys(names, regularized)
    size = f"{facts.side} pixels"
    why |= {"sides": size, "crop": size, "max_shift": size, "judged_share": size, "flip": "the data"}
    why |= {"batch_size": f"{facts.images} images", "epochs": "given or by the time", "ema": f"{steps} steps"}
    if small and epochs < SHIFTED_EPOCHS:
        why["max_shift"] = f"fewer than {SHIFTED_EPOCHS} epochs"
    if lopsided:
        why["balance"] = f"the largest class has {facts.lopsidedness:.0f} times the images of the smallest"
    why["matrix_rate"] = f"it costs a step {'little' if cheap else 'much'} with {batch} images"
    if facts.inherited:
        why |= dict.fromkeys(("learning_rate", "matrix_rate"), "half of a fresh network's")
        why["inherited_rate"] = "weights were inherited"
    return recipe, why
