"""Mixtures of experts against the modules of HF transformers, live, with random weights."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

import ssmkit


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

WIDTH, EXPERTS, CHOSEN, HIDDEN, TIME = 12, 8, 3, 10, 17
BOUND = 2e-6  # both are float32
SIZES = {
    "hidden_size": WIDTH,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "moe_intermediate_size": HIDDEN,
    "intermediate_size": HIDDEN,
}
SIGMOID = {"router": "sigmoid", "use_expert_bias": True}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
MODULES = {
    "lfm2_moe": ("Lfm2MoeSparseMoeBlock", "Lfm2MoeConfig"),
    "granitemoehybrid": ("GraniteMoeHybridMoE", "GraniteMoeHybridConfig"),
    "nemotron_h": ("NemotronHMoE", "NemotronHConfig"),
    "jamba": ("JambaSparseMoeBlock", "JambaConfig"),
    "qwen3_next": ("Qwen3NextSparseMoeBlock", "Qwen3NextConfig"),
}
# Their keys, and ours.
FAMILIES = {
    "lfm2_moe": (
        {"norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.7},
        SIGMOID | {"norm_topk_eps": 1e-6, "routed_scaling_factor": 1.7},
    ),
    "granitemoehybrid": ({"mamba_n_heads": 1}, {}),
    "nemotron_h": (
        GROUPS | {"moe_shared_expert_intermediate_size": 7, "norm_topk_prob": True, "mlp_bias": False},
        SIGMOID | GROUPS | {"gated": False, "activation": "relu2", "shared_intermediate_size": 7},
    ),
    "nemotron_h-latent": (
        {"moe_shared_expert_intermediate_size": 7, "moe_latent_size": 5, "mlp_bias": True, "norm_topk_prob": False},
        SIGMOID
        | {"gated": False, "activation": "relu2", "shared_intermediate_size": 7, "latent_size": 5}
        | {"use_bias": True, "norm_topk_prob": False},
    ),
    "jamba": ({}, {"norm_topk_prob": False}),
    "qwen3_next": (
        {"shared_expert_intermediate_size": 7, "norm_topk_prob": True},
        {"shared_intermediate_size": 7, "shared_expert_gate": True},
    ),
}
EXPERT_BIAS = ("expert_bias", "gate.e_score_correction_bias")
SHARED = {"shared_experts": "shared", "shared_expert": "shared", "fc1_latent_proj": "latent_in"}
SHARED |= {"fc2_latent_proj": "latent_out", "shared_expert_gate": "shared_gate"}


def theirs(family: str, keys: dict):
    """A module with random weights, biases included."""
    name = family.partition("-")[0]
    of_module, of_config = MODULES[name]
    config = getattr(transformers, of_config)(**SIZES | {"n_group": 1, "topk_group": 1} | keys)
    module = getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), of_module)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
        if family == "lfm2_moe":
            module.expert_bias.copy_(0.4 * torch.randn(EXPERTS, generator=generator))
    return module


def ours(options: dict, state: dict[str, np.ndarray]) -> ssmkit.MixtureOfExperts:
    mixer = ssmkit.MixtureOfExperts(
        WIDTH,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        intermediate_size=HIDDEN,
        **options,
        key=jax.random.key(0),
    )
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        array = jnp.asarray(tensor)
        if name in EXPERT_BIAS:
            mixer = eqx.tree_at(lambda m: m.router.bias, mixer, array)
        elif first in ("gate", "router"):
            mixer = eqx.tree_at(lambda m: m.router.weight, mixer, array)
        elif rest == "gate_up_proj":
            gate, up = jnp.split(array, 2, axis=1)
            mixer = eqx.tree_at(lambda m: (m.experts.gate.weight, m.experts.up.weight), mixer, (gate, up))
        elif first == "experts":
            mixer = eqx.tree_at(lambda m, to=rest: getattr(m.experts, to[:-5]).weight, mixer, array)
        else:
            path = [SHARED[first], *rest.replace("_proj", "").split(".")]
            mixer = eqx.tree_at(lambda m, path=path: find(m, path), mixer, array)
    return mixer


def find(node, path):
    for name in path:
        node = getattr(node, name)
    return node


@pytest.mark.parametrize("family", FAMILIES)
def test_many_tokens_and_one(family):
    keys, options = FAMILIES[family]
    module = theirs(family, keys)
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    if family == "lfm2_moe":
        state["expert_bias"] = module.expert_bias.numpy()
    mixer = ours(options, state)
    x = np.random.default_rng(0).normal(0, 1, (TIME, WIDTH)).astype(np.float32)
    with torch.no_grad():
        want = module(torch.from_numpy(x)[None])[0].numpy()
    assert relative_error(eqx.filter_jit(lambda mixer, x: mixer.each(x))(mixer, x), want) <= BOUND
    step = eqx.filter_jit(lambda mixer, x: mixer.each(x))
    assert relative_error(jnp.stack([step(mixer, token) for token in x[:4]]), want[:4]) <= BOUND
