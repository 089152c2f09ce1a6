import pytest
import torch

from lownas.evaluators.data.loading import load_data
from lownas.evaluators.training.batches import ImageBatches


def test_a_loader_gives_what_resident_images_give(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_data("digits", 24, train_images=90, validation_images=40)
    resident = ImageBatches(digits, "train", "cpu")
    monkeypatch.setattr("lownas.evaluators.training.batches._fits", lambda size, device: False)
    loaded = ImageBatches(digits, "train", "cpu")
    assert resident.resident and not loaded.resident
    parts = torch.randperm(90, generator=torch.Generator().manual_seed(1)).split(32)
    before = torch.get_rng_state()
    for (first, wanted), (second, labels) in zip(resident.batches(parts), loaded.batches(parts), strict=True):
        assert torch.equal(first, second) and torch.equal(wanted, labels)
        assert second.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(before, torch.get_rng_state()), "the loader must not draw from the training's generator"
