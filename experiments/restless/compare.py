"""Ways of telling a latency from a few looks, against the lower decile of all looks of `looks.py`.

    python experiments/restless/compare.py                    # writes compare.json, half a minute
    python experiments/restless/compare.py --looks weights    # of looks-weights.jsonl.gz; writes compare-weights.json

For each network some looks are drawn at random times, again and again; errors are logs, in root mean square over
networks and draws.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lownas.predictors.latency.undisturbed import Look, Undisturbed, sentinel_reference, undisturbed

HERE = Path(__file__).parent
RESULTS = {"loaded": "compare.json", "weights": "compare-weights.json"}
COUNTS, DRAWS = (2, 3, 5, 8), 150
MEDIAN = 4  # place of the median among the quantiles of a row


def looks(name: str = "loaded") -> tuple[dict[str, list[Look]], float]:
    """The looks at each network, with the sentinel's latency around them; and what the sentinel takes undisturbed."""
    with gzip.open(HERE / f"looks-{name}.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    sentinel = [(row["at_s"], row["undisturbed_ms"]) for row in rows if row["network"] == "sentinel"]
    times, values = np.array(sentinel).T
    found: dict[str, list[Look]] = {}
    for row in rows:
        if "sentinel" not in row["network"]:
            after = int(np.searchsorted(times, row["at_s"]))
            around = values[[max(after - 1, 0), min(after, len(values) - 1)]]
            disturbance = max(0.0, row["wall"][MEDIAN] / row["undisturbed_ms"] - 1)
            look = Look(row["undisturbed_ms"], disturbance, float(np.sqrt(around.prod())))
            found.setdefault(row["network"], []).append(look)
    return found, sentinel_reference(values.tolist()) or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--looks", choices=RESULTS, default="loaded")
    chosen = parser.parse_args().looks
    found, reference_ms = looks(chosen)
    rng = np.random.default_rng(1)

    def times(drawn: list[Look]) -> np.ndarray:
        return np.array([look.latency_ms for look in drawn])

    def as_sentinel(drawn: list[Look]) -> float:
        slow = np.array([max(1.0, (look.sentinel_ms or 0.0) / reference_ms) for look in drawn])
        return float(np.exp(np.log(times(drawn) / slow).mean()))

    ways: dict[str, Callable[[list[Look]], float]] = {
        "mean": lambda drawn: float(np.exp(np.log(times(drawn)).mean())),
        "median": lambda drawn: float(np.median(times(drawn))),
        "least": lambda drawn: float(times(drawn).min()),
        "shortened as the sentinel says": as_sentinel,
    }
    results = []
    for count in COUNTS:
        errors: dict[str, list[float]] = {name: [] for name in (*ways, "undisturbed")}
        estimates: list[Undisturbed] = []
        for own in found.values():
            truth = float(np.quantile(times(own), 0.1))
            for _ in range(DRAWS):
                drawn = [own[place] for place in rng.choice(len(own), count, replace=False)]
                estimates.append(undisturbed(drawn, reference_ms))
                errors["undisturbed"].append(float(np.log(estimates[-1].latency_ms / truth)))
                for name, way in ways.items():
                    errors[name].append(float(np.log(way(drawn) / truth)))
        row: dict[str, float] = {"looks": count}
        row |= {name: round(float(np.sqrt(np.mean(np.square(each)))), 4) for name, each in errors.items()}
        row["its repeatability"] = round(float(np.sqrt(np.mean([each.repeatability**2 for each in estimates]))), 4)
        results.append(row)
        print(row, flush=True)
    (HERE / RESULTS[chosen]).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
