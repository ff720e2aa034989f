"""Fits a CompressAI model to features and codes them with it; runs in the environment that `benchmarks.learned` makes.

The models are those of Balle et al. (ICLR 2018), a factorised prior and a scale hyperprior, of CompressAI's layers,
with as many halvings of the grid as its size takes and widths to suit the byte budget. Lambda follows the target while
training. Counted are the coded strings, which hold 64 samples each, and the decoder: matrices and kernels in 8 bits,
other parameters in 16, and the entropy models' tables.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import GDN
from torch import Tensor, nn

WIDTHS = (16, 24, 32, 48, 64, 96, 128)
SHARE = 0.2  # of the budget that the decoder may take
BATCH, TOGETHER = 50, 64
RATE = 1e-3
GAIN = 4.0  # of latents, in steps, over what fresh weights make
AIM = 0.985
SETTLED = 200  # iterations after which lambda follows the target: the prior begins far too wide


def down(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution that halves the grid."""
    return nn.Conv2d(inputs, outputs, 5, 2, 2)


def up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Return its mirror."""
    return nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, 1)


class Model(nn.Module):
    """An autoencoder of GDN stages with one of the two entropy models."""

    def __init__(self, channels: int, width: int, halvings: int, hyperprior: bool) -> None:
        super().__init__()
        latent = width * 3 // 2
        first, last = nn.Conv2d(channels, width, 3, 1, 1), nn.Conv2d(width, channels, 3, 1, 1)
        downs, ups = [first, GDN(width)], []
        for stage in range(halvings):
            final = stage == halvings - 1
            downs += [down(width, latent if final else width)] + ([] if final else [GDN(width)])
            ups += [up(latent if stage == 0 else width, width), GDN(width, inverse=True)]
        self.g_a, self.g_s = nn.Sequential(*downs), nn.Sequential(*ups, last)
        self.h_a = self.h_s = None
        if hyperprior:
            self.h_a = nn.Sequential(nn.Conv2d(latent, width, 3, 1, 1), nn.ReLU(), down(width, width))
            self.h_s = nn.Sequential(up(width, width), nn.ReLU(), nn.Conv2d(width, latent, 3, 1, 1), nn.ReLU())
            self.gaussian = GaussianConditional(None)
        self.bottleneck = EntropyBottleneck(width if hyperprior else latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the reconstruction, the bits of the batch under noise, and those of its rounded latents."""
        y = GAIN * self.g_a(x)
        z = None if self.h_a is None else self.h_a(y.abs())
        coded, bits = self._bits(y, z, noise=True)
        with torch.no_grad():
            rounded = float(self._bits(y, z, noise=False)[1])
        return self.g_s(coded / GAIN), bits, rounded

    def _bits(self, y: Tensor, z: Tensor | None, *, noise: bool) -> tuple[Tensor, Tensor]:
        if z is None or self.h_s is None:
            coded, likelihoods = self.bottleneck(y, training=noise)
            return coded, -likelihoods.log2().sum()
        side, likelihoods = self.bottleneck(z, training=noise)
        coded, own = self.gaussian(y, self.h_s(side), training=noise)
        return coded, -likelihoods.log2().sum() - own.log2().sum()

    def decoder_bytes(self) -> int:
        """Return what a decoder needs, entropy tables included."""
        total = 0
        for module in (self.g_s, self.h_s):
            for name, value in module.named_parameters() if module is not None else ():
                total += value.numel() * (1 if value.dim() > 1 else 2)
                total += 2 * value.shape[0] if name.endswith("weight") else 0
        return total + 2 * int(self.bottleneck._cdf_length.sum())

    @torch.no_grad()
    def code(self, x: Tensor) -> tuple[int, Tensor]:
        """Return the bytes of the strings of some samples, and what they decode to."""
        y = GAIN * self.g_a(x)
        if self.h_a is None:
            strings = self.bottleneck.compress(_as_one(y))
            return _bytes(strings), self.g_s(
                _apart(self.bottleneck.decompress(strings, _as_one(y).shape[2:]), y) / GAIN
            )
        z = self.h_a(y.abs())
        strings = self.bottleneck.compress(_as_one(z))
        scales = self.h_s(_apart(self.bottleneck.decompress(strings, _as_one(z).shape[2:]), z))
        indexes = self.gaussian.build_indexes(_as_one(scales))
        own = self.gaussian.compress(_as_one(y), indexes)
        return _bytes(strings) + _bytes(own), self.g_s(_apart(self.gaussian.decompress(own, indexes), y) / GAIN)


