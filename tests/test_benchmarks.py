"""The benchmarks run, refuse wrong results, and say what was measured."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from benchmark_runs import as_users_run_it, invoke  # noqa: F401 a fixture

import ssmkit
from ssmkit.benchmarks import (
    _check,
    _loading,
    _process,
    _report,
    _session,
    _training,
    decode,
    startup,
    train,
)
from ssmkit.benchmarks._checkpoint import Checkpoint, checkpoint
from ssmkit.benchmarks._geometry import GEOMETRIES
from ssmkit.benchmarks.peers import SUBJECTS, Entry, load, reasons


pytestmark = pytest.mark.once


VOCABULARY = GEOMETRIES["tiny"].vocab_size


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of checkpoints, the tiny one among them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with checkpoint("tiny", folder) as made:
        assert made.model.vocab_size == VOCABULARY and made.directory == folder / "tiny"
        return folder


@pytest.fixture(scope="module")
def tiny(kept):
    return load("ssmkit", Checkpoint("tiny", kept / "tiny"))


# Every command, and the report of what it measured.
COMMANDS = {
    "decode": ["-b", "1,2", "-n", "4", "-r", "1"],
    "prefill": ["-l", "40", "-r", "1", "--no-ceilings", "-s", "ssmkit,ssmkit-model"],
    "uncached": ["-l", "64", "-n", "2", "-r", "1"],
    "context": ["-l", "0,40", "-n", "2", "-r", "1"],
    "ceilings": ["-r", "1"],
}


@pytest.fixture(scope="module")
def measured(kept, tmp_path_factory):
    """The result files of the commands, and what each showed."""
    folder, shown = tmp_path_factory.mktemp("results"), {}
    for command, words in COMMANDS.items():
        common = ["-g", "tiny", "-o", folder / f"{command}.json"]
        if command != "ceilings":
            common += ["--checkpoints", kept]
        if command in ("decode", "context"):
            common += ["-s", "ssmkit"]
        code, shown[command], error = invoke(command, *common, *words)
        assert code == 0, (command, shown[command], error)
    return folder, shown


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_measures_and_the_report_shows_it(measured, command):
    folder, shown = measured
    content = json.loads((folder / f"{command}.json").read_text())
    assert content["command"] == command
    assert content["environment"]["jax"] == jax.__version__
    assert {"date", "time", "host"}.isdisjoint(content["environment"])
    assert all(np.all(np.array(row["seconds"]) > 0) for row in content["rows"] if isinstance(row["seconds"], list))
    assert shown[command].strip() == _report.section(content).strip()
    assert len(_report.table(command, content["rows"]).splitlines()) == len(content["rows"]) + 2
    if "ceilings" in content and command in ("decode", "ceilings"):
        best = next(iter(content["ceilings"].values()))
        assert set(best) >= {"matvec", "matmul", "read"}
        assert min(best.values()) > 0


def test_figures_are_rates_of_what_was_timed(measured):
    content = json.loads((measured[0] / "decode.json").read_text())
    for row in content["rows"]:
        assert row["tokens_per_s"] == pytest.approx(row["batch"] * 1e3 / row["ms_per_step"])
        nbytes = GEOMETRIES["tiny"].step_bytes(row["batch"], context=decode.PROMPT)
        assert row["bytes_per_step"] == nbytes
        assert row["hbu"] is None  # in the cache, these weights are read faster than the memory is
    assert "n/a" in measured[1]["decode"] and "HBU is n/a where" in measured[1]["decode"]


def test_what_was_measured_before_an_end_is_kept_and_says_what_it_lacks(kept, tmp_path, monkeypatch):
    """The file of a folder is named by command, geometry and device, and holds every size that was reached."""
    check, reached = decode.check_tokens, []

    def ended(reference, prompt, found):
        reached.append(len(prompt))
        if len(reached) > 1:
            raise SystemExit("over")
        return check(reference, prompt, found)

    monkeypatch.setattr(decode, "check_tokens", ended)
    words = ["-g", "tiny", "--checkpoints", kept, "-s", "ssmkit", "-b", "2,1,3", "-n", 2, "-r", 1, "--no-ceilings"]
    assert invoke("decode", *words, "-o", tmp_path)[0] != 0
    (path,) = tmp_path.iterdir()
    assert path.name == f"decode_tiny_cpu_jax{'.'.join(jax.__version__.split('.')[:2])}.json"
    content = json.loads(path.read_text())
    assert [row["batch"] for row in content["rows"]] == [2] and content["left"] == [1, 3]
    assert "The measurement ended before: 1, 3." in _report.section(content)


_PLOTTED = "decode", "prefill", "uncached", "context"


def test_a_report_is_tables_and_plots_in_a_page(measured, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{_report.BEGIN}\nold\n{_report.END}\n\nAfter.\n")
    code, output, error = invoke("report", measured[0], "--page", page, "--figures", tmp_path / "figures")
    assert code == 0, (output, error)
    text = page.read_text()
    assert text.startswith("# Before") and text.endswith("After.\n") and "old" not in text
    points = {name: len(json.loads((measured[0] / f"{name}.json").read_text())["rows"]) for name in _PLOTTED}
    several = [command for command, count in points.items() if count > 1]
    assert len(several) >= 2 and "decode" in several
    for command in _PLOTTED:
        drawn = tmp_path / "figures" / f"{command}.svg"
        assert (f"](figures/{command}.svg)" in text) == drawn.is_file() == (command in several)
    for command in several:
        drawn = tmp_path / "figures" / f"{command}.svg"
        assert drawn.read_text().startswith("<?xml") and str(tmp_path) not in drawn.read_text()
    once = page.read_text(), (tmp_path / "figures" / "decode.svg").read_bytes()
    assert invoke("report", measured[0], "--page", page, "--figures", tmp_path / "figures")[0] == 0
    assert once == (page.read_text(), (tmp_path / "figures" / "decode.svg").read_bytes())
    page.write_text("no marks")
    assert "must hold" in str(invoke("report", measured[0], "--page", page)[2])
    assert "no results" in str(invoke("report", tmp_path)[2])


def test_loading_and_compiling_are_measured(kept, tmp_path):
    loaded = _loading.load(str(kept / "tiny"), "float32")
    assert loaded["load_s"] > 0 and loaded["weight_bytes"] == GEOMETRIES["tiny"].weight_bytes()
    taken = _process.run(_loading.compile_programs, geometry="tiny", prompt=8, tokens=2, cache=tmp_path)
    assert set(taken) == {"prompt_s", "decode_s"}
    assert any(tmp_path.iterdir())


def test_the_files_of_a_checkpoint_hold_the_model_of_the_device(tmp_path):
    """A fresh process writes them when they are asked for first."""
    made = Checkpoint("tiny", tmp_path / "tiny")
    read = ssmkit.from_pretrained(made.directory)
    for here, stored in zip(jax.tree.leaves(made.model), jax.tree.leaves(read), strict=True):
        np.testing.assert_array_equal(here, stored)


def test_the_first_token_of_the_command_is_timed(kept, tmp_path):
    assert startup._first_token(kept / "tiny", 2, tmp_path / "cache") > 0
    assert (tmp_path / "cache" / "xla").is_dir()
    with pytest.raises(SystemExit, match="generate. failed"):
        startup._first_token(tmp_path, 2, tmp_path / "cache")


def test_a_training_step_is_measured_in_its_own_process(kept, tmp_path):
    path = tmp_path / "train.json"
    words = ["--checkpoints", kept, "-s", "ssmkit", "-b", 1, "-l", 8, "-r", 1, "--rounds", 1, "-o", path]
    code, output, error = invoke("train", "-g", "tiny", *words)
    assert code == 0, (output, error)
    (row,) = json.loads(path.read_text())["rows"]
    assert row["tokens_per_s"] == pytest.approx(8 / row["seconds"][0])
    assert row["program_bytes"] > GEOMETRIES["tiny"].weight_bytes()
    with pytest.raises(SystemExit, match="failed"):
        _process.run(_training.time_steps, subject="nobody")


# Wrong results, and wrong requests.


class Wrong:
    """A subject that computes something else in one of its methods."""

    def __init__(self, right, method):
        self._right, self._method = right, method

    def prefill(self, tokens):
        logits = self._right.prefill(tokens)
        return np.roll(logits, 1, axis=1) if self._method == "prefill" else logits

    def begin(self, prompt, new):
        return self._right.begin(prompt, new)

    def decode(self, start, new):
        tokens = self._right.decode(start, new).copy()
        if self._method == "decode":
            tokens[:, -1] = (tokens[:, -1] + 1) % VOCABULARY
        return tokens


@pytest.mark.parametrize(
    "command, method, tolerance, match",
    [
        ("decode", "decode", None, "wrong and ssmkit differ from token 3 of row 0 on"),
        ("decode", "decode", 1e-3, "wrong chooses .* as token 3 of row 0, and the reference"),
        ("prefill", "prefill", 0.05, "wrong: the logit of token"),
        ("uncached", "prefill", None, "wrong generates .* without a cache and .* with it, as token 0"),
        ("uncached", "decode", None, "wrong chooses"),
    ],
)
def test_no_speed_is_reported_for_a_wrong_result(monkeypatch, kept, tiny, tmp_path, command, method, tolerance, match):
    monkeypatch.setitem(SUBJECTS, "wrong", Entry("wrong", "ours", tolerance=tolerance))
    load_right = _session.load
    make = lambda name, files: Wrong(tiny, method) if name == "wrong" else load_right(name, files)
    monkeypatch.setattr(_session, "load", make)
    words = COMMANDS[command][:-2] if command == "prefill" else COMMANDS[command]
    words = [*words, "--no-ceilings"] if command == "decode" else words
    output = tmp_path / "out.json"
    code, shown, error = invoke(
        command, "-g", "tiny", "--checkpoints", kept, "-s", "ssmkit,wrong", "-o", output, *words
    )
    assert code != 0 and not output.exists() and "|" not in shown
    assert re.search(match, str(error)), error


def test_training_that_differs_is_refused():
    right = {"loss": 5.0, "gradient_norm": 2.0}
    train._check({"a": [right], "b": [{"loss": 5.0001, "gradient_norm": 2.0001}]})
    with pytest.raises(SystemExit, match="b: the gradient norm is 2.01, and not 2"):
        train._check({"a": [right], "b": [right | {"gradient_norm": 2.01}]})
    with pytest.raises(SystemExit, match="b: the loss is nan"):
        train._check({"a": [right], "b": [right | {"loss": float("nan")}]})


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(SystemExit, match="a: the logit of token 1 after prompt 0 is nan"):
        _check.check_logits(np.ones((1, 3)), {"a": np.array([[1.0, np.nan, 1.0]])}, {"a": 1.0})


@pytest.mark.parametrize(
    "words, match",
    [
        (["decode", "-g", "huge"], "no geometry is called huge"),
        (["decode", "-g", "tiny", "-s", "nobody"], "no subject is called nobody"),
        (["train", "-g", "tiny", "-s", "hf"], "cannot train hf"),
    ],
)
def test_what_does_not_exist_is_named(words, match):
    code, _, error = invoke(*words)
    assert code != 0 and match in str(error)


def test_sizes_are_integers():
    code, output, _ = invoke("decode", "-b", "1,x")
    assert code == 2 and "must be integers" in output


# Other software, where it is installed.


OTHERS = [name for name, entry in SUBJECTS.items() if name != "ssmkit" and "cpu" in entry.platforms]
HYBRIDS = [name for name in GEOMETRIES if name.startswith("tiny-")]
CASES = [("tiny", name) for name in OTHERS] + [
    (geometry, name) for geometry in HYBRIDS for name in ("ssmkit-int8", "hf", "llama.cpp", "llama.cpp-q8")
]


@pytest.fixture(scope="module")
def loaded(kept):
    """The checkpoint and the reference of a geometry."""
    return functools.cache(lambda name: (files := Checkpoint(name, kept / name), load("ssmkit", files)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("geometry, name", CASES)
def test_subjects_compute_the_same_model(loaded, geometry, name):
    if why := reasons([name], geometry):
        pytest.skip(why[name])
    files, reference = loaded(geometry)
    prompt = np.random.default_rng(0).integers(0, VOCABULARY, (2, 9)).astype(np.int32)
    with _session.quiet():
        subject = load(name, files)
    found = subject.decode(subject.begin(prompt, 4), 4)
    _check.check_tokens(reference, prompt, {"ssmkit": reference.decode(reference.begin(prompt, 4), 4), name: found})
    expected = np.stack([reference.last_logits(row) for row in prompt])
    _check.check_logits(expected, {name: subject.prefill(prompt)}, {name: _check.tolerance(name)})
    if SUBJECTS[name].module == "ours":
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(subject.model) if isinstance(leaf, jax.Array))
        assert held == GEOMETRIES[geometry].weight_bytes(SUBJECTS[name].storage)


def test_a_subject_without_the_architecture_says_so(monkeypatch):
    monkeypatch.setitem(SUBJECTS, "one", Entry("one", "ours", only="mamba2"))
    assert reasons(["one", "ssmkit"], "tiny") == {}
    assert reasons(["one", "ssmkit"], "tiny-lfm2") == {"one": "has no lfm2"}
