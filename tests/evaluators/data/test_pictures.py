from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from lownas.evaluators.data.feeding import Batch, ResidentFeed, StreamedFeed
from lownas.evaluators.data.pictures import average_cut, cropped, decoded, opened
from lownas.evaluators.data.records import ArrayRows, Fit, ImageFiles, LabelledImages


@pytest.mark.parametrize("shape", [(6, 16, 16), (6, 16, 16, 3)])
def test_images_of_the_right_size_are_taken_as_pillow_would_leave_them(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    at_once = decoded(LabelledImages(array, np.arange(6)), 16)
    one_by_one = decoded(LabelledImages(ArrayRows(array, np.arange(6)), np.arange(6)), 16)
    assert np.array_equal(at_once.images, one_by_one.images) and at_once.images.shape == (6, 16, 16, 3)
    assert at_once.sizes == one_by_one.sizes and at_once.readable.all()
    at_once.images[:] = 0
    assert array.any(), "they are copies"


def test_a_box_of_a_picture() -> None:
    array = np.zeros((20, 30), np.uint8)
    array[5:15, 10:20] = 250
    picture, size = opened(array, lambda *_: (1, 1))
    assert size == (30, 20)
    assert (cropped(picture, (10, 5, 20, 15), 10) == 250).all()


def quarters() -> np.ndarray:
    """A picture of 40 x 20 pixels with another grey in each quarter: 10, 80 above 160, 240."""
    picture = np.zeros((20, 40), np.uint8)
    picture[:10, :20], picture[:10, 20:], picture[10:, :20], picture[10:, 20:] = 10, 80, 160, 240
    return picture


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_whatever_their_orientation(orientation: int, format: str) -> None:
    stored = {
        **{1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud},
        **{5: np.transpose, 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, 3)},
    }[orientation](quarters())
    file, exif = BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(file, format, exif=exif)
    picture, size = opened(file.getvalue(), lambda *_: (40, 20))
    assert size == (40, 20) and picture.size == (40, 20)
    seen = np.asarray(picture.convert("L")).astype(int)
    assert [seen[5, 10], seen[5, 30], seen[15, 10], seen[15, 30]] == pytest.approx([10, 80, 160, 240], abs=15)


def test_a_jpeg_on_its_side_is_decoded_at_a_fraction_of_its_size_too() -> None:
    file, exif = BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (800, 400)).save(file, "JPEG", exif=exif)
    picture, size = opened(file.getvalue(), lambda width, height: (width / 4, height / 4))
    assert size == (400, 800) and picture.size == (100, 200)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_pictures_are_skipped_whatever_their_format() -> None:
    Image.init()
    writable = {"AVIF", "BLP", "DDS", "JPEG", "PNG", "TIFF", "WEBP"} & set(Image.SAVE)
    rng, skipped = np.random.default_rng(0), dict.fromkeys(writable, 0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for format in sorted(writable):
        file = BytesIO()
        noise.convert("P" if format == "BLP" else "RGB").save(file, format)
        for _ in range(40):
            content = bytearray(file.getvalue())
            for place in rng.integers(0, len(content), 4):
                content[place] ^= 1 << int(rng.integers(8))
            items = [bytes(content), file.getvalue()]
            found = decoded(LabelledImages(items, np.arange(2)), 16)
            assert found.readable[1]
            skipped[format] += not found.readable[0]
            if format == "PNG" and found.readable[0]:  # its checksums tell what is damaged
                assert np.array_equal(found.images[0], found.images[1])
    assert skipped["PNG"] > 20


def test_broken_metadata_leave_a_picture_as_it_is() -> None:
    file = BytesIO()
    Image.fromarray(quarters()).save(file, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert opened(file.getvalue(), lambda *_: (40, 20))[1] == (40, 20)


@pytest.mark.parametrize("limit", [1.0, 255.0, 60000.0, -3.0])
def test_floating_point_pictures_are_no_black_ones(limit: float, tmp_path: Path) -> None:
    grey = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8) * np.float32(limit)
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    picture, _ = opened(tmp_path / "grey.tif", lambda *_: (8, 8))
    seen = np.asarray(picture.convert("L")).ravel()
    assert (np.diff(seen.astype(int)) >= 0).all() if limit > 0 else (np.diff(seen.astype(int)) <= 0).all()
    assert seen.max() > 200 and seen.min() == 0


def sides(fit: Fit) -> LabelledImages:
    """Pictures of 8 x 24 pixels that differ in their outer thirds alone."""
    pictures = np.full((2, 8, 24), 128, np.uint8)
    pictures[0, :, :8], pictures[1, :, 16:] = 255, 255
    return LabelledImages(ArrayRows(pictures, np.arange(2)), np.arange(2), fit)


def test_squashed_and_padded_pictures_keep_their_sides() -> None:
    cut, squashed, padded = (decoded(sides(fit), 8).images[..., 0].astype(int) for fit in ("crop", "squash", "pad"))
    assert (cut[0] == cut[1]).all()
    assert squashed[0, 4, 0] == 255 and squashed[1, 4, 7] == 255 and (squashed > 100).all()
    assert padded[0, 4, 0] > 200 and padded[1, 4, 7] > 200 and (padded[:, :2] < 20).all() and (padded[:, 6:] < 20).all()
    assert average_cut(sides("crop")) == pytest.approx(2 / 3) and average_cut(sides("pad")) == 0


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_pictures_from_memory_and_from_files_are_fitted_alike(fit: Fit, tmp_path: Path) -> None:
    Image.fromarray(np.asarray(sides("crop").images[0])).resize((240, 80)).save(tmp_path / "x.png")
    part = LabelledImages(ImageFiles.of(tmp_path, ["x.png"]), np.array([0]), fit)
    batch = [Batch(np.array([0]), 16)]
    kept, streamed = (next(feed.batches(batch))[0].int() for feed in (ResidentFeed(part, 16), StreamedFeed(part)))
    assert (kept - streamed.expand_as(kept)).abs().max() <= 4
    crops = [Batch(np.array([0]), 16, seed=seed, crop=(0.2, 0.5)) for seed in range(20)]
    assert all(images.shape[2:] == (16, 16) for images, _ in StreamedFeed(part).batches(crops))
