"""Looks at a dozen networks again and again, on and off load, so that ways of telling a latency can be compared.

    OMP_NUM_THREADS=1 python experiments/restless/looks.py --minutes 20 --name loaded --load
    OMP_NUM_THREADS=1 python experiments/restless/looks.py --minutes 10 --name rest
    OMP_NUM_THREADS=1 python experiments/restless/looks.py --minutes 14 --name weights --load --networks weights

Networks come in a random order, and between any two the sentinels are looked at. Rows go to looks-NAME.jsonl.gz at the
end. Each look is a session of its own, as in the product; its times are kept as quantiles of wall and CPU times.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from lownas.evaluators.device.agent.models import time_model
from lownas.evaluators.device.runtimes.onnxruntime import onnx_job
from lownas.experiments.restless import load
from lownas.predictors import Target
from lownas.predictors.costs import total_params
from lownas.predictors.latency.sampling import sentinel_config
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace
from lownas.search_space.graph.onnx_writer import onnx_model
from lownas.search_space.scaling import scaled

TARGET = Target.parse("cpu")
LOOK_S = {"any": 0.6, "weights": 0.2}
QUANTILES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.9, 0.99)


def networks() -> dict[str, LowFormerConfig]:
    """From 0.1 to some 60 ms."""
    found = {name: PRESETS[name] for name in ("cpubone_nano", "lowformer_b0", "lowformer_e1", "lowformer_b1")}
    rng = np.random.default_rng(3)
    for space in ("tiny", "default"):
        for number in range(4):
            found[f"{space}-{number}"] = SearchSpace.load(space).sample(rng)
    return found


def heavy_networks() -> dict[str, LowFormerConfig]:
    """From 0.1 to 3 ms, with 1 to 35 MB of weights: what caches keep of them swings."""
    rng, space = np.random.default_rng(4), SearchSpace.load("tiny")
    drawn = [space.sample(rng) for _ in range(400)]
    megabytes = 4e-6 * total_params(drawn)
    found = {}
    for least in (1, 2, 4, 6, 8, 10, 12, 15, 18, 22, 26, 32):
        place = int(np.argmin(np.where(megabytes >= least, megabytes, np.inf)))
        found[f"{megabytes[place]:.1f} MB"] = drawn[place]
    return found


def sentinels() -> dict[str, LowFormerConfig]:
    """The calibration's own, and a smaller one."""
    return {
        "sentinel": sentinel_config(),
        "small sentinel": PRESETS["cpubone_nano"].replace(resolution=96, classes=100),
    }


def heavy_sentinels() -> dict[str, LowFormerConfig]:
    """The calibration's own, and two whose weights caches keep, or do not."""
    nano = PRESETS["cpubone_nano"].replace(resolution=32, classes=100)
    return {"sentinel": sentinel_config(), **{f"sentinel x{x:g}": scaled(nano, width=x) for x in (0.75, 1.0)}}


def look(name: str, model: bytes, begin: float, limit_s: float) -> dict[str, Any]:
    """One row."""
    job = onnx_job(TARGET, name, limit_s, 12, False)
    at = time.monotonic() - begin
    timed, _ = time_model(model, job, print)
    quantiles = {
        kind: [round(float(value), 5) for value in np.quantile(times, QUANTILES)]
        for kind, times in (("wall", timed.times_ms), ("cpu", timed.cpu_times_ms))
    }
    undisturbed = float(np.quantile(np.minimum(timed.times_ms, timed.cpu_times_ms), 0.1))
    row = {"network": name, "at_s": round(at, 2), "took_s": round(time.monotonic() - begin - at, 2)}
    row |= {"runs": len(timed.times_ms), "undisturbed_ms": round(undisturbed, 5), "busy": round(timed.busy_cores, 3)}
    return {**row, **quantiles, **timed.readings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--name", default="loaded")
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--networks", choices=("any", "weights"), default="any")
    arguments = parser.parse_args()
    anything = arguments.networks == "any"
    looked_at, between = (networks(), sentinels()) if anything else (heavy_networks(), heavy_sentinels())
    models = {name: onnx_model(config).SerializeToString() for name, config in {**looked_at, **between}.items()}
    rng, rows = np.random.default_rng(0), []
    begin = time.monotonic()
    started = load.start(60 * arguments.minutes) if arguments.load else []
    while time.monotonic() < begin + 60 * arguments.minutes:
        for name in rng.permutation(list(looked_at)):
            for each in (*between, name):
                row = look(str(each), models[each], begin, LOOK_S[arguments.networks])
                rows.append(row | {"phase": load.phase(row["at_s"]) if arguments.load else "idle"})
        print(f"{len(rows)} looks, {time.monotonic() - begin:.0f} s", flush=True)
    for process in started:
        process.terminate()
    file = Path(__file__).with_name(f"looks-{arguments.name}.jsonl.gz")
    with gzip.open(file, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