def _as_one(y: Tensor) -> Tensor:
    return y.permute(1, 0, 2, 3).reshape(1, y.shape[1], -1, y.shape[3])


def _apart(one: Tensor, like: Tensor) -> Tensor:
    return one.reshape(like.shape[1], like.shape[0], *like.shape[2:]).permute(1, 0, 2, 3).contiguous()


def _bytes(strings: list[bytes]) -> int:
    return sum(map(len, strings))


def fit(x: Tensor, budget: int, hyperprior: bool, seconds: float) -> tuple[int, Tensor, str] | None:
    """Return (bytes, reconstruction, what was chosen), or nothing when no model is so small."""
    torch.manual_seed(0)
    count, channels, height = x.shape[:3]
    halvings = max(1, round(math.log2(height)) - 2)
    fitting = [
        (width, model)
        for width in WIDTHS
        if (model := Model(channels, width, halvings, hyperprior)).decoder_bytes() < SHARE * budget
    ]
    if not fitting:
        return None
    width, model = fitting[-1]
    prior = [v for name, v in model.bottleneck.named_parameters() if name != "quantiles"]
    rest = [v for name, v in model.named_parameters() if not name.startswith("bottleneck.")]
    optimiser = torch.optim.Adam([{"params": rest, "pace": 1.0}, {"params": prior, "pace": 3.0}])
    auxiliary = torch.optim.Adam([model.bottleneck.quantiles], 1e-2)
    aim = AIM * 8 * (budget - model.decoder_bytes() - 2 * 40 * model.bottleneck.channels) / count
    weight, began, iteration, order, progress = 2.0, time.process_time(), 0, torch.randperm(count), 0.0
    while progress < 1:
        start = iteration * BATCH % (count // BATCH * BATCH)
        if start == 0:
            order = torch.randperm(count)
        batch = x[order[start : start + BATCH]]
        for group in optimiser.param_groups:
            group["lr"] = group["pace"] * RATE * min(1.0, 2 * (1 - progress) + 1e-3)
        decoded, bits, rounded = model(batch)
        loss = bits / len(batch) + weight * (decoded - batch).square().sum() / len(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        auxiliary.zero_grad()
        model.bottleneck.loss().backward()
        auxiliary.step()
        if iteration > SETTLED:
            weight *= math.exp(0.02 * max(-1.0, min(1.0, math.log(aim * len(batch) / max(1.0, rounded)))))
        iteration, progress = iteration + 1, (time.process_time() - began) / seconds
    model.eval()
    with torch.no_grad():
        for module in [*model.g_s.modules(), *(model.h_s.modules() if model.h_s is not None else ())]:
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                step = module.weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-9) / 127
                module.weight.copy_(torch.round(module.weight / step) * step)
    model.bottleneck.update(force=True)
    if hyperprior:
        model.gaussian.update_scale_table(torch.exp(torch.linspace(math.log(0.11), math.log(256), 64)).tolist())
    parts = [model.code(part) for part in torch.split(x, TOGETHER)]
    size = sum(part[0] for part in parts) + model.decoder_bytes()
    return size, torch.cat([part[1] for part in parts]), f"width {width}, {iteration} iterations"


def main() -> None:
    """Fit as the command line says, and write the reconstruction and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", help="an .npy file of (N, C, H, W)")
    parser.add_argument("output", help="the .npy file to write what was decoded to")
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--hyperprior", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    features = torch.from_numpy(np.load(given.features)).float()
    mean = features.mean((0, 2, 3), keepdim=True)
    unit = (features - mean).std()
    found = fit((features - mean) / unit, given.budget, given.hyperprior, given.seconds)
    if found is None:
        print(json.dumps(None))
        return
    size, decoded, setting = found
    np.save(given.output, (decoded * unit + mean).numpy())
    print(json.dumps({"bytes": size + 2 * mean.numel() + 4, "setting": setting}))


if __name__ == "__main__":
    main()
