"""The choice of experts for every token."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._products import product
from .._types import PRNGKeyArray, at_least_float32, check_features, checks_itself, shown


_SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


class Router(eqx.Module):
    r"""The experts of a token with features $x$, and their weights.

    1. Every expert has a score: $s = \mathrm{softmax}(W x)$, or $s = \sigma(W x)$, in float32 or wider.
    2. The experts chosen are those with the largest $s + b$. If experts form groups, only experts of the best groups
       are considered; a group is as good as the sum of its two largest $s + b$.
    3. The weights are the scores $s$ of the chosen, divided by their sum if `norm_topk_prob`, times a constant. With
       softmax, normalised weights are a softmax over the chosen alone.

    Among equals, the first are chosen.
    """

    weight: Float[Array, "experts width"]
    bias: Float[Array, " experts"] | None
    """$b$, which shifts the choice and not the weights. Published models adjust it so that experts are used evenly."""
    scores: str = eqx.field(static=True)
    num_experts_per_tok: int = eqx.field(static=True)
    n_group: int = eqx.field(static=True)
    topk_group: int = eqx.field(static=True)
    norm_topk_prob: bool = eqx.field(static=True)
    norm_topk_eps: float = eqx.field(static=True)
    routed_scaling_factor: float = eqx.field(static=True)

    @checks_itself
    def __init__(
        self,
        width: int,
        num_experts: int,
        num_experts_per_tok: int,
        *,
        scores: str,
        use_expert_bias: bool,
        n_group: int,
        topk_group: int,
        norm_topk_prob: bool,
        norm_topk_eps: float,
        routed_scaling_factor: float,
        key: PRNGKeyArray,
    ):
        """Initialise $W$ as a `Linear`, in float32, and $b$ to zero. The arguments are those of `MixtureOfExperts`."""
        _check_choice(num_experts, num_experts_per_tok, scores, n_group, topk_group)
        bound = width**-0.5
        self.weight = jax.random.uniform(key, (num_experts, width), jnp.float32, -bound, bound)
        self.bias = jnp.zeros((num_experts,), jnp.float32) if use_expert_bias else None
        self.scores = scores
        self.num_experts_per_tok = num_experts_per_tok
        self.n_group, self.topk_group = n_group, topk_group
        self.norm_topk_prob, self.norm_topk_eps = norm_topk_prob, norm_topk_eps
        self.routed_scaling_factor = routed_scaling_factor

    def __call__(
        self, x: Float[Array, "tokens width"]
    ) -> tuple[Int[Array, "tokens chosen"], Float[Array, "tokens chosen"]]:
        """The numbers of the chosen experts of every token, the best first, and their weights."""
        check_features(x, self.weight.shape[-1])
        dtype = at_least_float32(jnp.promote_types(x.dtype, self.weight.dtype))
        scores = _SCORES[self.scores](product("ti,ei->te", x.astype(dtype), self.weight.astype(dtype)))
        merit = jax.lax.stop_gradient(scores)
        if self.bias is not None:
            merit = merit + jnp.broadcast_to(self.bias.astype(dtype), merit.shape)
        chosen = _largest(self._of_best_groups(merit), self.num_experts_per_tok)
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        if self.norm_topk_prob:
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + self.norm_topk_eps)
        return chosen, weights * self.routed_scaling_factor

    def _of_best_groups(self, merit: Float[Array, "tokens experts"]) -> Float[Array, "tokens experts"]:
        """The merits, with minus infinity for the experts of all other groups."""
        if self.topk_group == self.n_group:
            return merit
        groups = jnp.reshape(merit, (merit.shape[0], self.n_group, -1))
        best_two = jnp.take_along_axis(groups, _largest(groups, 2), axis=-1)
        best = _largest(jnp.sum(best_two, axis=-1), self.topk_group)
        kept = jnp.any(best[:, None, :] == jnp.arange(self.n_group, dtype=best.dtype)[None, :, None], axis=-1)
        return jnp.reshape(jnp.where(kept[..., None], groups, -jnp.inf), merit.shape)


def _largest(values: Float[Array, "*axes choices"], count: int) -> Int[Array, "*axes count"]:
    """The positions of the largest values along the last axis, the largest first; among equals, the first.

    XLA's CPU backend sorts, and finds the position of a maximum, several times as slowly as it finds these numbers.
    """
    places, last = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1), values.shape[-1] - 1
    found = []
    for _ in range(count):
        is_largest = values == jnp.max(values, axis=-1, keepdims=True)  # nowhere, if there is a NaN
        found.append(jnp.min(jnp.where(is_largest, places, last), axis=-1))
        values = jnp.where(places == found[-1][..., None], -jnp.inf, values)
    return jnp.stack(found, axis=-1)


def _check_choice(num_experts: int, num_experts_per_tok: int, scores: Any, n_group: int, topk_group: int) -> None:
    if not isinstance(scores, str) or scores not in _SCORES:
        raise ValueError(f"`router` must be one of {', '.join(_SCORES)}, got {shown(scores)}.")
    if num_experts_per_tok > num_experts:
        raise ValueError(
            f"`num_experts_per_tok` must be at most `num_experts`, {num_experts}, got {num_experts_per_tok}."
        )
    if num_experts % n_group != 0:
        raise ValueError(f"`n_group` must divide `num_experts`, {num_experts}, got {n_group}.")
    if topk_group > n_group:
        raise ValueError(f"`topk_group` must be at most `n_group`, {n_group}, got {topk_group}.")
    size = num_experts // n_group
    if topk_group < n_group and size < 2:
        raise ValueError(f"`n_group` must leave 2 experts or more in a group to compare groups, got {size}.")
    if topk_group * size < num_experts_per_tok:
        raise ValueError(
            f"`topk_group` must leave at least `num_experts_per_tok`, {num_experts_per_tok}, experts to choose from, "
            f"got {topk_group} groups of {size}."
        )
