"""`ExportedModel`: an artefact as a language model. The engine, scoring and the command line run it as any model."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._batching import mappable
from .._extent import Extent, extent_of
from .._ids import read_sequence
from .._language_model import AbstractLanguageModel
from .._types import Logits, PRNGKeyArray, Token, Tokens, Valid, check_valid, checks_itself, shown
from ._manifest import Manifest
from ._programs import BATCH


# The cost of one pass over all weights, in tokens. It decides between few long pieces and little padding.
_TURN = 16

Cache = dict[str, Array]


class Programs:
    """The programs of an artefact for one platform. Instances of the same files are equal and share executables."""

    def __init__(self, manifest: Manifest, platform: str, exported: Mapping[str, Any]):
        """**Arguments:**

        - `manifest`: the manifest of the artefact.
        - `platform`: the platform of the programs.
        - `exported`: each `jax.export.Exported`, by name.
        """
        self.manifest = manifest
        self.platform = platform
        self._identity = platform, tuple(sorted((n, file.sha256) for n, file in manifest.programs[platform].items()))
        self._calls = {
            name: program.call
            if name == "init"
            else mappable(program.call, exported[name + BATCH].call, over_shared=_refuse_mapped_weights)
            for name, program in exported.items()
            if not name.endswith(BATCH)
        }

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """A program as a function. Under `jax.vmap`, the program for many sequences runs instead."""
        return self._calls[name]

    def __eq__(self, other: object) -> bool:
        """Whether the files are the same."""
        return isinstance(other, Programs) and self._identity == other._identity

    def __hash__(self) -> int:
        """A hash of the program files."""
        return hash(self._identity)

    def __reduce__(self) -> Any:
        """Refuse pickling, because executables belong to their process.

        **Raises:** `TypeError` always.
        """
        raise TypeError(
            "An exported model cannot be pickled: call `ssmkit.load_exported` in every process that runs it."
        )

    def __deepcopy__(self, memo: Any) -> "Programs":
        """Return the programs themselves, because they never change."""
        return self

    def __repr__(self) -> str:
        """A short description of the programs."""
        return f"<programs for {self.platform}>"


def _refuse_mapped_weights(*_: Any) -> Any:
    raise ValueError("the weights of an exported model cannot be mapped: map over tokens and caches alone.")


class ExportedModel(AbstractLanguageModel[Cache]):
    """A model whose methods are programs of an artefact; `ssmkit.load_exported` makes it. For inference only.

    The cache is a dictionary of arrays.
    """

    vocab_size: int = eqx.field(static=True)
    weights: dict[str, Array]
    programs: Programs = eqx.field(static=True)

    @property
    def config(self) -> Manifest:
        """The manifest of the artefact."""
        return self.programs.manifest

    def init_cache(self) -> Cache:
        """The cache before the first token."""
        return self.programs["init"](self.weights)

    @checks_itself
    def prefill(self, tokens: Tokens, cache: Cache, extent: Extent = Extent()) -> tuple[Logits, Cache]:
        """As `AbstractLanguageModel.prefill`, in padded pieces of one of the exported lengths.

        **Raises:** `ValueError` for starts: the programs of an artefact take one sequence only.
        """
        tokens = self._checked(tokens, cache, "time")
        time = tokens.shape[0]
        length, starts = extent_of(extent, time)
        if starts is not None:
            raise ValueError("`starts` must be None for an exported model, whose programs take one sequence at a time.")
        length = jnp.asarray(time, jnp.int32) if length is None else length
        turns = lambda size: -(-time // size)
        size = min(reversed(self.config.lengths), key=lambda size: turns(size) * (size + _TURN))
        program, count = self.programs[f"prefill_{size}"], turns(size)
        if count == 1:
            return program(self.weights, jnp.pad(tokens, (0, size - time)), cache, length)
        pieces = jnp.reshape(jnp.pad(tokens, (0, count * size - time)), (count, size))

        def turn(carry, inputs):
            logits, cache = carry
            tokens, start = inputs
            valid = jnp.clip(length - start, 0, size)
            new, cache = program(self.weights, tokens, cache, valid)
            return (jnp.where(valid > 0, new, logits), cache), None

        start = jnp.arange(0, count * size, size, dtype=jnp.int32)
        carry, _ = jax.lax.scan(turn, (jnp.zeros(self.vocab_size, self.config.logits), cache), (pieces, start))
        return carry

    @checks_itself
    def step(self, token: Token, cache: Cache, valid: Valid | None = None) -> tuple[Logits, Cache]:
        """As `AbstractLanguageModel.step`."""
        token = self._checked(token, cache)
        return self.programs["step"](self.weights, token, cache, check_valid(True if valid is None else valid))

    @checks_itself
    def forward(
        self,
        tokens: Tokens,
        cache: Cache,
        extent: Extent = Extent(),
        *,
        key: PRNGKeyArray | None = None,  # an artefact has nothing that drops features
    ) -> tuple[Float[Array, "time vocab"], Cache]:
        """As `AbstractLanguageModel.forward`, in pieces of the exported lengths and then token by token.

        **Raises:** `ValueError` for an `extent`: an artefact has no program for it.
        """
        if any(part is not None for part in extent):
            raise ValueError(f"`extent` must be left out for an exported model's `forward`, got {shown(extent)}.")
        tokens, done, found = self._checked(tokens, cache, "time"), 0, []

        def scan(cache, pieces, program):
            cache, logits = jax.lax.scan(lambda cache, piece: program(piece, cache)[::-1], cache, pieces)
            found.append(jnp.reshape(logits, (-1, self.vocab_size)))
            return cache

        for size in reversed(self.config.lengths):
            count = (tokens.shape[0] - done) // size
            if count:
                run = self.programs[f"forward_{size}"]
                pieces = jnp.reshape(tokens[done : done + count * size], (count, size))
                cache = scan(cache, pieces, lambda piece, cache, run=run: run(self.weights, piece, cache))
                done += count * size
        if done < tokens.shape[0]:
            cache = scan(cache, tokens[done:], self.step)
        return jnp.concatenate(found), cache

    def _checked(self, tokens: Any, cache: Any, *axes: str) -> Any:
        """The ids as int32.

        **Raises:** `ValueError` when the ids or the cache are not those of one sequence.
        """
        ids = read_sequence(tokens, *axes)
        expected = {name: (spec.dtype, spec.shape) for name, spec in self.config.cache.items()}
        got = (
            {n: (str(x.dtype), x.shape) for n, x in cache.items()} if isinstance(cache, dict) else type(cache).__name__
        )
        if got != expected:
            raise ValueError(f"`cache` must be as `init_cache()` gives it, {expected}, got {got}.")
        return ids.astype(jnp.int32)
