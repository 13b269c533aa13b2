"""The diagrams of the documentation: `python docs/figures/draw.py` writes them beside this file."""

import json
import pathlib

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle


HERE = pathlib.Path(__file__).parent
DECODING = HERE.parents[1] / "benchmarks" / "results" / "decode_130m_cpu_jax0.10.json"
INK, DIRECT = "#2b2b2b", "#c9c9c9"
SEAMS = ["#9ecae1", "#4a98c9", "#1764ab"]  # the first, second and third doubling


def seams(axes: Axes, time: int = 8) -> None:
    """The lower triangle of a chunk's scores, coloured by the doubling that computes it."""
    for i in range(time):
        for j in range(i + 1):
            level = (i ^ j).bit_length()  # 0 on the diagonal
            colour = DIRECT if level == 0 else SEAMS[level - 1]
            axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
    for level in range(1, 4):
        size = 1 << level
        for start in range(0, time, size):
            middle = start + size // 2
            axes.plot([middle, middle], [middle, start + size], color=INK, linewidth=0.6 + 0.7 * level)
            axes.plot([start, middle], [middle, middle], color=INK, linewidth=0.6 + 0.7 * level)
    axes.annotate(
        "a seam: sources $j$ left of it,\ntargets $i$ below it",
        (4.05, 4.4),
        (4.6, 1.1),
        arrowprops={"arrowstyle": "->", "color": INK},
        color=INK,
    )
    axes.set(xlim=(-0.1, time + 0.1), ylim=(time + 0.1, -0.1), aspect="equal")
    axes.set_xticks([j + 0.5 for j in range(time)], [str(j + 1) for j in range(time)])
    axes.set_yticks([i + 0.5 for i in range(time)], [str(i + 1) for i in range(time)])
    axes.set_xlabel("source token $j$")
    axes.set_ylabel("target token $i$")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    names = ["the token itself: no decay", *(f"doubling {n}: blocks of {1 << n - 1} meet" for n in (1, 2, 3))]
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in (DIRECT, *SEAMS)]
    axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.02, 0.62), frameon=False)


def _box(axes: Axes, x: float, y: float, width: float, text: str, colour: str, height: float = 0.8) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=INK, linewidth=1))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=INK)


def layers(axes: Axes) -> None:
    """From the one method that is written to everything that follows from it."""
    arrow = {"arrowstyle": "->", "color": INK}
    _box(axes, 3.2, 6.3, 3.6, "coefficients(one token)", "#fdd49e")
    axes.text(7.0, 6.7, "what you write", va="center", style="italic", color=INK)
    for x, text in ((0.6, "chunk_scan: many tokens"), (5.6, "step: one token")):
        _box(axes, x, 4.8, 3.8, text, "#deebf7")
        axes.annotate("", (x + 1.9, 5.62), (5.0, 6.28), arrowprops=arrow)
    for x, text in ((0.1, "training, scoring"), (3.35, "prefill of prompts"), (6.6, "decoding, O(1) cache")):
        _box(axes, x, 3.3, 3.05, text, "#deebf7")
    for start, end in ((2.0, 1.6), (3.0, 4.6), (7.5, 8.1)):
        axes.annotate("", (end, 4.12), (start, 4.78), arrowprops=arrow)
    _box(axes, 0.1, 1.8, 9.55, "mix(features, cache, advance): a mixer, written once for both", "#fdd49e")
    _box(
        axes, 0.1, 0.3, 9.55, "LanguageModel  .  generate  .  stream  .  resume  .  score  .  ssmkit.testing", "#deebf7"
    )
    for x in (1.6, 4.9, 8.1):
        axes.annotate("", (x, 2.62), (x, 3.28), arrowprops=arrow)
    axes.annotate("", (4.9, 1.12), (4.9, 1.78), arrowprops=arrow)
    axes.set(xlim=(0, 9.8), ylim=(0.2, 7.2))
    axes.axis("off")


def speed(axes: Axes) -> None:
    """Tokens per second of one sequence, the quickest at the top."""
    rows = [row for row in json.loads(DECODING.read_text())["rows"] if row["batch"] == 1]
    rows.sort(key=lambda row: row["tokens_per_s"])
    names = [row["label"].replace("`", "") for row in rows]
    colours = ["#e6843d" if name.startswith("ssmkit") else "#9aa7b1" for name in names]
    bars = axes.barh(names, [row["tokens_per_s"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=3, color=INK)
    axes.set_xlabel("tokens per second")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def main() -> None:
    """Write all, the same bytes every time."""
    matplotlib.rcParams.update({"svg.hashsalt": "ssmkit", "font.size": 10})
    for name, draw, size in (
        ("k2-seams", seams, (7.8, 3.9)),
        ("one-method", layers, (7.2, 4.2)),
        ("speed", speed, (7.2, 3.2)),
    ):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes)
        figure.savefig(HERE / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    main()
