"""What must run in a process of its own: its memory, or its first time, is what is measured."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ._memory import device_bytes, peak_bytes, reset_peak, resident_bytes
from ._timing import Run, alternate


def run(task: str, environment: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """What a task returns, computed by a fresh Python.

    **Raises:** `SystemExit` with what it wrote when it fails.
    """
    settings = dict(os.environ) | (environment or {})
    if __package__ == "benchmarks":  # from a checkout, wherever the caller stands
        root = str(Path(__file__).resolve().parents[1])
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, [root, settings.get("PYTHONPATH")]))
    words = [sys.executable, "-m", f"{__package__}._worker", task, json.dumps(arguments, default=str)]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{task} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _load(directory: str, weights: str) -> dict[str, Any]:
    """Seconds and peak memory of `from_pretrained`, above what Python and JAX need before."""
    start = time.perf_counter()
    import jax
    import jax.numpy as jnp

    from .peers.ours import Model

    jnp.zeros(()).block_until_ready()
    imported = time.perf_counter()
    reset_peak()
    before = resident_bytes()
    model = Model(Path(directory), weights=weights).model
    jax.block_until_ready(jax.tree.leaves(model))
    loaded = time.perf_counter()
    return {
        "import_s": imported - start,
        "load_s": loaded - imported,
        "peak_bytes": peak_bytes() - before,
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array)),
        **device_bytes(),
    }


def _compile(directory: str, prompt: int, tokens: int, cache: str) -> dict[str, Any]:
    """Seconds of a first prompt and of first tokens, and of the same again: the difference is compilation."""
    import jax
    import numpy as np

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from .peers.ours import Model

    subject = Model(Path(directory))
    ids = np.arange(prompt)[None] % subject.model.vocab_size
    start = subject.begin(ids[:, :1], 0)  # what every program needs at first
    runs = {
        "prompt": Run(lambda given: subject.prefill(ids)),
        "decode": Run(lambda given: subject.decode(start, tokens)),
    }
    times = alternate(runs, 3, warm=True)
    return {f"{name}_s": times[name].seconds[0] - min(times[name].seconds[1:]) for name in runs}


def _train(subject: str, geometry: str, directory: str, batch: int, length: int, repeats: int) -> dict[str, Any]:
    """Seconds of forward and backward passes, their loss and the norm of its gradient, and peak memory.

    Two figures of memory: what was resident at most above what was before the first step, compilation not included; and
    what the compiler plans for arguments, results and temporaries.
    """
    import jax
    import numpy as np

    from . import train
    from ._geometry import GEOMETRIES

    ids = np.random.default_rng(0).integers(0, GEOMETRIES[geometry].vocab_size, (batch, length)).astype(np.int32)
    step, parameters = train.STEPS[subject](Path(directory), batch, length)
    plan = step.memory_analysis()
    tokens = jax.device_put(ids)
    before = resident_bytes()
    reset_peak()
    call = lambda given: jax.block_until_ready(step(parameters, tokens))
    loss, norm = call(None)
    times = alternate({"step": Run(call)}, repeats, warm=True)
    return {
        "seconds": times["step"].seconds,
        "loss": float(loss),
        "gradient_norm": float(norm),
        "peak_bytes": device_bytes().get("peak_bytes_in_use") or peak_bytes() - before,
        "program_bytes": plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes,
    }


_TASKS = {"load": _load, "compile": _compile, "train": _train}


if __name__ == "__main__":
    print(json.dumps(_TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
