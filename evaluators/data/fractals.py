"""Renders colour images by formula: no download, no licence, any number of classes, every pixel fixed by the seed.

A class is an iterated function system, a handful of contracting affine maps whose attractor is a fractal; the images of
a class vary the maps' coefficients, the pose, the colours and the background. Dark shapes on light ground are as common
as light on dark and colours are drawn apart from the class, so that neither mean colour nor any single pixel tells the
class: shape does.

Source: FractalDB (Kataoka et al., Pre-training without Natural Images, ACCV 2020, arXiv 2101.08515); the choice of
contractions by their singular values after Anderson and Farrell, Improving Fractal Pre-training (WACV 2022).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BURN_IN = 12  # steps after which a point that walks is on the attractor, to well under a pixel
_STEPS = 16  # of each walk that are drawn, after these
_POINTS_PER_PIXEL = 2.0
_TABLE = 256  # entries of the table that turns a random byte into a map
_CHUNK = 128  # images rendered together, so that their points stay in the processor's cache
_TRIES = 400  # draws of a class, after which the best one seen is taken
_FILL = (0.10, 0.45)  # share of the frame that a class's attractor covers: neither dust nor a blob
_COARSE = 32  # grid on which classes are judged, pixels

_MAX_TURN_DEGREES = 8.0
_SCALE = (0.9, 1.1)  # of an image's shape to that of its class
_MAX_SHIFT = 0.06  # of the frame
_JITTER = 0.06  # of a map's coefficients
_MIN_CONTRAST = 90.0  # between shape and ground, in levels of 255, root mean square over the channels
_DARK_SHARE = 0.5  # of the images: their shape is darker than its ground, so that no pixel alone tells the class
_NOISE = 8.0  # standard deviation of the pixel noise, levels


def fractal_images(
    classes: int, per_class: int, resolution: int, seed: int = 0, *, chunks_before: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Renders a labelled set of fractals.

    Args:
        classes: number of classes, at least 2. Class c of a seed is the same however many classes are asked for.
        per_class: images of each class, at least 1.
        resolution: side of the square images in pixels, at least 8. A seed gives the same scenes at every resolution.
        seed: what everything is drawn from.
        chunks_before: so many times 128 images of each class come before these, and are not rendered.

    Returns:
        images (classes * per_class, resolution, resolution, 3) in RGB, class by class, and labels
        (classes * per_class,).
    """
    for name, value, least in (("classes", classes, 2), ("per_class", per_class, 1), ("resolution", resolution, 8)):
        if value < least:
            raise ValueError(f"{name}: at least {least}, given {value}")
    if seed < 0:
        raise ValueError(f"seed: at least 0, given {seed}")
    images = np.empty((classes * per_class, resolution, resolution, 3), dtype=np.uint8)
    for label in range(classes):
        maps, cumulative = _draw_class(np.random.default_rng([seed, label, 0]))
        for start in range(0, per_class, _CHUNK):
            # Scenes are always drawn by whole chunks: more images of a class begin with the same ones.
            rng = np.random.default_rng([seed, label, 1, chunks_before + start // _CHUNK])
            count = min(_CHUNK, per_class - start)
            first = label * per_class + start
            images[first : first + count] = _render(maps, cumulative, resolution, rng)[:count]
    return images, np.repeat(np.arange(classes, dtype=np.int64), per_class)


def _draw_class(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Draws the maps of a class, whose attractor is centred in [-1, 1]^2.

    Returns:
        maps (K, 6), rows (a, b, c, d, e, f) of x' = ax + by + e, y' = cx + dy + f, and the cumulative probabilities
        (K,) with which they are applied.
    """
    low, high = _FILL
    best: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None
    best_miss = np.inf
    for _ in range(_TRIES):
        count = int(rng.integers(2, 6))
        singular = np.sort(rng.uniform(0.15, 0.95, (count, 2)), axis=1)[:, ::-1]
        spread = float((singular[:, 0] + 2 * singular[:, 1]).sum())
        if not (5 + count) / 2 <= spread <= (6 + count) / 2:
            continue  # outside this band attractors are dust or blobs
        turns = rng.uniform(-np.pi, np.pi, (count, 2))
        mirror = rng.choice((-1.0, 1.0), count)
        linear = _rotation(turns[:, 0]) @ (singular[:, :, None] * _rotation(turns[:, 1]))
        linear[:, :, 1] *= mirror[:, None]
        offset = rng.uniform(-1, 1, (count, 2))
        area = np.maximum(np.prod(singular, axis=1), 0.02)
        cumulative = np.cumsum(area / area.sum())
        points = _walk(_pack(linear, offset)[None], _table(cumulative), 64, rng)[0].reshape(-1, 2)
        centre = (np.quantile(points, 0.01, axis=0) + np.quantile(points, 0.99, axis=0)) / 2
        radius = float(np.quantile(np.abs(points - centre).max(axis=1), 0.98))
        if not 0.05 < radius < 50:
            continue
        # Move and scale the attractor into the frame: the same maps seen from other coordinates.
        offset = (offset + linear @ centre - centre) / radius
        maps = _pack(linear, offset)
        cells = np.clip(((points - centre) / radius + 1) * (_COARSE / 2), 0, _COARSE - 1).astype(np.int64)
        fill = len(np.unique(cells[:, 1] * _COARSE + cells[:, 0])) / _COARSE**2
        miss = max(low - fill, fill - high, 0.0)
        if miss < best_miss:
            best, best_miss = (maps, cumulative), miss
        if miss == 0:
            break
    assert best is not None, "so many draws always hold one of a sensible spread"
    return best


def _rotation(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrices (N, 2, 2) of angles (N,) in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _pack(linear: NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float32]:
    """Maps (..., 6) from matrices (..., 2, 2) and offsets (..., 2)."""
    return np.concatenate([linear.reshape(*linear.shape[:-2], 4), offset], axis=-1).astype(np.float32)


def _table(cumulative: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which map a random byte stands for, (256,)."""
    drawn = np.searchsorted(cumulative, (np.arange(_TABLE) + 0.5) / _TABLE, side="right")
    return np.minimum(drawn, len(cumulative) - 1)


def _walk(
    maps: NDArray[np.float32], table: NDArray[np.intp], walkers: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Plays the chaos game for N images at once: points walk by maps that are drawn at random.

    Args:
        maps: (N, K, 6).

    Returns:
        points (N, steps * walkers, 2) and the map that made each (N, steps * walkers).
    """
    images, count, _ = maps.shape
    # One contiguous array for each coefficient: six gathers of scalars are faster than one of rows.
    coefficients = [np.ascontiguousarray(maps[:, :, i]).reshape(-1) for i in range(6)]
    first = (np.arange(images, dtype=np.intp) * count)[:, None]
    x = rng.uniform(-0.5, 0.5, (images, walkers)).astype(np.float32)
    y = rng.uniform(-0.5, 0.5, (images, walkers)).astype(np.float32)
    points = np.empty((images, _STEPS, walkers, 2), dtype=np.float32)
    made_by = np.empty((images, _STEPS, walkers), dtype=np.intp)
    for step in range(_BURN_IN + _STEPS):
        chosen = table[rng.integers(0, _TABLE, (images, walkers), dtype=np.uint8)]
        a, b, c, d, e, f = (column.take(first + chosen) for column in coefficients)
        x, y = a * x + b * y + e, c * x + d * y + f
        if step >= _BURN_IN:
            points[:, step - _BURN_IN, :, 0] = x
            points[:, step - _BURN_IN, :, 1] = y
            made_by[:, step - _BURN_IN] = chosen
    return points.reshape(images, -1, 2), made_by.reshape(images, -1)


def _render(
    maps: NDArray[np.float32], cumulative: NDArray[np.float64], resolution: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Renders a chunk of images (128, resolution, resolution, 3) of one class."""
    # Everything that makes the scene is drawn first; what depends on the resolution comes last.
    jitter = 1 + rng.uniform(-_JITTER, _JITTER, (_CHUNK, *maps.shape)).astype(np.float32)
    turn = _rotation(np.radians(rng.uniform(-_MAX_TURN_DEGREES, _MAX_TURN_DEGREES, _CHUNK)))
    size = rng.uniform(*_SCALE, (_CHUNK, 1, 2)) * rng.choice((-1.0, 1.0), (_CHUNK, 1, 1))
    size[:, :, 1] = np.abs(size[:, :, 1])  # mirrored left to right only, as photographs are
    pose = (turn * size).astype(np.float32)
    shift = rng.uniform(-_MAX_SHIFT, _MAX_SHIFT, (_CHUNK, 1, 2)).astype(np.float32) * 2
    ground, colours = _colours(rng, maps.shape[0])
    slope = rng.uniform(-40, 40, (_CHUNK, 2, 3)).astype(np.float32)

    walkers = max(8, round(_POINTS_PER_PIXEL * resolution**2 / _STEPS))
    points, made_by = _walk(maps[None] * jitter, _table(cumulative), walkers, rng)
    cells = ((points @ pose.transpose(0, 2, 1) + shift) * 0.9 + 1) * (resolution / 2)
    inside = ((cells >= 0) & (cells < resolution)).all(axis=-1)
    column, row = np.where(inside[..., None], cells, 0).astype(np.int64).transpose(2, 0, 1)
    pixels = resolution * resolution
    index = ((np.arange(_CHUNK)[:, None] * resolution + row) * resolution + column)[inside]
    hits = np.bincount(index, minlength=_CHUNK * pixels).reshape(_CHUNK, pixels, 1).astype(np.float32)
    which = (np.arange(_CHUNK)[:, None] * maps.shape[0] + made_by)[inside]
    sums = np.stack(
        [
            np.bincount(index, weights=colours[:, :, channel].reshape(-1)[which], minlength=_CHUNK * pixels)
            for channel in range(3)
        ],
        axis=-1,
    ).reshape(_CHUNK, pixels, 3)
    paint = sums.astype(np.float32) / np.maximum(hits, 1)
    cover = 1 - np.exp(-hits * (1.5 / _POINTS_PER_PIXEL))

    axis = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution - 0.5
    across = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).reshape(pixels, 2)
    image = ground[:, None, :] + across @ slope
    image += cover * (paint - image)
    image += rng.standard_normal(image.shape, dtype=np.float32) * _NOISE
    return np.clip(image, 0, 255).astype(np.uint8).reshape(_CHUNK, resolution, resolution, 3)


def _colours(rng: np.random.Generator, maps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draws grounds (128, 3) and map colours (128, maps, 3), at least `_MIN_CONTRAST` apart before tinting."""
    ground = rng.uniform(20, 235, (_CHUNK, 3))
    shape = rng.uniform(0, 255, (_CHUNK, 3))
    away = shape - ground
    contrast = np.sqrt((away**2).mean(axis=1, keepdims=True))
    # Where the two are too close, the colour across the middle of the cube is far from the ground.
    opposite = np.where(ground > 127.5, ground - 127.5, ground + 127.5)
    shape = np.where(contrast < _MIN_CONTRAST, opposite, shape)
    swap = (rng.random(_CHUNK) < _DARK_SHARE) != (shape.mean(axis=1) < ground.mean(axis=1))
    shape, ground = np.where(swap[:, None], ground, shape), np.where(swap[:, None], shape, ground)
    tint = rng.uniform(-35, 35, (_CHUNK, maps, 3))
    return ground.astype(np.float32), (shape[:, None, :] + tint).astype(np.float32)
