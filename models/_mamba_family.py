"""What Mamba and Mamba-2 have in common."""

import abc
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeGuard, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite real number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_range(value: object) -> bool:
    """Whether a value is an increasing pair of numbers, the last of which may be infinite."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    least, most = value
    return is_number(least) and (is_number(most) or most == math.inf) and 0 <= least <= most


# By the type of a field: what it accepts, and how that reads.
_ACCEPTED: dict[object, tuple[Callable[[object], bool], str]] = {
    int: (lambda value: type(value) is int and value >= 1, "an integer, at least 1"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    float: (is_number, "a finite number"),
    int | float: (lambda value: is_number(value) and value > 0, "a number above 0"),
    int | None: (lambda value: type(value) is int and value >= 1, "an integer, at least 1, or None"),
    float | None: (lambda value: is_number(value) and value > 0, "a number above 0, or None"),
    tuple[float, float]: (is_range, "an increasing pair"),
}


Cache = TypeVar("Cache")


FOLLOWS: Any = None  # the default of a size that follows from others where it is left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractMambaConfig(abc.ABC):
    """The keys that `MambaConfig` and `Mamba2Config` share; their docstrings describe them."""

    __no_type_check__ = True  # `_problems` looks at the types too, and lists all that is wrong

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

    def __post_init__(self):
        for field in dataclasses.fields(self):  # a configuration must be hashable
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        problems = self._problems()
        if not problems:
            for name, size in self.implied_sizes().items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, size)
            problems = self.contradictions()
        if problems:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems) + ".")

    @abc.abstractmethod
    def implied_sizes(self) -> dict[str, int]:
        """What the sizes that may be left out follow as, from keys that are right one by one."""

    @abc.abstractmethod
    def contradictions(self) -> list[str]:
        """What is wrong with keys that do not fit each other, one line each; every size is known."""

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        return padded(self.vocab_size, self.pad_vocab_size_multiple)

    def _problems(self) -> list[str]:
        """What is wrong with single keys, one line each."""
        found = []
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(type(token) is int and token >= 0 for token in ids):
                found.append(f"`{name}` must be an id, a tuple of ids, or None, got {value!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is field.default:
                continue
            if field.type in _ACCEPTED and not _ACCEPTED[field.type][0](value):
                found.append(f"`{field.name}` must be {_ACCEPTED[field.type][1]}, got {value!r}")
            elif type(value) is int and value >= 2**31:
                found.append(f"`{field.name}` must be below 2**31, got {value}")
        for name in ("layer_norm_epsilon", "time_step_min", "time_step_max"):
            if is_number(getattr(self, name)) and getattr(self, name) <= 0:
                found.append(f"`{name}` must be above 0, got {getattr(self, name)}")
        if self.hidden_act not in ("silu", "swish"):
            found.append(f"`hidden_act` must be 'silu', got {self.hidden_act!r}")
        return found


def padded(vocab_size: int, pad_vocab_size_multiple: int) -> int:
    """The least multiple that is not below `vocab_size`."""
    return -(-vocab_size // pad_vocab_size_multiple) * pad_vocab_size_multiple


class MambaMLP(ssmkit.AbstractRecurrentMixer[tuple[()]]):
    r"""$W_2 (y \odot \operatorname{silu}(g))$ with $[y, g] = W_1 x$: mamba_ssm's `GatedMLP`, which remembers nothing.

    Unlike in `ssmkit.GatedMLP`, one matrix makes both halves, as in its files.
    """

    fc1: ssmkit.Linear
    fc2: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    @ssmkit.checks_arguments
    def __init__(self, width: int, *, intermediate_size: int, dtype: DTypeLike = jnp.float32, key: PRNGKeyArray):
        """`intermediate_size` units, rounded up to a multiple of 128."""
        hidden = -(-intermediate_size // 128) * 128
        key_1, key_2 = jax.random.split(key)
        self.fc1 = ssmkit.Linear(width, 2 * hidden, dtype=dtype, key=key_1)
        self.fc2 = ssmkit.Linear(hidden, width, dtype=dtype, key=key_2)

    def init_cache(self) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def mix(
        self, x: Float[Array, "*time width"], cache: tuple[()], advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], tuple[()]]:
        """The equation above."""
        y, gate = jnp.split(self.fc1(x), 2, axis=-1)
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
    """Embedding, blocks, final norm and head, initialised as the papers' code.

    With `d_intermediate`, the block of every mixer is followed by one of an MLP.

    `mixer(key=key)` makes one that ends in a layer `out_proj`. Its weight, and that of the layer that an MLP ends in,
    is scaled by $1/\\sqrt{layers}$.
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
