"""Images as sources: folders of files, arrays in archives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krstore.errors import ArchiveError, MissingExtraError, UsageError
from krstore.images import images_identity, open_images
from krstore.source import chunks


def picture(path: Path, width: int = 6, height: int = 4, seed: int = 0, mode: str = "RGB") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_class_folders_are_labels_in_alphabetical_order(tmp_path: Path):
    expected = [
        picture(tmp_path / "ant" / "a.png", seed=1),
        picture(tmp_path / "ant" / "deeper" / "x.PNG", seed=2),
        picture(tmp_path / "bee" / "a.bmp", seed=3),
    ]
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    source = open_images(tmp_path)
    assert source.spec.samples == 3
    assert source.spec.shape == (4, 6, 3)
    assert source.spec.dtype == "uint8"
    assert source.spec.channel_axis == 2
    assert source.spec.attributes == {"class_names": ["ant", "bee"]}
    np.testing.assert_array_equal(source.labels, [0, 0, 1])
    np.testing.assert_array_equal(source.read(np.array([2, 0, 1, 0])), [expected[i] for i in (2, 0, 1, 0)])
    assert sum(len(ids) for ids, _ in chunks(source)) == 3


def test_a_flat_folder_has_no_labels(tmp_path: Path):
    pixels = picture(tmp_path / "b.png")
    picture(tmp_path / "a.png", seed=5)
    source = open_images(tmp_path)
    assert source.labels is None
    np.testing.assert_array_equal(source.read(np.array([1]))[0], pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str):
    picture(tmp_path / "a.tif", mode=mode)
    assert open_images(tmp_path).spec.shape == (4, 6, 3)


def test_resize_scales_the_shorter_side_and_crop_cuts_the_middle(tmp_path: Path):
    pixels = np.zeros((20, 41, 3), np.uint8)
    pixels[:, 20] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2).copy()).save(tmp_path / "xtall.png")
    assert open_images(tmp_path, resize=10, crop=10).spec.shape == (10, 10, 3)
    cropped = open_images(tmp_path, crop=5).read(np.arange(2))
    assert cropped.shape == (2, 5, 5, 3)
    assert (cropped[0, :, 2] == 255).all()
    assert (cropped[1, 2] == 255).all()
    with pytest.raises(ArchiveError, match=r"wide\.png is 41 x 20 pixels; too small to crop to 21"):
        open_images(tmp_path, crop=21)


def test_long_images_are_scaled_no_further_than_they_are_kept(tmp_path: Path):
    ramp = np.repeat(np.arange(20_000) // 80, 3).reshape(20_000, 1, 3).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = open_images(tmp_path, resize=224, crop=224).read(np.arange(1))[0]
    assert image.shape == (224, 224, 3)
    assert set(image.ravel()) <= {124, 125}  # the middle
    with pytest.raises(ArchiveError, match=r"a\.png is 1 x 20000 pixels, which resize makes 224 x 4480000; .*crop too"):
        open_images(tmp_path, resize=224)
    assert open_images(tmp_path, resize=100_000, crop=8).spec.shape == (8, 8, 3)


def test_folders_whose_names_are_not_utf_8(tmp_path: Path):
    picture(tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xe9.png"))
    assert open_images(tmp_path).spec.attributes["class_names"] == [r"caf\udce9"]
    assert len(images_identity(tmp_path)) == 64


def test_images_of_another_size_are_named(tmp_path: Path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", width=7)
    with pytest.raises(ArchiveError, match=r"b\.png is 7 x 4 pixels, a\.png is 6 x 4; .*resize and crop"):
        open_images(tmp_path).read(np.arange(2))


def test_damaged_images_are_named(tmp_path: Path):
    picture(tmp_path / "a.png", 60, 40)
    picture(tmp_path / "b.png", 60, 40)
    whole = (tmp_path / "b.png").read_bytes()
    for content in (b"", b"text", whole[:20], whole[: len(whole) // 2]):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(ArchiveError, match=r"b\.png cannot be read as an image"):
            open_images(tmp_path).read(np.arange(2))


def test_folders_that_are_no_image_folders(tmp_path: Path):
    with pytest.raises(ArchiveError, match="has no images; expected files ending in"):
        open_images(tmp_path)
    picture(tmp_path / "ant" / "a.png")
    (tmp_path / "bee").mkdir()
    with pytest.raises(ArchiveError, match=r"class folder .*bee has no images"):
        open_images(tmp_path)
    picture(tmp_path / "loose.png")
    with pytest.raises(ArchiveError, match=r"images \(loose\.png\) beside folders \(ant\)"):
        open_images(tmp_path)


def test_arrays_in_archives(tmp_path: Path):
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=x, labels=np.arange(5), coarse=np.arange(5) // 2)
    np.testing.assert_array_equal(open_images(tmp_path / "a.npz").read(np.arange(5)), x)
    np.testing.assert_array_equal(open_images(tmp_path / "a.npz", labels_key="coarse").labels, [0, 0, 1, 1, 2])
    with pytest.raises(ArchiveError, match="'x_train'; it has: coarse, images, labels"):
        open_images(tmp_path / "a.npz", images_key="x_train")


def test_options_of_the_other_kind_are_refused(tmp_path: Path):
    picture(tmp_path / "f" / "a.png")
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="resize and crop do not apply"):
        open_images(tmp_path / "a.npz", resize=32)
    with pytest.raises(UsageError, match="it has no keys"):
        open_images(tmp_path / "f", labels_key="labels")


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'krstore\[images\]'"):
        open_images(tmp_path)


def test_identity_changes_with_the_files(tmp_path: Path):
    picture(tmp_path / "c" / "a.png")
    seen = {images_identity(tmp_path / "c")}
    assert images_identity(tmp_path / "c") in seen
    picture(tmp_path / "c" / "b.png")
    seen.add(images_identity(tmp_path / "c"))
    (tmp_path / "c" / "b.png").rename(tmp_path / "c" / "d.png")
    seen.add(images_identity(tmp_path / "c"))
    picture(tmp_path / "c" / "a.png", seed=9, width=7)
    seen.add(images_identity(tmp_path / "c"))
    assert len(seen) == 4


@pytest.mark.parametrize("options", [{"resize": 0}, {"resize": -5}, {"crop": 0}, {"crop": -4}, {"resize": 10**400}])
def test_sizes_that_are_none(options: dict[str, int], tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="expected pixels, at least 1"):
        open_images(tmp_path, **options)


def test_images_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.arange(0, 65536, 16, np.uint16).reshape(64, 64)).save(tmp_path / "deep.png")
    with pytest.raises(ArchiveError, match=r"deep.png has more than 8 bits a channel"):
        open_images(tmp_path)
