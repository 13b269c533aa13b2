"""Mixtures of experts in NumPy and float64, token by token, written from the published equations."""

import numpy as np
from scipy.special import erf, expit


ACTIVATIONS = {
    "silu": lambda x: x * expit(x),
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "gelu_exact": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2.0))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def wide(array):
    """The float64 array of a matrix in any dtype, or in 8 bits."""
    if hasattr(array, "values"):
        return np.asarray(array.values, np.float64) * np.asarray(array.scale, np.float64)[..., None]
    return np.asarray(array, np.float64)


def chosen_of(router, x):
    """The experts of one token and their weights, as a dictionary."""
    logits = wide(router.weight) @ x
    scores = (
        expit(logits)
        if router.scores == "sigmoid"
        else np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    )
    merit = scores + (0 if router.bias is None else wide(router.bias))
    groups = np.array_split(np.arange(len(merit)), router.n_group)
    if router.topk_group < router.n_group:
        quality = [np.sort(merit[group])[-2:].sum() for group in groups]
        groups = [groups[i] for i in np.argsort(quality)[::-1][: router.topk_group]]
    allowed = np.concatenate(groups)
    best = allowed[np.argsort(merit[allowed])[::-1][: router.num_experts_per_tok]]
    total = scores[best].sum() + router.norm_topk_eps if router.norm_topk_prob else 1.0
    return {int(e): scores[e] / total * router.routed_scaling_factor for e in best}


def linear(layer, x):
    y = wide(layer.weight) @ x
    return y if layer.bias is None else y + wide(layer.bias)


def mlp(gate, up, down, act, x):
    return down(act(up(x)) if gate is None else act(gate(x)) * up(x))


def mixture(mixer, x, activation):
    """The output of a `MixtureOfExperts` for one token."""
    act, experts = ACTIVATIONS[activation], mixer.experts
    matrix = lambda layer, e: None if layer is None else lambda v: wide(layer.weight)[e] @ v
    inner = x if mixer.latent_in is None else linear(mixer.latent_in, x)
    y = sum(
        weight * mlp(matrix(experts.gate, e), matrix(experts.up, e), matrix(experts.down, e), act, inner)
        for e, weight in chosen_of(mixer.router, x).items()
    )
    y = y if mixer.latent_out is None else linear(mixer.latent_out, y)
    if mixer.shared is not None:
        layer = lambda name: lambda v: linear(getattr(mixer.shared, name), v)
        gate = layer("gate") if hasattr(mixer.shared, "gate") else None
        shared = mlp(gate, layer("up"), layer("down"), act, x)
        y = y + shared * (1.0 if mixer.shared_gate is None else expit(linear(mixer.shared_gate, x)))
    return y
