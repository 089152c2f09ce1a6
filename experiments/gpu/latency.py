"""Published models timed on the device: the steps `presets` and `compile`."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lownas.experiments.gpu.record import Record, one_line
from lownas.experiments.gpu.sizes import Sizes, there

PRECISIONS = ("fp16", "bf16")
MARGIN_S = 3.0  # before a step's limit in which no timing begins


@dataclass
class Timed:
    """A network that is timed, built once.

    Attributes:
        largest: the batch that was found to be the largest; None until it was searched for.
    """

    name: str
    module: Any
    side: int
    largest: int | None = None


def presets(record: Record, sizes: Sizes) -> str:
    """Three published models in eager mode and as CUDA graphs, in two precisions, with one image and the most."""
    return _time_all(record, sizes, ("torch-graph", "torch"))


def compile(record: Record, sizes: Sizes) -> str:  # the step's name
    """The same by torch.compile, as far as the time goes."""
    if sizes.device == "cuda" and not there("triton"):
        record.note(remark="triton is not installed, by which torch.compile makes kernels for GPUs")
    return _time_all(record, sizes, ("torch-compile",))


def _time_all(record: Record, sizes: Sizes, runtimes: tuple[str, ...]) -> str:
    sizes.check_device()
    networks = [_built(name, sizes) for name in sizes.presets]
    settings = [
        (network, runtime, precision, many)
        for many in (False, True)
        for precision in PRECISIONS
        for network in networks
        for runtime in runtimes
    ]
    for number, (network, runtime, precision, many) in enumerate(settings):
        if not record.has_time(MARGIN_S):
            left_out = len(settings) - number
            record.note(cut_short=f"{left_out} of {len(settings)} settings were left out for want of time")
            break
        with record.timed():
            batch = _largest_batch(network, sizes) if many else 1
            row = {"network": network.name, "side": network.side, "runtime": runtime, "precision": precision}
            record.add(row | _timed(network, sizes, runtime, precision, batch))
    rows = record.document.get("rows", [])
    good = [each for each in rows if "error" not in each]
    return f"{len(good)} of {len(settings)} settings timed, {len(rows) - len(good)} failed{_best(good)}"


def _best(rows: list[dict[str, Any]]) -> str:
    """The fastest latency of one image, in words."""
    one = [row for row in rows if row["batch"] == 1]
    if not one:
        return ""
    best = min(one, key=lambda row: row["undisturbed_ms"])
    setting = f"{best['network']}, {best['runtime']}, {best['precision']}"
    return f"; least for one image {best['undisturbed_ms']:.3g} ms ({setting})"


def _built(name: str, sizes: Sizes) -> Timed:
    from lownas.search_space import PRESETS, build_model

    config = PRESETS[name]
    if sizes.resolution is not None:
        config = config.replace(resolution=sizes.resolution)
    return Timed(name, build_model(config).eval(), config.resolution)


def _timed(network: Timed, sizes: Sizes, runtime: str, precision: str, batch: int) -> dict[str, Any]:
    """What one setting takes; where that batch does not fit, half of it, and so on."""
    from lownas.evaluators.device.measure import measure_torch
    from lownas.predictors import Target

    begin, tried = time.monotonic(), batch
    while True:
        runs_as = sizes.runs_as.get(runtime, runtime)
        target = Target.parse(f"{sizes.device}/{runs_as}/{precision}/b{batch}/t1")
        size = (3, network.side, network.side)
        try:
            found = measure_torch(network.module, size, target, what=network.name, time_limit_s=sizes.look_s)
            break
        except Exception as error:  # of one setting; the others are timed all the same
            failure = one_line(error)
            full = out_of_memory(error)
        _release(sizes)
        if not full or batch == 1:
            return {"batch": batch, "error": failure, "took_s": time.monotonic() - begin}
        batch //= 2
    _release(sizes)
    return {
        "batch": batch,
        **({"too_large": tried} if tried > batch else {}),
        "undisturbed_ms": found.undisturbed_ms,
        "median_ms": found.median_ms,
        "p90_ms": found.p90_ms,
        "images_per_second": 1e3 * batch / found.median_ms,
        "notes": list(found.notes),
        "took_s": time.monotonic() - begin,
    }


def _largest_batch(network: Timed, sizes: Sizes) -> int:
    """The largest power of two of images that one pass in eager mode takes at once, up to the limit."""
    if network.largest is None:
        network.largest = 1
        for batch, seconds in _growing(network, sizes):
            network.largest = batch
            if seconds > sizes.slow_s:
                break
        _release(sizes)
    return network.largest


def _growing(network: Timed, sizes: Sizes) -> Iterator[tuple[int, float]]:
    """Batches that fit, growing, each with the seconds of one pass."""
    import torch

    module = network.module.to(device=sizes.device, dtype=torch.float16, memory_format=torch.channels_last)
    batch = 1
    while batch <= sizes.largest_batch:
        begin = time.perf_counter()
        try:
            with torch.inference_mode():
                images = torch.randn(batch, 3, network.side, network.side, device=sizes.device, dtype=torch.float16)
                module(images.contiguous(memory_format=torch.channels_last))
            if sizes.device == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:  # out of memory, or more numbers than a kernel can count
            return
        yield batch, time.perf_counter() - begin
        batch *= 2


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device's memory is full, or that a tensor has more numbers than fit an int."""
    text = str(error)
    signs = ("out of memory", "ALLOC_FAILED", "can't allocate", "32bit", "32-bit", "int32")
    return type(error).__name__ == "OutOfMemoryError" or any(sign in text for sign in signs)


def _release(sizes: Sizes) -> None:
    """Gives memory back that no tensor holds any more."""
    import torch

    gc.collect()
    if sizes.device == "cuda":
        torch.cuda.empty_cache()
