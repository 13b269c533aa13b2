"""What operators, mixers and layers say to inputs and states that are not theirs."""

# ruff: noqa: E501 (a message stands on the line of its mistake)

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmkit


KEY = jax.random.key(0)
ADD = "put an axis of tokens (time) in front, `x[None]`, or use `step`"
DROP = "a step takes one, `x[0]`; many are for "
FRESH = "Start from `init_state()`."


def zeros(*shape, dtype="float32"):
    return jnp.zeros(shape, dtype)


class Echo(ssmkit.AbstractRecurrentMixer):
    conv: ssmkit.CausalConv1d

    def init_cache(self):
        return self.conv.init_state()

    def mix(self, x, cache, advance):
        return advance(self.conv, x, cache)


conv = ssmkit.CausalConv1d(4, 3, key=KEY)
shift, phase, scalar = ssmkit.Shift((3, 2)), ssmkit.RunningPhase((3, 2)), ssmkit.Shift(())
stabiliser, echo = ssmkit.Stabiliser(3), Echo(conv)
mlp = ssmkit.GatedMLP(4, intermediate_size=8, key=KEY)
linear = ssmkit.Linear(4, 5, key=KEY)


def gates(*shapes):
    return ssmkit.Gates(*map(jnp.zeros, shapes))


# Operator or mixer, method, inputs, the state (`None`: the first one), the rest of the call, and the message.
MISTAKES = [
    (conv, "chunk_scan", zeros(4), None, {}, f".chunk_scan: `inputs` must have shape (time, 4), got (4,), that of one token: {ADD}."),
    (conv, "step", zeros(7, 4), None, {}, f".step: `inputs` must have shape (4,), got (7, 4), that of many tokens: {DROP}`chunk_scan`."),
    (conv, "chunk_scan", zeros(2, 7, 4), None, {}, ".chunk_scan: `inputs` must have shape (time, 4), got (2, 7, 4): an operator takes one sequence; batch with `jax.vmap`."),
    (conv, "chunk_scan", zeros(7, 9), None, {}, ".chunk_scan: axis 1 of `inputs` must be 4, got 9 in shape (7, 9): give what it was made for, (time, 4), or make another one."),
    (conv, "step", zeros(9), None, {}, ".step: axis 0 of `inputs` must be 4, got 9 in shape (9,): give what it was made for, (4,), or make another one."),
    (conv, "step", [0.0] * 4, None, {}, ".step: `inputs` must be a floating-point array of shape (4,), got list."),
    (conv, "step", zeros(4, dtype="complex64"), None, {}, ".step: `inputs` must be a floating-point array of shape (4,), got complex64."),
    (conv, "step", zeros(4), zeros(4, 2), {}, f": `state` must have shape (window, channel) = (2, 4), got (4, 2). {FRESH}"),
    (conv, "chunk_scan", zeros(7, 4), zeros(2, 4, dtype="bfloat16"), {}, f": `state` must be at least float32, got bfloat16: a state adds up many small numbers. {FRESH}"),
    (conv, "chunk_scan", zeros(7, 4), (), {}, f": `state` must be a floating-point array, got tuple. {FRESH}"),
    (conv, "step", zeros(4), None, {"valid": jnp.ones(3, bool)}, "`valid` must be one boolean, got bool of shape (3,)."),
    (conv, "step", zeros(4), None, {"valid": "no"}, "`valid` must be one boolean, got 'no'."),
    (conv, "chunk_scan", zeros(7, 4), None, {"extent": ssmkit.Extent(length="all")}, "`length` must be one integer, got 'all'."),
    (conv, "chunk_scan", zeros(7, 4), None, {"extent": 7}, "`extent` must be an `ssmkit.Extent(length, starts)`, got 7."),
    (conv, "chunk_scan", zeros(7, 4), None, {"extent": ssmkit.Extent(starts=zeros(2, dtype="int32"))}, "`starts` must be booleans of shape (7,), one for each token, got int32 of shape (2,)."),
    (shift, "chunk_scan", zeros(3, 2), None, {}, f".chunk_scan: `inputs` must have shape (time, 3, 2), got (3, 2), that of one token: {ADD}."),
    (shift, "step", zeros(7, 3, 2), None, {}, f".step: `inputs` must have shape (3, 2), got (7, 3, 2), that of many tokens: {DROP}`chunk_scan`."),
    (shift, "step", zeros(3, 2), zeros(2, 3), {}, f": `state` must have shape (3, 2), got (2, 3). {FRESH}"),
    (scalar, "chunk_scan", zeros(), None, {}, f".chunk_scan: `inputs` must have shape (time,), got (), that of one token: {ADD}."),
    (phase, "chunk_scan", zeros(3, 2), None, {}, f".chunk_scan: `inputs` must have shape (time, 3, 2), got (3, 2), that of one token: {ADD}."),
    (phase, "step", zeros(7, 3, 2), None, {}, f".step: `inputs` must have shape (3, 2), got (7, 3, 2), that of many tokens: {DROP}`chunk_scan`."),
    (phase, "chunk_scan", zeros(7, 3, 2), zeros(7, 3, 2), {}, f": `state` must have shape (2, 3, 2), got (7, 3, 2). {FRESH}"),
    (phase, "chunk_scan", zeros(7, 3, 2), None, {"extent": ssmkit.Extent(length="all")}, "`length` must be one integer, got 'all'."),
    (stabiliser, "chunk_scan", gates(3, 3), None, {}, f".chunk_scan: `inputs.forget` must have shape (time, 3), got (3,), that of one token: {ADD}."),
    (stabiliser, "step", gates((7, 3), (7, 3)), None, {}, f".step: `inputs.forget` must have shape (3,), got (7, 3), that of many tokens: {DROP}`chunk_scan`."),
    (stabiliser, "chunk_scan", gates((7, 3), (6, 3)), None, {}, ".chunk_scan: axis 0 (time) of `inputs.input` must be 7, as in `inputs.forget`, got 6: they are of the same tokens."),
    (stabiliser, "step", (zeros(3), zeros(3)), None, {}, ": `inputs` must be `ssmkit.Gates(forget, input)`, got tuple."),
    (stabiliser, "step", gates(3, 3), zeros(4), {}, f": `state` must have shape (2, heads) = (2, 3), got (4,). {FRESH}"),
    (echo, "prefill", zeros(4), None, {}, f".prefill: `x` must have shape (time, width), got (4,); it is that of one token: {ADD}."),
    (echo, "step", zeros(7, 4), None, {}, f".step: `x` must have shape (width,), got (7, 4); it is that of many tokens: {DROP}`prefill`."),
    (echo, "prefill", zeros(2, 7, 4), None, {}, ".prefill: `x` must have shape (time, width), got (2, 7, 4); a mixer takes one sequence; batch with `jax.vmap`."),
    (echo, "step", zeros(4, dtype="int32"), None, {}, ": `x` must be floating-point features of shape (width,), got int32."),
    (mlp, "prefill", zeros(4), None, {}, f".prefill: `x` must have shape (time, width), got (4,); it is that of one token: {ADD}."),
    (mlp, "step", zeros(7, 4), None, {}, f".step: `x` must have shape (width,), got (7, 4); it is that of many tokens: {DROP}`prefill`."),
    (mlp, "step", zeros(9), None, {}, "the last axis of `x` must hold the 4 features that this layer was made for, got 9 in shape (9,). Make the layer for as many."),
]  # fmt: skip
NAMES = [f"{type(operator).__name__}-{method}-{i}" for i, (operator, method, *_) in enumerate(MISTAKES)]


