"""Several trainings at once on one GPU: the step `workers`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty
from typing import Any

from lownas.experiments.gpu.record import Record, one_line
from lownas.experiments.gpu.sizes import Sizes, there
from lownas.experiments.gpu.training import learned, proxy_settings
from lownas.search.training.proxy import train_candidate
from lownas.search.training.task import TrainingTask

MARGIN_S = 5.0
PATIENCE_S = 60.0  # for all processes to have made their first training


@dataclass(frozen=True)
class Work:
    """What one of several workers has done: trainings made from `begin` to `end` in seconds of one clock."""

    begin: float
    end: float
    trainings: int
    images: int
    memory_gib: float | None = None


def workers(record: Record, sizes: Sizes) -> str:
    """How many proxy trainings a minute one, two and four workers get through, each with one thread.

    First as plain processes, then in the search's own pool of Ray workers, where Ray is there.
    """
    sizes.check_device()
    kinds = {"processes": _in_processes} | ({"ray": _in_ray} if there("ray") else {})
    if "ray" not in kinds:
        record.note(remark="ray is not installed: workers are plain processes alone")
    for kind, run in kinds.items():
        for count in sizes.workers:
            if not record.has_time(MARGIN_S):
                record.note(cut_short="not all numbers of workers were tried, for want of time")
                break
            row: dict[str, Any] = {"kind": kind, "workers": count, "trainings_each": sizes.trainings_each}
            with record.timed():
                try:
                    row |= _rates(run(count, sizes))
                except (RuntimeError, ValueError, OSError) as error:
                    row["error"] = one_line(error)
            record.add(row)
    return _said(record.document.get("rows", []))


def _rates(done: Sequence[Work]) -> dict[str, Any]:
    """Trainings a minute and images a second of workers together."""
    seconds = max(work.end for work in done) - min(work.begin for work in done)
    memory = [work.memory_gib for work in done if work.memory_gib is not None]
    return {
        "trainings_per_minute": 60 * sum(work.trainings for work in done) / seconds,
        "images_per_second": sum(work.images for work in done) / seconds,
        "memory_gib_each": max(memory) if memory else None,
    }


def _said(rows: Sequence[dict[str, Any]]) -> str:
    said = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        found = {row["workers"]: row for row in rows if row["kind"] == kind and "error" not in row}
        if 1 in found:
            one = found[1]["trainings_per_minute"]
            shares = (f"{count}: {row['trainings_per_minute'] / one:.2f}" for count, row in found.items())
            said.append(f"{kind}, trainings a minute over those of one worker ({one:.1f}): {', '.join(shares)}")
    return "; ".join(said) or "no number of workers could be timed"


def _task(number: int, sizes: Sizes) -> TrainingTask:
    config = sizes.trained_config()
    settings = proxy_settings(config, sizes)
    return TrainingTask(number, config, number, settings.data, settings.to_dict(), learned())


def _images(task: TrainingTask) -> int:
    """Images that pass in training."""
    return int(
        task.proxy["epochs"] * (task.proxy["train_images"] // task.proxy["batch_size"]) * task.proxy["batch_size"]
    )


# --- plain processes


def _in_processes(count: int, sizes: Sizes) -> list[Work]:
    """Trains in so many processes; they begin together, when each has made a first training."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    barrier, results = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=_process, args=(number, sizes, barrier, results), daemon=True) for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        found: list[Work] = []
        while len(found) < count:
            try:
                work = results.get(timeout=1)
            except Empty:
                if any(process.exitcode for process in processes):
                    raise RuntimeError("a process that trained is gone") from None
                continue
            if isinstance(work, str):
                raise RuntimeError(work)
            found.append(work)
        return found
    finally:
        for process in processes:
            process.terminate()
            process.join(5)


def _process(number: int, sizes: Sizes, barrier: Any, results: Any) -> None:
    try:
        _trained(number, sizes)
        barrier.wait(PATIENCE_S)
        begin = time.monotonic()
        images = sum(_trained(number, sizes) for _ in range(sizes.trainings_each))
        results.put(Work(begin, time.monotonic(), sizes.trainings_each, images, _memory_gib(sizes)))
    except Exception as error:  # whoever waits must learn of it
        barrier.abort()
        results.put(one_line(error))


def _trained(number: int, sizes: Sizes) -> int:
    """Makes one training; gives its images."""
    task = _task(number, sizes)
    found = train_candidate(task)
    if found.failure:
        raise RuntimeError(found.failure)
    return _images(task)


def _memory_gib(sizes: Sizes) -> float | None:
    import torch

    return torch.cuda.max_memory_reserved() / 2**30 if sizes.device == "cuda" else None


# --- Ray


def _in_ray(count: int, sizes: Sizes) -> list[Work]:
    """Trains in the search's own pool; the clock starts when every worker has made a first training."""
    from lownas.search.training.ray_pool import RayPool

    pool = RayPool(train_candidate, count)
    try:
        for part in (count, count * sizes.trainings_each):
            begin = time.monotonic()
            for number in range(part):
                pool.submit(_task(number, sizes))
            while pool.pending:
                for outcome in pool.wait(PATIENCE_S):
                    if outcome.evaluation is None or outcome.evaluation.failure:
                        failure = outcome.error if outcome.evaluation is None else outcome.evaluation.failure
                        raise RuntimeError(failure)
        return [Work(begin, time.monotonic(), part, part * _images(_task(0, sizes)))]
    finally:
        pool.close()
