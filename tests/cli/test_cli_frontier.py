"""krstore frontier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def test_methods_at_equal_bytes(cli: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", features=pixels, labels=np.arange(40) % 4)
    (tmp_path / "grid.toml").write_text(
        'model = "krstore.backbones:resnet8"\nbase = 0\nsteps = 2\n'
        "base_training = { epochs = 1, milestones = [] }\n"
        'training = { epochs = 1, milestones = [] }\n[runs."one, herded"]\nmethod = "replay"\n'
        'memory = { exemplars = "herding" }\n'
    )
    words = ["frontier", "--data", tmp_path, "--config", tmp_path / "grid.toml", "--budgets", "320kB,1MiB"]
    facts = cli(*words, "-o", tmp_path / "grid", "--json").json
    assert [(row["name"], row["budget"]) for row in facts] == [("one, herded", 320_000), ("one, herded", 2**20)]
    shown = cli(*words, "-o", tmp_path / "grid")
    assert "one, herded" in shown.out
    assert "320.0 kB" in shown.out
    bare = cli("frontier", "--data", tmp_path, "--budgets", "1MB", "-o", tmp_path / "x")
    assert bare.code == 2
    assert "name --data, and --methods or runs in a --config" in bare.err
