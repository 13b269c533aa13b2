"""Against the real HF transformers: its checkpoints, its logits, its greedy tokens."""

import json
import math
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import forward, prefill
from hf_models import BOUND, check, hf_logits
from mamba2_numpy import CONFIG, VARIANTS, random_parameters

import ssmkit


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# transformers logs and warns that it has no CUDA kernels
pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = (1, 2, 3, 17, 255, 256, 257, 611)
# These are written in several files.
SHARDED = ("4 groups, chunks of 64", "tied, biases")
NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


class Case(typing.NamedTuple):
    directory: pathlib.Path
    theirs: typing.Any
    ours: ssmkit.AbstractLanguageModel
    tokens: np.ndarray


def hf_model(config: dict, parameters: dict[str, np.ndarray]):
    """HF's model with these parameters, each one used and none missing."""
    theirs = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**config, **NO_SPECIAL_TOKENS)).eval()
    state = {name: torch.from_numpy(value) for name, value in parameters.items()}
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["backbone.embeddings.weight"]
    theirs.load_state_dict(state, strict=True)
    return theirs


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory) -> Case:
    """One checkpoint, written by HF."""
    config = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = hf_model(config, random_parameters(config))
    theirs.save_pretrained(directory, max_shard_size="8KB" if request.param in SHARDED else "5GB")
    assert (directory / "model.safetensors.index.json").is_file() == (request.param in SHARDED)
    tokens = np.random.default_rng(1).integers(0, config["vocab_size"], max(LENGTHS))
    return Case(directory, theirs, ssmkit.from_pretrained(directory), tokens)


def test_logits(case):
    for length in LENGTHS:
        expected = hf_logits(case.theirs, case.tokens[:length])
        # one executable serves every length; then the whole, every row
        check(prefill(case.ours, jnp.asarray(case.tokens), jnp.asarray(length)), expected[-1])
    check(forward(case.ours, jnp.asarray(case.tokens)), expected)


@pytest.mark.parametrize("length", LENGTHS[:-1])
@pytest.mark.parametrize("case", ["plain", "time steps from below"], indirect=True)
def test_logits_of_unpadded_sequences(case, length):
    check(forward(case.ours, jnp.asarray(case.tokens[:length])), hf_logits(case.theirs, case.tokens[:length]))


def check_greedy(theirs, prompt: np.ndarray, continuation: np.ndarray):
    """A continuation is the greedy one by HF's uncached logits, and no step of it is a tie within the bound."""
    sequence = np.concatenate([prompt, continuation])
    expected = hf_logits(theirs, sequence[:-1])[len(prompt) - 1 :]
    np.testing.assert_array_equal(np.argmax(expected, axis=1), continuation)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    assert np.min(first - second) > 2 * BOUND * np.max(np.abs(expected))


def test_greedy_tokens(case):
    prompt = case.tokens[:17]
    actual = np.asarray(ssmkit.generate(case.ours, [prompt.tolist()], 64).tokens[0])
    check_greedy(case.theirs, prompt, actual)
    if tuple(case.theirs.config.time_step_limit) == (0.0, math.inf):  # HF's cached step does not clip
        expected = case.theirs.generate(torch.from_numpy(prompt)[None], max_new_tokens=64, do_sample=False)
        np.testing.assert_array_equal(actual, expected[0, len(prompt) :].numpy())


@pytest.mark.parametrize("case", ["plain", "time steps in a range"], indirect=True)
def test_ragged_batch(case):
    lengths = (1, 40, 3, 257)
    prompts = [case.tokens[70 : 70 + length] for length in lengths]
    out = ssmkit.generate(case.ours, [prompt.tolist() for prompt in prompts], 64)
    for prompt, tokens, logits in zip(prompts, np.asarray(out.tokens), out.rows.logits, strict=True):
        check_greedy(case.theirs, prompt, tokens)
        check(logits, hf_logits(case.theirs, np.concatenate([prompt, tokens]))[-1])


def test_hf_reads_what_is_saved(case, tmp_path):
    ssmkit.save_pretrained(case.ours, tmp_path, format="hf")
    again, report = transformers.Mamba2ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert again.dtype == torch.float32
    for name, value in case.theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for name in CONFIG:
        got, expected = getattr(again.config, name), getattr(case.theirs.config, name)
        assert got == expected or tuple(got) == tuple(expected), name
    np.testing.assert_array_equal(hf_logits(again.eval(), case.tokens[:17]), hf_logits(case.theirs, case.tokens[:17]))


