"""Draw docs/_static/NAME.svg from each docs/benchmarks/NAME.json, which ``benchmarks/NAME.py --json`` has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "nsjoin"  # the same picture from the same figures

from matplotlib import pyplot as plt  # noqa: E402 - the backend first

HERE = Path(__file__).resolve().parent


def draw(data: dict[str, Any], path: Path) -> None:
    """One bar for each pair that was compared: the ratio of the medians."""
    rows = [row for table in data["tables"] for row in table["rows"]]
    labels = [f"{row['what']}  /  {row['against']}" for row in rows]
    figure, axes = plt.subplots(figsize=(10, 0.8 + 0.3 * len(rows)), layout="constrained")
    axes.barh(range(len(rows)), [row["ratio"] for row in rows], color="#4a6fa5")
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="#c06a12")
    axes.set_xlabel("ratio of the medians")
    axes.set_title(f"{data['benchmark']}: " + ", ".join(f"{key} {value}" for key, value in data["machine"].items()))
    figure.savefig(path, metadata={"Date": None})  # on white, so that it can be read in dark mode as well
    plt.close(figure)


def draw_soak(data: dict[str, Any], path: Path) -> None:
    """What has to stay as it is, over the operations done."""
    samples = data["samples"]
    done = [sum(sample["operations"].values()) for sample in samples]
    figure, axes = plt.subplots(3, figsize=(10, 5), sharex=True, layout="constrained")
    for axis, (what, label) in zip(
        axes, (("rss_kb", "RSS, kB"), ("descriptors", "descriptors"), ("zombies", "zombies"))
    ):
        axis.plot(done, [sample[what] for sample in samples], color="#4a6fa5")
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
    axes[-1].set_xlabel("operations done")
    axes[0].set_title(f"soak: {', '.join(samples[-1]['operations'])}, {data['options']['threads']} threads")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    for source in sorted(HERE.glob("benchmarks/*.json")):
        read = json.loads(source.read_text(encoding="utf-8"))
        (draw_soak if read["benchmark"] == "soak" else draw)(read, HERE / "_static" / f"{source.stem}.svg")
