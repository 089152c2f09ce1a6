import pytest

from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernels import KERNEL_COLUMN
from lownas.search_space import PRESETS, op_graph
from lownas.search_space.graph import GraphBuilder


@pytest.mark.parametrize("runtime", ["torch-amp", "torch-compile"])
def test_attention_is_one_kernel_unless_something_stands_in_between(runtime):
    kernels = fuse(op_graph(PRESETS["lowformer_b1"]), runtime)
    assert kernels.classes.count("attention") == 10  # one a block
    assert "softmax" not in kernels.classes and "matmul" not in kernels.classes
    graph = op_graph(PRESETS["lowformer_b1"])
    heads = [int(op[10]) for op, kind in zip(graph.table, graph.kinds, strict=True) if kind == "softmax"]
    table = kernels.table[[name == "attention" for name in kernels.classes]]
    assert len(heads) == len(table)
    tokens = table[:, KERNEL_COLUMN["cin"]] // table[:, KERNEL_COLUMN["groups"]]
    assert set(tokens.tolist()) == {49}  # 7 x 7, of both stages
    assert kernels.column("macs").sum() == graph.macs

    build = GraphBuilder()
    width, shape = 32, (4, 49, 49)
    scores = build.add_op(
        "matmul", [-1, -1], shape_in=(width, 49, 49), shape_out=shape, groups=4, macs=4 * 49 * 49 * 32
    )
    masked = build.pointwise("mul", [scores], shape)
    weights = build.add_op("softmax", [masked], shape_in=shape, shape_out=shape)
    build.add_op("matmul", [weights, -1], shape_in=(49, 49, 32), shape_out=(4, 49, 32), groups=4, macs=4 * 49 * 49 * 32)
    classes = fuse(build.build(), runtime).classes
    assert classes.count("matmul") == 2 and "attention" not in classes
