"""Operator graphs: from configurations, from ONNX files, from torch modules; and ONNX files written from them."""

from .operators import COLUMN, COLUMNS, GRAPH_INPUT, KIND, KINDS, GraphBuilder, OpGraph

__all__ = ["COLUMN", "COLUMNS", "GRAPH_INPUT", "KIND", "KINDS", "GraphBuilder", "OpGraph"]
