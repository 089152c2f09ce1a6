"""A network as canonical operators: the table itself, ONNX files read and written, torch modules traced."""

from .operators import COLUMN, COLUMNS, GRAPH_INPUT, KIND, KINDS, GraphBuilder, OpGraph

__all__ = ["COLUMN", "COLUMNS", "GRAPH_INPUT", "KIND", "KINDS", "GraphBuilder", "OpGraph"]
