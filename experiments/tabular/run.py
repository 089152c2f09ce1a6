"""Makes the table: chooses networks, measures their latency, trains them, packs the rows.

    python experiments/tabular/run.py plan                  # measures a pool, chooses from it: plan.json; 5 minutes
    python experiments/tabular/run.py train                 # one such process per core; about 12 core-hours in all
    python experiments/tabular/run.py measure --looks 7     # more looks at the latency, on the quiet machine
    python experiments/tabular/run.py regroup               # groups anew, by all looks
    python experiments/tabular/run.py steps                 # how long a training step takes; quiet too, 5 minutes
    python experiments/tabular/run.py pack                  # work/ into table.jsonl.gz and pending.jsonl.gz

Every step can be stopped at any time and goes on from what is in work/ and in these two. Training holds the lock that
keeps measurements off, so that no latency is measured beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from filelock import FileLock, Timeout

from lownas.evaluators.device.agent.lock import training
from lownas.evaluators.device.measure import LatencyMeasurement, measure_latency
from lownas.experiments.tabular.table import TABLE, Network, Table, Training, ceiling, seed_noise, true_spread
from lownas.experiments.tabular.training import SCHEDULES, STEPS_PER_EPOCH, Schedule, step_ms, train, train_many
from lownas.predictors import Target
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph

HERE = Path(__file__).parent
PLAN = HERE / "plan.json"
WORK = HERE / "work"
LOCKS: list[FileLock] = []  # of the trainings that this process has taken on
PENDING = HERE / "pending.jsonl.gz"  # trainings, latency and step times of networks that the table does not have yet

POOL = 600
POOL_MACS = (0.6e6, 5.0e6)
POOL_BINS = 12  # evenly in ln MACs, so many networks from each
POOL_LOOKS, LOOKS = 3, 5
LEVELS, PER_GROUP = 12, 10
STRAY = 0.06  # in ln(latency): a network that all looks have farther from the median of its group does not belong to it
SPREAD = 180
LATENCY_RANGE = (0.02, 0.90)  # quantiles of the pool between which networks are chosen
SEEDS = (0, 1)
LONG_GROUPS = {"group_3": 4, "group_8": 4}  # all of them trained long, so many of each with two seeds
LONG_SPREAD, LONG_SPREAD_TWICE = 16, 4
PUBLISHED_RESOLUTION = 32  # 224 / 7, as the proxy training has it


# --- which networks --------------------------------------------------------------------------------------------------


def pool() -> list[LowFormerConfig]:
    """Random networks of the tiny space, all different, spread evenly over `POOL_MACS`."""
    space, rng = SearchSpace.load("tiny"), np.random.default_rng(4)
    edges = np.geomspace(*POOL_MACS, POOL_BINS + 1)
    bins: list[dict[str, LowFormerConfig]] = [{} for _ in range(POOL_BINS)]
    while any(len(found) < POOL // POOL_BINS for found in bins):
        config = space.sample(rng)
        place = int(np.searchsorted(edges, op_graph(config).macs, side="right")) - 1
        if 0 <= place < POOL_BINS and len(bins[place]) < POOL // POOL_BINS:
            bins[place].setdefault(config.id, config)
    return [config for found in bins for config in found.values()]


def published() -> dict[str, LowFormerConfig]:
    """The eight published LowFormers for ten classes, at a seventh of their resolution."""
    return {
        name: config.replace(resolution=PUBLISHED_RESOLUTION, classes=10)
        for name, config in PRESETS.items()
        if name.startswith("lowformer_")
    }


def chosen(latency_ms: dict[str, float]) -> dict[str, list[str]]:
    """Ids by role: "group_0" ... have nearly the same latency, "spread" the whole range, evenly in its logarithm."""
    free = dict(sorted(latency_ms.items(), key=lambda item: item[1]))
    low, high = np.quantile(list(free.values()), LATENCY_RANGE)

    def nearest(level: float, count: int) -> list[str]:
        taken = sorted(free, key=lambda name: abs(np.log(free[name] / level)))[:count]
        for name in taken:
            del free[name]
        return taken

    inner = np.geomspace(low, high, LEVELS + 2)[1:-1]
    roles = {f"group_{number}": nearest(level, PER_GROUP) for number, level in enumerate(inner)}
    roles["spread"] = [nearest(level, 1)[0] for level in np.geomspace(low, high, SPREAD)]
    return roles


def write_plan(path: Path = PLAN) -> None:
    measure(pool(), POOL_LOOKS)
    latency = _latency_ms(POOL_LOOKS)
    configs = {config.id: config for config in pool()}
    roles = chosen({name: latency[name] for name in configs})
    rng = np.random.default_rng(5)
    spread = [roles["spread"][i] for i in np.linspace(0, SPREAD - 1, LONG_SPREAD).round().astype(int)]
    long = {name: [0] for name in spread} | {name: [0] for group in LONG_GROUPS for name in roles[group]}
    twice = rng.choice(spread, LONG_SPREAD_TWICE, replace=False).tolist()
    for group, count in LONG_GROUPS.items():
        twice += rng.choice(roles[group], count, replace=False).tolist()
    long |= {name: list(SEEDS) for name in twice}
    entries: list[dict[str, Any]] = []
    for role, names in roles.items():
        for name in names:
            seeds = {"short": list(SEEDS)} | ({"long": long[name]} if name in long else {})
            entries.append({"id": name, "role": role, "seeds": seeds, "config": configs[name].to_dict()})
    measure([configs[entry["id"]] for entry in entries], LOOKS)
    regroup(entries)
    entries = [entries[i] for i in rng.permutation(len(entries))]  # so that any first part is a small table
    for name, config in published().items():  # the largest, at last
        entries.append({"id": config.id, "role": name, "seeds": {"short": list(SEEDS)}, "config": config.to_dict()})
    write(entries, path)


def write(entries: list[dict[str, Any]], path: Path = PLAN) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


def regroup(entries: list[dict[str, Any]]) -> None:
    """Moves networks between "spread" and the groups, by all looks at their latency so far: more looks, or another
    machine, see some elsewhere. A group keeps its middle and those near it, and takes others near it, first such as are
    trained long. Of the groups that have most of these, as many as were to be trained long are, as a whole."""
    latency = _latency_ms()
    groups = {entry["role"] for entry in entries if entry["role"].startswith("group_")}
    middle = {
        group: np.median([latency[entry["id"]] for entry in entries if entry["role"] == group]) for group in groups
    }

    def astray(entry: dict[str, Any], group: str) -> float:
        return float(abs(np.log(latency[entry["id"]] / middle[group])))

    for entry in entries:
        if entry["role"] in groups and astray(entry, entry["role"]) > STRAY:
            entry["role"] = "spread"
    for group in sorted(groups):
        count = sum(entry["role"] == group for entry in entries)
        near = [entry for entry in entries if entry["role"] == "spread" and astray(entry, group) <= STRAY]
        near.sort(key=lambda entry: ("long" not in entry["seeds"], astray(entry, group)))
        for entry in near[: max(PER_GROUP - count, 0)]:
            entry["role"] = group
    counts = Counter(entry["role"] for entry in entries if entry["role"] in groups and "long" in entry["seeds"])
    whole = [group for group, _ in counts.most_common(len(LONG_GROUPS))]
    for entry in entries:
        if entry["role"] in whole:
            entry["seeds"].setdefault("long", [0])


def _latency_ms(looks: int | None = None) -> dict[str, float]:
    """By id the median over so many looks, the first; None is all."""
    return {
        what: float(np.median([look.median_ms for look in all_looks[:looks]])) for what, all_looks in measured().items()
    }


def plan() -> list[dict[str, Any]]:
    return json.loads(PLAN.read_text())


def planned() -> list[LowFormerConfig]:
    return [LowFormerConfig.from_dict(entry["config"]) for entry in plan()]


# --- rows ------------------------------------------------------------------------------------------------------------


def pending(kind: str) -> Iterator[dict[str, Any]]:
    """Rows of the file that have this entry."""
    if PENDING.exists():
        with gzip.open(PENDING, "rt") as file:
            yield from (row for row in map(json.loads, file) if kind in row)


def rows(name: str) -> Iterator[dict[str, Any]]:
    if name == "trainings.jsonl":
        yield from pending("schedule")
    path = WORK / name
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                print(f"{path}: a broken line is left out", file=sys.stderr)


def append(name: str, row: dict[str, Any]) -> None:
    WORK.mkdir(exist_ok=True)
    with (WORK / name).open("a") as file:
        file.write(json.dumps(row) + "\n")  # one write: two processes do not mix their lines


def measured() -> dict[str, list[LatencyMeasurement]]:
    """All looks at the latency so far, by id."""
    found: dict[str, list[LatencyMeasurement]] = defaultdict(list)
    for row in rows("latency.jsonl"):
        found[row["what"]].append(LatencyMeasurement.from_dict(row))
    return found


def measure(configs: list[LowFormerConfig], looks: int) -> None:
    """Passes over all networks, each in a new random order, so that a disturbance does not fall on the same ones."""
    target = Target.parse("cpu")
    done = {name: len(found) for name, found in measured().items()}
    for number in range(looks):
        for index in np.random.default_rng(number).permutation(len(configs)):
            if done.get(configs[index].id, 0) <= number:
                look = measure_latency(configs[index], target, time_limit_s=2.0, min_runs=100)
                append("latency.jsonl", look.to_dict())
                print(number, configs[index].id, f"{look.median_ms:.4f}", *look.notes, flush=True)


def time_steps(configs: list[LowFormerConfig]) -> None:
    """How long a training step takes on one core, for what a training costs there."""
    done = {row["id"] for row in rows("steps.jsonl")}
    for config in configs:
        if config.id not in done:
            append("steps.jsonl", {"id": config.id, "step_ms": step_ms(config)})


# --- training --------------------------------------------------------------------------------------------------------


def jobs() -> Iterator[tuple[LowFormerConfig, str, int]]:
    """(network, schedule, seed) that are neither in the table nor in work/: the short ones first, and of these those of
    networks that are trained long too, then those of small networks; those of the large published networks last."""
    done = {(row["id"], row["schedule"], row["seed"]) for row in rows("trainings.jsonl")}
    if TABLE.exists():
        done |= {(n.config.id, *key) for n in Table.load().networks for key in n.trainings}
    missing = []
    for entry in plan():
        config = LowFormerConfig.from_dict(entry["config"])
        for schedule, seed in _keys(entry):
            if (entry["id"], schedule, seed) not in done:
                order = (
                    entry["role"] in published(),
                    schedule == "long",
                    "long" not in entry["seeds"],
                    op_graph(config).macs,
                )
                missing.append((order, (config, schedule, seed)))
    for _, job in sorted(missing, key=lambda numbered: numbered[0]):
        yield job


def _keys(entry: dict[str, Any]) -> list[tuple[str, int]]:
    """(schedule, seed) of all trainings that a network of the plan is to have."""
    return [(schedule, seed) for schedule, seeds in entry["seeds"].items() for seed in seeds]


def free_jobs(deadline: float) -> Iterator[tuple[LowFormerConfig, Schedule, int]]:
    """What is missing, one after the other, until `deadline`; several processes share the work by a lock file each.

    A lock is held until the next job is asked for and, where its network is not trained then, until the process ends.
    """
    WORK.mkdir(exist_ok=True)
    for config, schedule, seed in list(jobs()):
        lock = FileLock(WORK / f"{config.id}-{schedule}-{seed}.lock")
        if time.monotonic() > deadline:
            return
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            LOCKS.append(lock)
            if (config.id, schedule, seed) not in {
                (r["id"], r["schedule"], r["seed"]) for r in rows("trainings.jsonl")
            }:
                yield config, SCHEDULES[schedule], seed


def train_all(device: str, at_once: int, seconds: float) -> None:
    wanted = free_jobs(time.monotonic() + seconds)
    begin = time.monotonic()
    if device == "cuda":
        curves = train_many(wanted, at_once)
    else:
        curves = ((job, train(*job)) for job in wanted)
    with contextlib.nullcontext() if device == "cuda" else training():  # measurements wait
        for number, ((config, schedule, seed), curve) in enumerate(curves, 1):
            append("trainings.jsonl", {"id": config.id, "schedule": schedule.name, "seed": seed, **asdict(curve)})
            spent = time.monotonic() - begin
            print(
                f"{number} in {spent:.0f} s: {config.id} {schedule.name} {seed} {curve.validation_accuracy[-1]:.4f}",
                flush=True,
            )


# --- the file --------------------------------------------------------------------------------------------------------


def pack() -> None:
    """Writes the networks whose trainings and latency are all there; the other trainings are kept for later."""
    known = {n.config.id: n for n in Table.load().networks} if TABLE.exists() else {}
    card = Table.load().card if TABLE.exists() else {}
    trained: dict[str, dict[tuple[str, int], Training]] = defaultdict(dict)
    for row in rows("trainings.jsonl"):
        trained[row["id"]][row["schedule"], row["seed"]] = Training.from_dict(_rounded(row))
    looks = measured()
    waiting = {row["id"]: row for row in pending("looks_ms")}
    epoch_seconds = {row["id"]: row["step_ms"] * STEPS_PER_EPOCH / 1e3 for row in rows("steps.jsonl")}
    networks: list[Network] = []
    kept: list[dict[str, Any]] = []
    for entry in plan():
        config = LowFormerConfig.from_dict(entry["config"])
        old = known.get(config.id)
        trainings = {**(old.trainings if old else {}), **trained[config.id]}
        keys = _keys(entry)
        before = old.to_dict() if old else waiting.get(config.id, {})
        times = tuple(look.times_ms for look in looks[config.id]) or tuple(map(tuple, before.get("looks_ms", ())))
        seconds = round(epoch_seconds.get(config.id) or before.get("epoch_seconds", 0.0), 2)
        if times and seconds and all(key in trainings for key in keys):
            graph = op_graph(config)
            networks.append(
                Network(
                    config=config,
                    role=entry["role"],
                    params=graph.params,
                    macs=graph.macs,
                    looks_ms=times,
                    epoch_seconds=seconds,
                    trainings={key: trainings[key] for key in keys},
                )
            )
            continue
        kept += [asdict(training) for training in trainings.values()]
        if times:
            shortened = [[round(ms, 4) for ms in look] for look in times]
            kept.append({"id": config.id, "looks_ms": shortened, "epoch_seconds": seconds})
    if any(looks.values()):
        latest = next(iter(looks.values()))[-1]
        card |= {"target": latest.target, "host": dict(latest.host), "latency_versions": dict(latest.versions)}
    card |= {"planned": len(plan()), "schedules": {name: asdict(schedule) for name, schedule in SCHEDULES.items()}}
    Table(networks, card | summary(networks)).write(TABLE)
    if kept:
        temporary = PENDING.with_name(f"{PENDING.name}.new")
        with temporary.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            file.writelines(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in kept)
        temporary.replace(PENDING)
    else:
        PENDING.unlink(missing_ok=True)
    print(f"{sum('schedule' in row for row in kept)} trainings of other networks kept in {PENDING.name}")
    print(f"{len(networks)} of {len(plan())} networks, {TABLE.stat().st_size / 1e6:.2f} MB")


def summary(networks: list[Network]) -> dict[str, Any]:
    """Of each schedule: hours on one core, as the steps take there, and what noise between seeds leaves to be known."""
    found: dict[str, Any] = {}
    for name in SCHEDULES:
        trained = [network for network in networks if (name, 0) in network.trainings]
        epochs = [network.epoch_seconds * training.epochs for network in networks for training in network.of(name)]
        final = [[training.accuracy for training in network.of(name)] for network in trained]
        if sum(len(accuracies) > 1 for accuracies in final) < 2:
            continue
        noise = seed_noise(trained, name)
        mean = np.array([np.mean(accuracies) for accuracies in final])
        left = noise / float(np.sqrt(np.mean([len(accuracies) for accuracies in final])))
        spread = true_spread(mean, left)
        found[name] = {
            "networks": len(trained),
            "trainings": len(epochs),
            "core_hours": round(sum(epochs) / 3600, 2),
            "points_between_networks": round(100 * spread, 3),
            "points_between_seeds": round(100 * noise, 3),
            "ceiling_tau_one_seed": ceiling(spread, noise, len(trained)),
            "ceiling_tau": ceiling(spread, left, len(trained)),
        }
    return {"summary": found}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Accuracies are multiples of 1e-4; losses and seconds need no more digits than these."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 4)
        return [short(part) for part in value] if isinstance(value, list) else value

    return {name: short(value) for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("plan")
    step = steps.add_parser("train")
    step.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    step.add_argument("--at-once", type=int, default=8, help="networks that share the GPU")
    step.add_argument("--seconds", type=float, default=float("inf"), help="after which no training is begun")
    steps.add_parser("measure").add_argument("--looks", type=int, default=LOOKS)
    steps.add_parser("regroup")
    steps.add_parser("steps")
    steps.add_parser("pack")
    given = parser.parse_args()
    if given.step == "plan":
        write_plan()
    elif given.step == "train":
        train_all(given.device, given.at_once, given.seconds)
    elif given.step == "measure":
        measure(planned(), given.looks)
    elif given.step == "regroup":
        entries = plan()
        regroup(entries)
        write(entries)
    elif given.step == "steps":
        time_steps(planned())
    elif given.step == "pack":
        pack()


if __name__ == "__main__":
    main()
