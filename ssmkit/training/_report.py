"""The loss curve, as a table and as a picture."""

import csv
import io
import os
import re
from pathlib import Path

from .._files import replacing
from .._reading import read_regular
from ._extra import require
from ._loop import Progress


_MOST_BYTES = 1 << 28


class LossCurve:
    """The files `loss.csv` and `loss.png` of a run. A resumed run continues the table that it finds."""

    _columns = ("step", "train_nats_per_token", "valid_nats_per_token", "tokens_per_second")

    def __init__(self, directory: str | os.PathLike[str]):
        """**Arguments:** `directory`: the folder of the files.

        **Raises:** `ValueError` when the table in the folder is not a loss table of a run.
        """
        self._csv = Path(directory, "loss.csv")
        self._png = Path(directory, "loss.png")
        self._rows = self._read()

    def append(self, progress: Progress) -> None:
        """Add one line to the file. Rows of an interrupted run, from the same step on, are dropped."""
        valid = "" if progress.valid_loss is None else f"{progress.valid_loss:.5f}"
        row = [str(progress.step), f"{progress.train_loss:.5f}", valid, f"{progress.tokens_per_second:.0f}"]
        self._rows = [old for old in self._rows if int(old[0]) < progress.step] + [row]
        with replacing(self._csv) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self._columns, *self._rows])

    def plot(self) -> None:
        """Draw `loss.png`.

        **Raises:** `ModuleNotFoundError` naming the extra, when matplotlib is missing.
        """
        require("matplotlib")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for column, label in ((1, "train"), (2, "valid")):
            points = [(int(row[0]), float(row[column])) for row in self._rows if row[column]]
            axes.plot([step for step, _ in points], [loss for _, loss in points], label=label)
        axes.set(xlabel="step", ylabel="nats per token")
        axes.grid(alpha=0.3)
        axes.legend()
        with replacing(self._png) as temporary:
            figure.savefig(temporary, dpi=120, format="png")

    def _read(self) -> list[list[str]]:
        """The rows of the table, if there is one."""
        if not self._csv.exists():
            return []
        try:
            text = read_regular(self._csv, _MOST_BYTES).decode("utf-8")
            header, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
            if header != list(self._columns) or not all(map(_is_row, rows)):
                raise ValueError("other columns, or what is no number")
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{self._csv} is not the loss table of a training run ({error}). Move it away.") from None
        return rows


def _is_row(row: list[str]) -> bool:
    """Whether a row holds a step, a loss, perhaps the loss of an evaluation, and a speed."""
    if len(row) != 4 or not re.fullmatch(r"[0-9]{1,10}", row[0]):
        return False
    return all(number == "" and column == 1 or _is_number(number) for column, number in enumerate(row[1:]))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,300}(\.[0-9]{1,300})?", text) is not None
