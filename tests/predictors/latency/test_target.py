import pytest

from lownas.predictors.latency import machine
from lownas.predictors.latency import target as targets
from lownas.predictors.latency.machine import cpu_name, library_version, physical_cores
from lownas.predictors.latency.target import ALIASES, Target, full_names, profile_folders


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_name_one_target_each(alias):
    target = Target.parse(alias)
    assert str(target) == full_names()[alias]
    assert Target.parse(str(target)) == target
    assert target.alias == (alias if physical_cores() > 1 or alias != "cpu:all-cores" else "cpu")


def test_all_cores_are_those_of_this_machine(monkeypatch):
    monkeypatch.setattr(targets, "physical_cores", lambda: 12)
    assert str(Target.parse("cpu:all-cores")) == "cpu/onnxruntime/fp32/b1/t12"
    assert Target.parse("cpu/torch/fp32/b8/tall").threads == 12
    assert Target.parse("cpu/onnxruntime/fp32/b1/t12").alias == "cpu:all-cores"
    assert Target.parse("cpu").threads == 1
    with pytest.raises(ValueError, match="tall are all cores of this machine"):
        Target.parse("rtx3090/tensorrt/fp16/b1/tall")


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    machine.physical_cores.cache_clear()
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert machine.physical_cores() == 1
    machine.physical_cores.cache_clear()


def test_full_names_parse():
    target = Target.parse("pixel-8/onnxruntime/int8/b4/t2")
    assert (target.device, target.runtime, target.precision) == ("pixel-8", "onnxruntime", "int8")
    assert (target.batch, target.threads) == (4, 2)
    assert not target.is_local
    assert Target.parse("rtx3090:throughput").batch is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rtx3091", "rtx3090"),
        ("cpuu", "cpu"),
        ("zzz", "cuda"),
        ("cpu/onnxruntime/fp32/b0/t1", "bBATCH"),
        ("cpu/onnxruntime/fp32/b1", "did you mean|known are"),
        ("cpu/onnx/fp32/b1/t1", "onnxruntime"),
        ("cpu/onnxruntime/fp33/b1/t1", "fp32"),
        ("../etc/onnxruntime/fp32/b1", "full name"),
        ("../onnxruntime/fp32/b1/t1", "device"),
    ],
)
def test_unknown_names_are_refused_with_what_is_known(name, says):
    with pytest.raises(ValueError, match=says) as error:
        Target.parse(name)
    assert "\n" not in str(error.value)


def test_file_names_are_unique_and_flat():
    names = {Target.parse(alias).file_name for alias in ALIASES}
    assert len(names) == len(set(full_names().values()))
    assert not any("/" in name for name in names)


def test_fingerprint_names_device_and_runtime_of_local_targets_only():
    assert Target.parse("cpu").fingerprint() == {"cpu": cpu_name(), "onnxruntime": library_version("onnxruntime")}
    assert set(Target.parse("cuda").fingerprint()) == {"gpu", "torch"}
    assert Target.parse("rtx3090").fingerprint() == {}


def test_given_folder_comes_before_the_shipped_profiles(tmp_path):
    folders = profile_folders(tmp_path)
    assert folders[0] == tmp_path
    assert folders[-1].name == "profiles"
