r"""The measured geometries, and the cost of one token in each: the definitions of HBU and MFU.

**Bytes** of one decoding step with `batch` sequences: every weight is read once. What is of constant size in a cache,
states and the windows of convolutions, is read once and written once per sequence. What grows with the context, keys
and values, is read once. A tied embedding is read completely, as the head. From an untied embedding a step reads one
row per sequence, which is not counted. Activations are not counted, because they fit into caches. These bytes per
second, as a fraction of a measured bandwidth, are the *hardware bandwidth utilisation*, HBU.

**FLOPs** of one token of a prompt, two per multiply-add: the projections, two for each entry of their matrices; and the
logits, $2 D V$, after the last token only. The fraction of a measured rate of matrix products that these reach is the
*model FLOP utilisation*, MFU: convolutions, recurrences and attention are overhead by that definition.
"""

import dataclasses
import functools
import math
from typing import Any


# The bytes of an element of a weight matrix, and the bytes that are stored beside each row.
STORAGE: dict[str, tuple[float, int]] = {
    "float32": (4, 0),
    "bfloat16": (2, 0),
    "int8": (1, 4),  # a float32 scale per output channel
    "q8_0": (34 / 32, 0),  # llama.cpp: a float16 scale per 32 elements
}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of a language model, taken from the shapes of its arrays: none is made."""

    config: dict[str, Any]
    """The content of its `config.json`, in HF's layout."""

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return self.config["vocab_size"]

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return self.config["hidden_size"]

    @functools.cached_property
    def model(self) -> Any:
        """The model with shapes in place of arrays."""
        from ssmkit.compilation import abstract_model

        return abstract_model(self.config)

    @functools.cached_property
    def _arrays(self) -> list[tuple[Any, Any]]:
        """The kind and the shape of every array."""
        import equinox as eqx
        import jax

        from ssmkit import array_kinds

        shapes = eqx.filter(self.model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        return list(zip(jax.tree.leaves(array_kinds(shapes)), jax.tree.leaves(shapes), strict=True))

    def _of(self, *names: str) -> list[Any]:
        """The shapes of the arrays of these kinds."""
        return [array for kind, array in self._arrays if kind.name in names]

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head."""
        return not self._of("HEAD")

    @property
    def projections(self) -> list[tuple[int, ...]]:
        """The shapes of all matrices but the embedding and the head; the last axis is that of the inputs."""
        return [
            array.shape for kind, array in self._arrays if kind.is_matrix and kind.name not in ("EMBEDDING", "HEAD")
        ]

    @property
    def matrices(self) -> list[tuple[int, ...]]:
        """The shapes of the weight matrices of a step."""
        return self.projections + [array.shape for array in self._of("EMBEDDING" if self.tied else "HEAD")]

    @property
    def vector_bytes(self) -> int:
        """The bytes of all other arrays, always float32: norms, decay rates, biases, skips, convolutions."""
        return 4 * sum(array.size for kind, array in self._arrays if not kind.is_matrix)

    def weight_bytes(self, storage: str = "float32") -> int:
        """The bytes of the weights that one step reads."""
        element, row = STORAGE[storage]
        matrices = sum(math.prod(shape[:-1]) * (shape[-1] * element + row) for shape in self.matrices)
        return round(matrices) + self.vector_bytes

    @property
    def parameters(self) -> int:
        """The number of parameters, an untied embedding included."""
        return sum(array.size for _, array in self._arrays)

    def cache_bytes(self, context: int = 0) -> int:
        """The bytes of one sequence's cache with room for so many tokens and no more, float32."""
        import equinox as eqx
        import jax

        cache = eqx.filter_eval_shape(lambda: self.model.reserve(self.model.init_cache(), context))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))

    def step_bytes(self, batch: int = 1, storage: str = "float32", context: int = 0) -> int:
        """The least number of bytes that one decoding step after so many tokens moves."""
        return self.weight_bytes(storage) + batch * (self.cache_bytes() + self.cache_bytes(context))

    @property
    def projection_flops(self) -> int:
        """The FLOPs per token of all projections."""
        return 2 * sum(math.prod(shape) for shape in self.projections)

    @property
    def logit_flops(self) -> int:
        """The FLOPs per token whose logits are computed."""
        return 2 * self.vocab_size * self.hidden_size

    def prefill_flops(self, tokens: int, batch: int = 1) -> int:
        """The FLOPs that MFU counts for a batch of prompts: projections, and the logits after each prompt."""
        return batch * (tokens * self.projection_flops + self.logit_flops)


def _geometry(model_type: str, **keys: Any) -> Geometry:
    """With a tied head, unless the keys say otherwise, and no token that ends a text: all decode equally long."""
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return Geometry({"model_type": model_type, "tie_word_embeddings": True} | ends | keys)


