"""What the figures of the benchmarks are made of; the documentation shows those that were measured."""

import json

import numpy as np
import pytest
from benchmark_runs import ROOT, as_users_run_it, invoke  # noqa: F401 a fixture

from ssmkit.benchmarks import (
    _environment,
    _memory,
    _report,
    _timing,
    context,
    decode,
    precision,
    recurrences,
    scale,
    uncached,
)
from ssmkit.benchmarks._geometry import GEOMETRIES, _mamba2


pytestmark = pytest.mark.once


# The model of what a token costs.

_NAMES = "num_hidden_layers", "hidden_size", "num_heads", "state_size", "n_groups"

TWO_GROUPS = dict(state_size=24, head_dim=12, n_groups=2, conv_kernel=3, tie_word_embeddings=False)


@pytest.mark.parametrize("geometry", [*map(GEOMETRIES.get, ("tiny", "10m")), _mamba2(100, 48, 3, **TWO_GROUPS)])
def test_bytes_and_flops_of_mamba2_are_those_of_the_formulas(geometry):
    keys = geometry.config
    layers, width, heads, size, groups = (keys[name] for name in _NAMES)
    inner = 2 * width
    assert inner == heads * keys["head_dim"]
    conv = inner + 2 * groups * size
    rows = inner + conv + heads
    projections = layers * width * (rows + inner)
    vectors = layers * (width + (keys["conv_kernel"] + 1) * conv + 3 * heads + inner) + width
    head = keys["vocab_size"] * width
    assert geometry.projection_flops == 2 * projections
    assert geometry.parameters == projections + vectors + head * (1 if geometry.tied else 2)
    assert geometry.weight_bytes() == 4 * (projections + vectors + head)
    state = 4 * layers * (inner * size + (keys["conv_kernel"] - 1) * conv)
    assert geometry.cache_bytes() == geometry.cache_bytes(1000) == state
    assert geometry.step_bytes(3, context=7) == geometry.weight_bytes() + 6 * state
    assert geometry.prefill_flops(10, 2) == 20 * geometry.projection_flops + 2 * 2 * head


def test_bytes_and_flops_of_a_hybrid_are_those_of_the_formulas():
    geometry, width, hidden = GEOMETRIES["tiny-lfm2"], 64, 64
    attention, conv, mlp = 2 * width * width + 2 * width * 32, 4 * width * width, 3 * width * hidden
    assert geometry.projection_flops == 2 * (attention + conv + 2 * mlp)
    vectors = 5 * width + 3 * width + 2 * 16  # norms, a convolution, norms of queries and keys
    assert geometry.weight_bytes() == 4 * (attention + conv + 2 * mlp + vectors + 256 * width)
    fixed, token = 4 + 4 * 2 * width, 4 * 2 * 2 * 16  # a count and the window of a convolution; keys and values
    assert geometry.cache_bytes() == fixed
    assert geometry.cache_bytes(1000) == fixed + 1000 * token
    assert geometry.step_bytes(3, context=7) == geometry.weight_bytes() + 3 * (2 * fixed + 7 * token)


def test_narrow_weights_are_fewer_bytes():
    geometry = GEOMETRIES["130m"]
    matrices = sum(rows * columns for rows, columns in geometry.matrices)
    rows = sum(rows for rows, _ in geometry.matrices)
    assert geometry.weight_bytes("float32") - geometry.weight_bytes("bfloat16") == 2 * matrices
    assert geometry.weight_bytes("float32") - geometry.weight_bytes("int8") == 3 * matrices - 4 * rows
    assert geometry.weight_bytes("q8_0") < geometry.weight_bytes("bfloat16")


@pytest.mark.parametrize(
    "name, parameters, rows",
    [
        ("7b", 7.285e9, 18560),
        ("130m", 0.129e9, 3352),
        ("370m", 0.37e9, 4384),
        ("780m", 0.78e9, 6448),
        ("1.3b", 1.34e9, 8512),
    ]
    + [("2.7b", 2_702_599_680, 10576), ("lfm2-350m", 354_483_968, 3072)]
    + [("falcon-h1-90m", 91_131_072, 1688), ("granite-4.0-h-350m", 340_332_224, 3376)],
)
def test_geometries_are_the_published_ones(name, parameters, rows):
    geometry = GEOMETRIES[name]
    assert geometry.parameters == pytest.approx(parameters, rel=0 if isinstance(parameters, int) else 0.01)
    assert geometry.matrices[0][0] == rows


def test_utilisation_is_of_the_memory():
    """A share of its bandwidth is given where a step must read from it."""
    times, best = _timing.Times([0.5, 1.0, 2.0]), {"matvec": 4e9, "read": 1e12, "matmul": 1e12, "sheet_matvec": 8e9}
    nbytes = GEOMETRIES["2.7b"].step_bytes(2)
    figures = decode._figures(GEOMETRIES["2.7b"], "ssmkit", 2, 3, times, best)
    assert nbytes > _environment.cache_bytes() > GEOMETRIES["tiny"].step_bytes()
    assert figures["hbu"] == pytest.approx(3 * nbytes / 4e9)
    assert figures["hbu_of_data_sheet"] == pytest.approx(3 * nbytes / 8e9)
    figures = decode._figures(GEOMETRIES["tiny"], "ssmkit", 1, 3, times, best)
    assert figures["hbu"] is None and figures["hbu_of_data_sheet"] is None
    assert "hbu" not in decode._figures(GEOMETRIES["2.7b"], "ssmkit", 2, 3, times, {})


