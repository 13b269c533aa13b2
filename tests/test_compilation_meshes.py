"""Programs compiled over a mesh: where arguments lie, and what is read. XLA compiles for eight CPUs."""

import jax
import pytest

import ssmkit
from ssmkit.compilation import _compile, abstract_model
from ssmkit.models import Mamba2Config


CONFIG = Mamba2Config(
    vocab_size=32, hidden_size=16, num_hidden_layers=3, state_size=8, head_dim=8, tie_word_embeddings=True
)


@pytest.fixture
def on_cpus(monkeypatch):
    """`compile_for` for the eight CPUs of this process, in place of TPUs."""
    monkeypatch.setattr(_compile, "devices", lambda target: jax.devices())
    monkeypatch.setattr(_compile, "versions", lambda target: {})
    model = abstract_model(CONFIG, scan_layers=True)
    return lambda program, **options: ssmkit.compile_for(model, "v6e", program, **options)


def test_rows_alone_need_no_communication(on_cpus):
    alone, spread = on_cpus("step", batch=2), on_cpus("step", batch=16, mesh={"data": 8})
    assert (alone.mesh, alone.devices, spread.mesh, spread.devices) == ({}, 1, {"data": 8}, 8)
    assert spread.collectives == {} and spread.memory.fits
    assert spread.state_bytes == spread.state_aliased == alone.state_bytes
    assert spread.memory.arguments == alone.memory.arguments and spread.token == alone.token


def test_the_rows_of_a_generation_agree_on_its_end_only(on_cpus):
    """The loop over tokens asks once per token whether any row of any device is not finished."""
    found = on_cpus("generate", batch=4, length=4, max_new_tokens=2, mesh={"data": 2})
    assert [part.name for part in found.parts if part.collectives] == ["loop 2"]
    assert found.collectives.keys() == {"all-reduce"} and found.collectives["all-reduce"].number == 1
    assert found.state_aliased == found.state_bytes


def test_weights_over_a_mesh_are_divided(on_cpus):
    """Each device then reads its part, and every layer exchanges two sums: that of its norm and that of its output."""
    whole, divided = on_cpus("step", batch=4), on_cpus("step", batch=4, mesh={"model": 2})
    assert divided.mesh == {"model": 2} and divided.devices == 2
    assert divided.state_aliased == divided.state_bytes < 0.7 * whole.state_bytes
    assert 0.5 * whole.memory.arguments < divided.memory.arguments < 0.7 * whole.memory.arguments
    assert 0.5 * whole.token.products < divided.token.products < 0.7 * whole.token.products
    (loop,) = [part for part in divided.parts if part.trips == 3]
    assert loop.collectives == {"all-reduce": (2, 4 * (16 + 1) * 4)}
    assert divided.collectives["all-reduce"].number == 3 * 2 + 1  # and that of the embedding


def test_a_training_step_is_fully_sharded(on_cpus):
    found = on_cpus("train", batch=2, length=4, mesh={"data": 2}, fully_sharded=True)
    matrices = 16 * (84 + 16 + 32)
    assert found.state_aliased == found.state_bytes < 12 * (found.parameters - matrices // 2) + 100
    assert found.collectives["all-gather"].number >= 3 and found.collectives["reduce-scatter"].number >= 3


def test_a_prompt_is_spread_over_the_sequence(on_cpus):
    mesh = {"data": 2, "model": 2, "sequence": 2}
    found = on_cpus("prefill", batch=2, length=8, mesh=mesh)
    assert found.mesh == mesh and found.devices == 8 and found.collectives


MISTAKES = {
    "axis": ({"rows": 2}, "`mesh` must have axes of data, model, sequence, got 'rows'"),
    "none": ({"data": 0}, "`mesh`: the axis `data` must have at least 1 device, got 0"),
    "more": ({"data": 4, "model": 4}, "`mesh`: data=4,model=4 takes 16 devices, and the target v6e:1x1 has 8"),
    "empty": ({}, "`mesh` must give the sizes of axes"),
    "rows": ({"data": 8}, "`batch` must be a multiple of the mesh's `data` = 8, got 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mesh_that_does_not_fit_is_refused(on_cpus, mistake):
    mesh, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        on_cpus("step", batch=3, mesh=mesh)


def test_a_program_without_memory_is_one_error(on_cpus, monkeypatch):
    def refuse(self, *arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM.\nSee there.")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    with pytest.raises(
        MemoryError, match="does not fit into a device of v6e:1x1: RESOURCE_EXHAUSTED: Ran out .*HBM. Sp"
    ):
        on_cpus("step")
