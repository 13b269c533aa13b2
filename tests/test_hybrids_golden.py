"""Logits and greedy tokens of small hybrids by HF transformers, kept in `golden`: needs neither it nor PyTorch."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import prefill
from hf_models import check
from hybrid_variants import VARIANTS, random_tensor

import ssmkit
from ssmkit.checkpoint import architectures
from ssmkit.checkpoint._skeleton import arrays_of


GOLDEN = pathlib.Path(__file__).parent / "golden" / "hybrids"
FAMILIES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def test_every_family_is_here():
    assert FAMILIES == sorted(name for name in VARIANTS if "-" not in name)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """A checkpoint as HF writes it, with the tensors that the golden logits were made with."""
    directory, content = tmp_path_factory.mktemp("checkpoint"), (GOLDEN / f"{request.param}.json").read_text()
    (directory / "config.json").write_text(content)
    content = json.loads(content)
    (architecture,) = [known for known in architectures() if known.dialects[0].matches(content)]
    dialect = architecture.dialects[0]
    config = dialect.read_config(content)
    arrays = arrays_of(architecture, dialect, config, jnp.float32)
    shapes = dialect.layout(config, arrays).tensor_shapes(arrays)
    tensors = {name: random_tensor(name, shape).astype(np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        return ssmkit.from_pretrained(directory), dict(file)


def test_logits(case):
    model, golden = case
    tokens = jnp.asarray(golden["tokens"].astype(np.int32))
    for length in (1, 17, 130):
        check(prefill(model, tokens, jnp.asarray(length)), golden[f"logits_{length}"])


def test_greedy_tokens(case):
    model, golden = case
    out = ssmkit.generate(model, [golden["tokens"][:17].tolist()], len(golden["greedy"]))
    np.testing.assert_array_equal(out.tokens[0], golden["greedy"])
