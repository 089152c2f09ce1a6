"""How far short trainings, costs and the surrogate rank networks, judged on the table (experiments/tabular/).

    python experiments/proxy_fidelity/study.py      # a minute; writes study.json

First, all networks: Kendall's tau with the accuracy of a network at the end of the short schedule (validation and test
images together). What was seen of one seed is judged by the other seed, so that no noise is shared. The surrogate
learns from one half of the networks (seed 0) and is judged on the other half, over `HALVES` random halvings. And it
learns from networks and ranks these same ones: from all, and from so few as a short search trains. Here it is asked for
the same length of training; a search asks for a longer one, as below. A long search's counts only so many observations:
what that loses is shown too.

Then those trained long (mean over seeds), over all and within groups of near-equal latency: tau and Spearman's
coefficient. The surrogate learns from the others, or from these networks' short trainings too. Intervals are 90 %
bootstrap intervals over networks.

Last, how the short training orders the published models, beside their top-1 on ImageNet.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from lownas.experiments.tabular import Network, Table
from lownas.experiments.tabular.table import ceiling, seed_noise, true_spread
from lownas.predictors.accuracy import surrogate
from lownas.predictors.accuracy.surrogate import RUNGS_BEYOND_LAST, AccuracyObservation
from lownas.search.objectives.run_surrogate import learn
from lownas.search_space import PRESETS, PUBLISHED, SearchSpace

RESULTS = Path(__file__).with_name("study.json")
RUNG_EPOCHS = (1, 3, 9)
LEAST_OF_A_GROUP = 6  # networks trained long, to be judged within
HALVES, BOOTSTRAPS = 20, 1000
FEW, DRAWS = (4, 8, 16, 32, 64), 100

Floats = NDArray[np.float64]


def tau(left: Floats, right: Floats) -> float:
    return float(kendalltau(left, right).statistic)


def with_interval(left: Floats, right: Floats) -> list[float]:
    """tau, and the 5 % and 95 % quantiles over networks drawn anew."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(left), size=len(left)) for _ in range(BOOTSTRAPS)]
    low, high = np.quantile([tau(left[draw], right[draw]) for draw in draws], [0.05, 0.95])
    return [round(value, 3) for value in (tau(left, right), float(low), float(high))]


def main() -> None:
    table, space = Table.load(), SearchSpace.load("tiny")
    networks = [network for network in table.networks if network.role not in PRESETS]

    def seen(seed: int, epoch: int) -> Floats:
        points = [table.query(network.config, epoch, seed) for network in networks]
        return np.array([point.validation_accuracy for point in points])

    def whole(seed: int) -> Floats:
        return np.array([network.trainings["short", seed].accuracy for network in networks])

    final = [whole(0), whole(1)]
    mean = np.mean(final, axis=0)
    costs = {
        "MACs": np.array([network.macs for network in networks], float),
        "parameters": np.array([network.params for network in networks], float),
        "latency": np.array([network.latency_ms for network in networks]),
    }
    found: dict[str, object] = {
        "networks": len(networks),
        "of": table.card["planned"],
        "standard deviation over networks, points": round(100 * float(mean.std(ddof=1)), 3),
        "standard deviation between seeds, points": round(100 * seed_noise(networks, "short"), 3),
        "one seed's accuracy on all images, judged by the other": with_interval(final[0], final[1]),
    }
    for epoch in RUNG_EPOCHS:
        pair = [with_interval(seen(seed, epoch), final[1 - seed]) for seed in (0, 1)]
        found[f"validation accuracy after {epoch} of 9 epochs"] = np.mean(pair, axis=0).round(3).tolist()
    pair = [with_interval(-loss(networks, seed), final[1 - seed]) for seed in (0, 1)]
    found["validation loss after 9 of 9 epochs"] = np.mean(pair, axis=0).round(3).tolist()
    pair = [with_interval(-train_loss(networks, seed), final[1 - seed]) for seed in (0, 1)]
    found["training loss in the last of 9 epochs"] = np.mean(pair, axis=0).round(3).tolist()
    for both, name in ((True, "accuracy and loss"), (False, "accuracy alone")):
        pair = [with_interval(learned(space, table, networks, (s,), loss=both), final[1 - s]) for s in (0, 1)]
        found[f"surrogate, the networks' own trainings included, by {name}"] = np.mean(pair, axis=0).round(3).tolist()
    found["surrogate, of so many observations at most"] = bounded(space, table, networks, final)
    for name, cost in costs.items():
        found[name] = with_interval(cost, mean)
    found["rise"] = rise(table, [network for network in networks if ("long", 0) not in network.trainings])
    found["of few networks, their own trainings included"] = few(space, table, networks, final[1])
    found["on the half that the surrogate has not seen"] = halves(space, networks, table, seen, final, costs["MACs"])
    found["against long training"] = against_long(space, table, networks)
    if presets := [network for network in table.networks if network.role in PRESETS]:
        found["published models, against top-1 on ImageNet"] = published(presets)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def published(networks: list[Network]) -> dict[str, object]:
    """How the short training on Fashion-MNIST, at a seventh of their resolution, orders the published models."""
    top1 = np.array([PUBLISHED[network.role].top1[224] for network in networks])
    final = {seed: np.array([network.trainings["short", seed].accuracy for network in networks]) for seed in (0, 1)}
    return {
        "models": {
            network.role: [round(100 * float(np.mean([final[seed][i] for seed in final])), 2), float(top1[i])]
            for i, network in enumerate(networks)
        },
        "tau by seed": [round(tau(final[seed], top1), 3) for seed in final],
        "tau of the mean": round(tau(np.mean(list(final.values()), axis=0), top1), 3),
        "tau between the seeds": round(tau(final[0], final[1]), 3),
        "tau of MACs": round(tau(np.array([network.macs for network in networks], float), top1), 3),
    }


