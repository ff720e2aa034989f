"""webp and webp_lossless: uint8 images as WebP, by Pillow; the peers of every image codec, and small raw exemplars.

Each image is a file of its own, less the twelve bytes of RIFF header that are the same in all but their length.
"""

from __future__ import annotations

import io
import struct
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from krstore.codec import Codec, Decoder, FitContext, Knob, OpenContext, PayloadSink
from krstore.config import CodecConfig
from krstore.errors import CorruptStoreError, MissingExtraError, UsageError
from krstore.progress import Progress
from krstore.source import Array, Ids, Source, SourceSpec
from krstore.store.blocks import BlockReader, samples_per_block
from krstore.store.container import MemberReader
from krstore_codecs._pieces import pieces

__all__ = ["WebP", "WebPConfig", "WebPLossless"]

BLOCKS = "latent/images"
_RIFF = struct.Struct("<4sI4s")
CHANNELS = (1, 3)
LARGEST_SIDE = 16383  # of the format
LARGEST_AREA = 1 << 26  # beyond twice as many, Pillow refuses to open an image
EFFORT = 50  # Pillow's quality of lossless images: not what is lost but the time that is taken


Method = Annotated[int, msgspec.Meta(ge=0, le=6, description="libwebp's effort: higher is slower, mostly smaller")]


class WebPConfig(CodecConfig, frozen=True, kw_only=True):
    """Options of the WebP codecs."""

    method: Method = 4


class WebPLosslessConfig(WebPConfig, frozen=True, kw_only=True):
    """Options of lossless WebP."""

    method: Method = 2  # images of exemplars are small, and more effort does not make them smaller


class _Images(Codec[WebPConfig, Source]):
    Config: ClassVar = WebPConfig
    _progress: Progress

    def validate(self, spec: SourceSpec) -> None:
        """Refuse all but uint8 images of one or three channels, and to go on without Pillow."""
        _pillow()
        if not _is_image(spec):
            raise UsageError(
                f"codec {self.name}: samples {spec.shape} {spec.dtype}; expected uint8 images (H, W), (H, W, C) or "
                f"(C, H, W) of 1 or 3 channels, at most {LARGEST_SIDE} positions a side and {LARGEST_AREA:,} in all"
            )

    def fit(self, source: Source, context: FitContext) -> Source:
        """Return the source: there is nothing to learn."""
        self._progress = context.progress
        return source

    def pack(self, fitted: Source, knob: float, sink: PayloadSink) -> None:
        """Compress each image at quality 100 - `knob`."""
        axis, per_block = _channel_axis(fitted.spec.shape), samples_per_block(fitted.spec.sample_bytes / 2)

        def blocks() -> Iterator[bytes]:
            for images in pieces(fitted, per_block, self._progress):
                yield msgspec.msgpack.encode([self._file(image, axis, knob) for image in images])

        sink.write_blocks(BLOCKS, per_block, blocks())

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Open the blocks.

        Raises:
            CorruptStoreError: the header is not of images.
        """
        if not _is_image(context.spec):
            raise CorruptStoreError(f"samples {context.spec.shape} {context.spec.dtype} are no images")
        return _ImagesDecoder(payload, context)

    @abstractmethod
    def _options(self, knob: float) -> dict[str, object]:
        """Return Pillow's options."""

    def _file(self, image: Array, axis: int | None, knob: float) -> bytes:
        shown = image if axis is None else np.moveaxis(image, axis, 2)
        if shown.ndim == 3 and shown.shape[2] == 1:
            shown = shown[:, :, 0]
        file = io.BytesIO()
        _pillow().fromarray(np.ascontiguousarray(shown)).convert("RGB").save(
            file, "WEBP", method=self.config.method, **self._options(knob)
        )
        return file.getvalue()[_RIFF.size :]


class WebP(_Images):
    """Lossy WebP, an image a file; the target sets the quality."""

    name = "webp"

    def knob(self, fitted: Source) -> Knob:
        """Return the range of what is taken off the quality of 100."""
        return Knob(low=0, start=25, high=100, integer=True)

    def _options(self, knob: float) -> dict[str, object]:
        return {"quality": 100 - int(knob)}


class WebPLossless(_Images):
    """Lossless WebP, an image a file."""

    name = "webp_lossless"
    lossless = True
    Config: ClassVar = WebPLosslessConfig

    def _options(self, knob: float) -> dict[str, object]:
        return {"lossless": True, "quality": EFFORT, "exact": True}


class _ImagesDecoder(Decoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        self._shape, self._axis = context.spec.shape, _channel_axis(context.spec.shape)
        self._blocks = BlockReader(payload, BLOCKS, context.kept, self._unpack)

    def decode(self, rows: Ids) -> Array:
        return self._blocks.read(rows)

    def cache(self, limit: int) -> None:
        self._blocks.cache(limit)

    def _unpack(self, blocks: list[bytes], samples: list[int]) -> Array:
        images = np.empty((sum(samples), *self._shape), np.uint8)
        start = 0
        for data, count in zip(blocks, samples, strict=True):
            try:
                files = msgspec.msgpack.decode(data, type=list[bytes])
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise CorruptStoreError(f"a block of images is malformed: {error}") from error
            if len(files) != count:
                raise CorruptStoreError(f"a block has {len(files)} images; expected {count}")
            for number, file in enumerate(files, start):
                images[number] = self._image(file)
            start += count
        return images

    def _image(self, file: bytes) -> Array:
        sides = tuple(side for number, side in enumerate(self._shape) if number != self._axis)
        try:
            image = _pillow().open(io.BytesIO(_RIFF.pack(b"RIFF", len(file) + 4, b"WEBP") + file), formats=["WEBP"])
            if (image.height, image.width) != sides:
                raise CorruptStoreError(f"an image of {image.height}x{image.width}; expected {sides[0]}x{sides[1]}")
            pixels = np.asarray(image.convert("RGB"))
        except (OSError, EOFError, ValueError, SyntaxError, _pillow().DecompressionBombError) as error:
            raise CorruptStoreError(f"an image is malformed: {error}") from error
        if self._axis is None:
            return pixels[:, :, 0]
        return np.moveaxis(pixels[:, :, : self._shape[self._axis]], 2, self._axis)


def _is_image(spec: SourceSpec) -> bool:
    axis = _channel_axis(spec.shape)
    sides = [side for number, side in enumerate(spec.shape) if number != axis]
    fits = len(sides) == 2 and max(sides) <= LARGEST_SIDE and sides[0] * sides[1] <= LARGEST_AREA
    return spec.dtype == "uint8" and fits


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of one or three channels; `None` for images (H, W)."""
    if len(shape) != 3:
        return None
    return 2 if shape[2] in CHANNELS else 0 if shape[0] in CHANNELS else None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "images", "images as WebP") from None
    return Image
