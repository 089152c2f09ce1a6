import torch

from lownas.evaluators.tasks.augmentation import flips_and_shifts
from lownas.evaluators.training.settings import ProxySettings


def test_shifts_move_images_and_keep_their_channels() -> None:
    settings = ProxySettings(flip=False, max_shift=0.25)
    ramp = torch.arange(8.0).expand(3, 8, 8) + 10 * torch.arange(3.0).view(3, 1, 1)
    images = ramp.expand(60, 3, 8, 8)
    torch.manual_seed(0)
    moved = flips_and_shifts(settings, 8)(images)
    assert moved.shape == images.shape
    assert torch.allclose(moved - moved[:, :1], images - images[:, :1])
    assert {round(float(image[0, 0, 3] - 3)) for image in moved} == {-2, -1, 0, 1, 2}
    assert moved.min() >= 0, "what a shift uncovers repeats the border"


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(4.0).expand(200, 3, 4, 4)
    torch.manual_seed(0)
    turned = flips_and_shifts(ProxySettings(), 4)(images)
    mirrored = (turned[:, 0, 0, 0] == 3).sum()
    assert 60 < mirrored < 140
    assert torch.equal(flips_and_shifts(ProxySettings(flip=False), 4)(images), images)
