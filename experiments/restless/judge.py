"""Calibrations, measurements and searches on a restless machine, judged by looks that are spread over 100 minutes.

    python experiments/restless/judge.py measure --models FOLDER --work WORK      # 100 minutes, on two cores
    python experiments/restless/judge.py more --models FOLDER --work WORK         # searches that the time did not allow
    python experiments/restless/judge.py report --models FOLDER                   # writes judge.json, some minutes
    python experiments/restless/judge.py repeat --work WORK                       # judge-repeat.json, 20 minutes

`FOLDER` holds timm's networks as ONNX files (`../latency/cpu_timm.py export`, those it calls unseen). Five blocks of
20 minutes each begin with a default calibration; the load of `load.py` runs in the first, third and fifth. Then come,
in turn: `lownas measure` of two networks every two minutes; searches at different budgets (under load); and single
looks at all networks in a random order, among them those that the searches answered with. In two blocks a calibration
of the space `tiny` is added to the profile, in one more it is made by itself.

Everything is a command or a call as a user makes it, in a process of its own, except the single looks. Rows go to
judge-rows.jsonl.gz, the calibrations' measurements to judge-calibrations/.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.evaluators.device.agent.models import time_model
from lownas.evaluators.device.runtimes.onnxruntime import onnx_job
from lownas.experiments.latency import cpu_timm
from lownas.experiments.restless import load
from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.measurement_log import MeasurementLog
from lownas.predictors.latency.profile_fit import FittedSpaces, fit_log
from lownas.predictors.latency.sampling import sentinel_config
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph_from_onnx
from lownas.search_space.graph.onnx_writer import onnx_model
from lownas.search_space.probes import probe_graphs

HERE = Path(__file__).parent
ROWS, CALIBRATIONS, RESULTS = HERE / "judge-rows.jsonl.gz", HERE / "judge-calibrations", HERE / "judge.json"
TARGET = Target.parse("cpu")
BLOCKS, BLOCK_S, LAST_BLOCK_S, AFTER_S = 5, 1200.0, 760.0, 480.0
LOADED = (0, 2, 4)
ADDS_TINY, TINY_ALONE = (1, 2), (3,)
MEASURED = ("lowformer_b1", "cpubone_nano")
MEASURE_EVERY_S = 120.0
REPEATS, REPEAT_S, TURN_S = 10, 120, 300
BUDGETS_MS = [42.7, 56, 32.5, 6.38, 126, 3.71, 8.37, 11, 96.3, 24.8]
BUDGETS_MS += [37.3, 73.4, 7.31, 14.4, 84.1, 2.83, 3.24, 4.86, 16.5, 18.9]
SEARCHES = {0: 7, 2: 7, 4: 6}
JUDGED, SEED = 40, 2026
CHUNK = 40  # single looks, before it is seen whether something else is due
LOOK_RUNS = 24  # of a single look, warm-up included, within these seconds
LOOK_S = (0.25, 2.5)
QUANTILES = (0.1, 0.25, 0.5, 0.9)
MEDIAN = 2  # place of the median among them
TRUTH_QUANTILE = 0.1


def judged(calibration: Path) -> dict[str, LowFormerConfig]:
    """Configurations that are looked at: those of a calibration, others of its space, and some of `tiny`."""
    rows = [json.loads(line) for line in calibration.read_text().splitlines()]
    looked = {json.dumps(row["config"]): row for row in rows if "config" in row}
    found = {f"calibrated:{i}": LowFormerConfig.from_dict(row["config"]) for i, row in enumerate(looked.values())}
    known = {config.id for config in (*found.values(), *PRESETS.values())}
    for space in ("default", "tiny"):
        rng, number = np.random.default_rng(SEED), 0
        while number < JUDGED:
            config = SearchSpace.load(space).sample(rng)
            if config.id not in known:
                known.add(config.id)
                found[f"{space}:{number}"] = config
                number += 1
    return found


class Day:
    """The blocks, one after the other; what was done is in the file of rows."""

    def __init__(self, models: Path, work: Path) -> None:
        self.work, self.rows = work, work / "rows.jsonl"
        self.files: dict[str, str] = {}
        for entry in cpu_timm.UNSEEN:
            if (models / entry.file).exists() and len(self.files) < JUDGED:
                self.files[f"timm:{entry.name}"] = str(models / entry.file)
        self.known_ms: dict[str, float] = {}
        self.order: list[str] = []
        self.rng = np.random.default_rng(0)
        self.begin = time.monotonic()
        self.block = 0
        self.searches = 0
        self.measured_at = -np.inf

    @property
    def profiles(self) -> Path:
        return self.work / f"profiles-{self.block}"

    def add(self, kind: str, **row: Any) -> None:
        loaded = self.block in LOADED
        at_s = round(time.monotonic() - self.begin, 1)
        with self.rows.open("a") as out:
            out.write(json.dumps({"kind": kind, "block": self.block, "loaded": loaded, "at_s": at_s, **row}) + "\n")
        if kind != "look":
            print(at_s, kind, str(row)[:150], flush=True)

    def command(self, *arguments: str) -> str:
        run = subprocess.run([sys.executable, "-m", "lownas.nas", *arguments], capture_output=True, text=True)
        if run.returncode:
            self.add("failed", arguments=arguments, stderr=run.stderr[-500:])
        return run.stdout

    def write(self, name: str, config: LowFormerConfig) -> None:
        path = self.work / "onnx" / f"{name.replace(':', '-')}.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(onnx_model(config).SerializeToString())
        self.files[name] = str(path)
        self.add("network", network=name, config=config.to_dict())

    def run(self) -> None:
        for self.block in range(BLOCKS):
            seconds = BLOCK_S if self.block < BLOCKS - 1 else LAST_BLOCK_S
            started = load.start(seconds) if self.block in LOADED else []
            self.one_block(time.monotonic() + seconds)
            for process in started:
                process.terminate()
        self.block = BLOCKS
        end = time.monotonic() + AFTER_S
        while time.monotonic() < end:
            self.looks()
        self.keep()

    def more(self) -> None:
        """Runs the searches that are missing, under load, and looks at their answers, with load and then without."""
        rows = [json.loads(line) for line in self.rows.read_text().splitlines()]
        self.searches = sum(row["kind"] == "search" for row in rows)
        self.begin -= rows[-1]["at_s"]
        self.block, before = BLOCKS - 1, self.searches
        started = load.start(3600)
        while self.searches < len(BUDGETS_MS):
            self.search()
        answers = [f"answer:{number}" for number in range(before, self.searches) if f"answer:{number}" in self.files]
        for seconds in (AFTER_S / 2, AFTER_S / 2):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for name in self.rng.permutation(answers):
                    self.look(str(name))
            for process in started:
                process.terminate()
            self.block = BLOCKS
        self.keep()

    def keep(self) -> None:
        """Puts the rows and the calibrations' measurements beside this script."""
        with gzip.open(ROWS, "wt") as out:
            out.write(self.rows.read_text())
        CALIBRATIONS.mkdir(exist_ok=True)
        for folder in sorted(self.work.glob("profiles-*")) + sorted(self.work.glob("tiny-*")):
            log = next(folder.glob("*.measurements.jsonl"))
            with gzip.open(CALIBRATIONS / f"{folder.name}.jsonl.gz", "wt") as out:
                out.write(log.read_text())

    def one_block(self, end: float) -> None:
        begin = time.monotonic()
        self.command("calibrate", "--target", "cpu", "--profiles", str(self.profiles), "--json")
        self.add("calibration", seconds=round(time.monotonic() - begin, 1))
        if self.block == 0:
            log = next(self.profiles.glob("*.measurements.jsonl"))
            for name, config in judged(log).items():
                self.write(name, config)
            self.write("sentinel", sentinel_config())
        if self.block in ADDS_TINY:
            self.tiny("tiny-added", adds=True)
        if self.block in TINY_ALONE:
            self.tiny("tiny-alone", adds=False)
        done = 0
        while time.monotonic() < end:
            if time.monotonic() - self.measured_at > MEASURE_EVERY_S:
                self.measure()
            if done < SEARCHES.get(self.block, 0):
                self.search()
                done += 1
            else:
                self.looks()

    def tiny(self, name: str, *, adds: bool) -> None:
        """A calibration of the space `tiny`, added to a copy of the block's profile, or by itself."""
        folder = self.work / f"{name}-{self.block}"
        if adds:
            shutil.copytree(self.profiles, folder)
        code = "import sys; from lownas import calibrate; "
        code += "calibrate('cpu', space='tiny', profiles=sys.argv[1], adds=sys.argv[2] == '1')"
        begin = time.monotonic()
        subprocess.run([sys.executable, "-c", code, str(folder), str(int(adds))], check=False, capture_output=True)
        self.add(name, seconds=round(time.monotonic() - begin, 1))

    def measure(self) -> None:
        """`lownas measure`, with what is known of the sentinel from the first calibration on."""
        self.measured_at = time.monotonic()
        self.measured(MEASURED, self.work / "profiles-0")

    def measured(self, presets: Sequence[str], profiles: Path) -> None:
        """`lownas measure` of some published models; a row for each."""
        names = [part for name in presets for part in ("--preset", name)]
        for line in self.command("measure", *names, "--profiles", str(profiles), "--json").splitlines():
            found = json.loads(line)
            self.add("measure", **found | {"looks": len(found["looks"])})

    def search(self) -> None:
        number, budget = self.searches, BUDGETS_MS[self.searches]
        self.searches += 1
        folder = self.work / f"run-{number}"
        begin = time.monotonic()
        options = ("--seed", str(number), "--profiles", str(self.profiles), "--run", str(folder))
        self.command("--target", "cpu", "--latency-budget", f"{budget}ms", *options)
        seconds = round(time.monotonic() - begin, 1)
        config = said = None
        if (folder / "best.json").exists():
            config = json.loads((folder / "best.json").read_text())
            answer = json.loads((folder / "outcome.json").read_text())["answer"]
            said = {key: value for key, value in answer.items() if key.endswith("_ms") or key == "latency_source"}
        self.add("search", number=number, budget_ms=budget, seconds=seconds, said=said, config=config)
        if config is not None:
            self.write(f"answer:{number}", LowFormerConfig.from_dict(config))

    def looks(self) -> None:
        """Some single looks; all networks come once before any comes again."""
        for _ in range(CHUNK):
            if not self.order:
                self.order = [str(name) for name in self.rng.permutation(list(self.files))]
                for place in range(0, len(self.order), 8):
                    self.order.insert(place, "sentinel")
            self.look(self.order.pop())

    def look(self, name: str) -> None:
        limit_s = float(np.clip(LOOK_RUNS * self.known_ms.get(name, 40.0) / 1e3, *LOOK_S))
        timed, _ = time_model(self.files[name], onnx_job(TARGET, name, limit_s, 12, False), print)
        undisturbed = float(np.quantile(np.minimum(timed.times_ms, timed.cpu_times_ms), 0.1))
        self.known_ms[name] = undisturbed
        wall = [round(float(value), 5) for value in np.quantile(timed.times_ms, QUANTILES)]
        row = {"runs": len(timed.times_ms), "busy": round(timed.busy_cores, 3)}
        self.add("look", network=name, undisturbed_ms=round(undisturbed, 5), wall_ms=wall, **row)


