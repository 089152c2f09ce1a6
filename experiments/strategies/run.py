"""What each strategy finds for how many trainings, on the table (experiments/tabular/).

    python experiments/strategies/run.py --processes 2    # an hour on two cores; resumes; writes results.json
    python experiments/strategies/run.py --repetitions 3  # a look

The strategies are those of a search, but the networks are the table's: what one asks for becomes the nearest network
(by normalized choices) within the budget that it has not trained yet. A strategy sees accuracies and losses of one seed
on the validation images, and answers as a search does, by what all its trainings tell. Regret is judged by the other
seed on all images, with the long training where there is one (shifted to the short ones' mean): how much better the
best network within the budget is than the answer. Trainings are counted in whole ones; "default" trains in rungs as a
search on a user's data does. Each repetition is on four fifths of the networks, drawn anew, the same for all of them.

One network stands apart: the only one of 64 pixels, which is also the largest, lies 0.6 points above every other, and
whoever begins with the largest has it. So all is done without it, and once more with it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
from numpy.typing import NDArray

from lownas.experiments.tabular import Table
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.predictors.accuracy.surrogate import AccuracyObservation, AccuracySurrogate
from lownas.search.objectives.estimates import Objective
from lownas.search.objectives.estimates import Observation as Trained
from lownas.search.objectives.experience import ENOUGH, fitted, refit_step
from lownas.search.objectives.pareto import expected_front_improvement, expected_improvement, order
from lownas.search.settings import Strategy
from lownas.search.strategies.base import division
from lownas.search.strategies.feasible import most_varied
from lownas.search.strategies.optuna_samplers import sampler
from lownas.search.strategies.rungs import Rungs
from lownas.search.strategies.surrogate import initial
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


@dataclass
class Pool:
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
    def prior(self) -> Floats:
        return np.asarray(AccuracyPrior().imagenet_top1(self.configs), float)

    def nearest(self, config: LowFormerConfig, left: Sequence[int]) -> int:
        codes = self.codes[list(left)]
        distance = ((codes - np.asarray(self.space.encode(config), float) / self._spread) ** 2).sum(axis=1)
        return left[int(np.argmin(distance))]

    def spanning(self, position: int, of: int, left: Sequence[int]) -> int:
        """The one whose size is the `position`-th of `of` evenly spread ones."""
        logs = np.log(self.macs)
        target = logs.min() + (logs.max() - logs.min()) * position / max(of - 1, 1)
        return min(left, key=lambda i: abs(logs[i] - target))


@dataclass
class Trials:
    """What a strategy has trained: by network the rungs that it reached; `spent` in whole trainings.

    Attributes:
        rungs: 3, or 2 or 1, the last of these.
        log: what was observed, in order.
    """

    pool: Pool
    rungs: int = 1
    reached: dict[int, int] = field(default_factory=dict)
    spent: float = 0.0
    log: list[AccuracyObservation] = field(default_factory=list)
    fits: tuple[int, Floats] | None = None
    built: tuple[int, AccuracySurrogate] | None = None
    known: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)

    def left(self) -> list[int]:
        return [i for i in range(len(self.pool.configs)) if i not in self.reached]

    def train(self, network: int, rung: int = 2) -> None:
        shares = (0.0, *(epochs / EPOCHS[-1] for epochs in EPOCHS))
        before = self.reached.get(network, -1)
        self.spent += shares[rung + 1] - shares[before + 1]
        self.reached[network] = rung
        loss = float(self.pool.loss[network]) if rung == 2 else None
        place = rung - (3 - self.rungs)
        self.log.append(
            AccuracyObservation(self.pool.configs[network], place, float(self.pool.seen[network, rung]), loss)
        )

    def surrogate(self) -> AccuracySurrogate:
        """Of all trainings, as a search has it: see `lownas.search.objectives.experience`."""
        if self.built is not None and self.built[0] == len(self.log):
            return self.built[1]
        count = refit_step(len(self.log))
        if self.fits is None or self.fits[0] != count:
            self.fits = count, fitted(self.pool.space, self.log[: max(count, 2)], self.rungs, self.known)
        found = AccuracySurrogate(
            self.pool.space,
            self.log,
            rungs=self.rungs,
            hyperparameters=self.fits[1],
            fit=False,
            feature_cache=self.known,
        )
        self.built = len(self.log), found
        return found

    def farthest(self) -> tuple[list[int], Floats]:
        """Those trained farthest, and how they compare."""
        top = max(self.reached.values())
        known = [i for i, rung in self.reached.items() if rung == top]
        if len(self.reached) < ENOUGH:
            return known, self.pool.seen[known, top]
        return known, self.surrogate().mean([self.pool.configs[i] for i in known])

    def incumbent(self) -> int:
        known, worth = self.farthest()
        return known[int(np.argmax(worth))]

    def front(self) -> list[int]:
        """Of those trained farthest, the ones that no other beats in accuracy without being slower."""
        known, worth = self.farthest()
        front: list[int] = []
        best = -np.inf
        for place in np.argsort(self.pool.latency_ms[known], kind="stable"):
            if worth[place] > best:
                best = worth[place]
                front.append(known[place])
        return front


Run = Iterator[Trials]  # yields itself after each step


def random_search(pool: Pool, rng: np.random.Generator, pareto: bool) -> Run:
    trials = Trials(pool)
    for network in rng.permutation(len(pool.configs)):
        trials.train(int(network))
        yield trials


def with_sampler(name: Strategy) -> Callable[[Pool, np.random.Generator, bool], Run]:
    def run(pool: Pool, rng: np.random.Generator, pareto: bool) -> Run:
        directions = ["maximize", "minimize"] if pareto else ["maximize"]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=directions, sampler=sampler(name, int(rng.integers(2**31))))
        trials = Trials(pool)
        while left := trials.left():
            trial = study.ask()
            asked = pool.space.suggest(trial)
            network = pool.nearest(asked, left)
            trials.train(network)
            values = [100 * pool.seen[network, 2], pool.latency_ms[network]][: 1 + pareto]
            frozen = study.get_trials(deepcopy=False)[-1]
            # What was trained is told, not what was asked for.
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            study.add_trial(
                optuna.trial.create_trial(
                    values=values,
                    params=pool.space.to_params(pool.configs[network]),
                    distributions=distributions(pool.space),
                    system_attrs={key: value for key, value in frozen.system_attrs.items() if "generation" in key},
                )
            )
            yield trials

    return run


def distributions(space: SearchSpace) -> dict[str, optuna.distributions.BaseDistribution]:
    if not hasattr(distributions, "known"):
        trial = optuna.create_study().ask()
        space.suggest(trial)
        distributions.known = trial.distributions  # type: ignore[attr-defined]
    return distributions.known  # type: ignore[attr-defined, no-any-return]


def evolution(pool: Pool, rng: np.random.Generator, pareto: bool) -> Run:
    """The surrogate off: by the prior, and half of what the parent reached beyond it."""
    trials = Trials(pool)
    explore, exploit, _ = division(MOST // 3)
    while left := trials.left():
        count = len(trials.reached)
        if count < explore:
            network = pool.spanning(count, explore, left)
        elif count < explore + exploit:
            network = max(left, key=lambda i: pool.prior[i])
        else:
            known = list(trials.reached)
            observed = [Trained(pool.configs[i].id, pool.prior[i], (pool.seen[i, 2],)) for i in known]
            objective = Objective(observed, on_user_data=True)
            values = np.array([objective.value(pool.configs[i].id) for i in known])
            ranking = np.column_stack([values, -np.log(pool.latency_ms[known])]) if pareto else values[:, None]
            parents = [known[i] for i in order(ranking)[:3]]
            children = [int(rng.choice(left)) for _ in range(len(left))] if len(left) > 1 else left
            origin = [min(parents, key=lambda p: float(((pool.codes[p] - pool.codes[c]) ** 2).sum())) for c in children]
            expected = np.array(
                [
                    objective.estimate(pool.configs[p].id, np.array([pool.prior[c]]))[0]
                    for p, c in zip(origin, children, strict=True)
                ]
            )
            if pareto:
                expected = expected_front_improvement(
                    expected,
                    np.full(len(expected), 0.2),
                    pool.latency_ms[children],
                    values,
                    pool.latency_ms[known],
                    float(pool.latency_ms.max()),
                )
            promising = np.argsort(-expected, kind="stable")[: max(5, len(children) // 20)]
            chosen = most_varied(pool.space, [pool.configs[children[i]] for i in promising], [])
            network = next(children[i] for i in promising if pool.configs[children[i]] == chosen)
        trials.train(network)
        yield trials


def surrogate(rungs: int, *, judges: bool = False) -> Callable[[Pool, np.random.Generator, bool], Run]:
    """In rungs or not; who goes on is judged by the accuracy at a rung, or by the surrogate, if it `judges`."""

    def run(pool: Pool, rng: np.random.Generator, pareto: bool) -> Run:
        trials, schedule = Trials(pool, rungs), Rungs(rungs)
        first = initial(MOST // 3)
        lowest = 3 - rungs

        def worth(rung: int, here: Sequence[int]) -> Floats:
            if judges and len(trials.reached) >= ENOUGH:
                values = trials.surrogate().mean([pool.configs[i] for i in here])
            else:
                values = pool.seen[here, rung + lowest]
            return np.stack([values, *([-pool.latency_ms[here]] if pareto else [])], axis=1)

        while True:
            judged = [
                {i: [pool.seen[i, rung]] for i, top in trials.reached.items() if top >= rung}
                for rung in range(lowest, 3)
            ]
            if (promoted := schedule.promotable(judged, worth=worth)) is not None:
                trials.train(promoted, trials.reached[promoted] + 1)
                yield trials
                continue
            left = trials.left()
            if not left:
                if rungs == 1:
                    return
                waiting = [i for i, rung in trials.reached.items() if rung < 2]
                if not waiting:
                    return
                top = max(trials.reached[i] for i in waiting)
                farthest = [i for i in waiting if trials.reached[i] == top]
                best = farthest[int(np.argmax(worth(top - lowest, farthest)[:, 0]))]
                trials.train(best, trials.reached[best] + 1)
                yield trials
                continue
            count = len(trials.reached)
            if count < -(-first // 2):
                network = pool.spanning(count, -(-first // 2), left)
            elif count < first:
                good = sorted(left, key=lambda i: -pool.prior[i])[: max(5, len(left) // 20)]
                tried = [pool.configs[i] for i in trials.reached]
                chosen = most_varied(pool.space, [pool.configs[i] for i in good], tried)
                network = next(i for i in good if pool.configs[i] == chosen)
            else:
                model = trials.surrogate()
                known = list(trials.reached)
                means, _ = model.predict([pool.configs[i] for i in known])
                mean, spread = model.predict([pool.configs[i] for i in left])
                if pareto:
                    budget = float(pool.latency_ms.max())
                    seen_ms = pool.latency_ms[known]
                    gain = expected_front_improvement(mean, spread, pool.latency_ms[left], means, seen_ms, budget)
                else:
                    gain = expected_improvement(mean, spread, float(means.max()))
                network = left[int(np.argmax(gain))]
            trials.train(network, lowest)
            yield trials

    return run


STRATEGIES: dict[str, Callable[[Pool, np.random.Generator, bool], Run]] = {
    "random": random_search,
    "tpe": with_sampler("tpe"),
    "nsga2": with_sampler("nsga2"),
    "evolution (surrogate off)": evolution,
    "surrogate, no rungs": surrogate(1),
    "surrogate, 2 rungs judged by it": surrogate(2, judges=True),
    "surrogate, 3 rungs": surrogate(3),
    "surrogate, 3 rungs judged by it": surrogate(3, judges=True),
}


def pools(table: Table, space: SearchSpace, repetition: int, resolution: int) -> dict[float, Pool]:
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
        found[share] = Pool(space, configs, seen[inside], loss[inside], truth[inside], latency[inside], macs[inside])
    return found


def trained(table: Table) -> int:
    """How many networks of the space there are."""
    return sum(network.role not in PRESETS for network in table.networks)


def area(pool: Pool, front: Sequence[int]) -> float:
    """Under the front over ln latency, in points: of what it is truly worth."""
    logs = np.log(pool.latency_ms)
    end, floor = float(logs.max() + np.log(1.1)), float(pool.truth.min())
    best, total, at = floor, 0.0, float(logs.min())
    for i in front:
        total += (best - floor) * (logs[i] - at)
        best, at = max(best, float(pool.truth[i])), float(logs[i])
    return 100 * (total + (best - floor) * (end - at))


def curve(name: str, pool: Pool, seed: int, pareto: bool) -> list[float]:
    """Regret (or the area under the front) in points once so many trainings are spent, for 1 to `MOST`."""
    rng = np.random.default_rng([seed, 7])
    best = float(pool.truth.max())
    values: list[float] = []
    for trials in STRATEGIES[name](pool, rng, pareto):
        if (missing := min(int(trials.spent + 1e-9), MOST) - len(values)) > 0:
            value = area(pool, trials.front()) if pareto else 100 * (best - float(pool.truth[trials.incumbent()]))
            values += [value] * missing
        if trials.spent >= MOST:
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
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    kinds = [(f"budget {share:g}", share, False) for share in BUDGETS] + [("front", 1.0, True)]
    jobs = [(title, *kind, name, given.repetitions) for title in given.sets for kind in kinds for name in STRATEGIES]
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        done = dict(zip(jobs, pool.map(curves, jobs), strict=True))
    table, space = Table.load(), SearchSpace.load("tiny")
    about = {"networks": trained(table), "trainings": list(AT)}
    known_sets = json.loads(RESULTS.read_text()).get("sets", {}) if RESULTS.exists() else {}
    found: dict[str, object] = {}
    for title in given.sets:
        resolution = SETS[title]
        known = [pools(table, space, repetition, resolution) for repetition in range(given.repetitions)]
        by_kind: dict[str, dict[str, Floats]] = {}
        for job, values in done.items():
            if job[0] == title:
                by_kind.setdefault(job[1], {})[job[4]] = values
        found[title] = {"repetitions": given.repetitions, **summary(known, by_kind)}
    RESULTS.write_text(json.dumps({**about, "sets": {**known_sets, **found}}, indent=1) + "\n")


def summary(known: Sequence[dict[float, Pool]], curves: dict[str, dict[str, Floats]]) -> dict[str, object]:
    found: dict[str, object] = {
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
