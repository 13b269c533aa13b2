"""The measurements of `startup` in fresh processes. The module imports nothing heavy, whose time is measured too."""

import time
from typing import Any

from ._memory import device_bytes, peak_bytes, reset_peak, resident_bytes
from ._timing import Run, alternate


def load(directory: str, weights: str) -> dict[str, Any]:
    """The seconds and peak memory of `from_pretrained`, without the memory that Python and JAX used before."""
    start = time.perf_counter()
    import jax
    import jax.numpy as jnp

    import ssmkit

    jnp.zeros(()).block_until_ready()
    imported = time.perf_counter()
    reset_peak()
    before = resident_bytes()
    model = ssmkit.from_pretrained(directory, dtype="float32", quantize=None if weights == "float32" else weights)
    jax.block_until_ready(jax.tree.leaves(model))
    loaded = time.perf_counter()
    return {
        "import_s": imported - start,
        "load_s": loaded - imported,
        "peak_bytes": peak_bytes() - before,
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array)),
        **device_bytes(),
    }


def compile_programs(geometry: str, prompt: int, tokens: int, cache: str) -> dict[str, Any]:
    """The seconds of a first prompt and of first tokens, minus those of a second run: the time of compilation."""
    import jax
    import numpy as np

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from ._checkpoint import checkpoint
    from .peers.ours import Model

    with checkpoint(geometry) as weights:
        subject = Model(weights)
    ids = np.arange(prompt)[None] % subject.model.vocab_size
    start = subject.begin(ids[:, :1], 0)  # what every program needs at first
    runs = {
        "prompt": Run(lambda given: subject.prefill(ids)),
        "decode": Run(lambda given: subject.decode(start, tokens)),
    }
    times = alternate(runs, 3, warm=True)
    return {f"{name}_s": times[name].seconds[0] - min(times[name].seconds[1:]) for name in runs}
