"""Times of single kernels from onnxruntime's profiler, named after the rows of the operator graph.

`write_onnx` names every node `op{row}_{kind}...`; onnxruntime's optimizer keeps most of these names, and those of the
tensors between them, so every node of the optimized graph can be told its row. Nodes it leaves without a name are
renamed first, and the optimized graph is profiled as it is, with no further optimization.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx

_ROW = re.compile(r"op(\d+)_")
PROFILED_RUNS = 10
TRUNCATION_MS = 0.0005
"""The profiler cuts durations to whole microseconds; this much is lost on average."""


def kernel_names(model: onnx.ModelProto) -> list[str]:
    """For each node of an optimized model its kernel, "ROW:op", "ROW:reorder_in" or "ROW:reorder_out".

    Several nodes may share a kernel (the five of a GroupNorm, say). Nodes that came from no row are "-1:other".
    """
    names = [""] * len(model.graph.node)
    consumer: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            consumer.setdefault(name, index)
    for index in reversed(range(len(names))):
        node = model.graph.node[index]
        if node.op_type in ("ReorderInput", "ReorderOutput"):
            # A reorder keeps the name of the tensor in the plain layout on the side where that is.
            plain = node.input[0] if node.op_type == "ReorderInput" else node.output[0]
            role = "reorder_in" if node.op_type == "ReorderInput" else "reorder_out"
            match = _ROW.match(plain)
            names[index] = f"{match[1] if match else -1}:{role}"
        elif match := _ROW.match(node.name) or _ROW.match(node.output[0]):
            names[index] = f"{match[1]}:op"
        else:  # a node made by the optimizer within an operator: it belongs to the one that consumes its output
            follower = consumer.get(node.output[0])
            names[index] = names[follower] if follower is not None else "-1:other"
    return names


def kernel_times_ms(
    optimized: Path, feeds: dict[str, np.ndarray], threads: int, folder: Path, runs: int = PROFILED_RUNS
) -> dict[str, float]:
    """Lower fifth over `runs` of every kernel's time in ms, in an optimized model of onnxruntime's CPU provider."""
    import onnxruntime

    model = onnx.load(str(optimized))
    names = kernel_names(model)
    for index, node in enumerate(model.graph.node):
        node.name = f"k{index}"
    onnx.save(model, str(optimized))
    del model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(optimized), options, providers=["CPUExecutionProvider"])
    for _ in range(runs + 2):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    durations: dict[int, list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            durations[int(name[1 : -len("_kernel_time")])].append(event["dur"] / 1e3)
    result: dict[str, float] = defaultdict(float)
    for index, times in durations.items():
        result[names[index]] += float(np.quantile(times[2:], 0.2)) + TRUNCATION_MS
    return dict(result)
