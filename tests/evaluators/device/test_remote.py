"""Measuring over SSH, against a real sshd on the loopback interface."""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lownas.evaluators.device import agent, remote
from lownas.evaluators.device.agent import lock, serving
from lownas.evaluators.device.measure import measure_latency
from lownas.evaluators.device.remote import RemoteBox
from lownas.nas import main
from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.target import Box
from lownas.search_space import PRESETS, op_graph, write_onnx

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
READ = 'read -r size; head -c "$size" >/dev/null'
"""Takes in the agent that a stand-in of the client is sent, so that it ends after that and not before."""
SMALL = PRESETS["cpubone_nano"].replace(resolution=64, head_widths=(64, 64), classes=10)


class Loopback:
    """This machine as a box: an sshd of the test's own, and a client configuration that knows it as "mybox"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        for name in ("host_key", "user_key", "stranger_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        server = f"""
            Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {folder}/host_key
            AuthorizedKeysFile {folder}/user_key.pub
            PidFile none
            StrictModes no
            UsePAM no
            SetEnv TMPDIR={self.temporary} OMP_NUM_THREADS=1
            """
        client = f"""
            Host mybox stranger
                HostName 127.0.0.1
                Port {self.port}
                IdentitiesOnly yes
                UserKnownHostsFile {folder}/known_hosts
                StrictHostKeyChecking accept-new
            Host mybox
                IdentityFile {folder}/user_key
            Host stranger
                IdentityFile {folder}/stranger_key
            Host nobody
                HostName 127.0.0.1
                Port 1
            """
        (folder / "sshd_config").write_text(textwrap.dedent(server))
        (folder / "ssh_config").write_text(textwrap.dedent(client))
        self.client = f"ssh -F {folder}/ssh_config"
        self.log = open(folder / "log.txt", "wb")  # noqa: SIM115  (closed in stop)
        self.sshd = subprocess.Popen([str(SSHD), "-D", "-e", "-f", folder / "sshd_config"], stderr=self.log)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        self.stop()
        pytest.skip(f"sshd does not start: {(folder / 'log.txt').read_text()[-300:]}")

    def target_file(self, name: str = "mybox.yaml", **changes: object) -> Path:
        path = self.folder / name
        path.write_text(json.dumps({"device": "mybox", "host": "mybox", "python": sys.executable, **changes}))
        return path

    def box(self, **changes: object) -> RemoteBox:
        target = Target.load(self.target_file("other.yaml", **changes))
        assert target.box is not None
        return RemoteBox(target.box)

    def sessions(self) -> list[psutil.Process]:
        """The server's processes for open connections."""
        return [p for p in psutil.Process(self.sshd.pid).children(recursive=True) if p.name().startswith("sshd")]

    def measuring(self) -> bool:
        return any(self.temporary.glob("lownas-*/work"))

    def is_clean(self) -> bool:
        """Whether nothing of an agent is left, after a moment."""
        for _ in range(100):
            agents = [p for p in psutil.process_iter(["cmdline"]) if f"TMPDIR={self.temporary}" in _environment(p)]
            files = [path for path in self.temporary.glob("lownas-*/*") if path.name != "lock"]
            if not agents and not files:
                return True
            time.sleep(0.1)
        return False

    def stop(self) -> None:
        self.sshd.terminate()
        self.sshd.wait()
        self.log.close()


