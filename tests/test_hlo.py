"""What XLA makes of a generation: one program, one loop, nothing but standard primitives, the cache in place."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hybrid_variants import hybrid

import ssmkit
from ssmkit.generation import _engine, _prompts, _requests
from ssmkit.models import Mamba2, Mamba2Config


# Matrix products that a backend hands to its vendor's library. Nothing else may be called.
MATRIX_PRODUCTS = re.compile(r"__cublas\$(gemm|lt\$matmul.*)|__onednn\$matmul.*")
LEAVING = ("infeed", "outfeed", "send", "recv", "host")
VOCAB, CAPACITY = 29, 32
PROMPTS = [[1, 2, 3], [4], [5, 6]]
SAMPLER = ssmkit.Sampler(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
ROOM = 64


def mamba2():
    config = Mamba2Config(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=8, head_dim=8, n_groups=2)
    return Mamba2(config, key=jax.random.key(0))


def attention():
    """With a window and without, and with as many keys as queries, and one."""
    options = [{"sliding_window": window, "num_kv_heads": groups} for window in (20, None) for groups in (2, 1)]
    layers = [{"mixer": "attention", "num_heads": 2, **each} for each in options]
    return ssmkit.build(
        ssmkit.LanguageModelConfig(vocab_size=VOCAB, hidden_size=16, layers=layers), key=jax.random.key(0)
    )


PROGRAMS = {
    "greedy": (mamba2, ssmkit.Greedy(), PROMPTS),
    "sampler": (mamba2, SAMPLER, PROMPTS),
    "one prompt": (mamba2, ssmkit.Greedy(), PROMPTS[:1]),
    "attention": (attention, ssmkit.Greedy(), PROMPTS),
    "attention, one prompt": (attention, ssmkit.Greedy(), PROMPTS[:1]),
    "Mamba-2, attention, experts": (lambda: hybrid("nemotron_h"), ssmkit.Greedy(), PROMPTS),
    "short convolutions, attention": (lambda: hybrid("lfm2"), ssmkit.Greedy(), PROMPTS),
}


class Program:
    """A compiled generation, and its text cut into computations."""

    def __init__(self, build, sampler, prompts):
        self.build, self.model = build, build()
        self.sampler, self.prompts, self.batch = sampler, prompts, len(prompts)
        lowered = _engine.begin.lower(*self.arguments(CAPACITY))  # pyright: ignore[reportFunctionMemberAccess]
        self.executable = lowered.compile()
        self.text = self.executable.compiled.as_text()
        heads = re.finditer(r"^(?:ENTRY )?%([\w.-]+) \(.*?^}", self.text, re.MULTILINE | re.DOTALL)
        self.computations = {head.group(1): head.group() for head in heads}

    def layers_of(self, kind):
        return sum(isinstance(block.mixer, kind) for block in self.model.blocks)

    def cache(self):
        return self.model.reserve(jax.tree.map(jnp.copy, ssmkit.rows.init(self.model, self.batch)), ROOM)

    def states(self):
        """The arrays of the cache that are large: all but the counts of tokens."""
        return [leaf for leaf in jax.tree.leaves(self.cache()) if leaf.dtype == jnp.float32]

    def carried(self, leaf):
        """The shape that a state has in the loop: without a batch axis, if there is one prompt."""
        return f"f32[{','.join(map(str, leaf.shape[self.batch == 1 :]))}]"

    def arguments(self, limit):
        batch, _ = _prompts.read_prompts(self.prompts, None, VOCAB, {})
        rows = self.batch
        request = _requests.as_request([limit] * rows, [[]] * rows, [self.sampler] * rows, rows)
        keys = jax.random.split(jax.random.key(0), rows)
        log_probs = 2 if self.sampler.needs_key else None
        return _engine.Inputs(self.model, request, batch, keys, log_probs), CAPACITY, self.cache()

    def loops(self, shape):
        """The loops that carry an array of this shape."""
        return [line for line in written_loops(self.text) if shape in line.split(" while(")[0]]

    def within(self, name):
        """The text of a computation and of all that it calls."""
        names, found = [name], set()
        while names:
            name = names.pop()
            if name not in found:
                found.add(name)
                names += re.findall(r"%([\w.-]+)", self.computations[name])
                names = [name for name in names if name in self.computations]
        return "\n".join(self.computations[name] for name in sorted(found))


@pytest.fixture(scope="module", params=list(PROGRAMS))
def program(request):
    return Program(*PROGRAMS[request.param])


def written_loops(text):
    """The loops of a text, but for those that XLA's CPU backend makes of a scatter, such as into rows of a cache."""
    return [line for line in re.findall(r"^.* while\(.*$", text, re.MULTILINE) if "/scatter" not in line]


