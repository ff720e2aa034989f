"""Writing a feature archive: images through a network, up to one of its layers.

Images and features are streamed in batches; the forward pass stops as soon as the layer has answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from krstore.archives import open_archive
from krstore.archives.resumable import ResumableArchive
from krstore.dtypes import cast
from krstore.errors import ArchiveError, UnknownNameError, UsageError
from krstore.files import check_target, encodable
from krstore.images import images_identity, open_images
from krstore.inputs import LAYOUTS, Inputs
from krstore.layers import LayerOutputs
from krstore.modules import evaluating, load_module, weights_hash
from krstore.progress import SILENT, Progress
from krstore.source import Array, Source, SourceSpec, default_channel_axis
from krstore.tensors import as_array, resolve_device

__all__ = ["LAYOUTS", "STORED_DTYPES", "extract"]

STORED_DTYPES = ("float32", "float16")


def extract(
    model: str | nn.Module,
    layer: str,
    images: str | Path | Source,
    output: str | Path,
    *,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    images_key: str | None = None,
    labels_key: str | None = None,
    layout: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    crop: int | None = None,
    batch_size: int = 128,
    device: str = "auto",
    dtype: str = "float32",
    force: bool = False,
    resume: bool = False,
    trust: bool = False,
    progress: Progress = SILENT,
) -> Source:
    """Write the outputs of a layer for all images into an HDF5 archive, and open it.

    uint8 images are divided by 255, others taken as they are; then (x - mean) / std. What a layer answers the first
    time a forward pass runs it is taken, in float32 arithmetic. The archive's attributes say what made it: model,
    layer, weights_sha256, images, the normalisation, krstore_version.

    Args:
        model: ``"package.module:factory"`` (see `krstore.modules.load_module`), or a network, which is moved to the
            device, and is in eval mode as long as this lasts.
        layer: a module's name in the network, as `torch.nn.Module.named_modules` gives it.
        images: see `krstore.images.open_images`, or a source, as `krstore.ArraySource` or
            `krstore.DatasetSource`; labels come along.
        output: the archive to write, ending in .h5 or .hdf5.
        weights: a safetensors file, loaded by name.
        model_args: keyword arguments of the factory.
        images_key, labels_key, resize, crop, trust: see `krstore.images.open_images`.
        layout: of the images, ``"nhwc"`` or ``"nchw"``; ``"auto"`` takes the axis of 1, 3 or 4 as the channels.
        mean, std: one number for all channels, ``[0.5]``, or one each.
        batch_size: images at a time.
        device: where to compute.
        dtype: of the features in the file; in float16, values beyond its range are clipped.
        force: replace an existing output.
        resume: go on where an interrupted extraction of the same things stopped; without one, begin.
        progress: shown how it goes.

    Raises:
        UsageError: contradictory arguments, an unknown layer, a model that fails on the images, or a resume of
            something else.
        ArchiveError: the images cannot be read, or a feature is NaN or infinite (the sample is named).
        OutputError: the output exists or cannot be written.
    """
    output = Path(output)
    _check_options(output, dtype, batch_size)
    path = Path(images) if isinstance(images, str | Path) else None
    check_target(output, force=force, inputs=(path, weights, labels_key))
    device = resolve_device(device)
    if not isinstance(model, str) and (weights is not None or model_args):
        raise UsageError("weights and model_args are of a model by name; a network has its own")
    if isinstance(images, str | Path):
        source = open_images(
            images, images_key=images_key, labels_key=labels_key, resize=resize, crop=crop, trust=trust
        )  # fmt: skip
    elif resume or resize or crop or images_key or labels_key:
        raise UsageError("resume, resize, crop and keys are of images in files")
    else:
        source = images
    inputs = Inputs.of(source.spec, layout, mean, std)
    network = load_module(model, weights, model_args) if isinstance(model, str) else model
    outputs = LayerOutputs(network.to(device), layer)
    named = {
        **source.spec.attributes,
        "model": model if isinstance(model, str) else f"{type(model).__module__}:{type(model).__qualname__}",
        "model_args": dict(model_args) if model_args else None,
        "layer": layer,
        "weights_sha256": weights_hash(network),
        "images": None if path is None else encodable(path.resolve().name),
        **inputs.attributes(),
        "resize": resize,
        "crop": crop,
        "krstore_version": version("krstore"),
    }
    attributes = {name: value for name, value in named.items() if value is not None}
    identity = {
        **attributes, "images_identity": None if path is None else images_identity(path), "images_key": images_key,
        "labels_key": labels_key, "batch_size": batch_size, "device": device, "dtype": dtype,
    }  # fmt: skip
    columns = {k: v for k, v in (("labels", source.labels), ("task", source.task)) if v is not None}
    samples = source.spec.samples
    with (
        evaluating(network),
        ResumableArchive(output, identity, resume=resume) as archive,
        progress.task("extract", samples) as task,
    ):
        task.advance(archive.done)
        for start in range(archive.done, samples, batch_size):
            ids = np.arange(start, min(start + batch_size, samples))
            features = outputs(inputs.normalised(source.read(ids), device))
            _check_features(features, ids)
            values = cast(as_array(features.float()), np.dtype(dtype))
            spec = SourceSpec(
                samples=samples, shape=values.shape[1:], dtype=dtype, attributes=attributes,
                channel_axis=default_channel_axis(values.ndim - 1),
            )  # fmt: skip
            archive.append(values, spec, columns)
            task.advance(len(ids))
    return open_archive(output)


def _check_options(output: Path, dtype: str, batch_size: int) -> None:
    if output.suffix.lower() not in (".h5", ".hdf5"):
        raise UsageError(f"{output}: features are extracted into HDF5; name the output .h5")
    if dtype not in STORED_DTYPES:
        raise UnknownNameError("dtype", dtype, STORED_DTYPES)
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}; expected at least 1")


def _check_features(features: Tensor, ids: Array) -> None:
    finite = features.isfinite().flatten(1).all(1).cpu().numpy()
    if not finite.all():
        raise ArchiveError(
            f"the layer's output for image {ids[~finite][0]} is not finite; check the weights and mean, std"
        )
