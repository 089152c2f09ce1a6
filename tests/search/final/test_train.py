"""Training by names: what is trained on what, what is kept, what is gone on with, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lownas
from lownas.evaluators.training.final.planning import Plan
from lownas.evaluators.training.final.records import TrainingStatus
from lownas.search.final.train import FinalTraining, plan_of, train
from lownas.search_space import LowFormerConfig
from lownas.search_space.model import build_model

from .conftest import pictures


def test_a_configuration_is_trained_and_kept(trained: FinalTraining, config: LowFormerConfig) -> None:
    assert lownas.train is train
    assert trained.config == config.replace(classes=3) and trained.classes == ("0", "1", "2")
    assert trained.validation_accuracy is not None and trained.validation_accuracy > 0.9
    names = {path.name for path in trained.folder.iterdir()}
    assert names == {"training.json", "log.csv", "best.safetensors", "result.json", "lock"}
    assert trained.evaluate(part="test").top1 > 0.9  # type: ignore[operator]
    json.dumps(trained.to_dict(), allow_nan=False)
    files = trained.export("onnx", "weights", to=trained.folder.parent / "exported")
    assert [file.name for file in files] == ["exported.onnx", "exported.safetensors"]


def test_a_module_needs_the_size_of_its_images_and_cannot_be_exported(tmp_path: Path, data: str) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(ValueError, match="resolution: a torch module"):
        train(module, data, epochs=1, out=tmp_path / "a", threads=1)
    assert not (tmp_path / "a").exists()
    done = train(module, data, epochs=2, out=tmp_path / "a", resolution=16, threads=1)
    assert done.config is None and done.validation_accuracy is not None
    assert done.evaluate().images == 30
    with pytest.raises(ValueError, match="only LowFormers can be exported"):
        done.export("onnx")


def test_it_goes_on_where_it_was_interrupted_with_what_was_asked_for_then(
    tmp_path: Path, config: LowFormerConfig, data: str, trained: FinalTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lownas.evaluators.training.final.training.SAVED_EVERY_S", 0.0)

    def stop(status: TrainingStatus) -> None:
        if status.row is not None and status.row["epoch"] == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "training"
    with pytest.raises(KeyboardInterrupt):
        train(config, data, epochs=6, out=folder, threads=1, recipe={"batch_size": 24}, progress=stop)
    with pytest.raises(ValueError, match=r"there is already a training .*--resume"):
        train(config, data, epochs=6, out=folder, threads=1)
    with pytest.raises(ValueError, match="cannot go on with another epochs"):
        train(out=folder, epochs=7, threads=1, resume=True)
    done = train(out=folder, threads=1, resume=True)
    assert done.epochs == 6
    expected = trained.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in done.model.state_dict().items())
    again = train(out=folder, threads=1, resume=True)  # it has ended: nothing is done anew
    assert again.seconds == pytest.approx(done.seconds, abs=0.01)


def test_the_plan_alone_writes_nothing(tmp_path: Path, config: LowFormerConfig, data: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of(config, data, epochs=5, recipe={"mixup": "0.3"}, threads=1)
    assert isinstance(plan, Plan) and (plan.recipe.epochs, plan.recipe.mixup) == (5, 0.3)
    assert plan.why["mixup"] == "given" and not list(tmp_path.iterdir())
    timed = plan_of(config, data, budget="3m", threads=1)
    assert timed.epoch_s is not None and timed.recipe.epochs > 1


def test_the_folder_without_a_name(tmp_path: Path, config: LowFormerConfig, data: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        done = train(config, data, epochs=1, threads=1)
        assert done.folder == Path("trainings") / f"{config.id}-{number}"


def nan_weights(folder: Path, config: LowFormerConfig) -> str:
    from lownas.evaluators.training.inherit import save_source

    model = build_model(config)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    save_source(model, folder / "nan.safetensors")
    return str(folder / "nan.safetensors")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of the checkpoint ran",))


def pickled(folder: Path, _: LowFormerConfig) -> str:
    (folder / "evil.pth").write_bytes(pickle.dumps({"stem.0.conv.weight": Evil()}))
    return str(folder / "evil.pth")


def other_size(folder: Path, config: LowFormerConfig) -> str:
    from lownas.evaluators.training.inherit import save_source

    save_source(build_model(config.replace(classes=3, resolution=48)), folder / "larger.safetensors")
    return str(folder / "larger.safetensors")


def other_classes(folder: Path, config: LowFormerConfig) -> str:
    from lownas.evaluators.training.inherit import save_source

    save_source(build_model(config), folder / "ten.safetensors")
    return str(folder / "ten.safetensors")


@pytest.mark.parametrize(
    ("option", "made", "said"),
    [
        ("init_from", nan_weights, "not finite"),
        ("init_from", pickled, "plain tensors"),
        ("teacher", pickled, "plain tensors"),
        ("teacher", other_size, "is for images of 48 pixels, the network for 32"),
        ("teacher", other_classes, "has 10 classes, the data have 3"),
    ],
)
def test_wrong_checkpoints(
    option: str, made: Any, said: str, tmp_path: Path, config: LowFormerConfig, data: str, capsys: Any
) -> None:
    checkpoint = made(tmp_path, config)
    with pytest.raises(ValueError, match=said) as caught:
        train(config, data, epochs=1, out=tmp_path / "out", threads=1, **{option: checkpoint})
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_classes_is_named(tmp_path: Path, config: LowFormerConfig, trained: FinalTraining) -> None:
    images, labels = pictures(60)
    labels = labels + 1
    with pytest.raises(ValueError, match=r"has other classes: the data lack 0; only the data have 3"):
        train(config, (images, labels), epochs=1, out=tmp_path / "out", threads=1, teacher=trained.folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "how long to train"),
        ({"epochs": 0}, "epochs: at least 1"),
        ({"budget": "soon"}, "--budget: a positive duration"),
        ({"budget": "1h", "epochs": 3}, "--budget and --epochs: give one of them"),
        ({"budget": "100us"}, "shorter than one epoch"),
        ({"epochs": 1, "recipe": {"mixup": "much"}}, "mixup takes a number"),
        ({"epochs": 1, "recipe": {"mix": 1}}, "unknown mix; allowed are"),
        ({"epochs": 1, "freeze": True}, "--init-from"),
        ({"epochs": 1, "device": "tpu"}, "--device: cpu or cuda"),
        ({"epochs": 1, "data": None}, "--data is missing"),
        ({"epochs": 1, "network": None}, "what to train"),
        ({"epochs": 1, "network": "lowformer_b9"}, "did you mean lowformer_b"),
        ({"epochs": 1, "track": ["paper"]}, "allowed are tensorboard"),
        ({"epochs": 1, "ray_address": "auto"}, "--workers"),
        ({"epochs": 1, "resume": True}, "no training to go on with"),
        ({"epochs": 1, "run": "nowhere", "network": None}, "is not a run"),
        ({"epochs": 1, "train_on": "test"}, "train or train"),
        ({"epochs": 1, "seed": -1}, "seed: at least 0, given -1"),
    ],
)
def test_wrong_requests(changes: dict[str, Any], said: str, tmp_path: Path, config: LowFormerConfig, data: str) -> None:
    given = {"network": config, "data": data, "out": tmp_path / "out", "threads": 1, **changes}
    with pytest.raises(ValueError, match=said) as caught:
        train(**given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, config: LowFormerConfig, data: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the folder"):
        train(config, data, epochs=1, out=tmp_path / "file" / "out", threads=1)


def test_a_run_gives_network_data_and_seed(tmp_path: Path, config: LowFormerConfig, data: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    about = {"schema": 1, "settings": {"data": data, "seed": 5, "task": "classification"}}
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"has no answer \(best.json\)"):
        train(run=run, epochs=1, threads=1)
    with pytest.raises(ValueError, match="a network and a run"):
        train(config, run=run, epochs=1, threads=1)
    (run / "best.json").write_text(config.to_json())
    done = train(run=run, epochs=1, threads=1)
    assert done.folder == run / "training"
    stored = json.loads((run / "training" / "training.json").read_text())
    assert (stored["settings"]["seed"], stored["settings"]["data_seed"], stored["data"]) == (5, 5, data)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, config: LowFormerConfig, data: str) -> None:
    from lownas.search.final.folders import claimed

    with claimed(tmp_path / "out"), pytest.raises(ValueError, match="another training is at work"):
        train(config, data, epochs=1, out=tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_files_of_its_own(tmp_path: Path, config: LowFormerConfig) -> None:
    done = train(config, pictures(60), epochs=1, out=tmp_path / "out", threads=1)
    with pytest.raises(ValueError, match="has no test part"):
        done.evaluate(pictures(60))
    assert done.evaluate(pictures(60), part="validation").images == 12


def test_it_goes_on_with_the_threads_that_it_began_with(
    tmp_path: Path, config: LowFormerConfig, data: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    train(config, data, epochs=1, out=tmp_path / "out", threads=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    train(out=tmp_path / "out", resume=True)
    assert not caplog.records


def test_a_tracker_that_cannot_be_opened_leaves_nothing(
    tmp_path: Path, config: LowFormerConfig, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lownas.search.final import train as module

    def fail(*_: Any) -> Any:
        raise ValueError("--track mlflow: no server answers")

    monkeypatch.setattr(module, "open_trackers", fail)
    with pytest.raises(ValueError, match="no server answers"):
        train(config, data, epochs=1, out=tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()
