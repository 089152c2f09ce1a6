"""What holds for all data sources: specifications, and a contract that each of them keeps."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lownas.evaluators.data.loading import data_identity, load_data
from lownas.evaluators.data.records import DataRequest
from lownas.evaluators.data.sources import (
    ArraySource,
    DataSource,
    register_source,
    source,
    source_forms,
    source_names,
)
from lownas.evaluators.training.proxy import load_proxy_data, train_proxy
from lownas.evaluators.training.settings import ProxySettings
from lownas.search_space import PRESETS

from ...conftest import Evil
from ...toys import Brightness
from .conftest import arrays, refused, save_npy
from .test_fashion_mnist import fashion_of


def write_cifar(folder: Path, files: dict[str, int], label_key: str, meta: str, names_key: str, classes: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in files.items():
        batch = {
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            label_key: [i % classes for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    (folder / meta).write_bytes(pickle.dumps({names_key: [f"class {i}" for i in range(classes)]}, 2))


def made(name: str, folder: Path) -> DataSource:
    """A source of this kind, with what it reads in `folder`."""
    if name == "imagefolder":
        rng = np.random.default_rng(0)
        for part, count in (("train", 12), ("val", 4)):
            for label in ("cat", "dog"):
                (folder / part / label).mkdir(parents=True)
                for i in range(count):
                    picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
                    picture.save(folder / part / label / f"{i}.png")
    elif name in ("fashion-mnist", "scenes"):
        folder.mkdir()
        fashion_of(folder)
    elif name == "cifar10":
        parts = {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 20}
        write_cifar(folder / "cifar-10-batches-py", parts, "labels", "batches.meta", "label_names", 10)
    elif name == "cifar100":
        parts = {"train": 200, "test": 100}
        write_cifar(folder / "cifar-100-python", parts, "fine_labels", "meta", "fine_label_names", 100)
    elif name == "arrays":
        save_npy(folder, arrays())
    elif name == "csv":
        made("imagefolder", folder)
        files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
        lines = ["file,label,split", *(f"{path},{path.parts[1]},{path.parts[0]}" for path in files)]
        (folder / "list.csv").write_text("\n".join(lines))
        return source(f"csv:{folder / 'list.csv'}")
    elif name in ("squash", "pad"):
        return source(f"{name}:{made('imagefolder', folder).spec}")
    else:
        specs = {"digits": "digits", "formula": "formula:3", "brightness": "brightness:40"}
        return ArraySource(**arrays()) if name == "memory" else source(specs[name])
    return source(f"{name}:{folder}")


WITHOUT_DOWNLOAD = [name for name in source_names() if name != "hf"]


@pytest.fixture(params=[*WITHOUT_DOWNLOAD, "memory", "brightness"])
def any_source(request: pytest.FixtureRequest, tmp_path: Path, toys: None) -> DataSource:
    return made(request.param, tmp_path / "data")


def task_of(data: DataSource) -> str:
    return "toy_regression" if isinstance(data, Brightness) else "classification"


def test_it_gives_the_same_labelled_images_each_time(any_source: DataSource) -> None:
    request = DataRequest(16, 3, 20, 10)
    found, again = any_source.read(request), any_source.read(request)
    for part, same in ((found.train, again.train), (found.validation, again.validation)):
        if part is None:
            assert same is None
            continue
        assert same is not None and len(part) == len(part.labels) == len(same) > 0
        assert np.array_equal(part.labels, same.labels)
        if isinstance(part.images, np.ndarray):
            assert part.images.dtype == np.uint8 and np.array_equal(part.images, same.images)
            assert part.images.ndim == 3 or part.images.shape[3] == 3
        if found.classes is not None:
            assert part.labels.min() >= 0 and part.labels.max() < len(found.classes)
    assert found.card["origin"]


def test_it_can_be_sent_to_a_worker_and_kept(any_source: DataSource) -> None:
    sent = pickle.loads(pickle.dumps(any_source))
    assert isinstance(sent, DataSource) and sent == any_source and hash(sent) == hash(any_source)
    assert sent.spec == any_source.spec
    first, second = (load_data(data, 16, train_images=10, task=task_of(data)) for data in (any_source, sent))
    assert data_identity(first) == data_identity(second)


def test_its_specification_names_it(any_source: DataSource) -> None:
    if isinstance(any_source, ArraySource):
        with pytest.raises(ValueError, match=r"given in Python: they must be given again"):
            source(any_source.spec)
        return
    assert source(any_source.spec) == any_source
    assert any_source.spec.partition(":")[0] in source_names()


def test_images_come_in_the_size_and_number_asked_for(any_source: DataSource) -> None:
    data = load_data(any_source, 16, 1, train_images=12, validation_images=6, task=task_of(any_source))
    assert data.train_images.shape[1:] == (16, 16, 3) and data.train_images.dtype == np.uint8
    assert len(data.train_labels) == 12 and len(data.validation_labels) == 6
    assert data.spec == any_source.spec and data.card["source"] == data.spec.partition(":")[0]
    assert 0 <= any_source.max_shift < 1 and isinstance(any_source.mirrored, bool)


def test_the_number_of_classes_is_the_requests_only_where_it_is_open(any_source: DataSource) -> None:
    assert not any_source.open_classes
    with pytest.raises(ValueError, match="classes can be chosen"):
        load_data(any_source, 16, classes=5)
    assert source("formula").open_classes
    assert len(load_data("formula", 16, train_images=10, validation_images=5, classes=5).classes) == 5


# --- arrays given in Python, and sources from outside


def test_arrays_in_python_are_what_they_are_in_files(tmp_path: Path) -> None:
    train, held_out = arrays(), arrays(12)
    in_files = {f"train_{name}": array for name, array in train.items()}
    in_files |= {f"validation_{name}": array for name, array in held_out.items()}
    save_npy(tmp_path, in_files)
    given = load_data((*train.values(), *held_out.values()), 16)
    assert data_identity(given) == data_identity(load_data(f"arrays:{tmp_path}", 16))
    floats = ArraySource((train["images"] / 255).astype(np.float32), train["labels"].tolist())
    assert floats == ArraySource(**train) and floats.spec.startswith("memory:")
    assert floats != ArraySource(**arrays(20))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.zeros((4, 8, 8), np.uint8),), "2 .* or as 4"),
        ((np.zeros((4, 8, 8), np.uint8), np.arange(3)), "data: 4 images but 3 labels"),
        ((np.zeros((4, 8, 8), np.int64), np.arange(4)), "expected are bytes"),
        ((np.zeros((4, 8, 8), np.uint8), np.array(list("abcd"))), "expected are numbers"),
        ((np.zeros((4, 8, 8), np.uint8), np.arange(4), np.zeros((2, 8, 8), np.uint8), None), "validation_images alone"),
    ],
)
def test_arrays_in_python_that_cannot_be_used(data: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_data(data, 16)
    assert "\n" not in str(caught.value)


def test_a_training_takes_arrays_and_sources() -> None:
    settings = ProxySettings(resolution_scale=1.0, epochs=1, train_images=24, validation_images=8, batch_size=8)
    config = PRESETS["cpubone_nano"].replace(resolution=32)
    content = arrays()
    given = (content["images"], content["labels"])
    first = train_proxy(config, given, settings)
    second = train_proxy(config, load_proxy_data(settings, 32, ArraySource(*given)), settings)
    assert first.status == "complete", first.reason
    assert first.loss == second.loss


def test_what_is_no_data_is_refused(toys: None) -> None:
    with pytest.raises(TypeError, match="a specification, a DataSource or arrays are expected, given int"):
        source(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="registered already"):
        register_source("digits", Brightness)
    with pytest.raises(ValueError, match="no colon"):
        register_source("a:b", Brightness)
    assert "brightness:COUNT" in source_forms() and "imagefolder:DIR" in source_forms()


def test_a_pickle_in_place_of_any_file_is_never_loaded(tmp_path: Path) -> None:
    evil = pickle.dumps(Evil(tmp_path / "trap"))
    batches = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    for name in (
        *(f"ten/cifar-10-batches-py/{batch}" for batch in (*batches, "batches.meta")),
        *(f"hundred/cifar-100-python/{part}" for part in ("train", "test", "meta")),
        *("cifar.tar.gz", "raw/images.npy", "a.safetensors", "a/1.png", "a/2.png", "b/1.jpg", "b/2.jpg"),
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(evil)
    save_npy(tmp_path / "raw", {"labels": arrays()["labels"]})
    save_npy(tmp_path / "objects", {**arrays(), "images": np.array([Evil(tmp_path / "trap")] * 40, dtype=object)})
    with tarfile.open(tmp_path / "ten.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "ten" / "cifar-10-batches-py", "cifar-10-batches-py")
    specs = ["cifar10:ten", "cifar10:ten.tar.gz", "cifar10:cifar.tar.gz", "cifar100:hundred", "arrays:raw"]
    refused([*specs, "arrays:objects", "arrays:a.safetensors", "imagefolder:.", "fashion-mnist:."], tmp_path)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("spec", ["cifar10", "arrays:", "hf", "digits:3", "imagefolder", "cifar12:x", "", ":"])
def test_unknown_specifications_name_those_allowed(spec: str) -> None:
    with pytest.raises(ValueError, match=r"unknown data .* allowed are imagefolder:DIR, .*hf:NAME"):
        load_data(spec, 16)