def instructions(text):
    """The names of what is computed."""
    return set(re.findall(r"^\s*(?:ROOT )?%\S+ = (?:\(.*?\)|\S+) ([\w-]+)\(", text, re.MULTILINE))


def test_the_text_is_understood(program):
    assert {"while", "fusion", "parameter", "dot"} <= instructions(program.text)
    assert len(program.computations) == len(re.findall(r"^}", program.text, re.MULTILINE))


def test_nothing_but_standard_primitives(program):
    targets = re.findall(r'custom_call_target="([^"]*)"', program.text)
    assert [target for target in targets if not MATRIX_PRODUCTS.fullmatch(target)] == []
    assert len(targets) == program.text.count(" custom-call(")


def test_nothing_leaves_the_device(program):
    assert [name for name in instructions(program.text) if name.startswith(LEAVING)] == []
    assert "callback" not in program.text


def test_one_loop_decodes(program):
    tokens = f"s32[{program.batch},{CAPACITY}]"
    (loop,) = program.loops(tokens)
    carry = loop.split(" while(")[0]
    for leaf in program.states():
        shape = program.carried(leaf)
        assert carry.count(shape) >= sum(leaf.shape == other.shape for other in program.states())
        assert program.loops(shape) == [loop]
    (body,) = re.findall(r"body=%([\w.-]+)", loop)
    text = program.within(body)
    # A GPU's compiler writes the product with one vector as a sum of products.
    on_gpu = jax.default_backend() == "gpu" and "dot_general" in text
    assert "dot" in instructions(text) or MATRIX_PRODUCTS.search(text) or on_gpu
    # Of greedy decoding, the step is all there is to do: no random numbers, and loops over a token's experts only.
    if not program.sampler.needs_key:
        assert len(written_loops(text)) == program.layers_of(ssmkit.MixtureOfExperts) and "threefry" not in text


def test_log_probabilities_are_carried_where_they_are_asked_for(program):
    (loop,) = program.loops(f"s32[{program.batch},{CAPACITY}]")
    assert (f"f32[{program.batch},{CAPACITY}]" in loop) == program.sampler.needs_key


def test_the_cache_is_updated_in_place(program):
    header = program.text.splitlines()[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    (types,) = re.findall(r"entry_computation_layout=\{\((.*)\)->\((.*?)\)\}", header)
    parameters, results = (re.findall(r"[a-z]\w*\[[\d,]*\]", text) for text in types)
    aliased = sorted(results[int(result)] for result, _ in aliases)
    assert aliased == sorted(parameters[int(parameter)] for _, parameter in aliases)
    leaves = jax.tree.leaves(program.cache())
    names = {"float32": "f32", "int32": "s32"}
    assert aliased == sorted(f"{names[leaf.dtype.name]}[{','.join(map(str, leaf.shape))}]" for leaf in leaves)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="seen on CPU only")
def test_the_state_is_not_copied_at_every_token(program):
    """Nothing reads an old state once the new one is made; a convolution's window, which moves, is copied and small."""
    (loop,) = program.loops(f"s32[{program.batch},{CAPACITY}]")
    (body,) = re.findall(r"body=%([\w.-]+)", loop)
    copies = re.findall(r"= (\S+) copy\(", program.computations[body])
    for state in (program.carried(leaf) for leaf in program.states() if leaf.ndim == 4):
        assert state in loop and [copy for copy in copies if copy.startswith(state)] == []


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="seen on CPU only")
def test_a_token_is_written_into_keys_and_values_as_a_slice(program):
    """Wherever the loop makes an array of their size, also in what it calls, it updates slices of the one before.

    XLA of jax 0.12 has an instruction for slices of several rows at once (scatter), older ones loop over the rows.
    """
    (loop,) = program.loops(f"s32[{program.batch},{CAPACITY}]")
    (body,) = re.findall(r"body=%([\w.-]+)", loop)
    text = program.within(body)
    caches = [cache for cache in program.cache() if isinstance(cache, ssmkit.AttentionCache)]
    assert len(caches) == program.layers_of(ssmkit.AttentionMixer)
    for cache in caches:
        shape = re.escape(program.carried(cache.attention.keys))
        made = set(re.findall(rf"= {shape}\S* ([\w-]+)\(", text)) - {"parameter", "get-tuple-element", "fusion"}
        assert made in ({"dynamic-update-slice"}, {"scatter"})


def test_one_executable_serves_any_number_of_tokens(program):
    outs = {limit: program.executable(*program.arguments(limit))[0] for limit in (1, 5, CAPACITY)}
    for limit, out in outs.items():
        assert out.lengths.tolist() == [limit] * program.batch
        np.testing.assert_array_equal(out.tokens[:, :limit], outs[CAPACITY].tokens[:, :limit])
