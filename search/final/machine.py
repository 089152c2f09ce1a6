"""With how much of this machine a network is trained or judged."""

from __future__ import annotations

from typing import Any


def machine_settings(device: str | None, threads: int | None, loaders: int | None, workers: int) -> dict[str, Any]:
    """Where and with how much of this machine a process trains: fields of `FinalSettings`.

    Raises ValueError for a device that is not there, and for numbers that are too small.
    """
    import psutil
    import torch

    for name, value, least in (("threads", threads, 1), ("loaders", loaders, 0)):
        if value is not None and value < least:
            raise ValueError(f"--{name}: at least {least}, given {value}")

    cores = max(1, psutil.cpu_count(logical=False) or 1)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device: cpu or cuda, given {device!r}")
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is no GPU that torch can use")
    if loaders is None:  # with a GPU the cores have nothing else to do
        loaders = min(8, max(1, cores - 1)) if device != "cpu" else 0
    threads = threads or max(1, torch.get_num_threads() // max(1, workers))
    return {"device": device, "threads": threads, "loaders": loaders}
