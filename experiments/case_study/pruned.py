"""LowFormer-B0 pruned by FastNAS (NVIDIA's Model Optimizer) to each budget, for `study.py train`.

    pip install nvidia-modelopt torchprofile==0.0.4 huggingface_hub omegaconf requests
    python experiments/case_study/pruned.py --work WORK     # 2 hours of one core, most of them to train the whole B0

B0 is trained by the study's recipe, without the validation part, by which FastNAS then finds how much each layer can
lose. It is pruned to many numbers of MACs; of those near a budget the slowest one within it, as measured, is taken, and
trained on from its weights like every other network.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.experiments.case_study.arms import CLASSES, PRUNED, TASKS, Network, ScaledArm, Task
from lownas.experiments.case_study.study import Study
from lownas.search_space import PRESETS, LowFormerConfig, build_model
from lownas.search_space.scaling import scaled

if TYPE_CHECKING:
    from torch import Tensor, nn

PRESET, JUDGED, BATCH = "lowformer_b0", 512, 64
SHARES = tuple(np.geomspace(0.05, 0.95, 40).round(4).tolist())
"""Shares of B0's MACs that are pruned to."""


# --- files of pruned weights -----------------------------------------------------------------------------------------


def shaped_as(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Gives the layers of a LowFormer the numbers of channels that tensors have, and loads these."""
    from torch import nn

    for name, layer in list(model.named_modules()):
        weight = state.get(f"{name}.weight")
        if weight is None or layer.weight.shape == weight.shape:
            continue
        fewer: nn.Module
        if isinstance(layer, nn.Conv2d):
            groups = layer.groups if layer.groups == 1 else weight.shape[0]  # depthwise, in B0
            about = {"stride": layer.stride, "padding": layer.padding, "groups": groups, "bias": layer.bias is not None}
            fewer = nn.Conv2d(weight.shape[1] * groups, weight.shape[0], layer.kernel_size, **about)
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            fewer = type(layer)(weight.shape[0], eps=layer.eps)
        elif isinstance(layer, nn.GroupNorm):
            fewer = nn.GroupNorm(layer.num_groups, weight.shape[0], eps=layer.eps)
        elif isinstance(layer, nn.LayerNorm):
            fewer = nn.LayerNorm(weight.shape[0], eps=layer.eps)
        elif isinstance(layer, nn.Linear):
            fewer = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
        else:
            raise ValueError(
                f"{name} has {tuple(weight.shape)} weights, a {type(layer).__name__} cannot be pruned here"
            )
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, fewer)
    model.load_state_dict(dict(state))
    return model


def read_pruned(config: LowFormerConfig, path: Path) -> nn.Module:
    """A pruned network from its file."""
    from safetensors.torch import load_file

    return shaped_as(build_model(config), load_file(path))


# --- pruning ---------------------------------------------------------------------------------------------------------


def whole(task: Task) -> LowFormerConfig:
    """The network that is pruned."""
    return scaled(PRESETS[PRESET], width=1.0, resolution=task.pixels).replace(classes=CLASSES)


class Pruning(ScaledArm):
    """The trained B0, pruned to a share of its MACs."""

    widths = SHARES

    def __init__(self, study: Study, trained: Path) -> None:
        super().__init__("fastnas", study.work)
        self.task, self.config = study.task, whole(study.task)
        self.trained, self.folder = trained, study.work / PRUNED
        self.folder.mkdir(parents=True, exist_ok=True)

    def at(self, width: float) -> Network | None:
        name = f"{PRESET}-{width:g}"
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            try:
                self._prune(width, path)
            except ValueError as error:  # so few MACs do not lie in its space
                print(f"{name}: {' '.join(str(error).split())}")
                return None
        return Network(self.name, config=self.config, pruned=name)

    def _prune(self, share: float, path: Path) -> None:
        import modelopt.torch.prune as mtp
        import torch
        from safetensors.torch import save_file

        from lownas.evaluators.training.final.weights import load_weights

        model = build_model(self.config)
        model.load_state_dict(load_weights(self.trained).state)
        side = self.config.resolution
        config = {
            "data_loader": self.batches,
            "score_func": self._accuracy,
            "collect_func": lambda batch: batch[0],
            "checkpoint": str(self.folder / "sensitivities.pth"),  # its own; how much each layer can lose
            "verbose": False,
        }
        found, _ = mtp.prune(
            model=model,
            mode="fastnas",
            constraints={"flops": f"{100 * share:g}%"},
            dummy_input=torch.zeros(1, 3, side, side),
            config=config,
        )
        partial = path.with_suffix(".partial")
        save_file({name: value.contiguous().clone() for name, value in found.state_dict().items()}, partial)
        partial.rename(path)

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Validation images as the network takes them, and their labels."""
        import torch

        from lownas.evaluators.data.feeding import Batch, image_feed
        from lownas.evaluators.data.loading import find_parts
        from lownas.evaluators.training.final.weights import load_weights

        pixels = load_weights(self.trained).pixels
        assert pixels is not None
        mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (pixels.mean, pixels.spread))
        part = find_parts(self.task.data, 0, resolution=self.config.resolution).validation
        assert part is not None
        feed = image_feed(part, self.config.resolution, workers=0)
        places = np.random.default_rng(0).permutation(len(feed))[:JUDGED].reshape(-1, BATCH)
        fed = feed.batches(Batch(place, self.config.resolution) for place in places)
        return [((images.float() / 255 - mean) / std, torch.as_tensor(labels)) for images, labels in fed]

    def _accuracy(self, model: nn.Module) -> float:
        import torch

        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in self.batches)
        return right / JUDGED


def run(study: Study) -> None:
    """Trains B0, if that was not done, and adds the pruned networks that are missing."""
    from lownas import train

    out = study.work / "whole" / study.task.data
    recipe: dict[str, Any] = {**study.task.recipe, "train_on": "train"}
    if (out / "training.json").exists():
        train(whole(study.task), study.task.data, out=out, resume=True, threads=1)
    else:
        train(whole(study.task), study.task.data, out=out, seed=0, threads=1, device="cpu", **recipe)
    arm, known = Pruning(study, out), study.networks()
    for budget_ms in study.task.budgets_ms:
        name = f"{arm.name}@{budget_ms:g}"
        if name in known:
            continue
        try:
            study.add("networks", arm.network(name, budget_ms).to_row())
        except SystemExit as error:  # nothing that it prunes to is within the budget
            print(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    run(Study(TASKS["fashion-mnist"], parser.parse_args().work.resolve()))


if __name__ == "__main__":
    main()
