"""Judging a trained network, whatever it is given as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lownas
from lownas.search.final.evaluate import evaluate
from lownas.search.final.train import FinalTraining, train
from lownas.search_space import LowFormerConfig, write_onnx

from .conftest import pictures, write_parts


def test_the_same_network_in_all_its_forms(trained: FinalTraining, data: str, tmp_path: Path, caplog) -> None:
    assert lownas.evaluate is evaluate
    (onnx,) = trained.export("onnx", to=tmp_path / "x")
    expected = trained.evaluate()
    assert expected.images == 30 and expected.top1 is not None and expected.top1 > 0.9
    for given in (trained.folder, str(trained.folder / "best.safetensors"), onnx):
        found = evaluate(given, threads=1)
        assert found.top1 == expected.top1 and found.loss == pytest.approx(expected.loss, abs=1e-5)
    mean, std = trained.pixels.mean, trained.pixels.spread
    module = evaluate(trained.model, data, resolution=32, mean=mean, std=std, threads=1)
    assert module.top1 == expected.top1
    assert not caplog.records


def test_the_validation_part_is_that_of_the_training(trained: FinalTraining) -> None:
    found = evaluate(trained.folder, part="validation", threads=1)
    assert found.images == 24 and found.value == pytest.approx(trained.validation_accuracy)
    assert evaluate(trained.folder, part="train", threads=1).images == 72


def test_only_the_centre_is_looked_at_where_that_was_so_in_training(trained: FinalTraining) -> None:
    from lownas.evaluators.data.feeding import Batch, image_feed
    from lownas.evaluators.data.records import LabelledImages
    from lownas.search.final.evaluate import _Centred

    images, labels = pictures(6)
    feed = _Centred(image_feed(LabelledImages(images, labels), 16, workers=0), 0.5)
    ((found, _),) = feed.batches([Batch(np.arange(6, dtype=np.int64), 8)])
    assert len(feed) == 6 and feed.resident and not feed.skipped and len(feed.labels) == 6
    assert torch.equal(found[:, 0], torch.from_numpy(images[:, 4:12, 4:12]))


def test_classes_that_differ_are_named(trained: FinalTraining, tmp_path: Path) -> None:
    images, labels = pictures(60)
    with pytest.raises(ValueError, match=r"the network alone knows '0'; the data alone has '3'"):
        evaluate(trained.folder, (images, labels + 1), part="validation", threads=1)
    (onnx,) = trained.export("onnx", to=tmp_path / "x")
    with pytest.raises(ValueError, match=r"the network alone knows '0'; the data alone has '3'"):
        evaluate(onnx, (images, labels + 1), part="validation", threads=1)


def test_a_network_with_other_outputs(tmp_path: Path, config: LowFormerConfig, data: str, caplog) -> None:
    from lownas.evaluators.training.inherit import save_source
    from lownas.search_space.model import build_model

    save_source(build_model(config), tmp_path / "ten.safetensors")
    with pytest.raises(ValueError, match="it has 10 outputs, and the data has 3 classes"):
        evaluate(tmp_path / "ten.safetensors", data, threads=1)
    assert "ImageNet's mean and std are taken" in caplog.text
    write_onnx(config, tmp_path / "ten.onnx")
    with pytest.raises(ValueError, match="it has 10 outputs, and the data has 3 classes"):
        evaluate(tmp_path / "ten.onnx", data)


def test_what_is_refused(tmp_path: Path, trained: FinalTraining, data: str) -> None:
    with pytest.raises(ValueError, match="part: one of test, validation, train"):
        evaluate(trained.folder, part="tset")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no trained network"):
        evaluate(tmp_path, data)
    with pytest.raises(ValueError, match="no checkpoint at"):
        evaluate(tmp_path / "no.safetensors", data)
    with pytest.raises(ValueError, match="no ONNX file at"):
        evaluate(tmp_path / "no.onnx", data)
    with pytest.raises(ValueError, match="resolution: a torch module"):
        evaluate(nn.Flatten(), data)
    with pytest.raises(ValueError, match="--data is missing"):
        evaluate(nn.Flatten(), resolution=16)
    with pytest.raises(ValueError, match="both or neither"):
        evaluate(nn.Flatten(), data, resolution=16, mean=(0, 0, 0))
    with pytest.raises(ValueError, match="three numbers"):
        evaluate(nn.Flatten(), data, resolution=16, mean=(0, 0), std=(1, 1))
    spec = write_parts(tmp_path / "parts", test=False)
    with pytest.raises(ValueError, match=r"has no test part \(--part validation"):
        evaluate(trained.folder, spec, threads=1)


def test_the_split_is_that_of_the_training_wherever_its_file_goes(tmp_path: Path, config: LowFormerConfig) -> None:
    images, labels = pictures(60)
    images[:, 0, 0] = np.arange(60)  # by which they are known again
    for name, array in (("images", images), ("labels", labels)):
        (tmp_path / "data").mkdir(exist_ok=True)
        np.save(tmp_path / "data" / f"{name}.npy", array)
    spec = f"arrays:{tmp_path / 'data'}"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"schema": 1, "settings": {"data": spec, "seed": 5}}))
    (tmp_path / "run" / "best.json").write_text(config.to_json())
    done = train(run=tmp_path / "run", epochs=1, threads=1, seed=1)
    files = done.export("onnx", "weights", to=tmp_path / "elsewhere")
    expected = done.evaluate(part="validation").loss
    assert abs(expected - evaluate(done, part="validation", seed=0).loss) > 1e-3
    for file in files:
        assert evaluate(file, part="validation", threads=1).loss == pytest.approx(expected, abs=1e-5)


def test_validation_images_that_were_learned_from_are_said(
    tmp_path: Path, config: LowFormerConfig, data: str, trained: FinalTraining, caplog: Any
) -> None:
    both = train(config, data, epochs=1, threads=1, out=tmp_path / "out", train_on="train+validation")
    (file,) = both.export("weights", to=tmp_path / "elsewhere")
    both.evaluate(part="test")
    evaluate(trained.folder, part="validation", threads=1)
    evaluate(file, write_parts(tmp_path / "others"), part="validation", threads=1)
    assert not caplog.records
    for given in (None, data):
        evaluate(file, given, part="validation", threads=1)
        assert "has learned from the validation images too" in caplog.text
        caplog.clear()


def test_a_task_that_is_not_registered_is_given(trained: FinalTraining) -> None:
    from lownas.evaluators.tasks import Classification

    assert trained.evaluate(task=Classification()).top1 == trained.evaluate().top1


def test_threads_are_those_that_were_given(trained: FinalTraining, tmp_path: Path, monkeypatch: Any) -> None:
    import onnxruntime

    seen: list[int] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: Any, **given: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return real(path, options, **given)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    (onnx,) = trained.export("onnx", to=tmp_path / "x")
    evaluate(onnx, threads=2)
    assert seen == [2]
    with pytest.raises(ValueError, match="--threads: at least 1, given 0"):
        evaluate(onnx, threads=0)


def test_a_task_without_classes(tmp_path: Path, config: LowFormerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from lownas.search_space import heads

    from ...evaluators.toys import Brightness, MeanHead, Regression

    monkeypatch.setitem(heads.HEADS, "toy_mean", MeanHead())
    given: dict[str, Any] = {"epochs": 12, "threads": 1, "out": tmp_path / "out"}
    done = train(config, Brightness(400), task=Regression(), **given)
    for network in (done, tmp_path / "out", *done.export("onnx", to=tmp_path / "x")):
        found = evaluate(network, Brightness(400), task=Regression(), threads=1)
        assert (found.metric, found.images, found.top1) == ("mean absolute error", 50, None)
        assert found.value < 0.1 and found.classes == ()
    json.dumps(found.to_dict(), allow_nan=False)


def test_images_are_made_squares_as_in_the_training(tmp_path: Path, config: LowFormerConfig) -> None:
    (tmp_path / "data").mkdir()
    for seed, (name, count) in enumerate({"train": 72, "validation": 24, "test": 30}.items()):
        squares, labels = pictures(count, seed=seed)
        wide = np.concatenate([squares, np.zeros((count, 16, 32), np.uint8)], axis=2)  # told apart by their left third
        np.save(tmp_path / "data" / f"{name}_images.npy", wide)
        np.save(tmp_path / "data" / f"{name}_labels.npy", labels)
    spec = f"arrays:{tmp_path / 'data'}"
    done = train(config, f"squash:{spec}", epochs=6, out=tmp_path / "out", threads=1, recipe={"batch_size": 24})
    expected = done.evaluate()
    assert expected.top1 is not None and expected.top1 > 0.9
    files = done.export("onnx", "weights", to=tmp_path / "elsewhere")
    for given in (done.folder, *files):
        for data in (None, spec, f"squash:{spec}"):
            assert evaluate(given, data, threads=1).loss == pytest.approx(expected.loss, abs=1e-5)
    assert evaluate(done.folder, f"pad:{spec}", threads=1).loss > expected.loss + 1e-3
