"""The contract of all export formats."""

import json

import pytest

from lownas.search.results.exporters import EXPORTERS, export_config, exporter_names
from lownas.search_space.presets import PRESETS

CONFIG = PRESETS["cpubone_nano"].replace(resolution=32)


@pytest.mark.parametrize("name", exporter_names())
def test_each_writes_one_whole_file_with_and_without_a_model(tmp_path, name: str) -> None:
    from lownas.search_space.model import build_model

    suffix = EXPORTERS[name].suffix
    for model in (None, build_model(CONFIG)):
        written = export_config(CONFIG, tmp_path / "a" / "x.1", formats=[name], model=model)
        assert written == [tmp_path / "a" / f"x.1{suffix}"] and written[0].stat().st_size > 0
        assert list((tmp_path / "a").iterdir()) == written


@pytest.mark.parametrize("name", exporter_names())
def test_what_cannot_be_written_is_one_line(tmp_path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^cannot write ") as caught:
        export_config(CONFIG, tmp_path / "file" / "x", formats=[name])
    assert "\n" not in str(caught.value)


def test_weights_come_back_with_what_they_are_for(tmp_path) -> None:
    import onnx
    import torch

    from lownas.evaluators.training.final.weights import Pixels, load_weights
    from lownas.search_space.model import build_model

    model = build_model(CONFIG)
    about = {"classes": ["a", "b"], "resolution": 32, "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 0.5]}
    stem, formats = tmp_path / "x", ("weights", "onnx")
    weights, network = export_config(CONFIG, stem, formats=formats, model=model, about=about)
    again = load_weights(weights)
    assert again.config == CONFIG and again.classes == ("a", "b") and again.resolution == 32
    assert again.pixels == Pixels((0.1, 0.2, 0.3), (1.0, 1.0, 0.5))
    assert all(torch.equal(value, again.state[name]) for name, value in model.state_dict().items())
    said = {entry.key: json.loads(entry.value) for entry in onnx.load(network).metadata_props}
    assert said == {f"lownas.{name}": value for name, value in about.items()}
    assert load_weights(*export_config(CONFIG, tmp_path / "fresh", formats=["weights"])).classes == ()


def test_unknown_format(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'pickle': allowed are \['config', 'onnx', 'weights'\]"):
        export_config(PRESETS["cpubone_nano"], tmp_path / "x", formats=("config", "pickle"))
    assert list(tmp_path.iterdir()) == []
