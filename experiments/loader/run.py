"""The loader of long trainings: its speed beside timm's and plain Pillow's, and its start on a folder like ImageNet's.

    python experiments/loader/run.py speed --scratch /tmp/loader --timm-python /other/bin/python   # some minutes
    python experiments/loader/run.py start --scratch /tmp/loader                                   # a minute

See README.md for what is measured. timm may live in an environment of its own. Both commands add to results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image, ImageDraw

RESULTS = Path(__file__).with_name("results.json")
SIDE = 224
PICTURES = 300
SIZES = ((500, 375), (375, 500), (500, 500))
CROP = (0.08, 1.0)
CENTRE = 0.95  # of the side
BATCH = 60
ROUNDS = 7
CLASSES = 1000
FILES = (50_000, 100_000, 200_000)
FIRST_BATCH = 256
TASKS = ("training", "judging")


def draw_pictures(folder: Path) -> None:
    """Draws the JPEGs, unless they are there."""
    inside = folder / "pictures" / "one"
    if inside.is_dir():
        return
    inside.mkdir(parents=True)
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        width, height = SIZES[number % len(SIZES)]
        pixels = np.full((height, width, 3), 120.0)
        # As in photographs, each octave has little more than half the contrast of the one before.
        for octave in range(7):
            cells = (3 * 2**octave, 3 * 2**octave)
            noise = Image.fromarray(rng.integers(0, 256, (*cells, 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            pixels += (np.asarray(noise, dtype=float) - 128) * 0.8 * 0.6**octave
        pixels += rng.normal(0, 7, (height, width, 1))  # of the sensor
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(picture)
        for _ in range(12):
            corner = rng.integers(0, 400, 2)
            size = rng.integers(20, 150, 2)
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
            shape((*corner.tolist(), *(corner + size).tolist()), outline=colour, width=int(rng.integers(2, 12)))
        picture.save(inside / f"{number:03d}.jpg", quality=90)


# --- what is compared: each gives batches of uint8 in a loop; a pass is over all pictures


def ours(folder: Path, task: str) -> Callable[[int], Iterator[Any]]:
    from lownas.evaluators.data.feeding import Batch, StreamedFeed
    from lownas.evaluators.data.records import ImageFiles, LabelledImages

    files = ImageFiles.of(folder, sorted(f"one/{path.name}" for path in (folder / "one").iterdir()))
    feed = StreamedFeed(LabelledImages(files, np.zeros(PICTURES, dtype=np.int64)))

    def batches(seed: int) -> Iterator[Any]:
        order = np.random.default_rng(seed).permutation(PICTURES)
        how = {"seed": seed, "crop": CROP} if task == "training" else {"seed": None, "crop": (CENTRE**2, CENTRE**2)}
        return feed.batches(Batch(order[i : i + BATCH], SIDE, **how) for i in range(0, PICTURES, BATCH))

    return batches


def pillow(folder: Path, task: str) -> Callable[[int], Iterator[Any]]:
    from lownas.evaluators.data.crops import central_box, draws, random_box

    paths = sorted((folder / "one").iterdir())

    def batches(seed: int) -> Iterator[Any]:
        numbers = draws(seed, np.arange(PICTURES)).tolist()
        for i in range(0, PICTURES, BATCH):
            images = []
            for path, row in zip(paths[i : i + BATCH], numbers[i : i + BATCH], strict=True):
                picture = Image.open(path).convert("RGB")
                if task == "training":
                    box = random_box(*picture.size, CROP, row)
                else:
                    box = central_box(*picture.size, CENTRE**2)
                images.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)))
            yield np.stack(images)

    return batches


def timm(folder: Path, task: str) -> Callable[[int], Iterator[Any]]:
    import torch
    from timm.data import ImageDataset, create_loader  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(1)
    loader = create_loader(
        ImageDataset(str(folder)),
        input_size=(3, SIDE, SIDE),
        batch_size=BATCH,
        is_training=task == "training",
        scale=CROP,
        hflip=0.0,
        color_jitter=None,
        interpolation="bicubic",
        crop_pct=CENTRE,
        num_workers=0,
        device=torch.device("cpu"),
    )
    # Its prefetcher also makes batches normalized floats. Our trainer does that, so timm's loader is compared without.
    return lambda seed: iter(loader.loader)


CONTENDERS = {"ours": ours, "timm": timm, "pillow": pillow}


def time_one(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """Images a second of the core and of the clock, by task, in this process."""
    result = {}
    for task in TASKS:
        batches = CONTENDERS[name](folder, task)
        next(batches(0))
        core, clock = time.process_time(), time.perf_counter()
        count = sum(len(batch[0]) if name != "pillow" else len(batch) for batch in batches(1))
        result[task] = {
            "core": count / (time.process_time() - core),
            "clock": count / (time.perf_counter() - clock),
        }
    return result


def speed(scratch: Path, timm_python: str) -> dict[str, Any]:
    draw_pictures(scratch)
    folder = scratch / "pictures"
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in CONTENDERS}
    for turn in range(ROUNDS):
        for name in sorted(CONTENDERS, key=lambda name: (turn + len(name)) % 3):
            python = timm_python if name == "timm" else sys.executable
            command = [python, __file__, "one", "--scratch", str(folder), "--contender", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rounds[name].append(json.loads(done.stdout))
    sizes = [path.stat().st_size for path in (folder / "one").iterdir()]
    return {
        "pictures": PICTURES,
        "median_kB": round(statistics.median(sizes) / 1000, 1),
        "rounds": ROUNDS,
        "images_per_second": {
            task: {
                name: {what: summary([one[task][what] for one in found]) for what in ("core", "clock")}
                for name, found in rounds.items()
            }
            for task in TASKS
        },
    }


def summary(values: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"lower_quartile": round(low, 1), "median": round(median, 1), "upper_quartile": round(high, 1)}


# --- the start on a folder like ImageNet's


def lay_out(folder: Path, count: int) -> None:
    """1,000 classes with `count` files in all, each a link to one of a few hundred pictures."""
    rng = np.random.default_rng(0)
    stock = folder.with_name("stock")
    stock.mkdir(parents=True, exist_ok=True)
    for i in range(400):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(stock / f"{i}.jpg")
    for label in range(CLASSES):
        inside = folder / "train" / f"n{label:08d}"
        inside.mkdir(parents=True)
        for i in range(count // CLASSES):
            os.link(stock / f"{(label * 7 + i) % 400}.jpg", inside / f"n{label:08d}_{i}.JPEG")


def start_here(folder: Path) -> dict[str, float]:
    """Seconds to the parts and to the first batch in this process, and its largest resident memory in MB."""
    from lownas.evaluators.data.feeding import Batch, StreamedFeed
    from lownas.evaluators.data.loading import find_parts

    ready = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    began = time.perf_counter()
    parts = find_parts(f"imagefolder:{folder}")
    listed = time.perf_counter() - began
    order = np.random.default_rng(0).permutation(len(parts.train))[:FIRST_BATCH]
    next(iter(StreamedFeed(parts.train, workers=2).batches([Batch(order, SIDE, 1, CROP)])))
    return {
        "files": len(parts.train) + len(parts.validation),
        "listed_and_split_s": round(listed, 2),
        "first_batch_s": round(time.perf_counter() - began, 2),
        "imports_mb": round(ready),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def start(scratch: Path) -> list[dict[str, float]]:
    results = []
    for count in FILES:
        folder = scratch / f"layout_{count}"
        try:
            lay_out(folder, count)
            command = [sys.executable, __file__, "start-one", "--scratch", str(folder)]
            results.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(scratch / "stock", ignore_errors=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "start", "one", "start-one"))
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for generated files")
    parser.add_argument("--timm-python", default=sys.executable, help="the Python of an environment with timm")
    parser.add_argument("--contender", choices=tuple(CONTENDERS))
    given = parser.parse_args()
    if given.what == "one":
        print(json.dumps(time_one(given.contender, given.scratch)))
        return
    if given.what == "start-one":
        print(json.dumps(start_here(given.scratch)))
        return
    found = speed(given.scratch, given.timm_python) if given.what == "speed" else start(given.scratch)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[given.what] = found
    results["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    results["versions"] = {"python": platform.python_version(), "Pillow": Image.__version__}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
