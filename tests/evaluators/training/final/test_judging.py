"""Judgements: cases worked out by hand, scikit-learn's figures, and networks run by torch and by onnxruntime."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)
from torch import Tensor, nn

from lownas.evaluators.data.feeding import Batch
from lownas.evaluators.training.final.judging import (
    NO_TOP5,
    OnnxNetwork,
    calibration_error,
    check_same_classes,
    judge,
    network_outputs,
    onnx_outputs,
)
from lownas.search_space import LowFormerConfig, build_model, write_onnx
from lownas.search_space.model import folded_weights
from tests.evaluators.toys import Regression

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Noise:
    """A feed of noise, of which some images cannot be read."""

    resident = True

    def __init__(self, count: int = 11, unreadable: tuple[int, ...] = ()) -> None:
        self.labels = np.arange(count, dtype=np.int64) % 4
        self.asked: list[Batch] = []
        self._unreadable = unreadable

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            self.asked.append(batch)
            read = [i for i in batch.index if i not in self._unreadable]
            drawn = [np.random.default_rng(i).integers(0, 256, (3, batch.side, batch.side), np.uint8) for i in read]
            images = np.stack(drawn) if read else np.empty((0, 3, batch.side, batch.side), np.uint8)
            yield torch.from_numpy(images), torch.from_numpy(self.labels[read])


def test_a_case_by_hand() -> None:
    outputs = torch.tensor([[4.0, 0, 0], [3, 0, 0], [0, 2, 0], [1, 0, 0], [0, 0, 5]])
    found = judge(outputs, torch.tensor([0, 0, 0, 1, 1]), ["a", "b", "c"])
    assert (found.task, found.metric, found.images) == ("classification", "accuracy", 5)
    assert found.top1 == found.value == pytest.approx(0.4)
    assert (found.top5, found.top5_note) == (None, NO_TOP5)
    a, b, c = found.classes
    assert (a.name, a.images, a.recall, a.precision) == ("a", 3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (b.images, b.recall, b.precision) == (2, 0.0, 0.0)
    assert (c.images, c.recall, c.precision) == (0, None, 0.0)  # it has no images, and one is taken for it
    assert found.balanced_accuracy == pytest.approx(1 / 3)  # of the classes that have images
    assert [(each.count, each.true, each.predicted) for each in found.confusions] == [
        (1, "a", "b"),
        (1, "b", "a"),
        (1, "b", "c"),
    ]
    wanted = [math.log(math.exp(margin) + 2) - chosen for margin, chosen in ((4, 4), (3, 3), (2, 0), (1, 0), (5, 0))]
    assert found.loss == pytest.approx(sum(wanted) / 5)


def test_calibration_by_hand() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.62, 0.62])
    right = torch.tensor([True, True, True, False, True, False])
    assert calibration_error(confidence, right) == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.12)
    assert calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0
    assert calibration_error(torch.zeros(4), torch.ones(4, dtype=torch.bool)) == 1
    edge = torch.tensor([0.5, 0.5 + 1e-3])  # a bin holds its upper end
    assert calibration_error(edge, torch.tensor([True, False]), bins=2) == pytest.approx((0.5 + 0.501) / 2, abs=1e-6)


def test_an_honest_network_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.full(8, 0.5), 20_000)
    labels = np.array([rng.choice(8, p=each) for each in chances])
    outputs = torch.from_numpy(np.log(chances + 1e-12)).float()
    honest = judge(outputs, torch.from_numpy(labels), list("abcdefgh"))
    boastful = judge(outputs * 3, torch.from_numpy(labels), list("abcdefgh"))
    assert honest.calibration_error is not None and honest.calibration_error < 0.02
    assert boastful.calibration_error is not None and boastful.calibration_error > 0.1
    assert boastful.top1 == honest.top1 and boastful.loss > honest.loss


def test_it_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(12, 5000, p=rng.dirichlet(np.full(12, 2.0)))
    outputs = rng.normal(size=(5000, 12)).astype(np.float32)
    outputs[np.arange(5000), labels] += 1.5
    names = [f"class {i}" for i in range(12)]
    found = judge(torch.from_numpy(outputs), torch.from_numpy(labels), names)
    first = outputs.argmax(axis=1)
    every = np.arange(12)
    assert found.top1 == pytest.approx(top_k_accuracy_score(labels, outputs, k=1, labels=every))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, outputs, k=5, labels=every))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, first))
    recalls = recall_score(labels, first, average=None)
    precisions = precision_score(labels, first, average=None)
    assert [each.recall for each in found.classes] == pytest.approx(recalls.tolist())
    assert [each.precision for each in found.classes] == pytest.approx(precisions.tolist())
    table = confusion_matrix(labels, first)
    assert [each.images for each in found.classes] == table.sum(axis=1).tolist()
    np.fill_diagonal(table, 0)
    assert [each.count for each in found.confusions] == sorted(table.ravel().tolist(), reverse=True)[:10]
    for each in found.confusions:
        assert table[names.index(each.true), names.index(each.predicted)] == each.count
    wanted = nn.functional.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert found.loss == pytest.approx(float(wanted), rel=1e-5)


def test_as_json() -> None:
    found = judge(torch.tensor([[1.0, 0], [0, 1], [0, 1]]), torch.tensor([0, 1, 0]), ["a", "b"])
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["top1"] == pytest.approx(2 / 3) and values["top5"] is None
    assert values["classes"][1] == {"name": "b", "images": 1, "recall": 1.0, "precision": 0.5}
    assert values["confusions"] == [{"count": 1, "true": "a", "predicted": "b"}]


def test_a_task_without_classes_has_its_metric_and_its_loss() -> None:
    found = judge(torch.tensor([[0.25], [0.75]]), torch.tensor([0.5, 0.5]), task=Regression())
    assert (found.metric, found.value) == ("mean absolute error", pytest.approx(0.25))
    assert (found.top1, found.calibration_error, found.classes) == (None, None, ())
    assert json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("outputs", "labels", "complaint"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "nothing to judge: 0 outputs and 0 labels"),
        (torch.zeros(2, 2), torch.zeros(3, dtype=torch.long), "nothing to judge: 2 outputs and 3 labels"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), r"gives \(3,\) outputs, and the data has 2 classes"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "labels .* from 0 to 2 are no indices of 2 classes"),
        (torch.tensor([[0, math.nan], [0, 1]]), torch.tensor([0, 1]), "not finite .* for 1 of 2 images"),
    ],
)
def test_what_cannot_be_judged(outputs: Tensor, labels: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        judge(outputs, labels, ["a", "b"])


def test_a_network_sees_every_readable_image_normalized() -> None:
    feed = Noise(unreadable=(3, 8, 9))
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)).train()
    outputs, labels = network_outputs(network, feed, 8, MEAN, STD, batch_size=4)
    assert network.training and not outputs.is_inference()
    read = [0, 1, 2, 4, 5, 6, 7, 10]
    assert labels.tolist() == feed.labels[read].tolist()
    pixels = np.stack([np.random.default_rng(i).integers(0, 256, (3, 8, 8), np.uint8) for i in read]) / 255
    wanted = (pixels.mean(axis=(2, 3)) - MEAN) / STD
    np.testing.assert_allclose(outputs.numpy(), wanted, atol=1e-5)
    assert all(batch.seed is None and batch.side == 8 for batch in feed.asked)


def test_no_image_that_can_be_read() -> None:
    with pytest.raises(ValueError, match="none of the 2 images can be read"):
        network_outputs(nn.Identity(), Noise(2, (0, 1)), 8, MEAN, STD)


@pytest.fixture(scope="module")
def config(request: pytest.FixtureRequest) -> LowFormerConfig:
    from lownas.search_space import PRESETS

    return PRESETS["lowformer_b0"].replace(resolution=64, classes=4)


@pytest.mark.parametrize("batch", [1, 4, "batch"])
def test_an_onnx_file_gives_what_torch_gives(batch: int | str, config: LowFormerConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(config).eval()
    path = tmp_path / "network.onnx"
    names = ["a", "b", "c", "d"]
    metadata = {"lownas.mean": json.dumps(MEAN), "lownas.std": json.dumps(STD), "lownas.classes": json.dumps(names)}
    write_onnx(config, path, folded_weights(model), batch=batch, metadata=metadata)
    opened = OnnxNetwork(path, threads=1)
    assert (opened.side, opened.batch, opened.outputs) == (64, None if batch == "batch" else batch, 4)
    assert (opened.mean, opened.std, opened.classes) == (MEAN, STD, tuple(names))
    outputs, labels = onnx_outputs(opened, Noise(6), classes=names)
    wanted, same = network_outputs(model, Noise(6), 64, MEAN, STD)
    assert torch.equal(labels, same)
    torch.testing.assert_close(outputs, wanted, atol=1e-4, rtol=1e-4)


def onnx_file(path: Path, shape: list[int | str], outputs: list[int | str], **metadata: str) -> Path:
    """A file that gives the mean of each channel."""
    pooled = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["output"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            pooled,
            "toy",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, outputs)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_a_foreign_file_is_told_what_it_does_not_say(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "any.onnx", ["n", 3, "h", "w"], ["n", 3])
    with pytest.raises(ValueError, match=r"images of any size; say which"):
        onnx_outputs(path, Noise())
    with pytest.raises(ValueError, match=r"by which mean and std"):
        onnx_outputs(path, Noise(), side=8)
    outputs, labels = onnx_outputs(path, Noise(), side=8, mean=MEAN, std=STD, classes=["x", "y", "z"])
    assert outputs.shape == (11, 3) and len(labels) == 11


@pytest.mark.parametrize(
    ("shape", "outputs", "metadata", "complaint"),
    [
        (["n", 1, 8, 8], ["n", 1], {}, r"its input is input tensor\(float\) \['n', 1, 8, 8\]; expected"),
        (["n", 3, 8, 10], ["n", 3], {}, "images of 8 x 10; square ones"),
        (["n", 3, 8, 8], ["n", 3], {}, "it has 3 outputs, and the data has 4 classes"),
        (["n", 3, 9, 9], ["n", 3], {}, "images of 9 pixels, not of 8"),
        (["n", 3, 8, 8], ["n", "c"], {"lownas.mean": "[0, 1"}, "lownas.mean is no JSON list"),
        (["n", 3, 8, 8], ["n", "c"], {"lownas.std": "[0, 1]"}, "lownas.std is not three numbers"),
        (["n", 3, 8, 8], ["n", 4], {"lownas.classes": '["a", "b", "c", "e"]'}, "the network alone knows 'e'; the"),
    ],
)
def test_files_that_do_not_fit(
    shape: list[int | str], outputs: list[int | str], metadata: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    path = onnx_file(tmp_path / "bad.onnx", shape, outputs, **metadata)
    with pytest.raises(ValueError, match=complaint) as caught:
        onnx_outputs(path, Noise(), side=8, mean=MEAN, std=STD, classes=list("abcd"))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        OnnxNetwork(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.onnx: onnxruntime cannot load it: .*") as caught:
        OnnxNetwork(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)


def test_other_classes_are_named() -> None:
    check_same_classes(("a", "b"), ["a", "b"], "best.onnx")
    with pytest.raises(ValueError, match=r"best\.onnx: the network has the data's classes in another order"):
        check_same_classes(("b", "a"), ["a", "b"], "best.onnx")
    with pytest.raises(ValueError, match="the network alone knows 'c'; the data alone has 'a'"):
        check_same_classes(("b", "c"), ["a", "b"], "best.onnx")
    with pytest.raises(ValueError, match=r"the data alone has '0', '1', '2', '3', '4' and 3 more$"):
        check_same_classes((), [str(i) for i in range(8)], "best.onnx")
