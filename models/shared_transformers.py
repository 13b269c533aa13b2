"""Recurrent layers of which several use the same transformers (Zamba2, arXiv 2411.15242)."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._shared_transformer import SharedTransformer, TransformerUse


class SharedTransformerCache(NamedTuple):
    """The cache of layers with shared transformers: that of each layer, and the keys and values of each use."""

    layers: tuple[Any, ...]
    uses: tuple[ssmkit.AttentionState, ...]


class SharedTransformerStack(
    ssmkit.AbstractBlock[SharedTransformerCache], ssmkit.AbstractRecurrentMixer[SharedTransformerCache]
):
    r"""Layers $x \leftarrow x + \operatorname{mixer}(\operatorname{norm}(x + t))$, of which some use a transformer.

    In these, $t$ is the transformer's output for $[x, x_0]$, where $x_0$ is the input of the first layer. In all other
    layers, $t = 0$. The transformers are used in turn, and each is in memory once, however many layers use it. Every
    use has its own adapters, its own projection of the output, and its own keys and values in the cache.
    """

    layers: tuple[ssmkit.ResidualBlock[Any], ...]
    transformers: tuple[SharedTransformer, ...]
    uses: tuple[TransformerUse, ...]
    places: tuple[int, ...] = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        mixers: Sequence[ssmkit.AbstractRecurrentMixer],
        places: Sequence[int],
        num_transformers: int = 1,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_theta: float | None = 10000.0,
        scale: float | None = None,
        intermediate_size: int,
        activation: str | Callable[[Array], Array] = "gelu",
        use_bias: bool = False,
        adapter_rank: int | None = None,
        use_attention_adapters: bool = False,
        norm_eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise everything except the mixers, projections as `ssmkit.Linear`.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `mixers`: the mixers of the layers. In a configuration, each is a table with a name and keywords.
        - `places`: the indices of the layers that use a transformer, increasing.
        - `num_transformers`: the number of transformers; each is used at least once.
        - `num_heads`, `num_kv_heads`, `rope_theta`, `scale`: as for `ssmkit.Attention`.
        - `head_dim`: the number of features per head; `2 * width / num_heads` when `None`.
        - `intermediate_size`, `activation`, `use_bias`: the MLPs, as `ssmkit.GatedMLP`.
        - `adapter_rank`: the rank of the adapters of the MLPs; `None` for no adapters.
        - `use_attention_adapters`: whether queries, keys and values have adapters of this rank too.
        - `norm_eps`: the epsilon of all norms.
        - `dtype`: the dtype of the projections; keys and values are stored in float32.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` or `TypeError` naming the argument that does not fit.
        """
        name = type(self).__name__
        for i, mixer in enumerate(mixers):
            if not isinstance(mixer, ssmkit.AbstractRecurrentMixer) or isinstance(mixer, ssmkit.AbstractBlock):
                got = type(mixer).__name__
                raise TypeError(f"{name}: `mixers[{i}]` must be an `ssmkit.AbstractRecurrentMixer`, got {got}.")
        self.places, last = tuple(places), len(mixers) - 1
        if any(a >= b for a, b in itertools.pairwise((-1, *self.places, last + 1))):
            raise ValueError(f"{name}: `places` must increase and be in [0, {last}], got {self.places}.")
        if num_transformers > len(self.places):
            most = f"at most the {len(self.places)} layers of `places`"
            raise ValueError(f"{name}: `num_transformers` must be {most}, got {num_transformers}.")
        if use_attention_adapters and adapter_rank is None:
            raise ValueError(f"{name}: `use_attention_adapters` needs an `adapter_rank`, got None.")
        if head_dim is None and 2 * width % num_heads != 0:
            need = f"must divide 2 * `width` = {2 * width} where `head_dim` is left out"
            raise ValueError(f"{name}: `num_heads` {need}, got {num_heads}.")
        attention = ssmkit.Attention(
            num_heads,
            2 * width // num_heads if head_dim is None else head_dim,
            num_kv_heads=num_kv_heads,
            rope_theta=rope_theta,
            scale=scale,
        )
        shared_key, own_key = jax.random.split(key)
        mlp = {"intermediate_size": intermediate_size, "activation": activation, "use_bias": use_bias}
        own = {"adapter_rank": adapter_rank, "use_attention_adapters": use_attention_adapters, "dtype": dtype}
        self.layers = tuple(ssmkit.ResidualBlock(ssmkit.RMSNorm(width, eps=norm_eps), mixer) for mixer in mixers)
        self.transformers = tuple(
            SharedTransformer(width, attention, **mlp, norm_eps=norm_eps, dtype=dtype, key=each)
            for each in jax.random.split(shared_key, num_transformers)
        )
        used = itertools.cycle(self.transformers)
        keys = jax.random.split(own_key, len(self.places))
        self.uses = tuple(TransformerUse(width, next(used), **own, key=each) for each in keys)

    def init_cache(self) -> SharedTransformerCache:
        """The empty caches of the layers, and an empty state for every use of a transformer."""
        uses = tuple(self.transformers[0].attention.init_state() for _ in self.places)
        return SharedTransformerCache(tuple(layer.init_cache() for layer in self.layers), uses)

    def reserve(self, cache: SharedTransformerCache, tokens: int) -> SharedTransformerCache:
        """As `AbstractMixer.reserve`."""
        layers = (layer.reserve(own, tokens) for layer, own in zip(self.layers, cache.layers, strict=True))
        uses = (self.transformers[0].attention.reserve(own, tokens) for own in cache.uses)
        return SharedTransformerCache(tuple(layers), tuple(uses))

    def mix(
        self, x: Float[Array, "*time width"], cache: SharedTransformerCache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], SharedTransformerCache]:
        """The equations of the class, for many tokens or for one."""
        first, layers, uses = x, [], []
        shared = zip(self.uses, itertools.cycle(self.transformers), cache.uses, strict=False)
        for i, (layer, own) in enumerate(zip(self.layers, cache.layers, strict=True)):
            inside = x
            if i in self.places:
                use, transformer, state = next(shared)
                both = jnp.concatenate([x, first.astype(x.dtype)], axis=-1)
                seen, state = use.mix(transformer, both, state, advance)
                inside = layer.add(x, seen)
                uses.append(state)
            mixer: Any = layer.mixer  # recurrent, as all are
            branch, own = mixer.mix(layer.norm(inside), own, advance)
            x = layer.add(x, layer.dropout(branch))
            layers.append(own)
        return x, SharedTransformerCache(tuple(layers), tuple(uses))