def at_rungs(
    table: Table, networks: list[Network], seeds: tuple[int, ...], *, loss: bool = True
) -> list[AccuracyObservation]:
    points = [
        (network.config, rung, table.query(network.config, epoch, seed))
        for network in networks
        for seed in seeds
        for rung, epoch in enumerate(RUNG_EPOCHS)
    ]
    return [
        AccuracyObservation(config, rung, point.validation_accuracy, point.validation_loss if loss else None)
        for config, rung, point in points
    ]


def rise(table: Table, networks: list[Network]) -> dict[str, float]:
    """What a factor of three in epochs adds to the logit of the accuracy per unit of ln MACs, from 1 to 9 epochs, mean
    over the seeds; and that as a share of the spread within the rungs: what the surrogate takes for its prior."""
    macs = np.log([network.macs for network in networks])
    macs -= macs.mean()
    slopes, spreads = [], []
    for seed in (0, 1):
        reached = np.array(
            [[table.query(n.config, epoch, seed).validation_accuracy for n in networks] for epoch in RUNG_EPOCHS]
        )
        logits = np.log(reached / (1 - reached))
        change = (logits[-1] - logits[0]) / (len(RUNG_EPOCHS) - 1)
        slopes.append(float(macs @ change / (macs @ macs)))
        centred = logits - logits.mean(axis=1, keepdims=True)
        spreads.append(float(np.sqrt(np.mean(centred**2))))
    left = change - change.mean() - slopes[-1] * macs
    error = float(np.sqrt(left @ left / (len(macs) - 2) / (macs @ macs)))
    mean = float(np.mean(slopes))
    found = {"mean": mean, "of one seed, standard error": error, "share": mean / float(np.mean(spreads))}
    return {name: round(value, 4) for name, value in found.items()}


def loss(networks: list[Network], seed: int) -> Floats:
    return np.array([network.trainings["short", seed].validation_loss[-1] for network in networks])


def train_loss(networks: list[Network], seed: int) -> Floats:
    return np.array([network.trainings["short", seed].train_loss[-1] for network in networks])


def learned(
    space: SearchSpace,
    table: Table,
    networks: list[Network],
    seeds: tuple[int, ...],
    *,
    loss: bool = True,
    longer: float = 0.0,
) -> Floats:
    """(n,) what the surrogate of their own trainings says of the networks, for a training of this length."""
    learner = learn(space, at_rungs(table, networks, seeds, loss=loss), len(RUNG_EPOCHS), longer=longer)
    return learner.mean([network.config for network in networks])


