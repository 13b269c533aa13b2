"""Mamba-2 in NumPy and float64, one token after the other: what every other implementation must agree with.

Written from the equations of arXiv 2405.21060 and independent of ssmkit. A configuration is a dict with the key names
of HF transformers, parameters are a dict with its tensor names. Beyond HF: `D_has_hdim` (one skip weight per channel)
and `pad_vocab_size_multiple` (`vocab_size` does not count padding rows).
"""

import math

import numpy as np


CONFIG = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 16,
    "head_dim": 8,
    "num_heads": 8,
    "expand": 2,
    "n_groups": 1,
    "conv_kernel": 4,
    "chunk_size": 256,
    "use_bias": False,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": True,
    "time_step_limit": (0.0, math.inf),
    "tie_word_embeddings": False,
}

# Every key that HF's configuration has, at two values or more.
VARIANTS = {
    "plain": CONFIG,
    "tied, biases": CONFIG | {"tie_word_embeddings": True, "use_bias": True, "n_groups": 2, "vocab_size": 128},
    "4 groups, chunks of 64": CONFIG
    | {"n_groups": 4, "use_conv_bias": False, "chunk_size": 64, "num_hidden_layers": 3, "vocab_size": 97},
    "time steps in a range": CONFIG | {"time_step_limit": (0.05, 0.3), "layer_norm_epsilon": 1e-2, "n_groups": 2},
    "time steps from below": CONFIG
    | {"time_step_limit": (0.1, math.inf), "conv_kernel": 2, "state_size": 5, "num_hidden_layers": 1},
    "narrow residual, expand 1": CONFIG
    | {
        "residual_in_fp32": False,
        "expand": 1,
        "hidden_size": 64,
        "head_dim": 16,
        "num_heads": 4,
        "num_hidden_layers": 1,
    },
    "expand 3, chunks of 16": CONFIG
    | {"expand": 3, "num_heads": 6, "head_dim": 16, "chunk_size": 16, "conv_kernel": 3, "state_size": 32},
    "one head": CONFIG | {"num_heads": 1, "head_dim": 64, "num_hidden_layers": 1, "use_bias": True},
}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter."""
    width, heads, inner = config["hidden_size"], config["num_heads"], config["num_heads"] * config["head_dim"]
    channels = inner + 2 * config["n_groups"] * config["state_size"]
    multiple = config.get("pad_vocab_size_multiple", 1)
    vocab = -(-config["vocab_size"] // multiple) * multiple
    layer = {
        "norm.weight": (width,),
        "mixer.in_proj.weight": (inner + channels + heads, width),
        "mixer.conv1d.weight": (channels, 1, config["conv_kernel"]),
        "mixer.A_log": (heads,),
        "mixer.D": (heads, config["head_dim"]) if config.get("D_has_hdim") else (heads,),
        "mixer.dt_bias": (heads,),
        "mixer.norm.weight": (inner,),
        "mixer.out_proj.weight": (width, inner),
    }
    if config["use_conv_bias"]:
        layer["mixer.conv1d.bias"] = (channels,)
    if config["use_bias"]:
        layer |= {"mixer.in_proj.bias": (inner + channels + heads,), "mixer.out_proj.bias": (width,)}
    result = {"backbone.embeddings.weight": (vocab, width), "backbone.norm_f.weight": (width,)}
    for index in range(config["num_hidden_layers"]):
        result |= {f"backbone.layers.{index}.{name}": shape for name, shape in layer.items()}
    if not config["tie_word_embeddings"]:
        result["lm_head.weight"] = (vocab, width)
    return result


def random_parameters(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 parameters, none of them where an initialisation would put it, with logits of a few units.

    Time steps lie around 0.1, so that a limit such as (0.05, 0.3) is met on both sides; decays reach from a few tokens
    to hundreds.
    """
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape)
        if name.endswith("A_log"):
            return np.log(rng.uniform(0.05, 8.0, shape))
        if name.endswith("dt_bias"):
            return normal - 2.0
        if name.endswith("D"):
            return 1.0 + 0.3 * normal
        if "norm" in name:
            return 1.0 + 0.3 * normal
        if name.endswith("bias"):
            return 0.3 * normal
        if "conv1d" in name:
            return normal / math.sqrt(shape[-1])
        if "embeddings" in name:
            return 0.4 * normal
        return (3.0 if "lm_head" in name else 1.0) * normal / math.sqrt(shape[-1])

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes(config).items()}


def logits(config: dict, parameters: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits after every token, `(time, vocab)`; padding rows of the vocabulary left out."""
    parameters = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    prefixes = [f"backbone.layers.{index}." for index in range(config["num_hidden_layers"])]
    layers = [
        {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
        for prefix in prefixes
    ]
    inner = config["num_heads"] * config["head_dim"]
    channels = inner + 2 * config["n_groups"] * config["state_size"]
    windows = [np.zeros((config["conv_kernel"], channels)) for _ in layers]
    states = [np.zeros((config["num_heads"], config["head_dim"], config["state_size"])) for _ in layers]
    embeddings = parameters["backbone.embeddings.weight"]
    head = embeddings if config["tie_word_embeddings"] else parameters["lm_head.weight"]
    rows = []
    for token in tokens:
        x = embeddings[token]
        for layer, window, state in zip(layers, windows, states, strict=True):
            x = x + _mixer(config, layer, _rms_norm(config, x) * layer["norm.weight"], window, state)
        rows.append(head[: config["vocab_size"]] @ (_rms_norm(config, x) * parameters["backbone.norm_f.weight"]))
    return np.array(rows)


def _mixer(config: dict, layer: dict, x: np.ndarray, window: np.ndarray, state: np.ndarray) -> np.ndarray:
    """One token through one mixer; `window` (tap, channel) and `state` (head, value, key) change in place."""
    heads, groups = config["num_heads"], config["n_groups"]
    inner = heads * config["head_dim"]
    bc = groups * config["state_size"]

    z, xBC, dt = np.split(layer["mixer.in_proj.weight"] @ x + layer.get("mixer.in_proj.bias", 0.0), [inner, -heads])
    window[:-1] = window[1:]
    window[-1] = xBC
    xBC = np.einsum("ck,kc->c", layer["mixer.conv1d.weight"][:, 0], window) + layer.get("mixer.conv1d.bias", 0.0)
    x, B, C = np.split(_silu(xBC), [inner, inner + bc])
    x = x.reshape(heads, -1)
    B, C = (np.repeat(part.reshape(groups, -1), heads // groups, axis=0) for part in (B, C))
    dt = np.clip(np.logaddexp(0.0, dt + layer["mixer.dt_bias"]), *config["time_step_limit"])

    decay = np.exp(dt * -np.exp(layer["mixer.A_log"]))
    for head in range(heads):
        state[head] = decay[head] * state[head] + dt[head] * np.outer(x[head], B[head])
    y = np.stack([state[head] @ C[head] for head in range(heads)])
    y = y + layer["mixer.D"].reshape(heads, -1) * x

    gated = (y.reshape(-1) * _silu(z)).reshape(groups, -1)
    y = np.concatenate([_rms_norm(config, part) for part in gated]) * layer["mixer.norm.weight"]
    return layer["mixer.out_proj.weight"] @ y + layer.get("mixer.out_proj.bias", 0.0)


def _rms_norm(config: dict, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2) + config["layer_norm_epsilon"])


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))
