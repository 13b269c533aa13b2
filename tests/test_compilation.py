"""Reading of what compilers for TPU and GPU write, and the arguments of `compile_for`; no compiler is needed."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from compiler_texts import BUNDLES, COLLECTIVES, HLO, THUNKS

import ssmkit
from ssmkit.compilation import DEVICES, _hlo, abstract_model
from ssmkit.compilation._bundles import Cycles, cycles_of_operations, cycles_of_text
from ssmkit.compilation._collectives import collectives
from ssmkit.compilation._costs import bound, weights_of
from ssmkit.compilation._padding import fit, padded_size
from ssmkit.compilation._programs import PROGRAMS, Sizes
from ssmkit.compilation._targets import gpu_description, read_target
from ssmkit.compilation._thunks import Launches, launches
from ssmkit.models import Mamba2, Mamba2Config


CONFIG = Mamba2Config(vocab_size=29, hidden_size=16, num_hidden_layers=2, state_size=8, head_dim=8)


@pytest.fixture(scope="module")
def module():
    return _hlo.read_module(HLO)


def test_the_program_and_its_loops_are_found_in_order(module):
    found = {part.name: (part.trips, [i.name for i in part.instructions]) for part in _hlo.parts(module)}
    assert found == {
        "program": (1, ["fusion.1", "fusion.2", "fetched", "moved", "negate.1", "odd", "told"]),
        "loop 1": (None, ["copy.7"]),
        "loop 1.1": (4, ["permuted"]),
    }


def test_copies_within_the_main_memory_are_found(module):
    found = {part.name: _hlo.copies(part.instructions) for part in _hlo.parts(module)}
    assert found == {"program": [("f32[8,4]", 128)], "loop 1": [("f32[8,4]", 128)], "loop 1.1": []}


def test_what_leaves_the_program_is_found(module):
    assert _hlo.host_transfers(module) == ["outfeed"]
    assert _hlo.custom_calls(module) == {"Odd": 1}
    *_, inner = _hlo.parts(module)
    assert collectives(module, inner.instructions) == {"collective-permute": (1, 128)}
    assert _hlo.aliased(module) == [0]


def test_communication_counts_once_however_it_is_written():
    module = _hlo.read_module(COLLECTIVES)
    (part,) = _hlo.parts(module)
    assert collectives(module, part.instructions) == {
        "all-gather": (2, 2 * 256),
        "all-reduce": (1, 16 + 64),
        "collective-permute": (1, 64),
        "reduce-scatter": (2, 2 * 2048),
    }


def test_instructions_of_one_form_differ_in_names_only(module):
    first, second, *_, other = module.computations["main"][2:9]
    assert _hlo.form(module, first) == _hlo.form(module, second) != _hlo.form(module, other)


def test_sizes_of_shapes():
    assert _hlo.nbytes("(bf16[3,5]{1,0}, s8[7], pred[2], f32[])") == 30 + 7 + 2 + 4
    assert _hlo.nbytes("(bf16[3,5]{1,0}, u32[])", first=True) == 30


def test_bundles_are_counted_with_the_trips_of_their_loops():
    assert cycles_of_text(BUNDLES) == Cycles(2 + 4 * (3 + 8 * 3) + 1 + 1, 1)


def test_schedules_are_found_by_the_names_of_operations(tmp_path):
    (tmp_path / "17-fusion.3-01-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "17-fusion.3-00-schedule-analysis_final_bundles.txt").write_text("0x0 : {}")
    (tmp_path / "17-fusion.3-02-vmem_report.html").write_text("")
    assert cycles_of_operations(tmp_path) == {"fusion.3": cycles_of_text(BUNDLES)}


def test_launches_of_the_program_and_of_its_loops():
    assert list(launches(THUNKS)) == [
        Launches(kernels=3, copies=1, graphs=1, alone=2),
        Launches(kernels=1, copies=1, graphs=1, alone=0),
        Launches(kernels=2, copies=0, graphs=0, alone=2),
    ]


def test_weights_are_counted_by_their_kind():
    model = abstract_model(CONFIG, jnp.bfloat16)
    real = Mamba2(CONFIG, key=jax.random.key(0), dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(eqx.filter(real, eqx.is_array))
    weights = weights_of(model)
    assert weights.parameters == sum(leaf.size for leaf in leaves)
    assert weights.nbytes == sum(leaf.nbytes for leaf in leaves)
    mixer = real.blocks[0].mixer
    assert weights.projections == 2 * (mixer.in_proj.weight.size + mixer.out_proj.weight.size)
    assert (weights.read, weights.head) == (weights.nbytes - real.embedding.weight.nbytes, real.head.weight.size)
    tied = weights_of(abstract_model(dataclasses.replace(CONFIG, tie_word_embeddings=True), jnp.bfloat16))
    assert tied.read == tied.nbytes and tied.head == real.embedding.weight.size


def test_the_bound_of_a_step_is_its_bytes_and_products():
    weights = weights_of(abstract_model(CONFIG))
    step = bound(weights, 1000, 8, 8, DEVICES["v6e"])
    assert step.memory == pytest.approx((weights.read + 2000) / 1638e9)
    assert step.products == pytest.approx(16 * (weights.projections + weights.head) / 918e12)


@pytest.mark.parametrize("kind", [None, "bfloat16", "int8"])
def test_an_abstract_model_has_the_arrays_of_a_real_one(kind):
    real = ssmkit.build(CONFIG, key=jax.random.key(0))
    real = real if kind is None else ssmkit.quantize(real, kind)
    forms = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype) if hasattr(x, "shape") else x, tree)
    assert forms(abstract_model(CONFIG, quantize=kind)) == forms(real)


def test_an_abstract_model_of_a_file_without_weights(tmp_path):
    ssmkit.save_pretrained(ssmkit.build(CONFIG, key=jax.random.key(0)), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert len(abstract_model(tmp_path / "config.json", layers=1).blocks) == 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_have_the_arguments_that_they_take(name, batch):
    """Each returns what it consumes, in the same form: its memory can be used again."""
    model = abstract_model(CONFIG)
    program = PROGRAMS[name](model, Sizes(batch, 4, 2))
    run = lambda *arguments: program.run(*arguments)
    out = eqx.filter_eval_shape(run, program.shared, program.mapped, program.consumed)
    assert jax.tree.leaves(program.kept(out)) == jax.tree.leaves(program.consumed)
    axes = {leaf.shape[0] for leaf in jax.tree.leaves(program.consumed) if leaf.ndim}
    assert axes == {batch} or not program.consumed_by_row


@pytest.mark.parametrize(
    ("shape", "padded"),
    [((16, 32, 32), 16 * 32 * 128), ((24, 128, 64), 24 * 128 * 64), ((3, 576), 4 * 640), ((5,), 5), ((0, 3), 0)],
)
def test_a_tpu_pads_one_axis_to_lanes_and_one_to_sublanes(shape, padded):
    assert padded_size(shape) == padded


def test_how_sizes_fit_a_device():
    model = abstract_model(CONFIG, jnp.bfloat16)
    tpu, gpu = fit(model, DEVICES["v6e"]), fit(model, DEVICES["h100"])
    assert tpu.cache_padded > 4 * tpu.cache == 4 * gpu.cache_padded and tpu.weights == gpu.weights_padded
    assert len(tpu.problems) == 2 and tpu.problems[1].startswith("a cache of 4 x 8 x 8 takes 16 times its bytes on v6e")
    assert [problem[:20] for problem in gpu.problems] == ["a matrix of 29 x 16 ", "a matrix of 84 x 16 "]
    suited = Mamba2Config(vocab_size=128, hidden_size=16, num_hidden_layers=1, state_size=128, head_dim=4)
    assert not fit(abstract_model(suited), DEVICES["h100"]).problems


def test_a_model_of_8_bit_matrices_is_not_trained():
    with pytest.raises(ValueError, match="`model` is quantised to int8 and cannot be trained"):
        PROGRAMS["train"](abstract_model(CONFIG, quantize="int8"), Sizes(1, 4, 1))


def test_targets():
    assert [str(read_target(name)) for name in ("v6e", "v5p", "h100", "tpu7x:2x2x1")] == [
        "v6e:1x1",
        "v5p:1x1x1",
        "h100:1",
        "tpu7x:2x2x1",
    ]
    assert "device_memory_size: 85899345920" in gpu_description(DEVICES["h100"])


MISTAKES = {
    "target": ({"target": "v9"}, "`target` must name one of v4, v5e, .*, got 'v9'"),
    "topology": ({"target": "v6e:2x2x2"}, "`target` must give a topology of v6e, such as v6e:2x2, got 'v6e:2x2x2'"),
    "number": ({"target": "h100:0"}, "`target` must give a topology of h100, such as h100:8"),
    "program": ({"program": "run"}, "`program` must be one of step, prefill, generate, train, got 'run'"),
    "batch": ({"batch": 0}, "`batch` must be"),
    "new": ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    changes, message = MISTAKES[mistake]
    arguments = {"target": "v6e", "program": "generate", **changes}
    with pytest.raises(ValueError, match=message):
        ssmkit.compile_for(abstract_model(CONFIG), **arguments)


def test_a_missing_compiler_is_named_with_the_command_that_installs_it(monkeypatch):
    from ssmkit.compilation import _compilers

    monkeypatch.setattr(_compilers.importlib.util, "find_spec", lambda name: None)
    for target, command in (("v6e", r"pip install 'ssmkit\[aot-tpu\]'"), ("h100", r"pip install 'ssmkit\[aot-cuda\]'")):
        for ready in (_compilers._ready_for_tpu, _compilers._ready_for_cuda):
            ready.cache_clear()
        with pytest.raises(ModuleNotFoundError, match=command):
            ssmkit.compile_for(abstract_model(CONFIG), target)
