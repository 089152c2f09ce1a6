"""onnxruntime with its CPU, CUDA and TensorRT execution providers."""

from __future__ import annotations

from collections.abc import Mapping

from ....search_space.graph import GRAPH_INPUT, OpGraph
from ..kernels import PLAIN, ROW, Fuser, Kernels, class_of
from . import onnxruntime_cpu, onnxruntime_int8
from .base import Runtime
from .tensorrt import merge_pointwise_chains

INT8_FUSION = "onnxruntime-int8"
BLOCK_SIZES: tuple[int, ...] = (16, 8, 4, 0)
"""Channels that the blocked layout (NCHWc) has: 16 with AVX-512, 8 with AVX2, 4 on ARM, 0 where there is none."""


class OnnxRuntime(Runtime):
    """onnxruntime's CPU provider: `onnxruntime_cpu` in float, `onnxruntime_int8` for quantized models."""

    name = "onnxruntime"
    library = "onnxruntime"

    def fusion(self, precision: str) -> str:
        return INT8_FUSION if precision == "int8" else self.name

    def block_sizes(self, fusion: str) -> tuple[int, ...]:
        return (0,) if fusion == INT8_FUSION else BLOCK_SIZES

    def profiled_nodes(self, fusion: str) -> Mapping[str, int]:
        return (onnxruntime_int8 if fusion == INT8_FUSION else onnxruntime_cpu).PROFILED_NODES

    def fuse(self, graph: OpGraph, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
        if fusion == INT8_FUSION:
            return onnxruntime_int8.Int8Fuser(graph, layout).run()
        return onnxruntime_cpu.CpuFuser(graph, block, layout).run()


class OnnxRuntimeCuda(Runtime):
    """onnxruntime's CUDA provider: every operator is a kernel, except a ReLU after a convolution.

    From onnxruntime's source (conv_activation_fusion.cc); never compared with what a GPU executed.
    """

    name = "onnxruntime-cuda"
    library = "onnxruntime"

    def fuse(self, graph: OpGraph, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
        return _merge_relu(graph), PLAIN


class OnnxRuntimeTensorRt(Runtime):
    """onnxruntime's TensorRT provider: the same kernels as TensorRT itself; never compared with what a GPU executed."""

    name = "onnxruntime-tensorrt"
    library = "onnxruntime"

    def fuse(self, graph: OpGraph, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
        return merge_pointwise_chains(graph), PLAIN


def _merge_relu(graph: OpGraph) -> Kernels:
    """Kernels where a ReLU, alone or after a sum, joins the convolution before it."""
    fuser = Fuser(graph)
    kinds = graph.kinds
    read_by_relu = {sources[0] for row, sources in enumerate(fuser.sources) if kinds[row] == "relu"}
    for row, op in enumerate(fuser.ops):
        if kinds[row] == "relu":  # after a convolution, or after a sum that has joined one
            alone = [s for s in fuser.sources[row] if s != GRAPH_INPUT and fuser.uses[s] == 1]
            convolutions = [s for s in alone if kinds[fuser.rows[fuser.kernel_of[s]][ROW]] == "conv"]
        elif kinds[row] == "add" and row in read_by_relu and fuser.uses[row] == 1:
            alone = [s for s in fuser.sources[row] if s != GRAPH_INPUT and fuser.uses[s] == 1]
            convolutions = [s for s in alone if kinds[s] == "conv"]
        else:
            convolutions = []
        if convolutions:
            fuser.merge(row, fuser.kernel_of[convolutions[0]])
        else:
            fuser.emit(row, class_of(op))
    return fuser.kernels()
