"""kril-oracle: KRIL with every feature as it was, the upper bound of the KRNet paper's Fig. 6."""

from __future__ import annotations

from krstore.learning.learners.kril import KRIL

__all__ = ["KRILOracle"]


class KRILOracle(KRIL):
    """KRIL whose memory is lossless."""

    name = "kril-oracle"
    summary = "KRIL with every feature as it was: the bound of the KRNet paper's Fig. 6"
    codec = "raw"
