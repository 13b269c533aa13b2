"""The common part of Mamba and Mamba-2."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit
from ssmkit.checkpoint import Kind, integer, only

from ._config import AbstractCheckedConfig, above_0


Cache = TypeVar("Cache")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractMambaConfig(AbstractCheckedConfig):
    """The keys that `MambaConfig` and `Mamba2Config` share; their docstrings describe them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    expand: int | float = 2
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    layer_norm_epsilon: float = 1e-5
    rms_norm: bool = True
    residual_in_fp32: bool = True
    d_intermediate: int = 0
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    pad_vocab_size_multiple: int = 1
    bos_token_id: int | Sequence[int] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | Sequence[int] | None = None

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        return {
            "hidden_act": only("silu", "swish"),
            "d_intermediate": integer(0, 2**31 - 1),
            "layer_norm_epsilon": above_0,
            "time_step_min": above_0,
            "time_step_max": above_0,
        }

    @property
    def padded_vocab_size(self) -> int:
        """The number of rows of the embedding."""
        return padded(self.vocab_size, self.pad_vocab_size_multiple)


def padded(vocab_size: int, pad_vocab_size_multiple: int) -> int:
    """The least multiple that is at least `vocab_size`."""
    return -(-vocab_size // pad_vocab_size_multiple) * pad_vocab_size_multiple


class MambaMLP(ssmkit.AbstractRecurrentMixer[tuple[()]]):
    r"""mamba_ssm's `GatedMLP`, $W_2 (y \odot \operatorname{silu}(g))$ with $[y, g] = W_1 x$, without a state.

    Unlike in `ssmkit.GatedMLP`, one matrix gives both halves, as in the files of mamba_ssm.
    """

    fc1: ssmkit.Linear | ssmkit.Apart
    fc2: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    @ssmkit.checks_arguments
    def __init__(self, width: int, *, intermediate_size: int, dtype: DTypeLike = jnp.float32, key: PRNGKeyArray):
        """Initialise the MLP with `intermediate_size` units, rounded up to a multiple of 128."""
        hidden = -(-intermediate_size // 128) * 128
        key_1, key_2 = jax.random.split(key)
        self.fc1 = ssmkit.Linear(width, 2 * hidden, parts=2 * [ssmkit.Part(hidden, hidden)], dtype=dtype, key=key_1)
        self.fc2 = ssmkit.Linear(hidden, width, dtype=dtype, key=key_2)

    def init_cache(self) -> tuple[()]:
        """The empty cache: there is no state."""
        return ()

    def mix(
        self, x: Float[Array, "*time width"], cache: tuple[()], advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], tuple[()]]:
        """The equation of the class."""
        y, gate = self.fc1.split(x)
        return self.fc2(y * ssmkit.silu(gate)), cache


def language_model_parts(
    config: AbstractMambaConfig,
    mixer: Callable[..., ssmkit.AbstractMixer[Cache]],
    *,
    tied: bool,
    key: PRNGKeyArray,
    dtype: DTypeLike,
) -> tuple[
    ssmkit.Embedding,
    tuple[ssmkit.ResidualBlock[Any], ...],
    ssmkit.RMSNorm | ssmkit.LayerNorm,
    ssmkit.Linear | None,
]:
    """The embedding, blocks, final norm and head, initialised as in the papers' code.

    With `d_intermediate`, the block of every mixer is followed by the block of an MLP.

    `mixer(key=key)` makes a mixer whose last layer is `out_proj`. The weights of `out_proj`, and of the last layer of
    an MLP, are scaled by $1/\\sqrt{layers}$.
    """
    embedding_key, head_key, *keys = jax.random.split(key, config.num_hidden_layers + 2)
    width, rows = config.hidden_size, config.padded_vocab_size
    kind = ssmkit.RMSNorm if config.rms_norm else ssmkit.LayerNorm
    norm = lambda: kind(width, eps=config.layer_norm_epsilon)
    scale = math.sqrt(config.num_hidden_layers)
    scaled = lambda layer: eqx.tree_at(lambda it: it.weight, layer, layer.weight / scale)

    def layers(key: PRNGKeyArray) -> Iterator[ssmkit.AbstractMixer[Any]]:
        layer = mixer(key=key)
        yield eqx.tree_at(lambda it: it.out_proj, layer, replace_fn=scaled)
        if config.d_intermediate != 0:
            mlp = MambaMLP(width, intermediate_size=config.d_intermediate, dtype=dtype, key=jax.random.fold_in(key, 1))
            yield eqx.tree_at(lambda it: it.fc2, mlp, replace_fn=scaled)

    blocks = tuple(
        ssmkit.ResidualBlock(norm(), layer, config.residual_in_fp32) for key in keys for layer in layers(key)
    )
    head = None if tied else ssmkit.Linear(width, rows, dtype=dtype, key=head_key)
    return ssmkit.Embedding(rows, width, dtype=dtype, key=embedding_key), blocks, norm(), head