def repeat(work: Path) -> dict[str, Any]:
    """Ten measurements of each network over twenty minutes, with load for five minutes, without for five, and again."""
    day, started = Day(work, work), []
    for number in range(REPEATS):
        begin = time.monotonic()
        day.block = number * REPEAT_S // TURN_S % 2  # as in the blocks, the load runs in 0 and not in 1
        if day.block in LOADED and not started:
            started = load.start(TURN_S)
        elif day.block not in LOADED:
            for process in started:
                process.terminate()
            started = []
        for name in MEASURED:
            day.measured([name], work / "profiles")
        time.sleep(max(0.0, begin + REPEAT_S - time.monotonic()))
    rows = [json.loads(line) for line in day.rows.read_text().splitlines()]
    result: dict[str, Any] = {"rows": rows}
    for name in MEASURED:
        values = [row["undisturbed_ms"] for row in rows if row.get("input") == name]
        spread = float(np.std(values, ddof=1) / np.mean(values))
        result[name] = {"measurements": len(values), "spread": round(spread, 4)}
    return result


# --- what it shows


class Seen:
    """The rows, and what single looks say of each network.

    Attributes:
        rows: all of them.
        configs: the networks that are configurations, by name.
        truth_ms: by name, the lower decile of the medians of all looks.
        truth_error: its relative standard error, by drawing looks again.
    """

    def __init__(self) -> None:
        with gzip.open(ROWS, "rt") as lines:
            self.rows = [json.loads(line) for line in lines]
        self.configs = {r["network"]: LowFormerConfig.from_dict(r["config"]) for r in self.of("network")}
        medians: dict[str, list[float]] = {}
        for row in self.of("look"):
            medians.setdefault(row["network"], []).append(row["wall_ms"][MEDIAN])
        self.truth_ms = {name: float(np.quantile(values, TRUTH_QUANTILE)) for name, values in medians.items()}
        self.looks = {name: len(values) for name, values in medians.items()}
        rng = np.random.default_rng(0)
        again = {name: np.array(v)[rng.integers(0, len(v), (200, len(v)))] for name, v in medians.items()}
        self.truth_error = {n: float(np.log(np.quantile(v, TRUTH_QUANTILE, axis=1)).std()) for n, v in again.items()}

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == kind]

    def named(self, group: str) -> list[str]:
        return [name for name in self.truth_ms if name.partition(":")[0] == group]


