"""The latency predictor alone: the published models and an ONNX file on several devices, without having any of them.

    python examples/latency_alone.py

It needs neither torch nor a GPU, and takes a few seconds.
"""

from lownas import predict
from lownas.search_space import PRESETS, write_onnx

TARGETS = ("rtx3090", "i7-12700h")

if __name__ == "__main__":
    write_onnx(PRESETS["lowformer_b1"], "b1.onnx")  # any ONNX file of opset 13 or newer will do
    for target in TARGETS:
        for name, found in zip(PRESETS, predict(list(PRESETS.values()), target), strict=True):
            print(f"{target:10} {name:14} {found.latency_ms:7.2f} ms, {found.low_ms:.2f} to {found.high_ms:.2f}")
        print(f"{target:10} {'b1.onnx':14} {predict('b1.onnx', target).latency_ms:7.2f} ms")
