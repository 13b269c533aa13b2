"""Damaged caches and sessions."""

import functools
import pathlib

import jax
from fuzz import Kind
from fuzz_checkpoints import header_damage

import ssmkit
from ssmkit.models import Mamba2, Mamba2Config


@functools.cache
def model() -> Mamba2:
    """A small one."""
    config = Mamba2Config(vocab_size=11, hidden_size=8, num_hidden_layers=2, state_size=4, head_dim=4)
    return Mamba2(config, key=jax.random.key(0))


def _session(folder: pathlib.Path) -> pathlib.Path:
    sampler = ssmkit.Sampler(repetition_penalty=1.5)
    generation = ssmkit.generate(model(), [[3, 1, 4], [1], [5, 9]], 4, sampler, key=jax.random.key(1))
    ssmkit.save_cache(generation, folder / "session")
    return folder / "session"


def _cache(folder: pathlib.Path) -> pathlib.Path:
    ssmkit.save_cache(model().init_cache(), folder / "session")
    return folder / "session"


def _read(folder: pathlib.Path) -> object:
    return ssmkit.load_cache(folder / "session", model())


KINDS = [
    Kind("session", _session, _read, header_damage, (ValueError,)),
    Kind("cache", _cache, _read, header_damage, (ValueError,)),
]
