"""The memory of long prompts through attention: linear in their length, and in the engine hardly beyond the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_attention import attention, inputs

import ssmkit
from ssmkit.generation import _engine, _prompts, _requests


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size"))


@pytest.mark.parametrize("options", [{}, {"sliding_window": 1000}], ids=["all before", "window"])
def test_no_call_holds_a_matrix_of_all_scores(options):
    """Neither do its gradients: a pass needs a few arrays of the size of its inputs."""
    operator, time = attention(**options), 4096
    given = jax.eval_shape(lambda: inputs(np.random.default_rng(0), time))
    state = jax.eval_shape(lambda: operator.reserve(operator.init_state(), time))
    run = lambda given, state: operator.chunk_scan(given, state)
    for program in (run, jax.grad(lambda given, state: jnp.sum(run(given, state)[0]))):
        memory = jax.jit(program).lower(given, state).compile().memory_analysis()
        assert 0 < memory.temp_size_in_bytes < 8 * nbytes((given, state)) < time * time * 4


def test_a_prompt_of_32768_tokens_through_a_hybrid():
    """Beside the weights and the cache, the program that reads it and decodes takes less than 50 MB."""
    time, capacity = 32768, 16
    heads = {"mixer": "attention", "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
    layers = [
        {"mixer": "mamba2", "state_size": 64, "head_dim": 64},
        heads,
        {"mixer": "gated_mlp", "intermediate_size": 1024},
        heads | {"sliding_window": 2048},
    ]
    config = ssmkit.LanguageModelConfig(vocab_size=1024, hidden_size=512, layers=layers)
    model = ssmkit.build(config, key=jax.random.key(0))
    cache = model.reserve(ssmkit.rows.init(model, 1), time + capacity)
    batch, _ = _prompts.read_prompts([[1] * time], None, config.vocab_size, {})
    request = _requests.as_request([capacity], [[]], [ssmkit.Greedy()], 1)
    given = _engine.Inputs(model, request, batch, jax.random.split(jax.random.key(0), 1), None)
    lowered = _engine.begin.lower(given, capacity, cache)  # pyright: ignore[reportFunctionMemberAccess]
    memory = lowered.compile().compiled.memory_analysis()
    assert memory.argument_size_in_bytes >= nbytes((given, cache))
    beside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert memory.alias_size_in_bytes >= nbytes(cache)
    assert beside < 50e6