def test_by_way_of_state_spaces(case, tmp_path):
    """HF's checkpoint, converted to the state-spaces layout and back."""
    if case.theirs.config.layer_norm_epsilon != 1e-5:
        with pytest.raises(ssmkit.CheckpointError, match="layer_norm_epsilon"):
            ssmkit.save_pretrained(case.ours, tmp_path, format="state-spaces")
        return
    there, back = tmp_path / "there", tmp_path / "back"
    ssmkit.save_pretrained(case.ours, there, format="state-spaces")
    stored = torch.load(there / "pytorch_model.bin", weights_only=True)
    for name, value in case.theirs.state_dict().items():
        assert torch.equal(stored.pop(name.replace(".embeddings.", ".embedding.")), value), name
    assert not stored
    converted = ssmkit.from_pretrained(there)
    for actual, expected in zip(jax.tree.leaves(converted), jax.tree.leaves(case.ours), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    ssmkit.save_pretrained(converted, back, format="hf")
    again = transformers.Mamba2ForCausalLM.from_pretrained(back).eval()
    np.testing.assert_array_equal(hf_logits(again, case.tokens[:17]), hf_logits(case.theirs, case.tokens[:17]))


@pytest.mark.parametrize("variant", ["plain", "tied, biases"])
def test_bfloat16(tmp_path, variant):
    config = VARIANTS[variant]
    theirs = hf_model(config, random_parameters(config)).bfloat16()
    theirs.save_pretrained(tmp_path)
    ours = ssmkit.from_pretrained(tmp_path)
    mixer = ours.blocks[0].mixer
    kept = (ours.embedding.weight, mixer.in_proj.weight, mixer.conv.weight, mixer.conv.bias, mixer.out_proj.weight)
    assert all(array.dtype == jnp.bfloat16 for array in kept)
    islands = (mixer.recurrence.A_log, mixer.recurrence.dt_bias, mixer.D, mixer.norm.weight, ours.norm.weight)
    assert all(array.dtype == jnp.float32 for array in islands)

    tokens = np.random.default_rng(1).integers(0, config["vocab_size"], 257)
    narrow, wide = hf_logits(theirs, tokens), hf_logits(theirs.float(), tokens)
    # The same rounded weights in float32 are the truth. HF rounds every activation to 8 bits, ssmkit the operands of
    # projections only: it must be nearer to the truth than HF is, and no further from HF than the two errors together.
    rms = lambda difference: np.sqrt(np.mean(np.square(difference))) / np.std(wide)
    actual = np.asarray(forward(ours, jnp.asarray(tokens)))
    assert rms(narrow - wide) < 0.03
    assert rms(actual - wide) < rms(narrow - wide)
    assert rms(actual - narrow) < rms(actual - wide) + rms(narrow - wide)

    # asked to widen the weights, ssmkit gives the truth itself
    check(forward(ssmkit.from_pretrained(tmp_path, dtype=jnp.float32), jnp.asarray(tokens)), wide)
    ssmkit.save_pretrained(ours, tmp_path / "again", format="hf")
    again, report = transformers.Mamba2ForCausalLM.from_pretrained(
        tmp_path / "again", dtype="auto", output_loading_info=True
    )
    assert not any(report.values()) and again.lm_head.weight.dtype == torch.bfloat16
    check(hf_logits(again.float(), tokens), wide)


BASE = {"vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 1, "state_size": 7}
BASE |= {"num_heads": 8, "head_dim": 6, "n_groups": 2}


@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
@pytest.mark.parametrize("kind", ("Mamba2",))
def test_files_of_base_models(tmp_path, kind, shard_size):
    """As HF reads them into its class for causal language models; without a head it would make up a random one."""
    sizes = BASE | {"eos_token_id": [3, 2]}
    config = getattr(transformers, f"{kind}Config")(**sizes, tie_word_embeddings=True)
    torch.manual_seed(0)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "10KB")
    ours, theirs = ssmkit.from_pretrained(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = np.random.default_rng(1).integers(0, 101, 9)
    check(forward(ours, jnp.asarray(tokens)), hf_logits(theirs, tokens))
    assert ours.stop_tokens == (3, 2)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(ssmkit.checkpoint.CheckpointError, match="`lm_head.weight`: missing, .* does not tie the head"):
        ssmkit.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ("Mamba2",))
def test_vocabularies_that_hf_resized(tmp_path, kind):
    """It keeps keys that it does not know, such as those of padding in files written here and of long ago."""
    sizes = BASE | {"vocab_size": 16}
    old = {"pad_vocab_size_multiple": 8, "unpadded_vocab_size": 11}
    config = getattr(transformers, f"{kind}Config")(**sizes, **old, tie_word_embeddings=True)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    theirs.resize_token_embeddings(19)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pad_vocab_size_multiple"] == 8
    with pytest.warns(UserWarning, match="`unpadded_vocab_size`"):
        ours = ssmkit.from_pretrained(tmp_path)
    tokens = np.arange(19)
    check(forward(ours, jnp.asarray(tokens)), hf_logits(theirs, tokens))
