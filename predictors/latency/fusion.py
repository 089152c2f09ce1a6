"""Which kernels a runtime executes for an operator graph.

Rules per runtime, each held against the real thing where a test can:
- "onnxruntime": its CPU provider, as `sess_options.optimized_model_filepath` shows for version 1.32: convolutions run
  in a blocked layout (NCHWc, `block` channels: 16 with AVX-512, 8 with AVX2) where their channels allow it, with
  activation and residual addition merged, and reorders stand wherever the layout changes.
- "onnxruntime-int8": the same provider with models quantized as `evaluators.quantize` does it: integer convolutions are
  channels-last and merge nothing, transpositions stand wherever the layout changes, and operators in float convert what
  they read and write.
- "tensorrt" (and "onnxruntime-tensorrt"): convolutions and matrix products take the pointwise chain that follows them
  along; remaining chains run as one kernel.
- "torch-compile": Inductor calls libraries for convolutions, matrix products and attention, and makes one kernel of
  each pointwise chain between them, BatchNorm included; a norm takes the chain that follows it along.
- "onnxruntime-cuda": every operator is a kernel, in NCHW, but a ReLU after a convolution. From onnxruntime's source;
  neither this nor "onnxruntime-tensorrt" was ever held against a GPU.
- "torch" (and "torch-graph"): every operator is a kernel, BatchNorm one of its own.
- "torch-amp": the same under autocast, which computes norms and softmax in fp32, the other products in fp16, and
  converts between them; attention is one kernel. Elements are counted in units of fp16.

Fusion never reaches across a unit's end (`search_space.graph.units`) except through the layout of the tensor handed on,
so a graph's kernels are its units' kernels, given the layout in which each unit's input arrives.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...search_space.config import LowFormerConfig
from ...search_space.graph import GRAPH_INPUT, KINDS, OpGraph
from ...search_space.units import Unit, unit_graph, units
from .fusion_onnxruntime import OnnxRuntime, OnnxRuntimeInt8, onnxruntime_cuda
from .fusion_torch import Autocast, eager, inductor
from .kernels import KERNEL_COLUMN, OUTPUTS, PLAIN, POINTWISE, Fuser, Kernels, class_of

RUNTIMES: tuple[str, ...] = (
    "onnxruntime",
    "onnxruntime-int8",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "tensorrt",
    "torch",
    "torch-amp",
    "torch-graph",
    "torch-compile",
)


def fuse(graph: OpGraph, runtime: str, block: int = 16) -> Kernels:
    """The kernels that `runtime` executes for `graph`.

    Args:
        graph: any operator graph.
        runtime: one of `RUNTIMES`.
        block: channels of onnxruntime's blocked layout on the device; 0 where it has none. Other runtimes ignore it.
    """
    return _fuse(graph, runtime, block, PLAIN)[0]


def fuse_config(config: LowFormerConfig, runtime: str, block: int = 16) -> Kernels:
    """`fuse(op_graph(config), ...)` through the cached kernels of its units; the order of rows may differ."""
    layout, start, tables = PLAIN, 0, []
    for unit in units(config):
        kernels, layout = fuse_unit(unit, runtime, block, layout)
        table = kernels.table.copy()
        table[:, KERNEL_COLUMN["row"]] += start
        tables.append(table)
        start += len(unit_graph(unit))
    return Kernels(np.concatenate(tables))


@lru_cache(maxsize=65536)
def fuse_unit(unit: Unit, runtime: str, block: int, layout: int) -> tuple[Kernels, int]:
    """Kernels of one unit whose input arrives in `layout`, and the layout of its output."""
    return _fuse(unit_graph(unit), runtime, block, layout)


def _fuse(graph: OpGraph, runtime: str, block: int, layout: int) -> tuple[Kernels, int]:
    if runtime == "onnxruntime":
        return OnnxRuntime(graph, block, layout).run()
    if runtime == "onnxruntime-int8":
        return OnnxRuntimeInt8(graph, layout).run()
    if runtime == "onnxruntime-cuda":
        return onnxruntime_cuda(graph), PLAIN
    if runtime in ("tensorrt", "onnxruntime-tensorrt"):
        return _merge_chains(graph), PLAIN
    if runtime == "torch-compile":
        return inductor(graph), PLAIN
    if runtime == "torch-amp":
        return Autocast(graph, layout).run()
    if runtime in ("torch", "torch-graph"):
        return eager(graph), PLAIN
    raise ValueError(f"unknown runtime {runtime!r}; known are {', '.join(RUNTIMES)}")


def _merge_chains(graph: OpGraph) -> Kernels:
    """TensorRT: pointwise operators join the kernel that computes their input for them alone."""
    fuser = Fuser(graph)
    takes_tail = {"conv", "conv_transpose", "linear", "matmul"}
    for row, op in enumerate(fuser.ops):
        kind = KINDS[op[0]]
        if kind in POINTWISE:
            for source in fuser.sources[row]:
                # A channel gate (squeeze-excitation) is no tail of the small kernel that computes it.
                same_size = source != GRAPH_INPUT and fuser.ops[source][OUTPUTS] == op[OUTPUTS]
                if same_size and fuser.uses[source] == 1:
                    head = KINDS[fuser.ops[fuser.rows[fuser.kernel_of[source]][1]][0]]
                    if head in takes_tail or head in POINTWISE:
                        fuser.merge(row, fuser.kernel_of[source])
                        break
            else:
                fuser.emit(row, class_of(op))
            continue
        fuser.emit(row, class_of(op))
    return fuser.kernels()
