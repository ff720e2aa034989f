"""Images as sources: folders of image files, and arrays in any archive."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from krstore.archives import open_archive
from krstore.errors import ArchiveError, MissingExtraError, UsageError
from krstore.files import encodable
from krstore.source import Array, Ids, Source, SourceSpec

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "ImageFolder", "images_identity", "open_images"]

MAX_PIXELS = 1 << 26  # of an image that has been scaled
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
THREADS = 4


def open_images(
    path: str | Path,
    *,
    images_key: str | None = None,
    labels_key: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    trust: bool = False,
) -> Source:
    """Open images as a streamed source.

    Args:
        path: a folder of image files (see `ImageFolder`), or an archive with an array of images (N, H, W, C),
            (N, C, H, W) or (N, H, W).
        images_key, labels_key: names of the arrays in an archive; default ``images``, and ``labels`` where present.
        resize, crop: for a folder, see `ImageFolder`.
        trust: see `krstore.archives.open_archive`.

    Raises:
        ArchiveError: the images cannot be read.
        UsageError: an option that does not fit the kind of images.
        MissingExtraError: a folder, and Pillow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        if images_key is not None or labels_key is not None:
            raise UsageError(f"{path} is a folder of images: it has no keys; the labels are its class folders")
        return ImageFolder(path, resize, crop)
    if resize is not None or crop is not None:
        raise UsageError(f"{path} is no folder of images: resize and crop do not apply to arrays")
    return open_archive(path, features_key=images_key or "images", labels_key=labels_key, trust=trust)


def images_identity(path: Path) -> str:
    """Return a hash of the names, sizes and times of a file, or of all files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        status = file.stat()
        if not file.is_dir():
            name = encodable(str(file.relative_to(path.parent)))
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class ImageFolder:
    """The image files of a folder, as RGB of one size, in the order of their names.

    Each folder in it is a class: its images, at any depth, have the folder's place among the sorted class folders as
    label, and the names of the folders are the attribute ``class_names``. A folder without folders has no labels.

    Args:
        path: the folder.
        resize: pixels that the shorter side is scaled to, by antialiased bilinear interpolation.
        crop: pixels of the square cut out of the middle.

    Raises:
        UsageError: `resize` or `crop` is no size.
        ArchiveError: there are no images, the first is too large when it is scaled, images lie beside class folders,
            or a class folder has none.
        MissingExtraError: Pillow is not installed.
    """

    task: Ids | None = None

    def __init__(self, path: Path, resize: int | None = None, crop: int | None = None) -> None:
        for name, pixels in (("resize", resize), ("crop", crop)):
            if pixels is not None and not 1 <= pixels <= MAX_PIXELS:
                raise UsageError(f"{name}={pixels}: expected pixels, at least 1 and at most {MAX_PIXELS}")
        self._resize, self._crop = resize, crop
        loose = [entry for entry in sorted(path.iterdir()) if _is_image(entry)]
        classes = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
        if loose and classes:
            raise ArchiveError(
                f"{path} has images ({loose[0].name}) beside folders ({classes[0].name}); expected either"
            )
        self.labels: Ids | None = None
        self._files = loose
        if classes:
            found = [[file for file in sorted(folder.rglob("*")) if _is_image(file)] for folder in classes]
            self._files = [file for files in found for file in files]
            self.labels = np.repeat(np.arange(len(found)), [len(files) for files in found])
            for folder, files in zip(classes, found, strict=True):
                if not files:
                    raise ArchiveError(f"the class folder {folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
        if not self._files:
            raise ArchiveError(f"{path} has no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        self.spec = SourceSpec(
            samples=len(self._files),
            shape=self._load(self._files[0]).shape,
            dtype="uint8",
            channel_axis=2,
            features_key="images",
            attributes={"class_names": [encodable(folder.name) for folder in classes]} if classes else {},
        )

    def read(self, ids: Ids) -> Array:
        """Return the images (len(ids), H, W, 3) of these IDs, uint8.

        Raises:
            ArchiveError: a file is damaged, or its image has another size than the first.
        """
        images = np.empty((len(ids), *self.spec.shape), np.uint8)
        files = [self._files[number] for number in ids]
        with ThreadPoolExecutor(THREADS) as pool:
            for row, (file, image) in enumerate(zip(files, pool.map(self._load, files), strict=True)):
                if image.shape != self.spec.shape:
                    raise ArchiveError(
                        f"{file} is {_size(image.shape)} pixels, {self._files[0].name} is {_size(self.spec.shape)}; "
                        "bring all to one size with resize and crop"
                    )
                images[row] = image
        return images

    def _load(self, file: Path) -> Array:
        try:
            from PIL import Image
        except ImportError:
            raise MissingExtraError("pillow", "images", "reading image files") from None
        try:
            with Image.open(file) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise ArchiveError(f"{file} has more than 8 bits a channel ({opened.mode}); bring it to 8 first")
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise ArchiveError(f"{file} cannot be read as an image: {error}") from error
        width, height = image.size
        if self._resize is not None:
            scale = self._resize / min(image.size)
            width, height = (max(self._resize, int(side * scale)) for side in image.size)
        box = (0, 0, width, height)
        if self._crop is not None:
            if min(width, height) < self._crop:
                raise ArchiveError(f"{file} is {width} x {height} pixels; too small to crop to {self._crop}")
            left, top = (width - self._crop) // 2, (height - self._crop) // 2
            box = (left, top, left + self._crop, top + self._crop)
        return np.asarray(image.crop(box) if self._resize is None else _scaled(file, image, (width, height), box))


def _scaled(file: Path, image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Return the part in a box of an image that is scaled to a size: the whole of it, unless that is too large."""
    from PIL.Image import Resampling

    if math.prod(size) <= MAX_PIXELS:
        return image.resize(size, Resampling.BILINEAR).crop(box)
    part = (box[2] - box[0], box[3] - box[1])
    if math.prod(part) > MAX_PIXELS:
        raise ArchiveError(
            f"{file} is {image.width} x {image.height} pixels, which resize makes {part[0]} x {part[1]}; expected at "
            f"most {MAX_PIXELS:,} in all: crop too, or leave it out"
        )
    there = [edge * before / after for edge, before, after in zip(box, image.size * 2, size * 2, strict=True)]
    return image.resize(part, Resampling.BILINEAR, (there[0], there[1], there[2], there[3]))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
