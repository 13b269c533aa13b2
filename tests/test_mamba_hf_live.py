"""Mamba and FalconMamba against the real HF transformers: its checkpoints, its logits, its greedy tokens."""

import json
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import forward, prefill, trees_equal_bitwise
from hf_models import BOUND, check, hf_logits

import ssmkit
from ssmkit.models import Mamba


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# transformers logs and warns that it has no CUDA kernels
pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = (1, 3, 64, 65, 200)
SIZES = {
    "vocab_size": 101,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "state_size": 7,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
VARIANTS: dict[str, dict[str, typing.Any]] = {
    "mamba": {},
    "mamba, untied, biases": {"tie_word_embeddings": False, "use_bias": True, "layer_norm_epsilon": 1e-2},
    "mamba, other sizes": {
        "expand": 3,
        "time_step_rank": 5,
        "conv_kernel": 3,
        "use_conv_bias": False,
        "state_size": 16,
        "residual_in_fp32": False,
    },
    "falcon": {"mixer_rms_eps": 1e-6, "tie_word_embeddings": False, "expand": 16, "intermediate_size": 40},
    "falcon, tied, biases": {"mixer_rms_eps": 1e-2, "use_bias": True, "conv_kernel": 2},
}
ALL = [pytest.param(name, id=name) for name in VARIANTS]


class Case(typing.NamedTuple):
    directory: pathlib.Path
    theirs: typing.Any
    ours: Mamba
    tokens: np.ndarray


def hf_model(name: str):
    """HF's model with random parameters, none of them where an initialisation would put it."""
    kind = "FalconMamba" if name.startswith("falcon") else "Mamba"
    config = getattr(transformers, f"{kind}Config")(**SIZES | VARIANTS[name])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape)
        if name.endswith("A_log"):
            return np.log(rng.uniform(0.05, 8.0, shape))
        if name.endswith("dt_proj.bias"):
            return normal - 2.0
        if name.endswith("D") or "norm" in name:
            return 1.0 + 0.3 * normal
        if name.endswith("bias"):
            return 0.3 * normal
        if "embeddings" in name:
            return 0.4 * normal
        return (3.0 if "lm_head" in name else 1.0) * normal / np.sqrt(shape[-1])

    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(draw(parameter_name, tuple(parameter.shape))))
    return model


@pytest.fixture(scope="module", params=ALL)
def case(request, tmp_path_factory) -> Case:
    """One checkpoint, written by HF."""
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = hf_model(request.param)
    theirs.save_pretrained(directory)
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], max(LENGTHS))
    return Case(directory, theirs, ssmkit.from_pretrained(directory), tokens)


def test_every_parameter_matters(case):
    """Equal logits say nothing about a parameter without which HF's are the same."""
    expected = hf_logits(case.theirs, case.tokens[:9])
    for name, parameter in case.theirs.named_parameters():
        with torch.no_grad():
            before = parameter.clone()
            parameter.copy_(parameter.flip(0))
            changed = hf_logits(case.theirs, case.tokens[:9])
            parameter.copy_(before)
        assert np.max(np.abs(changed - expected)) > 100 * BOUND * np.max(np.abs(expected)), name


def test_logits(case):
    for length in LENGTHS:
        # one executable serves every length; then the whole, every row
        expected = hf_logits(case.theirs, case.tokens[:length])
        check(prefill(case.ours, jnp.asarray(case.tokens), jnp.asarray(length)), expected[-1])
    check(forward(case.ours, jnp.asarray(case.tokens)), expected)


@pytest.mark.parametrize("length", LENGTHS[:-1])
@pytest.mark.parametrize("case", ALL[:1], indirect=True)
def test_logits_of_unpadded_sequences(case, length):
    check(forward(case.ours, jnp.asarray(case.tokens[:length])), hf_logits(case.theirs, case.tokens[:length]))


def test_greedy_tokens(case):
    """Equal by HF's cached and uncached logits, and no step is a tie within the bound."""
    prompt = case.tokens[:17]
    actual = np.asarray(ssmkit.generate(case.ours, [prompt.tolist()], 64).tokens[0])
    expected = hf_logits(case.theirs, np.concatenate([prompt, actual])[:-1])[len(prompt) - 1 :]
    np.testing.assert_array_equal(np.argmax(expected, axis=1), actual)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    assert np.min(first - second) > 2 * BOUND * np.max(np.abs(expected))
    generated = case.theirs.generate(torch.from_numpy(prompt)[None], max_new_tokens=64, do_sample=False)
    np.testing.assert_array_equal(actual, generated[0, len(prompt) :].numpy())


def test_hf_reads_what_is_saved(case, tmp_path):
    ssmkit.save_pretrained(case.ours, tmp_path, format="hf")
    again, report = type(case.theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert type(again.config) is type(case.theirs.config) and again.dtype == torch.float32
    for name, value in case.theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for name in (*SIZES, "intermediate_size", "time_step_rank", "conv_kernel", "use_bias", "tie_word_embeddings"):
        assert getattr(again.config, name) == getattr(case.theirs.config, name), name
    np.testing.assert_array_equal(hf_logits(again.eval(), case.tokens[:17]), hf_logits(case.theirs, case.tokens[:17]))


def state_spaces_name(name: str) -> str:
    return name.replace(".embeddings.", ".embedding.")


@pytest.mark.parametrize("case", [ALL[0], ALL[2]], indirect=True)
def test_by_way_of_state_spaces(case, tmp_path):
    """HF's checkpoint, converted to the state-spaces layout and back."""
    ssmkit.save_pretrained(case.ours, tmp_path, format="state-spaces")
    stored = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    for name, value in case.theirs.state_dict().items():
        assert torch.equal(stored.pop(state_spaces_name(name)), value), name
    assert not stored
    assert trees_equal_bitwise(jax.tree.leaves(ssmkit.from_pretrained(tmp_path)), jax.tree.leaves(case.ours))


@pytest.mark.parametrize("case", ALL[:1], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_state_spaces_files_written_by_torch(case, tmp_path, dtype):
    state = {state_spaces_name(name): value.to(dtype) for name, value in case.theirs.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    content = {"d_model": 24, "n_layer": 2, "vocab_size": 101, "pad_vocab_size_multiple": 1, "ssm_cfg": {"d_state": 7}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    ours = ssmkit.from_pretrained(tmp_path, dtype=jnp.float32)
    theirs = type(case.theirs)(case.theirs.config).eval()
    theirs.load_state_dict({name: value.to(dtype).float() for name, value in case.theirs.state_dict().items()})
    check(prefill(ours, jnp.asarray(case.tokens), jnp.asarray(65)), hf_logits(theirs, case.tokens[:65])[-1])


@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
@pytest.mark.parametrize("kind", ("Mamba", "FalconMamba"))
def test_files_of_base_models(tmp_path, kind, shard_size):
    """As HF reads them into its class for causal language models; without a head it would make up a random one."""
    sizes = {"vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 1, "state_size": 7, "eos_token_id": [3, 2]}
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


@pytest.mark.parametrize("kind", ("Mamba", "FalconMamba"))
def test_vocabularies_that_hf_resized(tmp_path, kind):
    """It keeps keys that it does not know, such as those of padding in files written here and of long ago."""
    sizes = {"vocab_size": 16, "hidden_size": 24, "num_hidden_layers": 1, "state_size": 7}
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
