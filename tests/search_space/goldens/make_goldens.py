"""Makes the golden outputs that `test_checkpoints.py` compares with: timm's models, run by timm.

Runs in an environment of its own, with timm >= 1.0.31 and torch, and without lownas:

    python make_goldens.py KEYS.json goldens.json.gz

KEYS.json maps model names to formats ("official", "timm") to state-dict keys and shapes; the "official" ones are those
of the checkpoints of altair199797/LowFormer, which timm's own `checkpoint_filter_fn` translates. Weights, biases and
BatchNorm statistics are random, drawn from a generator seeded by each key's name, so that the file need not hold them.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
import zlib

import numpy as np
import timm
import torch
from timm.models import lowformer

SEED = 20_260
SIZES = ((64, 64), (200, 232))
KEPT = 12


def random_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """The value of one state-dict entry; `test_checkpoints.py` has the same function on purpose."""
    rng = np.random.default_rng([SEED, zlib.crc32(key.encode())])
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("running_var"):
        return torch.from_numpy(rng.uniform(0.5, 1.5, shape).astype(np.float32))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return torch.from_numpy(values * np.float32(0.1) + np.float32(key.endswith("weight")))
    return torch.from_numpy(values / np.float32(math.sqrt(math.prod(shape[1:]))))


def images(height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng([SEED, height, width])
    return torch.from_numpy(rng.standard_normal((1, 3, height, width), dtype=np.float32))


def main(keys_file: str, out_file: str) -> None:
    with open(keys_file, encoding="utf-8") as file:
        all_keys = json.load(file)
    models = {}
    for name, formats in all_keys.items():
        for format, shapes in formats.items():
            state = {key: random_tensor(key, shape) for key, shape in shapes.items()}
            model = timm.create_model(name).eval()
            if format == "official":
                state = lowformer.checkpoint_filter_fn(state, model)
            model.load_state_dict(state)
            outputs = []
            for height, width in SIZES:
                with torch.no_grad():
                    x = images(height, width)
                    _, maps = model.forward_intermediates(x)
                    logits = model(x)
                outputs.append(
                    {
                        "size": [height, width],
                        "logits": logits[0, :KEPT].tolist(),
                        "logits_abs_mean": logits.abs().mean().item(),
                        "maps": [
                            {
                                "shape": list(m.shape),
                                "values": m.flatten()[:: max(1, m.numel() // KEPT)][:KEPT].tolist(),
                            }
                            for m in maps
                        ],
                    }
                )
            models[f"{name}/{format}"] = {"keys": shapes, "outputs": outputs}
            print(name, format, outputs[-1]["logits_abs_mean"])
    content = {"timm": timm.__version__, "torch": torch.__version__, "seed": SEED, "models": models}
    with gzip.GzipFile(out_file, "wb", mtime=0) as file:
        file.write(json.dumps(content).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
