"""How good a trained network is on one part of the data: accuracies, classes, confusions and calibration.

`network_outputs` and `onnx_outputs` run a network over images that are cropped at the centre; `judge` says what the
outputs are worth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ... import tasks
from ...data.feeding import Batch, ImageFeed
from ...device.agent.models import load_onnxruntime
from ...tasks.classification import Classification

if TYPE_CHECKING:
    from ...tasks import Task

BINS = 15
"""Of the calibration error: so many as in Guo et al. 2017, "On Calibration of Modern Neural Networks"."""
CONFUSIONS = 10
"""Pairs of classes that are told, the most frequent first."""
NO_TOP5 = "with five classes or fewer every image is right among the first five"
JUDGED_BATCH = 128
ROWS = 4096
"""Images whose probabilities are computed at once, in double precision."""


@dataclass(frozen=True)
class ClassJudgement:
    """One class.

    Attributes:
        images: how many there are of it.
        recall: the share of these that are recognized; None if there are none.
        precision: the share of the images that are taken for it that are of it; None if none is taken for it.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Confusion:
    """How many images of the class `true` are taken for `predicted`."""

    count: int
    true: str
    predicted: str


@dataclass(frozen=True)
class Judgement:
    """What a network's outputs on one part of the data are worth.

    Attributes:
        task: its name.
        metric: what is measured, "accuracy" of a classification; `value` is in the metric's own unit.
        images: how many were judged.
        loss: the mean loss, of a classification the cross-entropy in nats.
        top1, top5: shares of the images whose class is the first, or among the first five; of classifications alone,
            and top-5 only where there are six classes or more (`top5_note` says so).
        balanced_accuracy: the mean recall of the classes that have images.
        calibration_error: the expected calibration error, 0 to 1: how far confidence and accuracy are apart on average,
            in 15 bins of equal width of the confidence, which is the probability of the first class.
        classes: in their order; empty if the task has none.
        confusions: the most frequent ones first, at most ten, never with count 0.
    """

    task: str
    metric: str
    value: float
    images: int
    loss: float
    top1: float | None = None
    top5: float | None = None
    top5_note: str | None = None
    balanced_accuracy: float | None = None
    calibration_error: float | None = None
    classes: tuple[ClassJudgement, ...] = ()
    confusions: tuple[Confusion, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; an infinite loss becomes None."""
        values = asdict(self)
        for name in ("value", "loss"):
            if not math.isfinite(values[name]):
                values[name] = None
        return values | {"classes": list(values["classes"]), "confusions": list(values["confusions"])}


def judge(
    outputs: Tensor, labels: Tensor, classes: Sequence[str] = (), *, task: str | Task = "classification"
) -> Judgement:
    """Judges the outputs of a network.

    Args:
        outputs: (N, ...) float, as the network gives them; of a classification logits (N, classes).
        labels: (N, ...); of a classification indices into `classes`.
        classes: their names.
        task: classifications are judged in all respects, others by their metric and their loss.

    Raises:
        ValueError: no images, other shapes, labels beyond the classes, or outputs that are not finite.
    """
    learned = tasks.task(task)
    if not len(labels) or len(outputs) != len(labels):
        raise ValueError(f"nothing to judge: {len(outputs)} outputs and {len(labels)} labels")
    outputs = outputs.float()
    if bad := int((~outputs.flatten(1).isfinite()).any(dim=1).sum()):
        raise ValueError(f"the network's outputs are not finite (NaN or infinite) for {bad} of {len(outputs)} images")
    if not isinstance(learned, Classification):
        value = learned.metric.value(outputs, labels)
        return Judgement(learned.name, learned.metric.name, value, len(labels), float(learned.loss(outputs, labels)))
    _check_classes(outputs, labels, classes)
    first = outputs.argmax(dim=1)
    confidence, losses = _probabilities(outputs, labels)
    counts = _confusion_counts(first, labels, len(classes))
    by_class = tuple(_by_class(counts, classes))
    recalls = [each.recall for each in by_class if each.recall is not None]
    right = first == labels
    accuracy = float(right.double().mean())
    return Judgement(
        learned.name,
        learned.metric.name,
        accuracy,
        len(labels),
        float(losses.mean()),
        top1=accuracy,
        top5=_top5(outputs, labels) if len(classes) > 5 else None,
        top5_note=None if len(classes) > 5 else NO_TOP5,
        balanced_accuracy=sum(recalls) / len(recalls),
        calibration_error=calibration_error(confidence, right),
        classes=by_class,
        confusions=tuple(_most_confused(counts, classes)),
    )


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """The expected calibration error of Guo et al. 2017, 0 to 1.

    Args:
        confidence: (N,) the probability that a network gives to its answer; bin i holds those in (i / bins, (i + 1) /
            bins], the first one also 0.
        right: (N,) whether the answer is right.
    """
    place = ((confidence.double() * bins).ceil().long() - 1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(
        0, place.cpu(), (right.double() - confidence.double()).cpu()
    )
    return float(gaps.abs().sum() / len(confidence))


def network_outputs(
    network: nn.Module,
    feed: ImageFeed,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "cpu",
    *,
    batch_size: int = JUDGED_BATCH,
) -> tuple[Tensor, Tensor]:
    """Runs a network in evaluation mode over all images, each a central square.

    Args:
        side: of the squares, in pixels.
        mean, std: of the three channels, 0 to 1; pixels are normalized by them: (pixel / 255 - mean) / std.

    Returns:
        outputs (N, ...) in float32 and labels (N, ...), both on the CPU, without the images that cannot be read. The
        network is left in the mode in which it was.

    Raises:
        ValueError: no image can be read.
    """
    centre, scale = (value.to(device) for value in _normalization(mean, std))
    training = network.training
    network.eval()

    def run(images: Tensor) -> Tensor:
        given = ((images.to(device).float() - centre) * scale).contiguous(memory_format=torch.channels_last)
        outputs: Tensor = network(given)
        return outputs.float().cpu()

    try:
        with torch.inference_mode():
            return _all_outputs(feed, side, batch_size, run)
    finally:
        network.train(training)


class OnnxNetwork:
    """An ONNX file of any exporter that takes images, opened by onnxruntime on the CPU.

    Attributes:
        side: of the images in pixels; None where the file takes any.
        batch: images that it takes at once; None where it takes any number.
        outputs: how many numbers it gives for an image; None where the file does not say.
        mean, std, classes: by which pixels are normalized, and the names of the classes, where the file says so
            (metadata "lownas.mean", "lownas.std" and "lownas.classes", JSON lists), else None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be loaded, or whose input is not square images of three channels in floats.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no narrower base class than this
            raise ValueError(f"{path}: onnxruntime cannot load it: {str(error).splitlines()[0]:.200}") from None
        self._input, self.side, self.batch = _image_input(self._session, path)
        self.outputs = _count_outputs(self._session, path)
        metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self.mean = _numbers(metadata, "lownas.mean", path)
        self.std = _numbers(metadata, "lownas.std", path)
        self.classes = _strings(metadata, "lownas.classes", path)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs it on normalized images (N, 3, R, R); a fixed batch is filled up, and what was filled is taken away."""
        size = self.batch or max(1, len(images))
        dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32
        found = []
        for start in range(0, len(images), size):
            some = images[start : start + size].astype(dtype)
            filled = np.concatenate([some, np.zeros((size - len(some), *some.shape[1:]), dtype)])
            try:
                outputs = self._session.run(None, {self._input.name: filled})[0]
            except Exception as error:  # as above
                raise ValueError(f"{self.path}: onnxruntime cannot run it: {str(error).splitlines()[0]:.200}") from None
            found.append(np.asarray(outputs[: len(some)], np.float32))
        return np.concatenate(found)


def onnx_outputs(
    network: OnnxNetwork | str | Path,
    feed: ImageFeed,
    *,
    side: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] = (),
    batch_size: int = JUDGED_BATCH,
) -> tuple[Tensor, Tensor]:
    """Runs an ONNX file over all images, each a central square, as `network_outputs` runs a torch module.

    Args:
        side: of the squares, in pixels; needed where the file does not say.
        mean, std: as in `network_outputs`; those that the file names count first, and one of the two must have them.
        classes: of the data. The file must have as many outputs, and the same names if it has any; empty for a task
            without classes.

    Raises:
        ValueError: what `OnnxNetwork` refuses, another size or other classes, no normalization, or no image that can
            be read.
    """
    opened = network if isinstance(network, OnnxNetwork) else OnnxNetwork(network)
    if side is not None and opened.side not in (None, side):
        raise ValueError(f"{opened.path}: it takes images of {opened.side} pixels, not of {side}")
    if (side := opened.side or side) is None:
        raise ValueError(f"{opened.path}: it takes images of any size; say which (--resolution)")
    if classes and opened.outputs not in (None, len(classes)):
        raise ValueError(f"{opened.path}: it has {opened.outputs} outputs, and the data has {len(classes)} classes")
    if classes and opened.classes is not None:
        check_same_classes(opened.classes, classes, str(opened.path))
    mean, std = opened.mean or mean, opened.std or std
    if mean is None or std is None:
        raise ValueError(
            f"{opened.path}: it does not say by which mean and std its images are normalized (metadata lownas.mean and "
            "lownas.std); give both"
        )
    centre, scale = _normalization(mean, std)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(opened(((images.float() - centre) * scale).numpy()))

    return _all_outputs(feed, side, opened.batch or batch_size, run)


def check_same_classes(of_network: Sequence[str], of_data: Sequence[str], what: str) -> None:
    """Raises ValueError, in one line that begins with `what`, unless both have the same names in the same order."""
    if list(of_network) == list(of_data):
        return
    missing = [name for name in of_data if name not in set(of_network)]
    more = [name for name in of_network if name not in set(of_data)]
    if not missing and not more:
        raise ValueError(f"{what}: the network has the data's classes in another order")
    said = [
        f"{who} alone {'has' if who == 'the data' else 'knows'} {', '.join(map(repr, names[:5]))}"
        f"{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for who, names in (("the network", more), ("the data", missing))
        if names
    ]
    raise ValueError(f"{what}: its classes are not those of the data: {'; '.join(said)}")


def _all_outputs(feed: ImageFeed, side: int, batch_size: int, run: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    outputs, labels = [], []
    for images, found in feed.batches(_batches(len(feed), side, batch_size)):
        if len(images):
            outputs.append(run(images))
            labels.append(found)
    if not outputs:
        raise ValueError(f"none of the {len(feed)} images can be read")
    with torch.inference_mode(False):  # what inference mode makes cannot be used in training
        return torch.cat([each.clone() for each in outputs]), torch.cat(labels)


def _batches(count: int, side: int, size: int) -> Iterator[Batch]:
    for start in range(0, count, size):
        yield Batch(np.arange(start, min(start + size, count), dtype=np.int64), side)


def _normalization(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Both (1, 3, 1, 1), for pixels from 0 to 255: (pixel - first) * second."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std: three numbers each, those of std above 0, given {[*mean]} and {[*std]}")
    centre = torch.tensor([255 * value for value in mean]).view(1, 3, 1, 1)
    return centre, torch.tensor([1 / (255 * value) for value in std]).view(1, 3, 1, 1)


def _image_input(session: Any, path: str | Path) -> tuple[Any, int | None, int | None]:
    """The input that takes images, with their side and the batch, None where any will do."""
    inputs = session.get_inputs()
    shapes = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
    shape = inputs[0].shape if len(inputs) == 1 else []
    floats = all(each.type in ("tensor(float)", "tensor(float16)") for each in inputs)
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3) or not floats:
        raise ValueError(f"{path}: its input is {shapes}; expected is one of images in floats (batch, 3, R, R)")
    height, width = shape[2:]
    if isinstance(height, int) and isinstance(width, int) and height != width:
        raise ValueError(f"{path}: it takes images of {height} x {width}; square ones are expected")
    side = next((value for value in (height, width) if isinstance(value, int)), None)
    return inputs[0], side, shape[0] if isinstance(shape[0], int) else None


def _count_outputs(session: Any, path: str | Path) -> int | None:
    outputs = session.get_outputs()
    if len(outputs) != 1:
        raise ValueError(f"{path}: one output is expected, it has {', '.join(each.name for each in outputs)}")
    shape = outputs[0].shape
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None


def _listed(metadata: Mapping[str, str], key: str, path: str | Path) -> list[Any] | None:
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key])
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise ValueError(f"{path}: its metadata {key} is no JSON list: {metadata[key]:.80}")
    return value


def _numbers(metadata: Mapping[str, str], key: str, path: str | Path) -> tuple[float, ...] | None:
    value = _listed(metadata, key, path)
    if value is not None and not (len(value) == 3 and all(type(each) in (int, float) for each in value)):
        raise ValueError(f"{path}: its metadata {key} is not three numbers: {metadata[key]:.80}")
    return None if value is None else tuple(map(float, value))


def _strings(metadata: Mapping[str, str], key: str, path: str | Path) -> tuple[str, ...] | None:
    value = _listed(metadata, key, path)
    return None if value is None else tuple(map(str, value))


def _check_classes(outputs: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if outputs.ndim != 2 or outputs.shape[1] != len(classes):
        raise ValueError(
            f"the network gives {tuple(outputs.shape[1:])} outputs, and the data has {len(classes)} classes"
        )
    if labels.ndim != 1 or int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        span = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"labels {tuple(labels.shape)} from {span} are no indices of {len(classes)} classes")


def _probabilities(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the probability of the first class, and the cross-entropy in nats; float64 (N,)."""
    confidence, losses = [], []
    for rows, true in zip(outputs.split(ROWS), labels.split(ROWS), strict=True):
        logarithms = rows.double().log_softmax(dim=1)
        confidence.append(logarithms.amax(dim=1).exp())
        losses.append(-logarithms.gather(1, true.long()[:, None])[:, 0])
    return torch.cat(confidence), torch.cat(losses)


def _top5(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.topk(5, dim=1).indices == labels[:, None]).any(dim=1).double().mean())


def _confusion_counts(first: Tensor, labels: Tensor, classes: int) -> NDArray[np.int64]:
    """(classes, classes): how many images of the row's class are taken for the column's."""
    flat = torch.bincount(labels.long() * classes + first, minlength=classes * classes)
    return flat.view(classes, classes).cpu().numpy().astype(np.int64)


def _by_class(counts: NDArray[np.int64], classes: Sequence[str]) -> Iterator[ClassJudgement]:
    of_class, taken_for = counts.sum(axis=1), counts.sum(axis=0)
    for index, name in enumerate(classes):
        right = int(counts[index, index])
        yield ClassJudgement(
            name,
            int(of_class[index]),
            right / int(of_class[index]) if of_class[index] else None,
            right / int(taken_for[index]) if taken_for[index] else None,
        )


def _most_confused(counts: NDArray[np.int64], classes: Sequence[str]) -> Iterator[Confusion]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]:
        true, predicted = divmod(int(place), len(classes))
        if wrong[true, predicted]:
            yield Confusion(int(wrong[true, predicted]), classes[true], classes[predicted])
