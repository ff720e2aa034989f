"""Every codec and every learner in a table: where it comes from, its command, and what was measured of it.

The figures come from the JSON of the other benchmarks; one that is not there yet leaves its place empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.markdown import table

__all__ = ["CODECS", "LEARNERS", "OVERVIEWS"]


class Entry(NamedTuple):
    """A row.

    Attributes:
        what: it is.
        source: the paper, or whose method it is.
        command: what runs it.
        figure: makes what was measured of the folder of JSON.
    """

    what: str
    source: str
    command: str
    figure: Callable[[Path], str]


def _rows(results: Path, name: str) -> list[dict[str, Any]]:
    path = results / f"{name}.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def _at_100(name: str) -> Callable[[Path], str]:
    def figure(results: Path) -> str:
        rows = _rows(results, "accuracy")
        raw = next(row for row in rows if row["nmse"] == 0)
        own = next(row for row in rows if row["name"] == name and row["asked"] == 100)
        return (
            f"at ratio 100, NMSE {own['nmse']:.3f} and {100 * own['mean']:.1f} % (raw features {100 * raw['mean']:.1f})"
        )

    return figure


def _raw(results: Path) -> str:
    own = next(row for row in _rows(results, "lossless") if row["name"] == "raw")
    return f"lossless, ratio {own['ratio']:.2f}"


def _recompute(results: Path) -> str:
    own = next(row for row in _rows(results, "frontier_first") if row["name"] == "recompute" and row["nmse"] == 0)
    return f"lossless, ratio {own['ratio']:.0f}, of features of the first stage"


def _webp(results: Path) -> str:
    own = next(row for row in _rows(results, "frontier_images") if row["name"] == "WebP" and row["asked"] == 20)
    return f"at ratio 20, NMSE {own['nmse']:.3f} of images of 32x32"


def _webp_lossless(results: Path) -> str:
    own = next(row for row in _rows(results, "accuracy") if row["name"] == "images, lossless")
    return f"lossless, ratio {3 * 32 * 32 * own['kept'] / own['bytes']:.2f}, of images of 32x32"


def _chosen(selection: str) -> Callable[[Path], str]:
    def figure(results: Path) -> str:
        own = [
            row["average_incremental"] for row in _rows(results, "exemplars")
            if (row["method"], row["selection"], row["adjust"]) == ("lucir", selection, False)
        ]  # fmt: skip
        return f"LUCIR's average with 20 of a class {100 * mean(own):.1f} %" if own else ""

    return figure


def _packnet(results: Path) -> str:
    sizes = {row["name"]: row["bytes"] for row in _rows(results, "packnet")}
    return f"lossless, ratio {sizes['safetensors'] / sizes['packnet']:.1f}, of ten states"


def _packnet_quantised(results: Path) -> str:
    rows = {row["name"]: row for row in _rows(results, "packnet")}
    own = [row for name, row in rows.items() if name.startswith("packnet_quantised")]
    if not own:
        return ""
    ratio = rows["safetensors"]["bytes"] / own[0]["bytes"]
    return f"ratio {ratio:.1f}, of ten states; the last one has {100 * own[0]['last']:.1f} %"


def _learnt(name: str) -> Callable[[Path], str]:
    def figure(results: Path) -> str:
        own = [row for row in _rows(results, "learners") if row["name"] == name]
        if not own:
            return ""
        last, average = (100 * mean(row[figure] for row in own) for figure in ("last", "average_incremental"))
        kept = mean(row["bytes"] + row["network_bytes"][-1] for row in own)
        return f"{last:.1f} / {average:.1f} % in {kept / 1000:,.0f} kB"

    return figure


def _encode(name: str, more: str = "", of: str = "features") -> str:
    return f"`krstore encode {of}.h5 --codec {name}{more}`"


def _learn(name: str, more: str = "") -> str:
    return f"`krstore learn {name} --data data --preset paper{more} -o run`"


WITHOUT_RELU = " --set model_args.last_relu=false"
AT_100, PER_CLASS = " --ratio 100", " --set per_class=20"
IMAGES, STATES = "images", "snaps"
KRNET = "Zhang et al., KRNet, 2022"
MNEMONICS = "Liu et al., Mnemonics training, CVPR 2020"

CODECS = {
    "raw": Entry("zero mask, exponents and mantissas apart, through zstd", "ours", _encode("raw"), _raw),
    "pq": Entry(
        "product quantisation; needs faiss (`pip install 'krstore[pq]'`)", "Hayes et al., REMIND, ECCV 2020",
        _encode("pq", AT_100), _at_100("PQ"),
    ),
    "transform": Entry(
        "the default: KLT and DCT between two small trained networks, entropy-coded", "ours; in the manner of Ballé "
        "et al., ICLR 2017", _encode("transform", AT_100), _at_100("transform"),
    ),
    "autoencoder": Entry(
        "encoder and decoder trained together, latents entropy-coded", f"as {KRNET} compares with",
        _encode("autoencoder", AT_100), _at_100("autoencoder"),
    ),
    "krnet": Entry(
        "a network that recites features from a sample's ID", KRNET, _encode("krnet", AT_100), _at_100("krnet")
    ),
    "webp": Entry("images, by Pillow", "libwebp", _encode("webp", " --ratio 20", IMAGES), _webp),
    "webp_lossless": Entry("the same, losslessly", "libwebp", _encode("webp_lossless", of=IMAGES), _webp_lossless),
    "recompute": Entry(
        "the images, and the part of the network that computes the features: where those outgrow the image", "ours",
        _encode("recompute", " --set images=images.npz --set weights=weights.safetensors"), _recompute,
    ),
    "herding": Entry(
        "exemplars: real samples of each class whose mean follows the class's", "Rebuffi et al., iCaRL, CVPR 2017",
        _encode("herding", PER_CLASS, IMAGES), _chosen("herding"),
    ),
    "random": Entry("exemplars, drawn", "", _encode("random", PER_CLASS, IMAGES), _chosen("random")),
    "kmeans": Entry(
        "exemplars nearest to the centres of clusters", "", _encode("kmeans", PER_CLASS, IMAGES), _chosen("kmeans")
    ),
    "mnemonics": Entry(
        "exemplars that are trained for a network, by the exact meta-gradient", MNEMONICS,
        _learn("lucir", f"{WITHOUT_RELU} --exemplars mnemonics --adjust"), _chosen("mnemonics"),
    ),
    "mnemonics_released": Entry(
        "the same as the authors' released code does it, by prototypes", MNEMONICS,
        _learn("lucir", f"{WITHOUT_RELU} --exemplars mnemonics_released"), _chosen("mnemonics_released"),
    ),
    "packnet": Entry(
        "a network's states after each step: each weight once, and the step that takes it",
        "Mallya and Lazebnik, PackNet, CVPR 2018; Zhou et al., M2KD, 2019", _encode("packnet", of=STATES), _packnet,
    ),
    "packnet_quantised": Entry(
        "the same, its shared weights rounded", "ours", _encode("packnet_quantised", " --ratio 20", STATES),
        _packnet_quantised,
    ),
}  # fmt: skip

FRONT = " --set frozen_until=layer3.0 --set features=true"
IN_TEN = " --base 0 --steps 10"
RESNET18 = " --model krstore.backbones:resnet18 --set model_args.imagenet_stem=false"
OPTIONS = {
    "kril": FRONT, "kril-oracle": FRONT, "lucir": WITHOUT_RELU, "icarl": f"{IN_TEN} --order icarl{WITHOUT_RELU}",
    "gfr": f" --order gfr{RESNET18}", "der": f"{IN_TEN} --order icarl{RESNET18}", "memo": IN_TEN,
    "m2kd": IN_TEN, "lwf-mc": IN_TEN, "bic": " --base 0 --steps 5", "wa": " --base 0 --steps 5",
}  # fmt: skip
LEARNERS = {
    name: Entry(what, source, _learn(name, OPTIONS.get(name, "")), _learnt(name))
    for name, what, source in (
        ("finetune", "the lower bound", ""),
        ("ewc", "weights held by their Fisher information", "Kirkpatrick et al., PNAS 2017"),
        ("mas", "weights held by how they move the output", "Aljundi et al., ECCV 2018"),
        ("gfr", "a GAN of embeddings stands in for old classes", "Liu et al., CVPR Workshops 2020"),
        ("lwf-mc", "one sigmoid a class, distilled", "Rebuffi et al., CVPR 2017"),
        ("m2kd", "every earlier network teaches its classes, from one pruned set of weights", "Zhou et al., 2019"),
        ("lwf", "old classes' scores kept", "Li and Hoiem, ECCV 2016"),
        ("replay", "cross-entropy on new samples and replayed ones", ""),
        ("kril", "features recited by KRNet, or by any dense codec", KRNET),
        ("kril-oracle", "the same with every feature as it was: its bound", KRNET),
        ("icarl", "sigmoids distilled, nearest mean of exemplars", "Rebuffi et al., CVPR 2017"),
        ("bic", "distillation, then a scale and an offset for new classes", "Wu et al., CVPR 2019"),
        ("wa", "distillation, then new classes' weights scaled", "Zhao et al., CVPR 2020"),
        ("lucir", "cosine classifier, embeddings kept in direction, a margin", "Hou et al., CVPR 2019"),
        ("memo", "first stages shared, the last one anew for each task", "Zhou et al., ICLR 2023"),
        ("der", "an extractor a task; with `options.pruning=true` its channels are pruned", "Yan et al., CVPR 2021"),
        ("joint", "the upper bound: all samples of all tasks", ""),
    )
}


def _short(head: str, entries: dict[str, Entry]) -> Callable[[Path], str]:
    def made(results: Path) -> str:
        rows = [[f"`{name}`", _told(entry), entry.figure(results)] for name, entry in entries.items()]
        return table([head, "", "measured"], rows, text=3)

    return made


def _whole(head: str, entries: dict[str, Entry]) -> Callable[[Path], str]:
    def made(results: Path) -> str:
        rows = [
            [f"`{name}`", entry.what, entry.source, entry.command, entry.figure(results)]
            for name, entry in entries.items()
        ]
        return table([head, "", "from", "command", "measured"], rows, text=5)

    return made


def _told(entry: Entry) -> str:
    return f"{entry.what}; {entry.source}" if entry.source else entry.what


OVERVIEWS: dict[str, Callable[[Path], str]] = {
    "codecs": _short("codec", CODECS),
    "learners_in_short": _short("method", LEARNERS),
    "codecs_and_commands": _whole("codec", CODECS),
    "learners_and_commands": _whole("method", LEARNERS),
}
