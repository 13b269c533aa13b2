"""Models of the mamba_ssm package in NumPy and float64, one token after the other, from its files.

Written from what github.com/state-spaces/mamba computes (`models/mixer_seq_simple.py`, `modules/block.py`,
`modules/mamba_simple.py`, `modules/mamba2.py`, `modules/mha.py`, `modules/mlp.py`), independent of ssmkit. A
configuration is a `config.json`, parameters are a dict with the names and shapes of a `pytorch_model.bin`.
"""

import math

import numpy as np


Parameters = dict[str, np.ndarray]


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(x, 0)


def rms_norm(x, weight, groups=1):
    grouped = np.reshape(x, (*x.shape[:-1], groups, -1))
    grouped = grouped / np.sqrt(np.mean(grouped**2, axis=-1, keepdims=True) + 1e-5)
    return np.reshape(grouped, x.shape) * weight


def layer_norm(x, weight, bias):
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5) * weight + bias


def sizes(config: dict) -> dict:
    """Every number that the shapes follow from."""
    cfg = config["ssm_cfg"]
    second = cfg.get("layer") == "Mamba2"
    inner = int(cfg.get("expand", 2) * config["d_model"])
    ssm = cfg.get("d_ssm") or inner
    multiple = config["pad_vocab_size_multiple"]
    return {
        "inner": inner,
        "ssm": ssm,
        "state": cfg.get("d_state", 128 if second else 16),
        "taps": cfg.get("d_conv", 4),
        "groups": cfg.get("ngroups", 1),
        "heads": ssm // cfg.get("headdim", 64),
        "rank": cfg.get("dt_rank", math.ceil(config["d_model"] / 16)),
        "hidden": math.ceil(config.get("d_intermediate", 0) / 128) * 128,
        "rows": math.ceil(config["vocab_size"] / multiple) * multiple,
    }


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the file."""
    n, cfg, width = sizes(config), config["ssm_cfg"], config["d_model"]

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,)} | ({} if config["rms_norm"] else {f"{name}.bias": (width,)})

    if cfg.get("layer") == "Mamba2":
        channels = n["ssm"] + 2 * n["groups"] * n["state"]
        outer = {"in_proj": 2 * n["inner"] + 2 * n["groups"] * n["state"] + n["heads"]}
        mixer = {name: (n["heads"],) for name in ("dt_bias", "A_log")}
        mixer |= {"D": (n["ssm"] if cfg.get("D_has_hdim") else n["heads"],)}
        mixer |= {"norm.weight": (n["ssm"],)} if cfg.get("rmsnorm", True) else {}
    else:
        channels = n["inner"]
        outer = {"in_proj": 2 * n["inner"]}
        mixer = {"x_proj.weight": (n["rank"] + 2 * n["state"], channels), "dt_proj.weight": (channels, n["rank"])}
        mixer |= {"dt_proj.bias": (channels,), "A_log": (channels, n["state"]), "D": (channels,)}
    mixer |= {"in_proj.weight": (outer["in_proj"], width), "out_proj.weight": (width, n["inner"])}
    mixer |= {"conv1d.weight": (channels, 1, n["taps"])}
    mixer |= {"conv1d.bias": (channels,)} if cfg.get("conv_bias", True) else {}
    mixer |= {"in_proj.bias": (outer["in_proj"],), "out_proj.bias": (width,)} if cfg.get("bias") else {}
    mlp = {"mlp.fc1.weight": (2 * n["hidden"], width), "mlp.fc2.weight": (width, n["hidden"])}
    found = {"backbone.embedding.weight": (n["rows"], width), "lm_head.weight": (n["rows"], width)}
    for layer in range(config["n_layer"]):
        own = attention_shapes(config) if layer in config.get("attn_layer_idx", []) else mixer
        block = norm("norm") | {f"mixer.{name}": shape for name, shape in own.items()}
        block |= norm("norm2") | mlp if n["hidden"] else {}
        found |= {f"backbone.layers.{layer}.{name}": shape for name, shape in block.items()}
    return found | {f"backbone.{name}": shape for name, shape in norm("norm_f").items()}


def attention_sizes(config: dict) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, and the features of each."""
    cfg = config["attn_cfg"]
    heads = cfg["num_heads"]
    return heads, cfg.get("num_heads_kv", heads), cfg.get("head_dim", config["d_model"] // heads)


def attention_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a layer of attention."""
    cfg, width, (heads, groups, dim) = config["attn_cfg"], config["d_model"], attention_sizes(config)
    rows = (heads + 2 * groups) * dim
    found = {"in_proj.weight": (rows, width), "out_proj.weight": (width, heads * dim)}
    found |= {"in_proj.bias": (rows,)} if cfg.get("qkv_proj_bias", True) else {}
    found |= {"out_proj.bias": (width,)} if cfg.get("out_proj_bias", True) else {}
    return found | ({"conv1d.weight": (rows, 1, cfg["d_conv"]), "conv1d.bias": (rows,)} if "d_conv" in cfg else {})


def random_parameters(config: dict) -> Parameters:
    """None of them where an initialisation would put it, and every one of them felt in the logits."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape)
        if name.endswith("A_log"):
            return np.log(rng.uniform(0.05, 8.0, shape))
        if name.endswith(("dt_bias", "dt_proj.bias")):
            return normal - 1.0
        if name.endswith("D") or "norm" in name:
            return (0.0 if name.endswith("bias") else 1.0) + 0.3 * normal
        if name.endswith("bias"):
            return 0.3 * normal
        return (0.5 if "embedding" in name else 1.0) * normal / (1 if "embedding" in name else np.sqrt(shape[-1]))

    found = {name: draw(name, shape).astype(np.float32) for name, shape in shapes(config).items()}
    if config["tie_embeddings"]:
        found["lm_head.weight"] = found["backbone.embedding.weight"]
    return found


def logits(config: dict, parameters: Parameters, tokens) -> np.ndarray:
    """After every token, padding rows of the vocabulary left out."""
    p = {name: value.astype(np.float64) for name, value in parameters.items()}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
        return rms_norm(x, weight) if bias is None else layer_norm(x, weight, bias)

    mixer = mamba2 if config["ssm_cfg"].get("layer") == "Mamba2" else mamba1
    residual = p["backbone.embedding.weight"][tokens]
    for layer in range(config["n_layer"]):
        name = f"backbone.layers.{layer}"
        prefix = f"{name}.mixer."
        own = {key.removeprefix(prefix): value for key, value in p.items() if key.startswith(prefix)}
        one = attention if layer in config.get("attn_layer_idx", []) else mixer
        residual = residual + one(config, own, norm(f"{name}.norm", residual))
        if config.get("d_intermediate"):
            y, gate = np.split(norm(f"{name}.norm2", residual) @ p[f"{name}.mlp.fc1.weight"].T, 2, axis=-1)
            residual = residual + (y * silu(gate)) @ p[f"{name}.mlp.fc2.weight"].T
    return norm("backbone.norm_f", residual) @ p["lm_head.weight"].T[:, : config["vocab_size"]]


def convolution(p: Parameters, x: np.ndarray) -> np.ndarray:
    """The causal convolution."""
    weight = p["conv1d.weight"][:, 0]
    taps = weight.shape[1]
    before = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    bias = p.get("conv1d.bias", np.zeros(()))
    return bias + sum(before[i : i + len(x)] * weight[:, i] for i in range(taps))


def attention(config: dict, p: Parameters, u: np.ndarray) -> np.ndarray:
    """Every query against every key that is not later, one head after the other."""
    cfg, (heads, groups, dim) = config["attn_cfg"], attention_sizes(config)
    qkv = u @ p["in_proj.weight"].T + p.get("in_proj.bias", 0.0)
    qkv = convolution(p, qkv) if "d_conv" in cfg else qkv
    qkv = np.reshape(qkv, (len(u), heads + 2 * groups, dim))
    rotated = cfg.get("rotary_emb_dim", 0)
    turns = cfg.get("rotary_emb_base", 10000.0) ** (-np.arange(0, rotated, 2) / max(rotated, 1))
    turned = np.exp(1j * np.outer(np.arange(len(u)), turns))[:, None]
    pairs = (qkv[..., : rotated // 2] + 1j * qkv[..., rotated // 2 : rotated]) * turned
    rotated_qk = np.concatenate([pairs.real, pairs.imag, qkv[..., rotated:]], axis=-1)
    q, k, v = rotated_qk[:, :heads], rotated_qk[:, heads : heads + groups], qkv[:, heads + groups :]
    later, found = np.triu(np.full((len(u), len(u)), -np.inf), 1), []
    for head in range(heads):
        group = head // (heads // groups)
        scores = q[:, head] @ k[:, group].T * cfg.get("softmax_scale", dim**-0.5) + later
        weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        found.append(weights / np.sum(weights, axis=-1, keepdims=True) @ v[:, group])
    return np.concatenate(found, axis=-1) @ p["out_proj.weight"].T + p.get("out_proj.bias", 0.0)


def mamba1(config: dict, p: Parameters, u: np.ndarray) -> np.ndarray:
    n = sizes(config)
    x, z = np.split(u @ p["in_proj.weight"].T + p.get("in_proj.bias", 0.0), 2, axis=-1)
    x = silu(convolution(p, x))
    dt, B, C = np.split(x @ p["x_proj.weight"].T, [n["rank"], n["rank"] + n["state"]], axis=-1)
    dt = softplus(dt @ p["dt_proj.weight"].T + p["dt_proj.bias"])
    state, found = np.zeros((n["inner"], n["state"])), []
    for t in range(len(u)):
        state = np.exp(-dt[t, :, None] * np.exp(p["A_log"])) * state + (dt[t] * x[t])[:, None] * B[t]
        found.append((state @ C[t] + p["D"] * x[t]) * silu(z[t]))
    return np.stack(found) @ p["out_proj.weight"].T + p.get("out_proj.bias", 0.0)


def mamba2(config: dict, p: Parameters, u: np.ndarray) -> np.ndarray:
    n, cfg = sizes(config), config["ssm_cfg"]
    heads, groups, size = n["heads"], n["groups"], n["state"]
    mlp = n["inner"] - n["ssm"]
    ends = np.cumsum([mlp, mlp, n["ssm"], n["ssm"] + 2 * groups * size])
    z0, x0, z, xBC, dt = np.split(u @ p["in_proj.weight"].T + p.get("in_proj.bias", 0.0), ends, axis=-1)
    x, B, C = np.split(silu(convolution(p, xBC)), [n["ssm"], n["ssm"] + groups * size], axis=-1)
    x = np.reshape(x, (len(u), heads, -1))
    B, C = (np.repeat(np.reshape(y, (len(u), groups, size)), heads // groups, axis=1) for y in (B, C))
    dt = np.clip(softplus(dt + p["dt_bias"]), *cfg.get("dt_limit", (0.0, np.inf)))
    D = np.reshape(p["D"], (heads, -1))
    state, found = np.zeros((heads, x.shape[-1], size)), []
    for t in range(len(u)):
        decay = np.exp(-dt[t] * np.exp(p["A_log"]))
        state = decay[:, None, None] * state + dt[t][:, None, None] * x[t][:, :, None] * B[t][:, None, :]
        found.append(np.reshape(np.einsum("hpn,hn->hp", state, C[t]) + D * x[t], -1))
    y = np.stack(found)
    if not cfg.get("rmsnorm", True):
        y = y * silu(z)
    elif cfg.get("norm_before_gate", False):
        y = rms_norm(y, p["norm.weight"], groups) * silu(z)
    else:
        y = rms_norm(y * silu(z), p["norm.weight"], groups)
    return np.concatenate([silu(z0) * x0, y], axis=-1) @ p["out_proj.weight"].T + p.get("out_proj.bias", 0.0)
