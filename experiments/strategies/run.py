"""What each strategy finds for how many trainings, on the table (experiments/tabular/).

    python experiments/strategies/run.py --processes 2    # an hour on two cores; resumes; writes results.json
    python experiments/strategies/run.py --repetitions 3  # a look

The strategies, the schedule, the rungs, the objective and the surrogate are those of a search; only the candidates are
the table's: mutants are its networks, and what a sampler draws from the space becomes the nearest network (by
normalized choices) that is not trained yet. A strategy sees accuracies and losses of one seed on the validation images,
and answers as a search does, by what all its trainings tell. Regret is judged by the other seed on all images, with
the long training where there is one (shifted to the short ones' mean): how much better the best network within the
budget is than the answer. Trainings are counted in whole ones; the default trains in rungs as a search on a user's data
does. Each repetition is on four fifths of the networks, drawn anew, the same for all of them.

A search is asked for as many trials as 100 trainings pay for, so that its opening is as long as that of such a search.

One network stands apart: the only one of 64 pixels, which is also the largest, lies 0.6 points above every other, and
whoever begins with the largest has it. So all is done without it, and once more with it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from lownas.experiments.tabular import Table
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.feasible_pool import FeasiblePool, FeasibleSet
from lownas.search.objectives import make_objective
from lownas.search.objectives.base import LOWER_QUANTILE
from lownas.search.objectives.run_surrogate import RunSurrogate
from lownas.search.strategies import SearchState, make_strategy
from lownas.search.strategies.rungs import Rungs
from lownas.search.strategies.schedule import Schedule
from lownas.search.trials.history import AskedTrial, History
from lownas.search.trials.records import EvaluationResult, Proposal, RungEntry
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace

HERE = Path(__file__).parent
RESULTS, WORK = HERE / "results.json", HERE / "work"
BUDGETS = (0.5, 0.75, 1.0)  # shares of the networks that are within the budget
EPOCHS = (1, 3, 9)  # of the rungs
MOST = 100  # trainings
AT = (5, 10, 15, 20, 30, 40, 60, 80, 100)
REPETITIONS = 50
DRAWN = 0.8  # of the networks, in each repetition
SETS = {"up to 48 pixels": 48, "all": 64}

Floats = NDArray[np.float64]


@dataclass(eq=False)
class Networks:
    """The table's networks within a budget, as one seed shows them.

    Attributes:
        seen: (n, 3) accuracies at the rungs.
        loss: (n,) at the last.
        truth: (n,) accuracies that decide.
    """

    space: SearchSpace
    configs: list[LowFormerConfig]
    seen: Floats
    loss: Floats
    truth: Floats
    latency_ms: Floats
    macs: Floats

    @cached_property
    def codes(self) -> Floats:
        codes = np.stack([np.asarray(self.space.encode(config), float) for config in self.configs])
        self._spread = np.where(codes.std(axis=0) > 0, codes.std(axis=0), np.inf)
        return codes / self._spread

    @cached_property
    def index(self) -> dict[str, int]:
        return {config.id: number for number, config in enumerate(self.configs)}

    @cached_property
    def prior(self) -> Floats:
        return np.asarray(AccuracyPrior.load().quantile(self.configs, LOWER_QUANTILE), float)

    def nearest(self, config: LowFormerConfig, left: Sequence[int]) -> int:
        if self.index.get(config.id) in left:
            return self.index[config.id]
        codes = self.codes[list(left)]
        distance = ((codes - np.asarray(self.space.encode(config), float) / self._spread) ** 2).sum(axis=1)
        return left[int(np.argmin(distance))]

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float) -> Floats:
        """Latencies as measured, whatever the quantile; of a network outside the table that of the nearest one."""
        everything = range(len(self.configs))
        return np.array([self.latency_ms[self.nearest(config, everything)] for config in configs])


class TablePool(FeasiblePool):
    """The candidates of a search, where they are networks of the table."""

    def __init__(self, networks: Networks) -> None:
        budget_ms = float(networks.latency_ms.max())
        columns = networks.prior, networks.latency_ms, networks.latency_ms, networks.macs
        found = FeasibleSet(tuple(networks.configs), *columns, budget_ms, len(networks.configs), -np.inf)
        super().__init__(networks.space, networks, networks, budget_ms, 0.5, lambda: found, found)
        self.networks = networks

    def mutants(
        self, parents: Sequence[LowFormerConfig], rng: np.random.Generator, count: int
    ) -> tuple[list[LowFormerConfig], NDArray[np.intp]]:
        """All networks, each a child of the nearest parent."""
        codes = self.networks.codes
        own = codes[[self.networks.index[parent.id] for parent in parents]]
        distance = ((codes[:, None] - own[None]) ** 2).sum(axis=2)
        return list(self.networks.configs), np.argmin(distance, axis=1)


@dataclass(frozen=True)
class Arm:
    """A strategy of a search, its rungs, and whether the surrogate or the accuracy at a rung decides who goes on."""

    strategy: str
    rungs: int = 1
    judged_by_surrogate: bool = True


ARMS = {
    "random": Arm("random"),
    "tpe": Arm("tpe"),
    "nsga2": Arm("nsga2"),
    "evolution (surrogate off)": Arm("evolution"),
    "surrogate, no rungs": Arm("surrogate"),
    "surrogate, 2 rungs judged by it": Arm("surrogate", 2),
    "surrogate, 3 rungs": Arm("surrogate", 3, judged_by_surrogate=False),
    "surrogate, 3 rungs judged by it": Arm("surrogate", 3),
}


class TableSearch:
    """A search whose trainings are looked up in the table.

    Attributes:
        spent: in whole trainings.
    """

    def __init__(self, networks: Networks, arm: Arm, seed: int, *, front: bool) -> None:
        self.networks, self.arm, self.rungs = networks, arm, Rungs(arm.rungs)
        self.history, self.spent = History(), 0.0
        objective = make_objective("accuracy", on_data=True, front=front, prior=AccuracyPrior.load())
        surrogate = RunSurrogate(networks.space, self.history, arm.rungs)
        pool = TablePool(networks)
        trials = next(n for n in range(MOST, 100 * MOST) if self.rungs.trainings(n) >= MOST)
        self.state = SearchState(self.history, pool, objective, surrogate, arm.rungs, trials, seed)
        self.schedule = Schedule(make_strategy(arm.strategy), self.state, repeats=0)
        self._network: dict[int, int] = {}  # by trial

    def steps(self) -> Iterator[float]:
        """Trains one part after the other, as the trial loop would with one worker; gives what was spent so far."""
        while True:
            left = [i for i in range(len(self.networks.configs)) if i not in self._network.values()]
            trial = self.rungs.promotable(self._judged(), worth=self._worth)
            if trial is None and left:
                proposal = self.schedule.propose(len(self._network))
                trial = None if proposal is None else self._begin(proposal, left)
            if trial is None:
                trial = self.rungs.promotable(self._judged(), closing=True, worth=self._worth)
            if trial is None:
                return
            self._train(trial)
            yield self.spent

    def _begin(self, proposal: Proposal, left: Sequence[int]) -> int:
        number = len(self._network)
        self._network[number] = self.networks.nearest(proposal.config, left)
        config = self.networks.configs[self._network[number]]
        self.history.asked[number] = AskedTrial(self.networks.space.to_params(config), dict(proposal.attrs), {})
        self.history.begin(number, Proposal(config, proposal.role, proposal.seed))
        return number

    def _train(self, trial: int) -> None:
        """Looks up how far the trial gets at its next rung."""
        rung, network = len(self.history.rungs.get(trial, ())), self._network[trial]
        shares = (0.0, *self.rungs.shares)
        self.spent += shares[rung + 1] - shares[rung]
        proposal = self.history.open[trial]
        accuracy = float(self.networks.seen[network, rung + len(EPOCHS) - self.arm.rungs])
        facts: dict[str, Any] = {
            "trial": trial,
            "role": proposal.role,
            "seed": proposal.seed,
            "config": proposal.config,
        }
        if rung < self.rungs.last:
            share = self.rungs.shares[rung]
            self.history.add_rung(RungEntry(rung=rung, share=share, accuracy=accuracy, seconds=0.0, **facts))
            return
        latency_ms = float(self.networks.latency_ms[network])
        latency: dict[str, Any] = dict.fromkeys(("latency_ms", "low_ms", "high_ms", "quantile_ms"), latency_ms)
        result = EvaluationResult(
            status="complete",
            config_id=proposal.config.id,
            accuracy=accuracy,
            prior_top1=float(self.networks.prior[network]),
            objective=100 * accuracy,
            macs=int(self.networks.macs[network]),
            params=0,
            details={"loss": float(self.networks.loss[network])},
            **latency,
            **facts,
        )
        self.history.add_result(result)

    def _judged(self) -> list[dict[int, tuple[float, ...]]]:
        judged: list[dict[int, tuple[float, ...]]] = [{} for _ in range(self.rungs.count)]
        for trial, network in self._network.items():
            latency_ms = float(self.networks.latency_ms[network])
            values = [entry.accuracy for entry in self.history.rungs.get(trial, ())]
            if trial in self.history.results:
                values.append(self.history.results[trial].accuracy or 0.0)
            for rung, value in enumerate(values):
                judged[rung][trial] = self.state.objective.goal.comparable(value, latency_ms)
        return judged

    def _worth(self, rung: int, trials: Sequence[int]) -> Floats:
        judged = self._judged()[rung]
        worth = np.array([judged[trial] for trial in trials])
        if self.arm.judged_by_surrogate:
            configs = [self.networks.configs[self._network[trial]] for trial in trials]
            worth[:, 0] = self.state.objective.at_rung(configs, worth[:, 0], self.state.surrogate)
        return worth

    def answer(self) -> int:
        """The network that a search would answer with now."""
        state = self.state
        best = state.objective.leaders(self.history, state.surrogate, state.pool)[0]
        return self.networks.index[best.id]

    def front(self) -> list[int]:
        """Of the networks trained to the end, those that no other beats in accuracy without being slower."""
        estimates = self.state.objective.estimates(self.history, self.state.surrogate)
        known = [self.networks.index[name] for name in estimates.trained]
        known.sort(key=lambda i: float(self.networks.latency_ms[i]))
        front: list[int] = []
        best = -np.inf
        for i in known:
            if (value := estimates.value(self.networks.configs[i].id)) > best:
                best = value
                front.append(i)
        return front


def pools(table: Table, space: SearchSpace, repetition: int, resolution: int) -> dict[float, Networks]:
    """By budget, the networks of up to this resolution, as one of the two seeds shows them."""
    seed = repetition % 2
    networks = [n for n in table.networks if n.role not in PRESETS and n.config.resolution <= resolution]
    seen = np.array([[table.query(n.config, epoch, seed).validation_accuracy for epoch in EPOCHS] for n in networks])
    loss = np.array([table.query(n.config, seed=seed).validation_loss for n in networks])
    other = np.array([n.trainings["short", 1 - seed].accuracy for n in networks])
    long = np.array([n.trainings["long", 0].accuracy if ("long", 0) in n.trainings else np.nan for n in networks])
    shifted = long - np.nanmean(long - other)
    truth = np.where(np.isnan(long), other, (other + shifted) / 2)
    latency = np.array([n.latency_ms for n in networks])
    macs = np.array([float(n.macs) for n in networks])
    drawn = np.random.default_rng([repetition, 1]).random(len(networks)) < DRAWN
    found = {}
    for share in BUDGETS:
        inside = np.flatnonzero(drawn & (latency <= np.quantile(latency, share)))
        configs = [networks[i].config for i in inside]
        found[share] = Networks(
            space, configs, seen[inside], loss[inside], truth[inside], latency[inside], macs[inside]
        )
    return found


def trained(table: Table) -> int:
    """How many networks of the space there are."""
    return sum(network.role not in PRESETS for network in table.networks)


def area(pool: Networks, front: Sequence[int]) -> float:
    """Under the front over ln latency, in points: of what it is truly worth."""
    logs = np.log(pool.latency_ms)
    end, floor = float(logs.max() + np.log(1.1)), float(pool.truth.min())
    best, total, at = floor, 0.0, float(logs.min())
    for i in front:
        total += (best - floor) * (logs[i] - at)
        best, at = max(best, float(pool.truth[i])), float(logs[i])
    return 100 * (total + (best - floor) * (end - at))


def curve(name: str, networks: Networks, seed: int, front: bool) -> list[float]:
    """Regret (or the area under the front) in points once so many trainings are spent, for 1 to `MOST`."""
    best = float(networks.truth.max())
    values: list[float] = []
    search = TableSearch(networks, ARMS[name], seed, front=front)
    for spent in search.steps():
        if (missing := min(int(spent + 1e-9), MOST) - len(values)) > 0:
            regret = 0.0 if front else 100 * (best - float(networks.truth[search.answer()]))
            values += [float(area(networks, search.front())) if front else regret] * missing
        if spent >= MOST:
            break
    return values + [values[-1]] * (MOST - len(values))


def curves(job: tuple[str, str, float, bool, str, int]) -> Floats:
    """(repetitions, `MOST`) of one strategy, resumed from `WORK`."""
    title, kind, share, pareto, name, repetitions = job
    table, space = Table.load(), SearchSpace.load("tiny")
    file = WORK / f"{trained(table)}-{title}-{kind}-{name}.json".replace(" ", "_")
    rows = json.loads(file.read_text()) if file.exists() else []
    for repetition in range(len(rows), repetitions):
        pool = pools(table, space, repetition, SETS[title])[share]
        rows.append(curve(name, pool, repetition, pareto))
        file.write_text(json.dumps(rows))
    found = np.array(rows[:repetitions])
    print(title, kind, name, [round(float(np.median(found[:, at - 1])), 3) for at in AT], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="random is always among them")
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    kinds = [(f"budget {share:g}", share, False) for share in BUDGETS] + [("front", 1.0, True)]
    names = [name for name in ARMS if name in given.arms or name == "random"]
    jobs = [(title, *kind, name, given.repetitions) for title in given.sets for kind in kinds for name in names]
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        done = dict(zip(jobs, pool.map(curves, jobs), strict=True))
    table, space = Table.load(), SearchSpace.load("tiny")
    about = {"networks": trained(table), "trainings": list(AT)}
    known_sets = json.loads(RESULTS.read_text()).get("sets", {}) if RESULTS.exists() else {}
    found: dict[str, Any] = {}
    for title in given.sets:
        resolution = SETS[title]
        known = [pools(table, space, repetition, resolution) for repetition in range(given.repetitions)]
        by_kind: dict[str, dict[str, Floats]] = {}
        for job, values in done.items():
            if job[0] == title:
                by_kind.setdefault(job[1], {})[job[4]] = values
        found[title] = {"repetitions": given.repetitions, **summary(known, by_kind)}
        for kind in by_kind:  # of arms that were not run again, what is known
            found[title][kind] = {**known_sets.get(title, {}).get(kind, {}), **found[title][kind]}
    RESULTS.write_text(json.dumps({**about, "sets": {**known_sets, **found}}, indent=1) + "\n")


def summary(known: Sequence[dict[float, Networks]], curves: dict[str, dict[str, Floats]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "networks, mean": {
            f"budget {share:g}": round(float(np.mean([len(of[share].configs) for of in known])), 1) for share in BUDGETS
        },
    }
    for kind, by_name in curves.items():
        better = -1 if kind == "front" else 1  # regret is to be small, area large
        goal = float(np.median(by_name["random"][:, MOST - 1]))
        rows = {}
        for name, values in by_name.items():
            medians = np.median(values, axis=0)
            reached = np.flatnonzero(better * medians <= better * goal + 1e-12)
            rows[name] = {
                "median": [round(float(medians[at - 1]), 3) for at in AT],
                "mean": [round(float(values[:, at - 1].mean()), 3) for at in AT],
                "standard error": [round(float(values[:, at - 1].std(ddof=1) / np.sqrt(len(values))), 3) for at in AT],
                "trainings to random's 100": int(reached[0]) + 1 if len(reached) else None,
            }
        found[kind] = rows
    return found


if __name__ == "__main__":
    main()