def _environment(process: psutil.Process) -> list[str]:
    try:
        return Path(f"/proc/{process.pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    if SSHD is None:
        pytest.skip("no sshd here (Debian: apt-get install openssh-server)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks itself up
    server = Loopback(tmp_path_factory.mktemp("loopback"))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _environ(request, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    if "loopback" in request.fixturenames:
        monkeypatch.setenv("LOWNAS_SSH", request.getfixturevalue("loopback").client)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the machine that runs the tests may well be busy
        yield


TARGET = Target.parse("mybox/onnxruntime/fp32/b1/t1")


def test_config_and_file_are_measured_with_their_kernels(loopback, tmp_path):
    hostile = tmp_path / "a;touch b\n-oProxyCommand=x $(touch c).onnx"
    write_onnx(SMALL, hostile)
    with loopback.box() as box:
        first = box.measure_latency(SMALL, TARGET, time_limit_s=0.5, kernels=True)
        second = box.measure_latency(hostile, TARGET, time_limit_s=0.5, min_runs=5)
        int8 = box.measure_latency(SMALL, Target.parse("mybox/onnxruntime/int8/b1/t1"), time_limit_s=0.5, kernels=True)
        assert box.fingerprint(TARGET) == first.host == int8.host
    names = [{f"{row}:{role}" for row, role in fuse(op_graph(SMALL), "onnxruntime", b).keys} for b in (16, 8, 4, 0)]
    assert set(first.kernel_ms) in names
    # Of a busy machine and a model of half a millisecond no more can be asked: it tells ms from seconds.
    assert 0.1 < sum(first.kernel_ms.values()) / first.undisturbed_ms < 10
    assert first.what == SMALL.id and first.runs >= 5 and second.kernel_ms is None
    assert 0.1 < first.undisturbed_ms / second.undisturbed_ms < 10
    assert set(first.host) == {"cpu", "onnxruntime"} and set(first.versions) == {"onnxruntime", "numpy", "python"}
    assert int8.target.split("/")[2] == "int8" and int8.kernel_ms
    assert loopback.is_clean() and [path.name for path in loopback.temporary.iterdir()] == [f"lownas-{os.getuid()}"]


def test_from_the_command_line(loopback, tmp_path, capsys, monkeypatch):
    """A box is calibrated, then known by its full name too; a search measures there; another machine is refused."""
    file, profiles = str(loopback.target_file()), str(tmp_path / "profiles")
    calibrate = ["calibrate", "--target", file, "--samples", "8", "--profiles", profiles]
    assert main(["predict", "--target", file, "--preset", "cpubone_nano", "--profiles", profiles]) == 2
    assert f"lownas calibrate --target {file}" in capsys.readouterr().err
    assert main([*calibrate, "--json"]) == 0
    saved = json.loads(capsys.readouterr().out)
    assert saved["target"] == str(TARGET) and saved["samples"] == 8
    kernels = [json.loads(line).get("kernel_ms") for line in next(Path(profiles).glob("*.jsonl")).open()]
    assert sum(bool(times) for times in kernels) >= 8
    assert main(["predict", "--target", str(TARGET), "--preset", "cpubone_nano", "--profiles", profiles, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == str(TARGET)

    def run_search(settings, parts, *, resume):
        assert parts.about["target_file"] == file and settings.target == str(TARGET) and not resume
        assert 0 < parts.measuring.look_at_sentinel() < 2 * parts.measuring.known_ms
        raise RuntimeError(f"measured {parts.measuring.look(SMALL).target}")

    monkeypatch.setattr("lownas.search.api.run_search", run_search)
    run = ["--profiles", profiles, "--run", str(tmp_path / "run")]
    assert main(["search", "--target", file, "--latency-budget", "50ms", *run]) == 1
    assert f"measured {TARGET}" in capsys.readouterr().err

    predictor = LatencyPredictor.load(TARGET, profiles)
    predictor.fingerprint["cpu"] = "Cortex-A72"
    predictor.save(profiles)
    assert main(calibrate) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "another machine's" in said and "Cortex-A72" in said and "remove" in said
    assert loopback.is_clean()


def test_lost_connection_is_made_again_and_the_measurement_repeated(loopback, caplog, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", (0.1, 0.1))
    with loopback.box() as box, ThreadPoolExecutor() as pool:
        box.measure_latency(SMALL, TARGET, time_limit_s=0.1, min_runs=1)
        underway = pool.submit(box.measure_latency, SMALL, TARGET, time_limit_s=2.0, min_runs=10**6)
        _wait_until(loopback.measuring)
        for session in loopback.sessions():
            with suppress(psutil.NoSuchProcess):  # it may have ended with another
                session.kill()
        assert underway.result(timeout=60).runs > 10
    assert "connection lost" in caplog.text and "connecting again" in caplog.text
    assert loopback.is_clean()


def test_agent_ends_with_whoever_asked(loopback, monkeypatch):
    """Killed in the middle of a measurement, the client's side leaves nothing behind on the box."""
    monkeypatch.setattr(remote, "LOSSES", 0)
    with loopback.box() as box, ThreadPoolExecutor() as pool:
        underway = pool.submit(box.measure_latency, SMALL, TARGET, time_limit_s=60.0, min_runs=10**6)
        _wait_until(loopback.measuring)
        box._connection._process.kill()
        with pytest.raises(ConnectionError, match="lost the connection"):
            underway.result(timeout=60)
        assert loopback.is_clean()


def test_drivers_never_measure_at_once(loopback):
    """Two over SSH and one on the machine itself, each for a second and more: none begins before another ended."""

    def over_ssh(box):
        with box:
            return box.measure_latency(SMALL, TARGET, time_limit_s=1.0, min_runs=10**6)

    def here():
        return measure_latency(SMALL, Target.parse("cpu"), time_limit_s=1.0, min_runs=10**6)

    boxes = [loopback.box(), loopback.box()]
    with ThreadPoolExecutor() as pool:
        begin = time.monotonic()
        records = [pool.submit(over_ssh, boxes[0]), pool.submit(here), pool.submit(over_ssh, boxes[1])]
        assert all(record.result().runs > 10 for record in records)
    assert time.monotonic() - begin > 3.0


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"host": "nobody"}, ConnectionError, "cannot reach nobody: .*refused"),
        ({"host": "stranger"}, ConnectionError, "must work without a password"),
        ({"python": "/nowhere/python"}, ValueError, "cannot be run: name another interpreter"),
        ({"python": "python3; touch escaped; echo '"}, ValueError, "cannot be run"),
        ({"python": "/bin/true"}, ValueError, "does not run lownas's agent"),
        ({"runtime": "onnxruntime-cuda"}, ValueError, "CUDAExecutionProvider"),
        ({"runtime": "torch"}, ValueError, "cannot be measured"),
        ({"batch": "max"}, ValueError, "no fixed batch size"),
        ({"threads": 1000}, ValueError, "asks for 1000 threads, and mybox has"),
    ],
)
def test_what_stands_in_the_way_is_said_in_one_line(loopback, changes, error, says):
    file = loopback.target_file("bad.yaml", **changes)
    target = Target.load(file)
    with RemoteBox(target.box) as box, pytest.raises(error, match=says) as raised:
        box.measure_latency(SMALL, target)
    assert "\n" not in str(raised.value)
    assert not (Path.home() / "escaped").exists()


def test_box_without_onnxruntime(loopback, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    for missing in ("numpy", "onnxruntime"):
        box = loopback.box(python=str(tmp_path / "bare/bin/python"))
        with box, pytest.raises(ValueError, match=f"has no {missing}: run `pip install numpy onnxruntime`") as raised:
            box.measure_latency(SMALL, TARGET)
        assert "\n" not in str(raised.value)
        (next((tmp_path / "bare/lib").glob("python3*/site-packages")) / "numpy.py").write_text(
            "def __getattr__(name): pass"
        )


def test_box_whose_key_is_not_known(loopback, monkeypatch):
    """It is never accepted unseen, and one that has changed is told from one that is new."""
    known = loopback.folder / "known_hosts"
    strict = f"{loopback.client} -o StrictHostKeyChecking=yes -o UserKnownHostsFile={known}"
    monkeypatch.setenv("LOWNAS_SSH", f"{strict}.none")
    with loopback.box() as box, pytest.raises(ConnectionError, match="to accept its key"):
        box.fingerprint(TARGET)
    key = (loopback.folder / "user_key.pub").read_text()
    Path(f"{known}.other").write_text(f"[127.0.0.1]:{loopback.port} {key}")
    monkeypatch.setenv("LOWNAS_SSH", f"{strict}.other")
    with loopback.box() as box, pytest.raises(ConnectionError, match="host key has changed"):
        box.fingerprint(TARGET)


def test_model_that_does_not_run_is_refused_and_the_connection_kept(loopback, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x09broken")
    write_onnx(SMALL, tmp_path / "four.onnx", batch=4)
    with loopback.box() as box:
        with pytest.raises(ValueError, match=r"broken\.onnx"):
            box.measure_latency(tmp_path / "broken.onnx", TARGET)
        with pytest.raises(ValueError, match=r"mybox: .*is of batch 4"):
            box.measure_latency(tmp_path / "four.onnx", TARGET)
        connection = box._connection
        box.measure_latency(SMALL, TARGET, time_limit_s=0.1, min_runs=1)
        assert box._connection is connection


def _wait_until(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


# --- without a server ------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A script in place of the SSH client, which runs `body`; "$command" is what the box would be told to run."""

    def install(body: str) -> RemoteBox:
        path = tmp_path / "client"
        path.write_text(f"#!/bin/sh\nfor command; do :; done\n{body}\n")
        path.chmod(0o755)
        monkeypatch.setenv("LOWNAS_SSH", str(path))
        return RemoteBox(Box("mybox", sys.executable))

    return install


def test_what_a_shell_prints_first_is_passed_over(stand_in):
    with stand_in('echo "Welcome to mybox"; echo; printf "mybox> "; eval "$command"') as box:
        assert box.fingerprint(TARGET)["onnxruntime"]


def test_home_folder_on_the_box_is_not_imported_from(stand_in, tmp_path):
    """Commands start there, and it may hold a checkout of onnxruntime or a script named as a module is."""
    (tmp_path / "queue.py").write_text("raise SystemExit(1)")
    with stand_in(f'cd {tmp_path}; eval "$command"') as box:
        assert box.fingerprint(TARGET)["onnxruntime"]


def test_agent_that_hears_nothing_gives_up(stand_in, monkeypatch, tmp_path):
    """A connection may break without either end being told."""
    impatient = agent.program().replace(b"SILENCE_S = 60", b"SILENCE_S = 1")
    monkeypatch.setattr(agent, "program", lambda: impatient)
    monkeypatch.setattr(serving, "BEAT_S", 0.2)
    with stand_in('eval "$command"') as box:
        assert box.measure_latency(SMALL, TARGET, time_limit_s=2.0, min_runs=10**6).runs > 10
        monkeypatch.setattr(serving, "BEAT_S", 60.0)
        monkeypatch.setattr(remote, "LOSSES", 0)
        begin = time.monotonic()
        with pytest.raises(ConnectionError, match="lost the connection"):
            box.measure_latency(SMALL, TARGET, time_limit_s=60.0, min_runs=10**6)
    assert time.monotonic() - begin < 20


def test_box_that_does_not_answer_in_time_is_not_asked_again(stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "START_S", 2.0)
    box = stand_in(f"echo >>{tmp_path}/runs; exec sleep 60")
    with box, pytest.raises(ConnectionError, match="no answer within"):
        box.fingerprint(TARGET)
    assert len((tmp_path / "runs").read_text()) == 1


def test_answers_that_make_no_sense_are_refused(stand_in):
    for line in (f"{serving.MARK} [", f'{serving.MARK} {{"cpu": 1}}', f"{serving.MARK} null"):
        with (
            stand_in(f"echo '{line}'; cat >/dev/null") as box,
            pytest.raises(ValueError, match="cannot be read"),
        ):
            box.fingerprint(TARGET)


def test_measurement_that_makes_no_sense_is_refused(stand_in):
    versions = {"onnxruntime": "1"}
    about = {"cpu": "x", "gpu": "", "cores": 1, "providers": ["CPUExecutionProvider"], "versions": versions}
    timed = {"times_ms": ["1"], "cpu_times_ms": [], "warmup_runs": 0, "busy_cores": 0.0}
    for answer in ({}, {"timed": timed}, {"timed": timed, "nodes": None}, {"timed": timed, "nodes": [1]}):
        body = f"echo '{serving.MARK} {json.dumps(about)}'; echo '{json.dumps(answer)}'; cat >/dev/null"
        with stand_in(body) as box, pytest.raises(RuntimeError, match="cannot be read"):
            box.measure_latency(SMALL, TARGET)


def test_losses_are_bounded(stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "RETRY_S", ())
    about = json.dumps(
        {"cpu": "x", "gpu": "", "cores": 1, "providers": ["CPUExecutionProvider"], "versions": {"onnxruntime": "1"}}
    )
    box = stand_in(f"echo >>{tmp_path}/runs; {READ}; echo '{serving.MARK} {about}'; echo gone >&2; exit 255")
    with box, pytest.raises(ConnectionError, match=r"4 times .*gone"):
        box.measure_latency(SMALL, TARGET)
    assert len((tmp_path / "runs").read_text()) == remote.LOSSES + 1


def test_box_that_stays_away_is_waited_for_once(stand_in, monkeypatch, tmp_path):
    """Ten finalists in a row must not each wait for a box that was switched off."""
    monkeypatch.setattr(remote, "RETRY_S", (0.0, 0.0))
    about = {"cpu": "x", "gpu": "", "cores": 1, "providers": ["CPUExecutionProvider"], "versions": {"onnxruntime": "1"}}
    count = f"echo >>{tmp_path}/runs"
    with stand_in(f"{count}; {READ}; echo '{serving.MARK} {json.dumps(about)}'; exit 255") as box:
        box.fingerprint(TARGET)
        stand_in(f"{count}; echo gone >&2; exit 255")
        for attempts in (1 + 3, 1 + 3 + 1):
            with pytest.raises(ConnectionError, match="cannot reach mybox: gone"):
                box.measure_latency(SMALL, TARGET)
            assert len((tmp_path / "runs").read_text()) == attempts


def test_another_machine_under_the_same_name_is_refused(stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "RETRY_S", ())
    about = json.dumps(
        {"cpu": "$$", "gpu": "", "cores": 1, "providers": ["CPUExecutionProvider"], "versions": {"onnxruntime": "1"}}
    )
    escaped = about.replace('"', '\\"')
    box = stand_in(f'{READ}; echo "{serving.MARK} {escaped}"; exit 255')
    with box, pytest.raises(ConnectionError, match="not the machine that it was"):
        box.measure_latency(SMALL, TARGET)


def test_missing_client_is_said(monkeypatch):
    monkeypatch.setenv("LOWNAS_SSH", "/nowhere/ssh")
    with RemoteBox(Box("mybox")) as box, pytest.raises(ConnectionError, match="cannot run the SSH client"):
        box.fingerprint(TARGET)
    monkeypatch.setenv("LOWNAS_SSH", "ssh -F 'file")
    with RemoteBox(Box("mybox")) as box, pytest.raises(ValueError, match=r"LOWNAS_SSH: .*No closing quotation"):
        box.fingerprint(TARGET)


def test_one_measurement_at_a_time_on_this_machine(monkeypatch, tmp_path):
    said: list[str] = []
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(lock, "SAY_AFTER_S", 0.05)
    held, release = threading.Event(), threading.Event()

    def hold():
        with lock.alone(said.append):
            held.set()
            release.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    monkeypatch.setattr(lock, "WAIT_S", 1.0)
    with pytest.raises(RuntimeError, match="waited 1 s for another measurement"), lock.alone(said.append):
        pass
    monkeypatch.setattr(lock, "WAIT_S", 60.0)

    def say(text):
        said.append(text)
        release.set()

    with lock.alone(say) as folder:
        assert list(folder.iterdir()) == []
    other.join()
    assert not folder.exists()
    assert said == [f"waiting for another measurement on this machine (process {os.getpid()}) to end"] * 2


def test_no_measurement_beside_a_training(monkeypatch, tmp_path):
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(lock, "WAIT_S", 0.3)
    with lock.training(), lock.training():  # several trainings go together
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match="waited 0 s for trainings"):
            lock.alone(lambda text: None).__enter__()
        assert time.monotonic() - begin > 0.25
    with lock.alone(lambda text: None):
        pass


def test_a_measurement_that_waits_comes_next_though_trainings_never_all_stop(monkeypatch, tmp_path):
    """Two trainings let measurements by at different times; without taking turns one of them would always work."""
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(lock, "WAIT_S", 20.0)
    monkeypatch.setattr(lock, "TURN_S", 0.2)
    over, working = threading.Event(), []

    def train(number):
        with lock.HoldingOff() as holding:
            while not over.is_set():
                working.append(number)
                time.sleep(0.03 * number)
                holding.let_measure()

    threads = [threading.Thread(target=train, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.1)
        begin = time.monotonic()
        with lock.alone(print):
            waited, before = time.monotonic() - begin, len(working)
            time.sleep(0.3)
            assert len(working) == before  # nobody works beside it
        assert waited < 5
        time.sleep(0.3)
        assert {1, 2} <= set(working[before:])  # they go on
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_lock_is_for_every_user(monkeypatch, tmp_path):
    file = tmp_path / "lock"
    monkeypatch.setattr(lock, "LOCK", file)
    with lock.alone(print):
        assert file.stat().st_mode & 0o777 == 0o666
    (tmp_path / "other").write_text("precious")
    file.unlink()
    file.symlink_to(tmp_path / "other")
    with pytest.raises(RuntimeError, match="cannot open the lock"), lock.alone(print):
        pass
    assert (tmp_path / "other").read_text() == "precious"


def test_what_a_killed_measurement_left_is_removed(tmp_path):
    with lock.alone(print) as folder:
        left = folder
    left.mkdir()
    (left / "optimized.onnx").write_bytes(b"x")
    with lock.alone(print) as folder:
        assert folder == left and list(folder.iterdir()) == []
    assert left.parent.parent == tmp_path and left.parent.stat().st_mode & 0o777 == 0o700


def test_full_disk_is_said(monkeypatch):
    """onnxruntime's own words for it are of a broken model."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(RuntimeError, match=r"has room for 1 MiB, and \w+ needs \d+ MiB"):
        measure_latency(SMALL, Target.parse("cpu"), time_limit_s=0.1, kernels=True)
    assert measure_latency(SMALL, Target.parse("cpu"), time_limit_s=0.1).runs


def test_agent_needs_little():
    """Python 3.8, numpy, onnxruntime, and those of its own modules that come before."""
    for number, name in enumerate(agent.MODULES):
        file = Path(agent.__file__).parent / f"{name}.py"
        tree = ast.parse(file.read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in agent.MODULES[:number], (name, node.module)
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in sys.stdlib_module_names, (name, node.module)
            elif isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert names <= sys.stdlib_module_names | {"numpy", "onnxruntime"}, (name, names)
    assert {path.stem for path in Path(agent.__file__).parent.glob("*.py")} == {"__init__", *agent.MODULES}
