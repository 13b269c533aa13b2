"""One plot per result file, as SVG, legible on light and on dark pages: no background, text in a middle grey."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator


_GREY = "#808080"
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#d55e00", "#e69f00", "#cc79a7", "#999933", "#888888")
_MARKERS = "osD^vP"  # with these, a ninth line differs from the first
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ssmkit",  # the same file from the same figures
    "font.size": 9,
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "axes.edgecolor": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
# By command: the horizontal and the vertical quantity, whether both axes are logarithmic, and the names of the axes.
_AXES = {
    "decode": ("batch", "tokens_per_s", True, "sequences", "tokens per second"),
    "prefill": ("length", "tokens_per_s", True, "tokens of the prompt", "tokens per second"),
    "uncached": ("total", "ratio", True, "tokens in total", "times as fast with the cache"),
    "context": ("context", "ms_per_token", False, "tokens before", "ms per token"),
}


def draw(content: dict[str, Any], path: Path) -> Path | None:
    """The plot of a result file; `None` for a file that is better as a table."""
    if content["command"] not in _AXES or len(content["rows"]) < 2:
        return None
    along, up, logarithmic, x_label, y_label = _AXES[content["command"]]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in content["rows"]:
        lines.setdefault(row["label"].replace("`", ""), []).append((row[along], row[up]))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for i, (label, points) in enumerate(lines.items()):
            turn, colour = divmod(i, len(_COLOURS))
            style = {"marker": _MARKERS[turn], "color": _COLOURS[colour], "ls": "-" if turn == 0 else "--"}
            axes.plot(*zip(*points, strict=True), **style, ms=3.5, lw=1.6, label=label)
        if logarithmic:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            sizes = sorted({x for points in lines.values() for x, _ in points})
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        else:
            axes.set_ylim(0, 1.25 * max(y for points in lines.values() for _, y in points))
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(True)
        if len(lines) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return path
