"""lownas: hardware-aware neural architecture search over a parameterized LowFormer space."""

__version__ = "0.1.0"