def _mamba2(vocab_size: int, hidden_size: int, num_hidden_layers: int, **keys: Any) -> Geometry:
    """By default, with heads of 64 channels, states of 128 per channel, and one group of B and C."""
    sizes = {"vocab_size": vocab_size, "hidden_size": hidden_size, "num_hidden_layers": num_hidden_layers}
    keys = {"head_dim": 64, "state_size": 128, "n_groups": 1, "expand": 2, "conv_kernel": 4} | sizes | keys
    return _geometry("mamba2", num_heads=keys["expand"] * hidden_size // keys["head_dim"], **keys)


def _lfm2(attention: tuple[int, ...], num_hidden_layers: int, **keys: Any) -> Geometry:
    """With attention in these layers, and short convolutions in the others."""
    layers = ["full_attention" if i in attention else "conv" for i in range(num_hidden_layers)]
    return _geometry("lfm2", num_hidden_layers=num_hidden_layers, layer_types=layers, **keys)


def _falcon_h1(num_hidden_layers: int, **keys: Any) -> Geometry:
    """With states of 64 per channel, and one group of B and C."""
    keys = {"mamba_d_state": 64, "mamba_n_groups": 1, "mamba_rms_norm": False, "rope_theta": 1e11} | keys
    return _geometry("falcon_h1", num_hidden_layers=num_hidden_layers, **keys)


def _granite(attention: tuple[int, ...], num_hidden_layers: int, **keys: Any) -> Geometry:
    """With attention without positions in these layers, Mamba-2 in the others, and no experts."""
    layers = ["attention" if i in attention else "mamba" for i in range(num_hidden_layers)]
    keys = {"position_embedding_type": "nope", "num_local_experts": 0, "rms_norm_eps": 1e-5} | keys
    return _geometry("granitemoehybrid", num_hidden_layers=num_hidden_layers, layer_types=layers, **keys)


GEOMETRIES: dict[str, Geometry] = {
    "130m": _mamba2(50288, 768, 24),
    "370m": _mamba2(50288, 1024, 48),
    "780m": _mamba2(50288, 1536, 48),
    "1.3b": _mamba2(50288, 2048, 48),
    "2.7b": _mamba2(50288, 2560, 64),
    # Mamba-Codestral-7B-v0.1
    "7b": _mamba2(32768, 4096, 64, n_groups=8, tie_word_embeddings=False),
    "lfm2-350m": _lfm2(
        (2, 5, 8, 10, 12, 14),
        vocab_size=65536,
        hidden_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=6656,
    ),
    # Falcon-H1-Tiny-90M
    "falcon-h1-90m": _falcon_h1(
        24,
        vocab_size=32768,
        hidden_size=512,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=768,
        mamba_d_ssm=768,
        mamba_n_heads=24,
        mamba_d_head=32,
        embedding_multiplier=0.034423828125,
        lm_head_multiplier=0.078125,
    ),
    "granite-4.0-h-350m": _granite(
        (10, 13, 17, 27),
        32,
        vocab_size=100352,
        hidden_size=768,
        num_attention_heads=12,
        num_key_value_heads=4,
        shared_intermediate_size=2048,
        mamba_n_heads=48,
        mamba_d_head=32,
        mamba_d_state=128,
        embedding_multiplier=12,
        residual_multiplier=0.246,
        attention_multiplier=0.015625,
        logits_scaling=3,
    ),
    "10m": _mamba2(4096, 384, 8),  # for training
    "tiny": _mamba2(256, 64, 2, state_size=16, head_dim=16),  # for tests
    "tiny-lfm2": _lfm2(
        (1,),
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        block_multiple_of=32,
    ),
    "tiny-falcon-h1": _falcon_h1(
        2,
        vocab_size=256,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        mamba_d_ssm=96,
        mamba_n_heads=6,
        mamba_d_head=16,
        mamba_n_groups=2,
        mamba_d_state=16,
        embedding_multiplier=5.0,
        lm_head_multiplier=0.3,
        mlp_multipliers=[0.7, 1.4],
        key_multiplier=0.6,
        attention_in_multiplier=0.8,
        attention_out_multiplier=1.2,
        ssm_in_multiplier=1.3,
        ssm_out_multiplier=0.9,
        ssm_multipliers=[0.8, 1.5, 0.7, 1.1, 0.5],
    ),
    "tiny-granite": _granite(
        (1,),
        3,
        vocab_size=256,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        shared_intermediate_size=96,
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=16,
        embedding_multiplier=12,
        residual_multiplier=0.3,
        attention_multiplier=0.2,
        logits_scaling=4,
    ),
}