def test_what_keys_and_values_add_is_held_against_their_bytes():
    first, row = {"cache_bytes": 1e6, "ms_per_token": 10.0}, {"cache_bytes": 9e6, "ms_per_token": 13.0}
    assert context._added(row, first, {"matvec": 4e9}) == {"added_time_of_bytes": pytest.approx(1.5)}
    assert context._added(row, first, {}) == context._added(first, first, {"matvec": 4e9}) == {}


def test_recurrences_are_measured(monkeypatch, tmp_path):
    path = tmp_path / "recurrences.json"
    words = ["--only", "LRU", "-n", 24, "-w", 128, "-r", 1, "-o", path]
    code, output, error = invoke("recurrences", *words)
    assert code == 0, (output, error)
    content = json.loads(path.read_text())
    assert list(content["results"]) == ["LRU"] and content["tokens"] == 24 and content["width"] == 128
    assert output.strip() == recurrences.table(content["results"])
    code, output, error = invoke("chunks", *words, "--sizes", "16")
    assert code == 0, (output, error)
    times = json.loads(path.read_text())["results"]["LRU"]["times"]
    expected = {(order, 16, what) for order in ("serial", "parallel") for what in ("forwards", "gradients")}
    assert {(time["schedule"], time["size"], time["what"]) for time in times} == expected
    monkeypatch.setattr(precision, "FORMS", {"K3": precision.FORMS["K3"]})
    code, output, error = invoke("precision", "-n", 4, "-o", path)
    assert code == 0, (output, error)
    assert output.strip() == precision.table(json.loads(path.read_text())["results"])


@pytest.mark.parametrize("command", ["recurrences", "chunks"])
@pytest.mark.parametrize(
    "words, message", [(["--only", "LRU,nobody"], "no model is called nobody"), (["-w", "100"], "a multiple of 128")]
)
def test_what_recurrences_are_measured_is_checked(command, words, message):
    code, output, _ = invoke(command, *words)
    assert code == 2 and message in output


# Times and memory.


def test_repeats_alternate_and_the_first_is_not_counted():
    order = []
    runs = {name: _timing.Run(order.append, lambda name=name: name) for name in "ab"}
    times = _timing.alternate(runs, 2)
    assert "".join(order) == "ababab"
    assert [len(times[name].seconds) for name in "ab"] == [2, 2]
    assert times["a"].fastest <= times["a"].median
    assert len(_timing.alternate(runs, 2, warm=True)["a"].seconds) == 2


def test_peak_memory_is_noticed():
    _memory.reset_peak()
    before = _memory.peak_bytes()
    block = np.ones(1 << 26, np.uint8)
    assert _memory.peak_bytes() >= before + block.nbytes // 2  # the other half may take the place of freed pages
    assert 0 < _memory.resident_bytes() <= _memory.peak_bytes() + (1 << 20)


def test_prefixes_are_padded_for_generation_without_a_cache():
    assert [uncached.padded(n) for n in (1, 64, 65)] == [64, 64, 128]


# What the documentation shows.


def test_the_table_of_recurrences_is_what_was_measured():
    measured = json.loads((ROOT / "benchmarks" / "results" / "recurrences_cpu.json").read_text())
    assert list(measured["results"]) == list(recurrences.mixers(measured["width"]))
    assert recurrences.table(measured["results"]) in (ROOT / "docs" / "models.md").read_text()


def test_the_page_of_benchmarks_shows_the_committed_results():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    shown = page.split(_report.BEGIN)[1].split(_report.END)[0]
    for content in _report.read(ROOT / "benchmarks" / "results").values():
        assert _report.table(content["command"], content["rows"]) in shown


def test_the_page_of_scale_shows_the_committed_results():
    """Every case has been compiled, and fits if the page does not say otherwise."""
    content = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
    page = (ROOT / "docs" / "scale.md").read_text()
    assert [row["command"] for row in content["results"]] == [case.command for case in scale.CASES]
    assert scale.needs() in page
    for programs in scale.TABLES:
        assert scale.table(content["results"], *programs) in page


@pytest.mark.parametrize("case", [scale.CASES[0], scale.CASES[-1]], ids=lambda case: case.program)
def test_a_command_of_the_page_compiles_its_case(run, monkeypatch, case):
    got = {}

    def compile_for(model, target, program, **options):
        got.update(options, target=target, program=program)
        raise MemoryError("enough")

    monkeypatch.setattr("ssmkit.compilation.abstract_model", lambda *arguments, **options: (arguments, options))
    monkeypatch.setattr("ssmkit.compilation.compile_for", compile_for)
    run(*case.command.split()[1:])
    assert got.pop("max_new_tokens") == scale.NEW_TOKENS
    assert got == {
        "target": case.target,
        "program": case.program,
        "batch": case.batch,
        "length": case.length,
        "mesh": case.mesh or None,
        "fully_sharded": case.fully_sharded,
    }
