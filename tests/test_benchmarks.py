"""The figures in the documentation are those that were measured."""

import json
import pathlib


ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_table_of_recurrences_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.recurrences import mixers, table

    measured = json.loads((ROOT / "benchmarks" / "results" / "recurrences_cpu.json").read_text())
    assert list(measured["results"]) == list(mixers(measured["width"]))
    assert table(measured["results"]) in (ROOT / "docs" / "models.md").read_text()
    for row in measured["results"].values():  # lines may have changed since, but not by much
        lines = len((ROOT / row["file"]).read_text().splitlines())
        assert abs(lines - row["lines"]) <= 20
