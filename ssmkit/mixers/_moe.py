"""Mixtures of experts: MLPs of which each token uses a few."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from .._construction import checks_arguments
from .._sharding import sharded_by_xla
from .._types import PRNGKeyArray
from ..layers._activations import activation_of
from ..layers._array_kinds import ArrayKind
from ..layers._experts import Experts
from ..layers._linear import Linear
from ..layers._routed import routed
from ..layers._router import Router
from ._mlp import MLP, GatedMLP
from ._stateless import AbstractStatelessMixer


class MixtureOfExperts(AbstractStatelessMixer):
    r"""A mixer without a state: $\sum_{e \in E(x)} w_e(x) f_e(x)$, plus an expert that all tokens share.

    A router chooses the experts $E(x)$ of a token and their weights (`ssmkit.layers._router.Router` has the equations).
    An expert $f_e$ is an MLP, gated or not. One token reads only the matrices of its experts. Many tokens, those of all
    rows of a batch included, are sorted by expert, so that each expert's matrices are read once for many tokens; no
    token is dropped. With `latent_size`, the experts act between two projections: $W_2 \sum_e w_e f_e(W_1 x)$. The
    shared expert $f(x)$ is multiplied by $\sigma(v^\top x)$ with `shared_expert_gate`.
    """

    router: Router
    experts: Experts
    latent_in: Annotated[Linear | None, ArrayKind.SHARED]
    latent_out: Annotated[Linear | None, ArrayKind.SHARED]
    shared: MLP | GatedMLP | None
    shared_gate: Annotated[Linear | None, ArrayKind.SHARED]

    @checks_arguments
    def __init__(
        self,
        width: int,
        *,
        num_experts: int,
        num_experts_per_tok: int,
        intermediate_size: int,
        activation: str | Callable[[Array], Array] = "silu",
        gated: bool = True,
        router: str = "softmax",
        use_expert_bias: bool = False,
        n_group: int = 1,
        topk_group: int = 1,
        norm_topk_prob: bool = True,
        norm_topk_eps: float = 1e-20,
        routed_scaling_factor: float = 1.0,
        latent_size: int | None = None,
        shared_intermediate_size: int | None = None,
        shared_expert_gate: bool = False,
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise router, experts and shared expert.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `num_experts`: the number of experts.
        - `num_experts_per_tok`: the number of experts that a token uses.
        - `intermediate_size`: the width of the hidden layer of an expert.
        - `activation`: as for `ssmkit.activation_of`: a name, such as `"relu2"`, or your own function.
        - `gated`: whether the experts, the shared one included, are gated: as `ssmkit.GatedMLP`, or as `ssmkit.MLP`.
        - `router`: the scores of experts: `"softmax"` over all of them, or `"sigmoid"` of each. They are float32.
        - `use_expert_bias`: whether a bias, which starts at zero, is added to the scores for the choice only.
        - `n_group`, `topk_group`: the number of groups of experts, and the number of them to choose from. A group is as
            good as the sum of its two best experts.
        - `norm_topk_prob`: whether the weights of the chosen are divided by their sum. With softmax, this gives a
            softmax over the chosen.
        - `norm_topk_eps`: a number that is added to this sum.
        - `routed_scaling_factor`: the number by which the weights are multiplied.
        - `latent_size`: the width at which the experts act, between two projections; `None` for none.
        - `shared_intermediate_size`: the width of the hidden layer of the shared expert; `None` for no such expert.
        - `shared_expert_gate`: whether the output of the shared expert is multiplied by a sigmoid gate.
        - `use_bias`: whether the shared expert and the projections of `latent_size` have biases. The other experts have
            none.
        - `dtype`: the dtype of all matrices except the router's, which is float32.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` naming the argument that is out of range.
        """
        if shared_expert_gate and shared_intermediate_size is None:
            raise ValueError("`shared_expert_gate` must be False without `shared_intermediate_size`, got True.")
        function = activation_of(activation)
        router_key, experts_key, in_key, out_key, shared_key, gate_key = jax.random.split(key, 6)
        self.router = Router(
            width,
            num_experts,
            num_experts_per_tok,
            scores=router,
            use_expert_bias=use_expert_bias,
            n_group=n_group,
            topk_group=topk_group,
            norm_topk_prob=norm_topk_prob,
            norm_topk_eps=norm_topk_eps,
            routed_scaling_factor=routed_scaling_factor,
            key=router_key,
        )
        inner = width if latent_size is None else latent_size
        self.experts = Experts(
            inner, num_experts, intermediate_size, activation=function, gated=gated, dtype=dtype, key=experts_key
        )
        linear = lambda i, o, use_bias, key: Linear(i, o, use_bias=use_bias, dtype=dtype, key=key)
        self.latent_in = self.latent_out = self.shared = self.shared_gate = None
        if latent_size is not None:
            self.latent_in = linear(width, latent_size, use_bias, in_key)
            self.latent_out = linear(latent_size, width, use_bias, out_key)
        if shared_intermediate_size is not None:
            self.shared = (GatedMLP if gated else MLP)(
                width,
                intermediate_size=shared_intermediate_size,
                activation=function,
                use_bias=use_bias,
                dtype=dtype,
                key=shared_key,
            )
        if shared_expert_gate:
            self.shared_gate = linear(width, 1, False, gate_key)

    @sharded_by_xla
    def each(self, x: Float[Array, "*time width"]) -> Float[Array, "*time width"]:
        """As `AbstractStatelessMixer.each`."""
        tokens = jnp.reshape(x, (-1, x.shape[-1]))
        chosen, weights = self.router(tokens)
        inner = tokens if self.latent_in is None else self.latent_in(tokens)
        y = routed(self.experts, inner, chosen, weights)
        y = jnp.reshape(y if self.latent_out is None else self.latent_out(y), x.shape)
        if self.shared is None:
            return y
        shared = self.shared.each(x)
        if self.shared_gate is not None:
            shared = shared * jnp.broadcast_to(jax.nn.sigmoid(self.shared_gate(x)), shared.shape)
        return y + shared
