"""Data sets as people have them: a training and a test set of images or features, with labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from krstore.archives import open_archive
from krstore.errors import ArchiveError, UsageError
from krstore.images import ImageFolder
from krstore.source import Array, Ids, Source, SourceSpec

__all__ = ["CifarBinary", "Dataset", "open_dataset"]

ARCHIVES = (".h5", ".hdf5", ".npz", ".safetensors", ".krs")
TEST_NAMES = ("test", "val", "features_test")
TRAIN_NAMES = ("train", "features")
PIXELS = 3 * 32 * 32
RECORDS = 4096  # read at once
LOOKED_AT = 64  # samples of a set


@dataclass(frozen=True)
class Dataset:
    """Labelled samples to learn from, and held-out ones of the same classes and shape."""

    train: Source
    test: Source

    @classmethod
    def of(cls, train: Source, test: Source) -> Dataset:
        """Check that two sources belong together.

        Raises:
            ArchiveError: one has no labels, their samples differ in shape or dtype, or a class is in one alone or goes
                by another name there.
        """
        for name, source in (("training", train), ("test", test)):
            if source.labels is None:
                raise ArchiveError(f"the {name} set has no labels; class-incremental learning needs them")
        assert train.labels is not None
        assert test.labels is not None
        own, other = ((s.spec.shape, s.spec.dtype) for s in (train, test))
        if own != other:
            raise ArchiveError(f"training samples are {own[0]} {own[1]}, test samples {other[0]} {other[1]}")
        odd = set(np.unique(train.labels).tolist()) ^ set(np.unique(test.labels).tolist())
        if odd:
            raise ArchiveError(f"class {min(odd)} is only in one of training and test set ({len(odd)} such classes)")
        names, others = (source.spec.attributes.get("class_names") for source in (train, test))
        if names is not None and others is not None and list(names) != list(others):
            number = next(number for number, pair in enumerate(zip(names, others, strict=True)) if len({*pair}) > 1)
            raise ArchiveError(
                f"class {number} is {names[number]!r} in the training set and {others[number]!r} in the test set"
            )
        return cls(train, test)

    def fingerprint(self) -> str:
        """Return a hash of shape, dtype, all labels and some samples, which tells that the data are not the same."""
        digest = hashlib.sha256()
        for source in (self.train, self.test):
            spec = source.spec
            ids = np.unique(np.linspace(0, spec.samples - 1, LOOKED_AT).astype(np.int64))
            digest.update(repr((spec.samples, spec.shape, spec.dtype)).encode())
            digest.update(np.asarray(source.labels, "<i8").tobytes())
            digest.update(np.ascontiguousarray(source.read(ids)).tobytes())
        return digest.hexdigest()


def open_dataset(
    path: str | Path, test: str | Path | None = None, *, resize: int | None = None, trust: bool = False
) -> Dataset:
    """Open a training and a test set.

    Args:
        path: a folder with the binary files of CIFAR-10 or CIFAR-100 as published (``data_batch_1.bin`` or
            ``train.bin``; never their pickles); a folder with folders ``train`` and ``test`` (or ``val``) of class
            folders of images; a folder with archives ``train`` and ``test``, or ``features`` and ``features_test``; or,
            with `test`, an archive, a store or a folder of class folders.
        test: the test set, where `path` is the training set alone.
        resize: pixels that the shorter side of images in folders is scaled to, and of the square cut out of the middle;
            default none, for images of one size.
        trust: see `krstore.archives.open_archive`.

    Raises:
        UsageError: there is no test set.
        ArchiveError: something cannot be read, or the two do not belong together.
    """
    path = Path(path)
    if test is not None:
        return Dataset.of(_open(path, resize, trust), _open(Path(test), resize, trust))
    if not path.exists():
        raise UsageError(f"there is no {path}; data is a folder, or an archive beside --test")
    if not path.is_dir():
        raise UsageError(f"{path} is a training set; name the test set too (--test), or a folder that has both")
    for folder in (path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
        if (folder / "train.bin").exists():
            return Dataset.of(CifarBinary([folder / "train.bin"], 2), CifarBinary([folder / "test.bin"], 2))
        if (folder / "data_batch_1.bin").exists():
            parts = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
            return Dataset.of(CifarBinary(parts, 1), CifarBinary([folder / "test_batch.bin"], 1))
    sets = [
        next((found for name in names for found in _named(path, name)), None) for names in (TRAIN_NAMES, TEST_NAMES)
    ]
    if sets[0] is None or sets[1] is None:
        raise UsageError(
            f"{path} has no training and test set; expected train and test, as folders of class folders or as archives "
            f"({', '.join(ARCHIVES)}), or the binary files of CIFAR-10 or CIFAR-100"
        )
    return Dataset.of(_open(sets[0], resize, trust), _open(sets[1], resize, trust))


def _named(folder: Path, name: str) -> list[Path]:
    candidates = [folder / name, *(folder / f"{name}{suffix}" for suffix in ARCHIVES)]
    return [path for path in candidates if path.exists()]


def _open(path: Path, resize: int | None, trust: bool) -> Source:
    if path.is_dir():
        return ImageFolder(path, resize, resize)
    if not path.exists():
        raise ArchiveError(f"{path} does not exist")
    return open_archive(path, trust=trust)


class CifarBinary:
    """The published binary files of CIFAR-10 or CIFAR-100 as a source of images (3, 32, 32) uint8.

    Args:
        files: each a sequence of records: the label bytes, of which the last counts, then red, green, blue.
        label_bytes: 1 for CIFAR-10; 2, coarse and fine, for CIFAR-100.

    Raises:
        ArchiveError: a file cannot be read, or is not made of whole records.
    """

    task: Ids | None = None

    def __init__(self, files: Sequence[Path], label_bytes: int) -> None:
        self._files, self._skip = list(files), label_bytes
        record, labels, counts = label_bytes + PIXELS, [], []
        for file in self._files:
            try:
                size = file.stat().st_size
                if not size or size % record:
                    raise ArchiveError(f"{file} has {size:,} bytes, which are not records of {record:,}; is it cut?")
                counts.append(size // record)
                with file.open("rb") as opened:
                    while data := opened.read(RECORDS * record):
                        own = np.frombuffer(data, np.uint8).reshape(-1, record)[:, label_bytes - 1]
                        labels.append(own.astype(np.int64))
            except OSError as error:
                raise ArchiveError(f"{file} cannot be read: {error.strerror}") from error
        self._ends = np.cumsum(counts)
        self.labels: Ids | None = np.concatenate(labels)
        self.spec = SourceSpec(
            samples=int(self._ends[-1]), shape=(3, 32, 32), dtype="uint8", channel_axis=0, features_key="images"
        )

    def read(self, ids: Ids) -> Array:
        """Return the images (len(ids), 3, 32, 32) of these IDs, uint8."""
        images = np.empty((len(ids), PIXELS), np.uint8)
        numbers = np.searchsorted(self._ends, ids, side="right")
        for number in np.unique(numbers):
            first = self._ends[number - 1] if number else 0
            with self._files[number].open("rb") as file:
                for row in np.flatnonzero(numbers == number):
                    place = (int(ids[row]) - first) * (self._skip + PIXELS) + self._skip
                    if os.preadv(file.fileno(), [images[row].data], int(place)) != PIXELS:
                        raise ArchiveError(f"{self._files[number]} ends inside image {ids[row]}")
        return images.reshape(-1, 3, 32, 32)
