"""Latency measured on devices: this machine's, and those that are reached over SSH."""
