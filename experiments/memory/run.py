"""How the memory estimate compares with what onnxruntime takes: `python experiments/memory/run.py`, a minute.

Each network runs in a process of its own (Linux), without onnxruntime's arena, so that what is freed is free.
Activations are the rise of the peak resident memory while it runs once (workspaces and weights first touched then count
too); the total is the rise since before the session was made.
Writes results.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lownas.predictors.memory import BYTES, peak_activations, peak_memory_bytes
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph, write_onnx

RESULTS = Path(__file__).with_name("results.json")
RANDOM = 20

_CHILD = """
import ctypes, re, sys
import numpy as np, onnxruntime

def trim():  # freed memory goes back, so that using it again shows
    ctypes.CDLL(None).malloc_trim(0)

def status(name):
    return 1024 * int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])

def reset():
    open("/proc/self/clear_refs", "w").write("5")

options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = options.enable_mem_pattern = False
options.intra_op_num_threads = 1
side = int(sys.argv[2])
warm = onnxruntime.InferenceSession(sys.argv[3], options, providers=["CPUExecutionProvider"])  # the library's own needs
warm.run(None, {warm.get_inputs()[0].name: np.ones((1, 3, 64, 64), np.float32)})
trim()
before = status("VmRSS")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = np.random.default_rng(0).random((1, 3, side, side), np.float32)
trim()
made = status("VmRSS")
reset()
session.run(None, {session.get_inputs()[0].name: image})
print(status("VmHWM") - made + image.nbytes, status("VmHWM") - before)
"""


def measured_bytes(config: LowFormerConfig, folder: Path) -> tuple[int, int]:
    """Activations and total."""
    path, warm = folder / "model.onnx", folder / "warm.onnx"
    write_onnx(config, path)
    write_onnx(PRESETS["lowformer_b0"].replace(resolution=64), warm)
    command = [sys.executable, "-c", _CHILD, str(path), str(config.resolution), str(warm)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(output[0]), int(output[1])


def main() -> None:
    space, rng = SearchSpace.load("default"), np.random.default_rng(6)
    configs = {**PRESETS, **{f"random {i}": space.sample(rng) for i in range(RANDOM)}}
    rows: list[dict[str, Any]] = []
    _, per_activation = BYTES["fp32"]
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs.items():
            activations, total = (
                np.median(x) for x in zip(*(measured_bytes(config, Path(folder)) for _ in range(3)), strict=True)
            )
            row = {
                "name": name,
                "resolution": config.resolution,
                "activations_mb": round(per_activation * peak_activations(op_graph(config)) / 1e6, 2),
                "measured_activations_mb": round(float(activations) / 1e6, 2),
                "total_mb": round(float(peak_memory_bytes([config])[0]) / 1e6, 2),
                "measured_total_mb": round(float(total) / 1e6, 2),
            }
            rows.append(row)
            print(row, flush=True)
    ratio = np.array([row["measured_activations_mb"] / row["activations_mb"] for row in rows])
    total = np.array([row["measured_total_mb"] / row["total_mb"] for row in rows])
    summary = {
        "measured over estimated activations": [round(float(q), 3) for q in np.quantile(ratio, [0, 0.5, 1])],
        "measured over estimated total": [round(float(q), 3) for q in np.quantile(total, [0, 0.5, 1])],
        "rank correlation of totals": round(
            float(
                np.corrcoef(
                    *(np.argsort(np.argsort([row[n] for row in rows])) for n in ("total_mb", "measured_total_mb"))
                )[0, 1]
            ),
            3,
        ),
        "onnxruntime": metadata.version("onnxruntime"),
    }
    print(summary)
    RESULTS.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