def bounded(space: SearchSpace, table: Table, networks: list[Network], final: list[Floats]) -> dict[str, float]:
    """What is lost by counting only `surrogate.MAX_OBSERVATIONS`: tau as above, mean over the seeds."""
    default, found = surrogate.MAX_OBSERVATIONS, {}
    try:
        for most in (len(networks) // 2, default, len(RUNG_EPOCHS) * len(networks)):
            surrogate.MAX_OBSERVATIONS = most
            taus = [tau(learned(space, table, networks, (seed,)), final[1 - seed]) for seed in (0, 1)]
            found[str(most)] = round(float(np.mean(taus)), 3)
    finally:
        surrogate.MAX_OBSERVATIONS = default
    return found


def few(space: SearchSpace, table: Table, networks: list[Network], truth: Floats) -> dict[str, dict[str, list[float]]]:
    """Of so many networks, drawn at random and trained with seed 0, by the surrogate and by their own accuracy alone:
    tau with `truth`, and the points that the one ranked first lies below the best. Means over `DRAWS`."""
    rng = np.random.default_rng(2)
    found: dict[str, dict[str, list[float]]] = {}
    for count in FEW:
        rows: dict[str, list[tuple[float, float]]] = {"surrogate": [], "own training alone": []}
        for _ in range(DRAWS):
            drawn = rng.choice(len(networks), count, replace=False)
            chosen, known = [networks[i] for i in drawn], truth[drawn]
            own = np.array([table.query(network.config).validation_accuracy for network in chosen])
            for name, values in (("surrogate", learned(space, table, chosen, (0,))), ("own training alone", own)):
                best = int(np.argmax(values))
                rows[name].append((tau(values, known), 100 * float(known.max() - known[best])))
        found[str(count)] = {name: np.nanmean(pairs, axis=0).round(3).tolist() for name, pairs in rows.items()}
    return found


def halves(space, networks, table, seen, final, macs) -> dict[str, list[float]]:  # type: ignore[no-untyped-def]
    """Mean and standard deviation over the halvings, all against seed 1."""
    rng = np.random.default_rng(1)
    accuracy = {epoch: seen(0, epoch) for epoch in RUNG_EPOCHS}
    taus: dict[str, list[float]] = {}

    def note(name: str, values: Floats, truth: Floats) -> None:
        taus.setdefault(name, []).append(tau(values, truth))

    for _ in range(HALVES):
        order = rng.permutation(len(networks))
        known, unknown = order[: len(order) // 2], order[len(order) // 2 :]
        truth = final[1][unknown]
        asked = [networks[i].config for i in unknown]
        rungs = at_rungs(table, [networks[i] for i in known], (0,))
        ends = [replace(seen, rung=0) for seen in rungs if seen.rung == len(RUNG_EPOCHS) - 1]
        note("surrogate, from whole trainings", learn(space, ends, 1, longer=0).mean(asked), truth)
        note("surrogate, from all rungs", learn(space, rungs, len(RUNG_EPOCHS), longer=0).mean(asked), truth)
        note("MACs", macs[unknown], truth)
        note("training a third of the epochs", accuracy[3][unknown], truth)
        note("training to the end", accuracy[9][unknown], truth)
    return {name: [round(float(np.mean(x)), 3), round(float(np.std(x)), 3)] for name, x in taus.items()}


def against_long(space: SearchSpace, table: Table, networks: list[Network]) -> dict[str, object]:
    """How what is known earlier or for less ranks the networks by the accuracy of their long training."""
    long = [network for network in networks if ("long", 0) in network.trainings]
    others = [network for network in networks if ("long", 0) not in network.trainings]

    def ends(network: Network, schedule: str) -> list[float]:
        return [training.accuracy for training in network.of(schedule)]

    truth = np.array([np.mean(ends(network, "long")) for network in long])
    noise = seed_noise(long, "long")
    left = noise / float(np.sqrt(np.mean([len(network.of("long")) for network in long])))  # in their means
    learner = learn(space, at_rungs(table, others, (0,)), len(RUNG_EPOCHS))
    places = [networks.index(network) for network in long]
    known: dict[str, Floats] = {
        f"short training, one seed, {epoch} of 9 epochs": np.array(
            [table.query(network.config, epoch, 0).validation_accuracy for network in long]
        )
        for epoch in RUNG_EPOCHS
    }
    known |= {
        "short training, one seed, training loss": -train_loss(long, 0),
        "short training, one seed, validation loss": -loss(long, 0),
        "short training, mean of two seeds, all images": np.array([np.mean(ends(n, "short")) for n in long]),
        "surrogate, from short trainings of the others": learner.mean([network.config for network in long]),
        **{
            f"surrogate, from all short trainings of {name}, for {length} training": learned(
                space, table, networks, seeds, longer=longer
            )[places]
            for name, seeds in (("one seed", (0,)), ("two seeds", (0, 1)))
            for length, longer in (("the same", 0.0), ("a longer", RUNGS_BEYOND_LAST))
        },
        "MACs": np.array([network.macs for network in long], float),
        "parameters": np.array([network.params for network in long], float),
        "latency": np.array([network.latency_ms for network in long]),
        "resolution": np.array([network.config.resolution for network in long], float),
    }
    roles = np.array([network.role for network in long])
    groups = [
        np.flatnonzero(roles == role)
        for role in sorted(set(roles))
        if role.startswith("group_") and (roles == role).sum() >= LEAST_OF_A_GROUP
    ]
    within = {
        f"{len(groups)} groups of {[len(group) for group in groups]} networks, ceiling": [
            ceiling(true_spread(truth[group], left), left, len(group)) for group in groups
        ],
        **{name: agreement(values, truth, groups) for name, values in known.items() if groups},
    }
    estimate = known["surrogate, from all short trainings of one seed, for a longer training"]
    return {
        "networks": len(long),
        "standard deviation over networks, points": round(100 * float(truth.std(ddof=1)), 3),
        "standard deviation between seeds, points": round(100 * noise, 3),
        "ceiling": ceiling(true_spread(truth, left), left, len(long)),
        "all": {name: agreement(values, truth, [np.arange(len(long))]) for name, values in known.items()},
        "tau of the surrogate (one seed, longer) above that of MACs": above(
            estimate, known["MACs"], truth, [np.arange(len(long))]
        ),
        "within groups": within,
        "within groups, tau of the surrogate (one seed, longer) above that of MACs": above(
            estimate, known["MACs"], truth, groups
        ),
    }


def agreement(values: Floats, truth: Floats, groups: list[NDArray[np.intp]]) -> dict[str, list[float]]:
    """tau and Spearman's coefficient, each the mean over the groups, with a bootstrap interval."""

    def both(chosen: list[NDArray[np.intp]]) -> Floats:
        pairs = [(tau(values[g], truth[g]), float(spearmanr(values[g], truth[g]).statistic)) for g in chosen]
        return np.nanmean(pairs, axis=0)

    rng = np.random.default_rng(0)
    drawn = [both([rng.choice(group, len(group)) for group in groups]) for _ in range(BOOTSTRAPS)]
    low, high = np.nanquantile(drawn, [0.05, 0.95], axis=0)
    here = both(groups)
    return {
        name: [round(float(x), 3) for x in (here[i], low[i], high[i])] for i, name in enumerate(("tau", "Spearman"))
    }


def above(values: Floats, others: Floats, truth: Floats, groups: list[NDArray[np.intp]]) -> list[float]:
    """The difference of their taus, with a bootstrap interval over the same networks for both."""
    if not groups:
        return []
    rng = np.random.default_rng(0)

    def both(chosen: list[NDArray[np.intp]]) -> float:
        return float(np.nanmean([tau(values[g], truth[g]) - tau(others[g], truth[g]) for g in chosen]))

    drawn = [both([rng.choice(group, len(group)) for group in groups]) for _ in range(BOOTSTRAPS)]
    return [round(float(x), 3) for x in (both(groups), *np.nanquantile(drawn, [0.05, 0.95]))]


if __name__ == "__main__":
    main()
