"""What KRNet is made of: groups of samples, the batched ID embedding, the module, and the loss of Eq. 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from krstore.source import Ids, class_indices
from krstore_codecs._decoder import DecoderSizes, FullyConnected
from krstore_codecs._networks import build_decoder
from krstore_codecs._normalise import Normaliser

__all__ = ["BatchedIdEmbedding", "Groups", "KRNetModule", "KRNetSizes", "recitation_loss"]


@dataclass(frozen=True)
class Groups:
    """Which group, and which place in it, every sample has.

    Attributes:
        group: m of each sample (N,).
        local: n of each sample (N,), below H.
        count: M, the number of groups.
    """

    group: Ids
    local: Ids
    count: int

    @classmethod
    def of(cls, labels: Ids | None, samples: int, size: int) -> Groups:
        """Group the samples of each class, in order of label then ID; all samples as one class without labels.

        M is the sum over classes of ceil(N_c / H).
        """
        group, local = np.empty(samples, np.int64), np.empty(samples, np.int64)
        count = 0
        classes = class_indices(labels) or {0: np.arange(samples)}
        for ids in classes.values():
            more, local[ids] = np.divmod(np.arange(len(ids)), size)
            group[ids] = count + more
            count += -(-len(ids) // size)
        return cls(group, local, count)


class BatchedIdEmbedding(nn.Module):
    """Group and local IDs to embeddings (n, 2H): KRNet paper, Sec. III-A1.

    Multiplying by A_n of Eq. 1 is the rotation (A_n v)_i = v[(i + n) mod H].

    Args:
        groups, size: M and H.
        modules: pass each vector through an FC module of its own, as the paper does.
    """

    def __init__(self, groups: int, size: int, *, modules: bool) -> None:
        super().__init__()
        self.size = size
        self.vectors = nn.ParameterDict({name: _normal(groups, size) for name in ("static", "dynamic")})
        self.static_fc = FullyConnected(size, size) if modules else nn.Identity()
        self.dynamic_fc = FullyConnected(size, size) if modules else nn.Identity()

    def forward(self, group: Tensor, local: Tensor) -> Tensor:
        """Embed group IDs (n,) and local IDs (n,)."""
        turn = (local[:, None] + torch.arange(self.size, device=local.device)) % self.size
        dynamic = self.vectors["dynamic"][group].gather(1, turn)
        return torch.cat([self.static_fc(self.vectors["static"][group]), self.dynamic_fc(dynamic)], dim=1)


def _normal(rows: int, columns: int) -> Tensor:
    """Return standard normal numbers; on the meta device, where torch would load much to draw none, none."""
    values = torch.empty(rows, columns)
    return values if values.is_meta else values.normal_()


class KRNetSizes(msgspec.Struct, frozen=True):
    """What rebuilds the network: groups, H, the decoder's sizes, and how the weights are stored."""

    groups: Annotated[int, msgspec.Meta(ge=1)]
    group_size: Annotated[int, msgspec.Meta(ge=2, le=1 << 24)]
    decoder: DecoderSizes
    weights: Literal["quantised", "float32"]
    latent: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 0


class KRNetModule(nn.Module):
    """The whole network: group and local IDs (n,), and codes (n, L) if any, to features (n, C, H, W) in [0, 1]."""

    def __init__(self, sizes: KRNetSizes) -> None:
        super().__init__()
        self.embedding = BatchedIdEmbedding(sizes.groups, sizes.group_size, modules=sizes.decoder.style == "paper")
        self.decoder = build_decoder(sizes.decoder)

    def forward(self, group: Tensor, local: Tensor, codes: Tensor | None = None) -> Tensor:
        """Recite samples."""
        e = self.embedding(group, local)
        return torch.as_tensor(self.decoder(e if codes is None else torch.cat([e, codes], dim=1)))


def recitation_loss(
    recited: Tensor, truth: Tensor, normaliser: Normaliser, task_model: nn.Module | None, gamma: float
) -> Tensor:
    """Return Eq. 3: mean over the batch of ||recited - truth||^2, plus gamma ||F2(recited) - F2(truth)||^2.

    Args:
        recited, truth: grids (n, C, H, W) in [0, 1], the unit of the first term.
        task_model: F2 without its classifier, frozen, on features (n, *shape) in raw units; `None` leaves its term out.
    """
    first = (recited - truth).square().flatten(1).sum(1).mean()
    if task_model is None:
        return first
    seen, wanted = (task_model(normaliser.to_features(normaliser.unscale(grids))) for grids in (recited, truth))
    return torch.as_tensor(first + gamma * (seen - wanted).square().flatten(1).sum(1).mean())
