"""What the machine is: the step `doctor`."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from lownas.experiments.gpu.record import Record, one_line
from lownas.experiments.gpu.sizes import Sizes

QUERY = (
    *("name", "driver_version", "memory.total", "memory.used", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm"),
    *("temperature.gpu", "power.draw", "power.limit", "utilization.gpu"),
)
THROTTLING = ("clocks_throttle_reasons.active", "clocks_event_reasons.active")  # older and newer drivers' name of it
COMMAND_S = 15.0  # for nvidia-smi, which takes seconds where the driver has to wake up first
REPEATS = 10
COPIED_BYTES = 2**31
RAMPS_S = (0.0, 0.5, 2.0)  # of idling, after which a GPU may need a while to be fast again
WATCHED_S = 1.0
WINDOWS_S = (0.01, 0.05, 0.2, WATCHED_S)


def doctor(record: Record, sizes: Sizes) -> str:
    """What the machine and its packages are, and how fast products and copies are at most."""
    import torch

    there = sizes.device == "cpu" or torch.cuda.is_available()
    record.note(torch=_torch_facts(torch), nvidia_smi=nvidia_smi(), usable=there)
    try:
        from lownas.search.doctor import describe_machine
        from lownas.search.trials.run_folder import git_commit

        record.note(lownas=describe_machine(record.folder / "profiles"), commit=git_commit())
    except ModuleNotFoundError as error:
        record.note(lownas=None, lownas_why=f"not installed: {error.name}")
    except Exception as error:  # what follows is of use without it
        record.note(lownas=None, lownas_why=one_line(error))
    if not there:
        return "torch can use no CUDA device here"
    for row in _ceilings(torch, sizes):
        record.add(row, to="at_most")
    for row in _ramps(torch, sizes):
        record.add(row, to="after_idling")
    record.note(nvidia_smi_after=nvidia_smi())
    gpu = record.document["torch"]["gpu"] or "no GPU (a rehearsal)"
    said = record.document.get("lownas_why")
    return gpu if not said else f"{gpu}; what lownas says of it is missing: {said}"


def _torch_facts(torch: Any) -> dict[str, Any]:
    """What torch says of itself and of the first GPU."""
    there = torch.cuda.is_available()
    facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if there else None,
        "threads": torch.get_num_threads(),
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "gpus": torch.cuda.device_count(),
        "gpu": None,
    }
    if there:
        device = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": device.name,
            "capability": f"{device.major}.{device.minor}",
            "memory_gib": device.total_memory / 2**30,
            "multiprocessors": device.multi_processor_count,
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return facts


def nvidia_smi() -> dict[str, str] | None:
    """What nvidia-smi says of the first GPU, or why it does not; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    begin = time.monotonic()
    found = _queried(QUERY)
    took_s = time.monotonic() - begin
    for name in THROTTLING:  # alone: a name that the driver does not know fails the whole query
        found[name] = _queried((name,)).get(name, "not known")
    return {"took_s": f"{took_s:.2f}", **found}


def _queried(names: Sequence[str]) -> dict[str, str]:
    """Facts of the first GPU by these names; "error" where they are not told."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": one_line(error)}
    fields = [field.strip() for field in done.stdout.strip().split("\n")[0].split(", ")]
    if done.returncode != 0 or len(fields) != len(names):
        return {"error": f"exit code {done.returncode}: {(done.stdout + done.stderr).strip()[:300]}"}
    return dict(zip(names, fields, strict=True))


def _ceilings(torch: Any, sizes: Sizes) -> list[dict[str, Any]]:
    """How fast large matrix products in each precision and a large copy are."""
    rows, side = [], sizes.product
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        one = torch.randn(side, side, device=sizes.device, dtype=dtype)
        other = torch.randn(side, side, device=sizes.device, dtype=dtype)
        seconds = _seconds(torch, sizes.device, lambda: one @ other)  # noqa: B023  (run within this turn)
        rows.append({"what": f"matrix product, {name}", "side": side, "tflops": 2 * side**3 / seconds / 1e12})
    count = COPIED_BYTES if sizes.device == "cuda" else 2**20
    source = torch.empty(count, dtype=torch.uint8, device=sizes.device).random_()
    copy = torch.empty_like(source)
    seconds = _seconds(torch, sizes.device, lambda: copy.copy_(source))
    rows.append({"what": "copy, bytes read and written", "bytes": count, "gb_per_s": 2 * count / seconds / 1e9})
    return rows


def _ramps(torch: Any, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """What a small product takes after the device has idled: the median of each window of time, the last one being 1.

    Where the first ones are far from 1, short timings after a pause are of a clock that is still rising.
    """
    side = sizes.product // 8
    one = torch.randn(side, side, device=sizes.device, dtype=torch.bfloat16)
    for idle_s in RAMPS_S:
        time.sleep(idle_s)
        begin, found = time.perf_counter(), []
        while (at := time.perf_counter() - begin) < WATCHED_S:
            one @ one
            if sizes.device == "cuda":
                torch.cuda.synchronize()
            found.append((at, time.perf_counter() - begin - at))
        medians: dict[float, float | None] = {}
        for since, until in pairwise((0.0, *WINDOWS_S)):
            inside = [took for at, took in found if since <= at < until]
            medians[until] = statistics.median(inside) if inside else None
        last = medians[WATCHED_S]
        shares = {f"until_{until:g}_s": took / last if took and last else None for until, took in medians.items()}
        yield {"idle_s": idle_s, "settled_ms": 1e3 * last if last else None, **shares}


def _seconds(torch: Any, device: str, run: Callable[[], object]) -> float:
    """The median time of a run, after some to warm up."""
    times = []
    for _ in range(3 + REPEATS):
        begin = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:])
