"""How stored images become what a network takes: channels first, scaled, normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krstore.errors import UnknownNameError, UsageError
from krstore.source import Array, SourceSpec
from krstore.tensors import as_tensor

__all__ = ["LAYOUTS", "Inputs"]

LAYOUTS = ("auto", "nhwc", "nchw")


@dataclass(frozen=True)
class Inputs:
    """How stored images become a network's input (n, C, H, W).

    Attributes:
        layout: of the stored images: ``"nhwc"``, ``"nchw"`` or ``"nhw"``.
        divisor: what they are divided by.
        mean, std: what is subtracted then, and what that is divided by; one number, or one a channel.
    """

    layout: str
    divisor: int
    mean: list[float] | None
    std: list[float] | None

    @classmethod
    def of(cls, spec: SourceSpec, layout: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> Inputs:
        """Check options against what is stored; uint8 is divided by 255.

        Raises:
            UsageError: the layout cannot be told or is unknown, or numbers that are no mean or deviation.
        """
        layout = _resolve_layout(spec, layout)
        channels = {"nhw": 1, "nhwc": spec.shape[-1], "nchw": spec.shape[0]}[layout]
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and (len(values) not in (1, channels) or not all(map(math.isfinite, values))):
                raise UsageError(f"{name} {list(values)}: expected 1 or {channels} finite numbers, one a channel")
        if std is not None and min(std) <= 0:
            raise UsageError(f"std {list(std)}: expected numbers above 0")
        return cls(
            layout, 255 if spec.dtype == "uint8" else 1,
            None if mean is None else [float(v) for v in mean], None if std is None else [float(v) for v in std],
        )  # fmt: skip

    def attributes(self) -> dict[str, Any]:
        """Return the same as an archive's attributes."""
        return {"input_layout": self.layout, "input_divisor": self.divisor, "mean": self.mean, "std": self.std}

    def normalised(self, images: Array, device: str) -> Tensor:
        """Return stored images (n, ...) as input, float32, on the device."""
        values = as_tensor(images)
        return self((values.float() if values.dtype is torch.float64 else values).to(device))  # MPS has no float64

    def __call__(self, images: Tensor) -> Tensor:
        """Return stored images (n, ...) as input, float32, where they are."""
        x = images.float() / self.divisor
        if self.layout == "nhwc":
            x = x.permute(0, 3, 1, 2)
        elif self.layout == "nhw":
            x = x.unsqueeze(1)
        if self.mean is not None:
            x = x - torch.tensor(self.mean, device=x.device).view(-1, 1, 1)
        if self.std is not None:
            x = x / torch.tensor(self.std, device=x.device).view(-1, 1, 1)
        return x.contiguous()


def _resolve_layout(spec: SourceSpec, layout: str) -> str:
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    shape = spec.shape
    if len(shape) == 2 and layout == "auto":
        return "nhw"
    if len(shape) != 3:
        raise UsageError(f"images of shape {shape}; expected (H, W, C), (C, H, W) or (H, W)")
    if layout != "auto":
        return layout
    last, first = shape[2] in (1, 3, 4), shape[0] in (1, 3, 4)
    if last == first and spec.channel_axis != 2:
        raise UsageError(f"images of shape {shape} do not tell where their channels are; say layout nhwc or nchw")
    return "nhwc" if last or spec.channel_axis == 2 else "nchw"
