"""Checkpoints that are quantised as they are read, and what that costs the embedded model."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers import trees_equal_bitwise
from narrow_matrices import KINDS

import ssmkit
from ssmkit.checkpoint import CheckpointError, from_pretrained, save_pretrained
from ssmkit.layers import _quantize
from ssmkit.models import Mamba2, Mamba2Config
from ssmkit.text._tokenizer import Tokenizer


# Checkpoints.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format, stored", [("hf", jnp.float32), ("state-spaces", jnp.bfloat16)])
def test_a_checkpoint_is_quantised_as_it_is_read(tmp_path, format, stored, kind):
    config = Mamba2Config(vocab_size=19, hidden_size=8, num_hidden_layers=2, state_size=4, head_dim=4)
    save_pretrained(Mamba2(config, key=jax.random.key(0), dtype=stored), tmp_path, format=format)
    for dtype in (None, "float32"):
        got = from_pretrained(tmp_path, dtype, quantize=kind)
        assert trees_equal_bitwise(got, ssmkit.quantize(from_pretrained(tmp_path, dtype), kind))


def test_what_cannot_be_asked_of_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="`quantize` must be one of int8, bfloat16, got 'int4'"):
        from_pretrained(tmp_path, quantize="int4")


MEASURE = """
import sys, jax
from ssmkit.checkpoint import describe, from_pretrained
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))
from_pretrained(sys.argv[1], quantize="int8")
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
model = from_pretrained(sys.argv[2], quantize="int8")
kept = sum(x.nbytes for x in jax.tree.leaves(model))
largest = max(tensor.nbytes for tensor in describe(sys.argv[2]).tensors.values())
print((kilobytes("VmHWM") - before) * 1024, kept, largest)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from Linux's /proc")
def test_peak_memory_is_what_is_kept_and_one_matrix(tmp_path):
    """What is kept, the pages of the file that the largest matrix is on, and a few rows of it widened.

    The runtime's own threads allocate at moments of their own, which only adds: the least of three processes counts.
    """
    small = Mamba2Config(vocab_size=11, hidden_size=8, num_hidden_layers=1, state_size=3, head_dim=4)
    large = Mamba2Config(vocab_size=16000, hidden_size=512, num_hidden_layers=5, tie_word_embeddings=True)
    for name, config in (("small", small), ("large", large)):
        save_pretrained(Mamba2(config, key=jax.random.key(0)), tmp_path / name)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    for _ in range(3):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak, kept, largest = map(int, done.stdout.split())
        rows = _quantize._ROWS_PER_BLOCK * large.hidden_size * 4
        if peak <= 1.1 * kept + largest + 6 * rows:
            return
    pytest.fail(f"three times a peak of {peak} bytes, where {kept} are kept and the largest matrix has {largest}")


# The embedded model.


SPEECH = """\
HAMLET:
To be, or not to be: that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them? To die: to sleep;
No more; and by a sleep to say we end
The heart-ache and the thousand natural shocks
That flesh is heir to, 'tis a consummation
Devoutly to be wish'd. To die, to sleep;
To sleep: perchance to dream: ay, there's the rub;
For in that sleep of death what dreams may come
When we have shuffled off this mortal coil,
Must give us pause: there's the respect
That makes calamity of so long life.
"""


def test_perplexity_of_the_embedded_model():
    """Within 0.5 % and 0.1 % of float32."""
    folder = ssmkit.default_model_path()
    tokens = Tokenizer.from_file(folder).encode(SPEECH)
    model = from_pretrained(folder, dtype="float32")
    expected = ssmkit.score(model, tokens).perplexity
    for kind, bound in (("int8", 5e-3), ("bfloat16", 1e-3)):
        perplexity = ssmkit.score(ssmkit.quantize(model, kind), tokens).perplexity
        assert abs(perplexity / expected - 1) <= bound
