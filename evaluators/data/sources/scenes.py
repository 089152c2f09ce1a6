"""Coloured scenes of 64 pixels in which one object is framed among others, composed of Fashion-MNIST's pictures.

The class is that of the framed object. Others lie before and behind it, of any class, size, pose and colour, on
textured ground. Nothing but Fashion-MNIST has to be there, and every pixel is fixed: a harder and larger task for small
machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..records import DataRequest, FoundData, LabelledImages
from .base import DataSource
from .fashion_mnist import FashionMnist

TRAIN_SCENES, TEST_SCENES = 20_000, 5_000
SIDE = 64
"""Side of a scene, pixels."""
_BEHIND, _BEFORE = 4, 1  # objects besides the framed one
_FRAMED_SIDE, _OTHER_SIDE = (26, 40), (18, 40)  # pixels that a picture's side becomes
_FRAMED_TURN, _OTHER_TURN = np.deg2rad(25), np.pi
_APART = 0.45  # least distance of what lies before it from the framed object's centre, in sides of its frame
_GROUND = ((4, 1.0), (16, 0.5))  # cells a side of the ground's coarse and fine colours, and their share
_NOISE = 8.0  # standard deviation of the pixel noise, levels of 255
_OPAQUE = 1 / 3  # grey level of a picture, of 1, from which on it hides what is behind
_CHUNK = 128  # scenes that are composed together
_SEED = 64


@dataclass(frozen=True)
class Scenes(DataSource):
    """Scenes in clutter (`scenes`, `scenes:DIR`): 20,000 of Fashion-MNIST's training pictures, 5,000 of its test part.

    Attributes:
        folder: where Fashion-MNIST's files are, as for `fashion-mnist:DIR`.
    """

    folder: str | None = None

    @property
    def spec(self) -> str:
        return "scenes" if self.folder is None else f"scenes:{self.folder}"

    def read(self, request: DataRequest) -> FoundData:
        found = FashionMnist(self.folder).read(request)
        card = {"origin": "scenes of Fashion-MNIST pictures, 64 pixels", "parts": {"test": "of t10k, the set's own"}}
        return FoundData(_compose(found.train, TRAIN_SCENES, _SEED), None, found.classes, card)

    def read_test(self, request: DataRequest) -> LabelledImages:
        return _compose(FashionMnist(self.folder).read_test(request), TEST_SCENES, _SEED + 1)


def _compose(pictures: LabelledImages, count: int, seed: int) -> LabelledImages:
    """`count` scenes, each framing a picture of its own as far as there are enough."""
    grey = np.asarray(pictures.images)
    framed = np.resize(np.random.default_rng(seed).permutation(len(grey)), count)
    scenes = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = framed[start : start + _CHUNK]
        scenes[start : start + _CHUNK] = _scenes(grey, chunk, np.random.default_rng([seed, start]))
    return LabelledImages(scenes, pictures.labels[framed])


def _scenes(grey: NDArray[np.uint8], framed: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Scenes (N, 64, 64, 3) that frame these pictures."""
    count = len(framed)
    canvas = _ground(count, rng)
    side = rng.uniform(*_FRAMED_SIDE, count)
    centre = side[:, None] / 2 + rng.random((count, 2)) * (SIDE - side[:, None])  # its frame lies within the scene
    for number in range(_BEHIND + 1 + _BEFORE):
        if number == _BEHIND:
            turn = rng.uniform(-_FRAMED_TURN, _FRAMED_TURN, count)
            _draw(canvas, grey[framed], centre, side, turn, rng)
            continue
        place = rng.random((count, 2)) * SIDE
        if number > _BEHIND:
            place = _pushed_away(place, centre, _APART * side)
        others = grey[rng.integers(len(grey), size=count)]
        turn = rng.uniform(-_OTHER_TURN, _OTHER_TURN, count)
        _draw(canvas, others, place, rng.uniform(*_OTHER_SIDE, count), turn, rng)
    canvas += _NOISE * rng.standard_normal(canvas.shape, np.float32)
    _frame(canvas, centre, side)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _ground(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Textured ground (N, 64, 64, 3): random colours, coarse and fine, blended into each other."""
    canvas = np.zeros((count, SIDE, SIDE, 3), np.float32)
    for cells, share in _GROUND:
        at = np.linspace(0, cells, SIDE)
        weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells + 1)))  # linear between the cells' corners
        colours = rng.uniform(0, 255, (count, cells + 1, cells + 1, 3))
        canvas += share * np.einsum("yi,xj,nijc->nyxc", weights, weights, colours, optimize=True)
    return canvas / np.float32(sum(share for _, share in _GROUND))


def _pushed_away(
    place: NDArray[np.float64], centre: NDArray[np.float64], least: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Places moved straight away from centres until they are as far as `least`."""
    apart = place - centre
    distance = np.maximum(np.linalg.norm(apart, axis=1), 1e-6)
    return centre + apart * np.maximum(1, least / distance)[:, None]


def _draw(
    canvas: NDArray[np.float32],
    grey: NDArray[np.uint8],
    place: NDArray[np.float64],
    side: NDArray[np.float64],
    turn: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Draws one picture into each scene: around `place` (x, y), `side` pixels wide, turned, in two random colours."""
    from PIL import Image

    level = np.empty((len(grey), SIDE, SIDE, 1), np.float32)
    for number, (picture, (x, y), scale, angle) in enumerate(zip(grey, place, grey.shape[1] / side, turn, strict=True)):
        cos, sin, middle = scale * np.cos(angle), scale * np.sin(angle), len(picture) / 2
        inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
        size, method = (SIDE, SIDE), Image.Transform.AFFINE
        turned = Image.fromarray(picture).transform(size, method, inverse, Image.Resampling.BILINEAR)
        level[number, :, :, 0] = np.asarray(turned)
    level /= 255
    dark, light = rng.uniform(0, 255, (2, len(grey), 1, 1, 3)).astype(np.float32)
    opacity = np.minimum(1, level / _OPAQUE)
    canvas *= 1 - opacity
    canvas += opacity * (dark + (light - dark) * level)


def _frame(canvas: NDArray[np.float32], centre: NDArray[np.float64], side: NDArray[np.float64]) -> None:
    """Draws a white frame with a black edge around the framed object."""
    at = np.arange(SIDE)
    for distance, level in ((0, 255), (1, 0)):
        low = np.round(centre - side[:, None] / 2).astype(int) + distance
        high = np.round(centre + side[:, None] / 2).astype(int) - 1 - distance
        within = [(at >= low[:, axis, None]) & (at <= high[:, axis, None]) for axis in (0, 1)]
        edge = [(at == low[:, axis, None]) | (at == high[:, axis, None]) for axis in (0, 1)]
        lines = (within[1][:, :, None] & edge[0][:, None, :]) | (edge[1][:, :, None] & within[0][:, None, :])
        canvas[lines] = level
