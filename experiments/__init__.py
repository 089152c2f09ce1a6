"""Runs that show something; `tabular` is also a library."""