def fitted(file: Path) -> tuple[LatencyPredictor, FittedSpaces, int]:
    """What a calibration makes of its measurements, and how many looks those are."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "measurements.jsonl"
        with gzip.open(file, "rt") as lines:
            copy.write_text(lines.read())
        log = MeasurementLog(copy)
        found = fit_log(log, TARGET, probe_graphs(), folder)
    looks = sum(len(each) for each in log.looks.values())
    return found.predictor(TARGET, {}, {}), found, looks


def accuracy(predictor: LatencyPredictor, networks: Mapping[str, Any], truth_ms: Mapping[str, float]) -> dict[str, Any]:
    """Errors and coverage of predictions."""
    predicted = predictor.predict(list(networks.values()))
    truth = np.array([truth_ms[name] for name in networks])
    errors = np.array([each.latency_ms for each in predicted]) / truth - 1
    inside = [each.low_ms <= ms <= each.high_ms for each, ms in zip(predicted, truth, strict=True)]
    size = np.abs(errors)
    return {
        "networks": len(truth),
        "mean": round(float(size.mean()), 4),
        "median": round(float(np.median(size)), 4),
        "within 5 %": round(float((size <= 0.05).mean()), 3),
        "bias": round(float(np.median(errors)), 4),
        "in the 90 % interval": round(float(np.mean(inside)), 3),
    }


def noise(found: FittedSpaces, seen: Seen) -> dict[str, Any]:
    """The noise that a calibration reports beside its samples' errors by the single looks.

    What all samples are off by alike is no noise that a held-out error could show; it is given by itself. The error of
    the single looks themselves is taken off.
    """
    names = {config.id: name for name, config in seen.configs.items() if name.startswith("calibrated:")}
    samples = [sample for sample in found.parts[0].samples if sample.config.id in names]
    logs = np.log([sample.latency_ms / seen.truth_ms[names[sample.config.id]] for sample in samples])
    own = float(np.mean([seen.truth_error[names[sample.config.id]] ** 2 for sample in samples]))
    true = float(np.sqrt(max(np.var(logs, ddof=1) - own, 0.0)))
    return {
        "held-out error, rms": round(found.rms, 4),
        "noise reported, rms": round(found.noise, 4),
        "noise by spread-out looks, rms": round(true, 4),
        "share reported": round(found.noise**2 / found.rms**2, 3),
        "share by spread-out looks": round(true**2 / found.rms**2, 3),
        "common to all": round(float(np.mean(logs)), 4),
    }


def measurements(seen: Seen) -> dict[str, Any]:
    """How far ten measurements in a row, over twenty minutes, scatter; the largest and the median of all such rows."""
    result: dict[str, Any] = {}
    for name in MEASURED:
        rows = [row for row in seen.of("measure") if row["input"] == name]
        for key in ("undisturbed_ms", "median_ms"):
            values = np.array([row[key] for row in rows])
            windows = [values[i : i + 10] for i in range(len(values) - 9)]
            spreads = [float(np.std(w, ddof=1) / np.mean(w)) for w in windows]
            result[f"{name}, {key}"] = {
                "measurements": len(values),
                "spread of ten, median": round(float(np.median(spreads)), 4),
                "spread of ten, largest": round(max(spreads), 4),
                "spread of all": round(float(np.std(values, ddof=1) / np.mean(values)), 4),
                "mean under load": round(float(np.mean([r[key] for r in rows if r["loaded"]])), 3),
                "mean at rest": round(float(np.mean([r[key] for r in rows if not r["loaded"]])), 3),
            }
    return result


def searches(seen: Seen) -> dict[str, Any]:
    """The answers, measured afresh."""
    rows = []
    for row in seen.of("search"):
        name = f"answer:{row['number']}"
        if name in seen.truth_ms:
            shares = {"budget_ms": row["budget_ms"], "seconds": row["seconds"], "looks": seen.looks[name]}
            shares |= {"share": round(seen.truth_ms[name] / row["budget_ms"], 3)}
            rows.append(shares | {"said": round(row["said"]["latency_ms"] / seen.truth_ms[name] - 1, 3)})
    shares = np.array([row["share"] for row in rows])
    return {
        "searches": len(seen.of("search")),
        "answers": len(rows),
        "over the budget by more than 3 %": int((shares > 1.03).sum()),
        "over the budget at all": int((shares > 1).sum()),
        "median share of the budget": round(float(np.median(shares)), 3),
        "largest share": round(float(shares.max()), 3),
        "median error of what they say": round(float(np.median(np.abs([row["said"] for row in rows]))), 3),
        "each": rows,
    }


def report(models: Path) -> dict[str, Any]:
    """All figures."""
    seen = Seen()
    graphs, unread = {}, {}
    for name in seen.named("timm"):
        try:
            graphs[name] = op_graph_from_onnx(models / f"{name.partition(':')[2]}.onnx")
        except ValueError as error:
            unread[name] = str(error).partition(": ")[2]
    default = {name: seen.configs[name] for name in seen.named("default")}
    tiny = {name: seen.configs[name] for name in seen.named("tiny")}
    answers = {name: seen.configs[name] for name in seen.named("answer")}
    rng = np.random.default_rng(SEED + 1)
    hundred = [SearchSpace.load("default").sample(rng) for _ in range(100)]
    calibrations, predictions = [], []
    fits = [fitted(CALIBRATIONS / f"profiles-{block}.jsonl.gz") for block in range(BLOCKS)]
    for block, (predictor, found, looks) in enumerate(fits):
        predictions.append(np.log(predictor.latency_ms(hundred)))
        calibrations.append(
            {
                "loaded": block in LOADED,
                "configurations": len(found.parts[0].samples),
                "looks": looks,
                "form": found.parts[0].fit.form,
                "held-out error": round(found.held_out_error, 4),
                "default, not calibrated on": accuracy(predictor, default, seen.truth_ms),
                "answers of searches, as predicted": accuracy(predictor, answers, seen.truth_ms),
                "timm, unseen": accuracy(predictor, graphs, seen.truth_ms),
                "tiny, without its own": accuracy(predictor, tiny, seen.truth_ms),
                "noise": noise(found, seen),
            }
        )
        print(json.dumps(calibrations[-1], indent=1), flush=True)
    apart = np.abs(np.expm1(np.array(predictions) - np.mean(predictions, axis=0)))
    own = {}
    for file in sorted(CALIBRATIONS.glob("tiny-*.jsonl.gz")):
        predictor, found, _ = fitted(file)
        own[file.name.partition(".")[0]] = accuracy(predictor, tiny, seen.truth_ms) | {"form": found.parts[-1].fit.form}
    return {
        "not read": unread,
        "looks at each network": float(np.median(list(seen.looks.values()))),
        "calibrations": calibrations,
        "calibrations apart": {
            "median": round(float(np.median(apart)), 4),
            "95 %": round(float(np.quantile(apart, 0.95)), 4),
        },
        "tiny": own,
        "measurements": measurements(seen),
        "searches": searches(seen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "more", "report", "repeat"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--work", type=Path, default=HERE / "work" / "judge")
    arguments = parser.parse_args()
    if arguments.step == "measure":
        arguments.work.mkdir(parents=True)
        Day(arguments.models, arguments.work.resolve()).run()
        return
    if arguments.step == "more":
        Day(arguments.models, arguments.work.resolve()).more()
        return
    if arguments.step == "repeat":
        arguments.work.mkdir(parents=True)
        HERE.joinpath("judge-repeat.json").write_text(json.dumps(repeat(arguments.work.resolve()), indent=1) + "\n")
        return
    result = report(arguments.models)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
