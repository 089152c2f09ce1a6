"""Labelled images for trainings: data sources, and loading them as arrays of one size."""
