"""A tabular benchmark of the LowFormer space: trained accuracies and measured latencies, see README.md."""

from .table import Network, Point, Table, Training

__all__ = ["Network", "Point", "Table", "Training"]
