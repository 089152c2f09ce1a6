"""Machines are made of files here: what Linux, laptops, boards and containers write about themselves."""

from pathlib import Path

import pytest

from lownas.evaluators.device.advice import advice, cores_advice
from lownas.evaluators.device.agent import machine_state as states
from lownas.evaluators.device.agent.machine_state import (
    MachineState,
    cpu_quota,
    gpu_state,
    gpu_throttling,
    machine_state,
    pi_throttling,
)


@pytest.fixture
def machine(tmp_path):
    """Writes files below a root of its own, by path."""

    def write(**files: str) -> Path:
        for path, text in files["files"].items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return tmp_path

    return lambda files: write(files=files)


def test_a_laptop_tells_its_settings(machine):
    root = machine(
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave",
            "sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference": "balance_power",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3400000",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "0",
            "sys/firmware/acpi/platform_profile": "low-power",
            "sys/class/power_supply/AC/type": "Mains",
            "sys/class/power_supply/AC/online": "0",
            "sys/class/power_supply/BAT0/type": "Battery",
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone0/temp": "91000",
            "sys/class/thermal/thermal_zone1/type": "iwlwifi",
            "sys/class/thermal/thermal_zone1/temp": "99000",
        }
    )
    state = machine_state(root=root)
    wanted = {"governor": "powersave", "energy preference": "balance_power", "turbo": "on", "power supply": "battery"}
    assert state.settings.items() >= (wanted | {"power profile": "low-power"}).items()
    assert state.readings == {"clock_mhz": 3400.0, "temperature_c": 91.0, "throttle_events": 3.0}
    said = " ".join(advice(state, cores=4, load=3.0))
    assert all(word in said for word in ("powersave", "battery", "low-power", "turbo", "hot (91", "busy (load 3.0"))


def test_what_cannot_be_read_is_left_out(tmp_path):
    state = machine_state(root=tmp_path)
    assert state.readings == {} and state.throttled == []
    assert set(state.settings) <= {"cores allowed"}
    assert any("clock cannot be read" in line for line in advice(state, cores=2, load=0.0))


def test_a_quiet_machine_gets_no_advice_but_of_its_cores():
    state = MachineState({"governor": "performance"}, {"clock_mhz": 3000.0, "temperature_c": 50.0}, [])
    assert advice(state, cores=8, load=0.1) == [cores_advice(8)]
    assert "8 threads" in cores_advice(8) and "only setting" in cores_advice(1)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({}, None),
        (
            {
                "proc/self/cgroup": "0::/pods/one",
                "sys/fs/cgroup/pods/one/cpu.max": "max 100000",
                "sys/fs/cgroup/pods/cpu.max": "150000 100000",
            },
            1.5,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "25000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"}, 0.5),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"}, None),
    ],
)
def test_quota_of_a_container(machine, files, cores):
    root = machine(files)
    assert cpu_quota(root) == cores
    assert machine_state(root=root).settings.get("cpu quota") == (None if cores is None else f"{cores:g} cores")


def test_boards_and_gpus_say_what_slows_them_down():
    assert pi_throttling("throttled=0x50005\n") == ["undervoltage", "throttled"]
    assert pi_throttling("throttled=0x50000") == pi_throttling("") == []
    settings, readings = gpu_state("1410, 67, 250.00\n")
    assert settings == {"gpu power limit": "250 W"}
    assert readings == {"gpu_clock_mhz": 1410.0, "gpu_temperature_c": 67.0}
    assert gpu_throttling("0x0000000000000024\n") == ["gpu power cap", "gpu temperature"]
    assert gpu_throttling("0x0000000000000000\n") == gpu_throttling("") == gpu_throttling("[N/A]") == []
    assert gpu_state("1410, [N/A], [N/A]") == ({}, {"gpu_clock_mhz": 1410.0})
    assert gpu_state("") == gpu_state("No devices were found") == ({}, {})


def test_power_mode_of_a_jetson(monkeypatch):
    monkeypatch.setattr(states, "_said", lambda *words: "NV Power Mode: MODE_15W\n2" if words[0] == "nvpmodel" else "")
    assert machine_state().settings["power mode"] == "MODE_15W"


def test_commands_that_fail_or_hang_say_nothing(monkeypatch):
    monkeypatch.setattr(states, "COMMAND_S", 0.3)
    assert states._said("no-such-command-here") == ""
    assert states._said("false") == ""
    assert states._said("sleep", "30") == ""
    assert states._said("echo", "something") == "something\n"
