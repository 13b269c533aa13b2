"""`ssmkit compile`: its report, and mistakes. No compiler is needed."""

import json

import pytest
from command_line import assert_one_line

from ssmkit.compilation import _compile
from ssmkit.compilation._collectives import Collective
from ssmkit.compilation._costs import Bound
from ssmkit.compilation._hlo import Copy
from ssmkit.compilation._report import Compilation, Memory, Operation, PartReport


pytestmark = pytest.mark.usefixtures("own_cache")

FOUND = Compilation(
    program="generate",
    target="v6e:2x2",
    mesh={"data": 4},
    devices=4,
    batch=8,
    length=512,
    max_new_tokens=64,
    layers=2,
    parameters=46_152_592,
    weight_bytes=92_316_224,
    state_bytes=3_231_744,
    state_aliased=3_231_744,
    memory=Memory(95_000_000, 3_400_000, 3_231_744, 500, 1_200_000, 32 << 30),
    host_transfers=(),
    custom_calls={"ConcatBitcast": 2},
    parts=(
        PartReport("program", 1, 50, (), {}, 3500, 0, (Operation("fusion.1", 3000, "jit(run)/dot"),), None, None),
        PartReport(
            "loop 1", None, 40, (Copy("f32[8,64]", 2048),), {"all-gather": Collective(2, 4000)}, 700, 1, (), None, None
        ),
        PartReport("loop 1.1", 4, 8, (), {}, 350, 0, (), None, None),
    ),
    token=Bound(58.3e-6, 1e-7),
    prompt=Bound(58.3e-6, 1.5e-3),
    clock=1.75e9,
    trace_seconds=0.5,
    compile_seconds=4.1,
    versions={"jax": "0.12.0", "libtpu": "0.0.50"},
    text="",
)
REPORT = """\
program                generate, batch 8, length 512, 64 new tokens
model                  46,152,592 parameters, 92.3 MB, 2 blocks
target                 v6e:2x2; 4 of its devices as data=4
compiled               in 4.1 s, after 0.5 s of tracing, by jax 0.12.0, libtpu 0.0.50
memory per device      96.4 MB of 34.4 GB: arguments 95 MB, new results 168 kB, temporaries 500 bytes, code 1.2 MB
communication          all-gather 2 (4 kB)
updated in place       3.23 MB of 3.23 MB of caches
transfers to the host  none
calls outside HLO      ConcatBitcast (2)
bound per token        58.3 us by memory, 0.1 us by products
bound of the prompts   58.3 us by memory, 1.5 ms by products

part      trips  operations       copies          collectives  cycles  at least
program       1          50            0                 none   3,500      2 us
loop 1        ?          40  1 (2.05 kB)  all-gather 2 (4 kB)     700    1.2 us
loop 1.1      4           8            0                 none     350    0.2 us
1 loops inside operations are counted once: the schedule does not tell their trips.
"""


@pytest.fixture
def compiled(monkeypatch):
    """The arguments that `compile_for` gets; it returns `FOUND`."""
    got = {}

    def compile_for(model, target, program, **options):
        got.update(options, model=model, target=target, program=program)
        return FOUND

    monkeypatch.setattr("ssmkit.compilation.compile_for", compile_for)
    return got


def test_the_report(run, compiled):
    code, out, err = run(
        "compile", "--target", "v6e:2x2", "-g", "130m", "--layers", 2, "-b", 8, "--mesh", "data=2,model=2"
    )
    assert (code, out, err) == (0, REPORT, "")
    assert compiled["mesh"] == {"data": 2, "model": 2} and compiled["batch"] == 8 and compiled["program"] == "generate"
    model = compiled["model"]
    assert len(model.blocks) == 2 and model.embedding.weight.dtype == "bfloat16"


def test_the_costliest_operations_are_listed(run, compiled):
    code, out, err = run("compile", "--target", "v6e", "--top")
    assert (code, out, err) == (0, REPORT + "\nprogram\n      3,000  fusion.1  jit(run)/dot\n", "")


def test_json_alone_on_standard_output(run, compiled):
    code, out, err = run("compile", "--target", "v6e", "--program", "step", "--quantize", "int8", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["memory"]["total"] == FOUND.memory.total == 96_368_756
    assert [part["seconds"] for part in record["parts"]] == pytest.approx([3500 / 1.75e9, 2100 / 1.75e9, 350 / 1.75e9])
    assert record["parts"][1]["copies"] == [{"shape": "f32[8,64]", "nbytes": 2048}]
    assert compiled["model"].embedding.weight.values.dtype == "int8"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--geometry", "130m", "--model", "x"], "--model and --geometry exclude each other"),
        (["--geometry", "5b"], "--geometry must be one of 130m, 370m"),
        (["--mesh", "data"], "--mesh must be like data=4,model=2, got 'data'"),
        (["--mesh", "data=2,data=4"], "--mesh must be like data=4,model=2, got 'data=2,data=4'"),
        (["--fully-sharded"], "`fully_sharded` needs a `mesh`"),
        (["--target", "v9"], "`target` must name one of v4, v5e"),
        (["--mesh", "rows=4"], "`mesh` must have axes of data, model, sequence, got 'rows'"),
        (["--mesh", "data=8"], "`mesh`: data=8 takes 8 devices, and the target v6e:1x1 has 4: name a larger topology."),
    ],
)
def test_a_mistake_is_one_line(run, monkeypatch, words, message):
    monkeypatch.setattr(_compile, "devices", lambda target: [None] * 4)
    assert_one_line(*run("compile", *(() if "--target" in words else ("--target", "v6e")), *words), message)


def test_a_missing_compiler_is_one_line(run, monkeypatch):
    def devices(target):
        raise ModuleNotFoundError("compiling for TPU needs libtpu: pip install 'ssmkit[aot-tpu]'")

    monkeypatch.setattr(_compile, "devices", devices)
    code, out, err = run("compile", "--target", "v6e")
    assert (code, out, err) == (2, "", "error: compiling for TPU needs libtpu: pip install 'ssmkit[aot-tpu]'\n")
