"""The search spaces that ship with lownas (YAML files, read by `SearchSpace.load`)."""