def message(operator, method, inputs, state, options):
    if state is None:
        state = operator.init_cache() if isinstance(operator, ssmkit.AbstractMixer) else operator.init_state()
    try:
        getattr(operator, method)(inputs, state, **options)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def messages():
    return [message(*mistake[:-1]) for mistake in MISTAKES]


def expected(operator, text):
    return text if text[0] not in ".:" else type(operator).__name__ + text


@pytest.mark.parametrize(("operator", "method", "inputs", "state", "options", "text"), MISTAKES, ids=NAMES)
def test_one_sentence_says_what_is_wrong(operator, method, inputs, state, options, text):
    assert message(operator, method, inputs, state, options) == expected(operator, text)


def test_the_sentence_is_the_same_without_the_type_checker():
    code = "import json, test_operators; print(json.dumps(test_operators.messages()))"
    environment = dict(os.environ, SSMKIT_TYPECHECK="0")
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [expected(operator, text) for operator, *_, text in MISTAKES]


@pytest.mark.parametrize(
    "layer", [ssmkit.RMSNorm(4), ssmkit.LayerNorm(4, groups=2), linear], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("shape", [(), (5,), (4, 5)], ids=str)
def test_features_of_another_width(layer, shape):
    with pytest.raises(
        ValueError, match="must hold the 4 features that this layer was made for, got (5|none) in shape"
    ):
        layer(zeros(*shape))


@pytest.mark.parametrize(
    ("operator", "token"), [(conv, (4,)), (shift, (3, 2)), (phase, (3, 2))], ids=["conv", "shift", "phase"]
)
def test_numpy_arrays_will_do(operator, token):
    state = np.asarray(operator.init_state())
    x = np.ones((2, *token), np.float32)
    y, after = operator.chunk_scan(x, state)
    first, state = operator.step(x[0], state)
    second, state = operator.step(x[1], state, valid=np.bool_(True))
    np.testing.assert_allclose(y, jnp.stack([first, second]), rtol=1e-6)
    np.testing.assert_array_equal(after, state)
