"""Published hybrids against the real HF transformers: its checkpoints, its logits, its greedy tokens."""

import dataclasses
import pathlib
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import forward, prefill, trees_equal_bitwise
from hf_models import check, hf_logits
from hybrid_variants import VARIANTS, hf_model

import ssmkit


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# transformers logs and warns that it has no CUDA kernels
pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = (1, 3, 17, 41, 130, 611)
NEW = 24


class Case(typing.NamedTuple):
    directory: pathlib.Path
    theirs: typing.Any
    ours: ssmkit.LanguageModel
    tokens: np.ndarray


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory) -> Case:
    """One checkpoint, written by HF."""
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = hf_model(VARIANTS[request.param], directory)
    assert (directory / "model.safetensors.index.json").is_file()
    tokens = np.random.default_rng(1).integers(0, theirs.config.vocab_size, max(LENGTHS))
    return Case(directory, theirs, ssmkit.from_pretrained(directory, strict=True), tokens)


def test_logits(case):
    for length in LENGTHS:
        expected = hf_logits(case.theirs, case.tokens[:length])
        # one executable serves every length; then the whole, every row
        check(prefill(case.ours, jnp.asarray(case.tokens), jnp.asarray(length)), expected[-1])
    check(forward(case.ours, jnp.asarray(case.tokens)), expected)


def test_greedy_tokens_of_a_ragged_batch(case):
    prompts = [case.tokens[70 : 70 + length] for length in (1, 41, 3, 130)]
    out = ssmkit.generate(case.ours, [prompt.tolist() for prompt in prompts], NEW)
    for prompt, tokens in zip(prompts, np.asarray(out.tokens), strict=True):
        expected = hf_logits(case.theirs, np.concatenate([prompt, tokens[:-1]]))[len(prompt) - 1 :]
        np.testing.assert_array_equal(tokens, np.argmax(expected, axis=1))


def test_saved_and_read_by_hf(case, tmp_path):
    ssmkit.save_pretrained(case.ours, tmp_path)
    again = ssmkit.from_pretrained(tmp_path, strict=True)
    assert trees_equal_bitwise(again, case.ours) and again.config == case.ours.config
    theirs, report = type(case.theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and theirs.dtype == torch.float32
    for name, value in case.theirs.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value), name
    listed = lambda value: list(value) if isinstance(value, tuple) else value
    for field in dataclasses.fields(case.ours.config):
        if hasattr(case.theirs.config, field.name):
            saved, known = (getattr(it.config, field.name) for it in (theirs, case.theirs))
            assert listed(saved) == listed(known), field.name
