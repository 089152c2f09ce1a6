"""Final trainings whose process is killed at a random point and started again end with the same weights.

    python experiments/final_training/killed.py [--kills 30]

One training is left alone; its weights are the truth. Then the same one is started `kills` times in a folder of its
own, killed (SIGKILL) after a random share of the time that the first one took, and gone on with until it ends; every
third is killed twice. Everything random is on: RandAugment, mixup and cutmix, erasing, stochastic depth, alternating
sizes. Rows go to killed.json as they come; what is there is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).with_name("killed.json")
EPOCHS = 8
CHOICES = {
    "batch_size": 64,
    "mixup": 0.2,
    "cutmix": 0.2,
    "randaugment_layers": 1,
    "randaugment_magnitude": 3.0,
    "erasing": 0.2,
    "drop_path": 0.1,
    "sides": [0.75, 1.0],
    "crop": 0.5,
}


def train(folder: str) -> None:
    """One process's part of the training; epochs are kept on disk as they end."""
    import numpy as np

    from lownas.evaluators.training.final import training
    from lownas.evaluators.training.final.records import FinalSettings
    from lownas.evaluators.training.final.store import LocalStore
    from lownas.search_space import SearchSpace

    training.SAVED_EVERY_S = 0.0
    config = SearchSpace.load("tiny").sample(np.random.default_rng(3))
    settings = FinalSettings(epochs=EPOCHS, choices=CHOICES)
    training.train_network(config, "digits", LocalStore(folder), settings, resume=True)


def weights(folder: Path) -> str:
    """A digest of the trained network's tensors, in the order of their names."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, value in sorted(load_file(folder / "best.safetensors").items()):
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()[:16]


def run(folder: Path, limit_s: float | None = None) -> bool:
    """Starts the training's process; kills it after `limit_s` seconds. Whether it was killed."""
    process = subprocess.Popen([sys.executable, __file__, "--train", str(folder)])
    try:
        if process.wait(limit_s):
            raise RuntimeError(f"the training in {folder} failed")
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--train", help="only train in this folder (used inside)")
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train)
        return
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        run(Path(scratch) / "whole")
        took_s, truth = time.monotonic() - start, weights(Path(scratch) / "whole")
        for number in range(len(rows), arguments.kills):
            draw, folder, at = random.Random(number), Path(scratch) / str(number), []
            for _ in range(2 if number % 3 == 2 else 1):
                limit = draw.uniform(0, took_s)
                if run(folder, limit):
                    at.append(round(limit, 2))
            ended_alone = (folder / "best.safetensors").exists()
            kept = sorted(path.name for path in folder.glob("*")) if folder.exists() else []
            run(folder)
            rows.append({"killed_at_s": at, "left": kept, "same": weights(folder) == truth})
            done = {"kills": sum(len(row["killed_at_s"]) for row in rows), "same": sum(row["same"] for row in rows)}
            text = json.dumps(
                {"uninterrupted_s": round(took_s, 1), "trainings": len(rows), **done, "rows": rows}, indent=1
            )
            RESULTS.write_text(text + "\n")
            print(number, rows[-1], "had ended" if ended_alone else "", flush=True)


if __name__ == "__main__":
    main()
