"""The target profiles that ship with lownas (JSON files, read by `predictors.latency`)."""
