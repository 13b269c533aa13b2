"""Time per decoded token by ssmkit and by HF transformers: one process, one CPU, the same weights, the same tokens.

    python -m benchmarks.decode_vs_hf [--geometry 130m] [--tokens 64] [--repeats 5] [--torch-threads N] [--json FILE]

Random float32 weights at the geometry of a published model are written once and read by both. Each consumes a prompt of
16 tokens, and is then timed over greedy decoding alone: ssmkit by `resume`, HF by the barest loop that there is (its
cached step and an argmax) and by its `generate`, prompt included. Unless all three give the same tokens, no figure is
reported. Repeats alternate between the libraries; figures are medians, with the fastest repeat beside them.

Measure on a machine that does nothing else: where another program takes a core, PyTorch's threads wait for each other
many times longer than XLA's, and the comparison says nothing (`--torch-threads 1` avoids that). Needs PyTorch and
transformers.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import ssmkit
from ssmkit.models import Mamba2, Mamba2Config

from ._environment import environment


GEOMETRIES = {
    "130m": Mamba2Config(vocab_size=50288, hidden_size=768, num_hidden_layers=24, tie_word_embeddings=True),
    "370m": Mamba2Config(vocab_size=50288, hidden_size=1024, num_hidden_layers=48, tie_word_embeddings=True),
    "tiny": Mamba2Config(vocab_size=1000, hidden_size=128, num_hidden_layers=3, tie_word_embeddings=True),
}
_PROMPT = 16
_MATRIX = (50288, 768)
_PRODUCTS = 10


def compare(config: Mamba2Config, tokens: int, repeats: int) -> dict[str, Any]:
    """All figures.

    **Raises:** `SystemExit` when the libraries do not generate the same tokens.
    """
    with tempfile.TemporaryDirectory() as directory:
        ssmkit.save_pretrained(Mamba2(config, key=jax.random.key(0)), directory)
        ours = ssmkit.from_pretrained(directory)
        theirs = transformers.Mamba2ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, (1, _PROMPT))

    start = ssmkit.generate(ours, prompt, 0)
    runs = {
        "ssmkit": lambda: _ssmkit(ours, start, tokens),
        "hf": lambda: _hf_loop(theirs, prompt, tokens),
        "hf_generate": lambda: _hf_generate(theirs, prompt, tokens),
    }
    produced = {name: run()[0] for name, run in runs.items()}  # also warms everything up
    for name, got in produced.items():
        if not np.array_equal(got, produced["hf"]):
            first = int(np.argmax(got != produced["hf"]))
            raise SystemExit(f"{name} and hf differ from token {first} on: no speed is reported for different work")

    matrix = np.random.default_rng(1).standard_normal(_MATRIX, np.float32)
    runs |= {"matvec_jax": _matvec_jax(matrix), "matvec_torch": _matvec_torch(matrix)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run()[1])

    median = {name: statistics.median(times) for name, times in seconds.items()}
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(ours) if isinstance(leaf, jax.Array))
    if ours.head is not None:
        nbytes -= ours.embedding.weight.nbytes  # a token reads one row of it
    ceiling = _PRODUCTS * max(matrix.nbytes / median[name] for name in ("matvec_jax", "matvec_torch")) / 1e9
    bandwidth = nbytes / (median["ssmkit"] / tokens) / 1e9
    return {
        "tokens": tokens,
        "distinct_tokens": len(set(produced["hf"].tolist())),
        "ssmkit_ms_per_token": 1e3 * median["ssmkit"] / tokens,
        "hf_ms_per_token": 1e3 * median["hf"] / tokens,
        "hf_generate_ms_per_token": 1e3 * median["hf_generate"] / tokens,
        "ssmkit_fastest_ms_per_token": 1e3 * min(seconds["ssmkit"]) / tokens,
        "hf_fastest_ms_per_token": 1e3 * min(seconds["hf"]) / tokens,
        "hf_generate_fastest_ms_per_token": 1e3 * min(seconds["hf_generate"]) / tokens,
        "ratio": median["hf"] / median["ssmkit"],
        "ratio_of_fastest": min(seconds["hf"]) / min(seconds["ssmkit"]),
        "weight_bytes": nbytes,
        "bandwidth_gb_per_s": bandwidth,
        "matvec_gb_per_s": ceiling,
        "fraction_of_matvec": bandwidth / ceiling,
        "seconds": seconds,
    }


def _timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _ssmkit(model: Mamba2, start: ssmkit.Generation, tokens: int) -> tuple[np.ndarray, float]:
    return _timed(lambda: np.asarray(ssmkit.resume(model, start, tokens).tokens[0]))


@torch.inference_mode()
def _hf_loop(model: Any, prompt: np.ndarray, tokens: int) -> tuple[np.ndarray, float]:
    """One cached step per token, as many as `ssmkit.resume` takes; the prompt is consumed before the clock starts."""
    result = model(torch.from_numpy(prompt), use_cache=True)

    def decode() -> np.ndarray:
        logits, cache, chosen = result.logits[:, -1], result.cache_params, []
        for _ in range(tokens):
            token = logits.argmax(-1, keepdim=True)
            chosen.append(token)
            logits = model(token, cache_params=cache, use_cache=True).logits[:, -1]
        return torch.cat(chosen, dim=1)[0].numpy()

    return _timed(decode)


def _hf_generate(model: Any, prompt: np.ndarray, tokens: int) -> tuple[np.ndarray, float]:
    inputs = torch.from_numpy(prompt)
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(inputs)
    return _timed(lambda: model.generate(inputs, attention_mask=mask, **settings)[0, inputs.shape[1] :].numpy())


def _matvec_jax(matrix: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
    """Products with a vector in the form that XLA does best."""
    weight, vector = jnp.asarray(matrix), jnp.ones(matrix.shape[1])
    product = jax.jit(lambda weight, vector: jnp.einsum("ed,d->e", weight, vector))
    product(weight, vector).block_until_ready()
    return lambda: _timed(lambda: [np.asarray(product(weight, vector)) for _ in range(_PRODUCTS)][-1])


def _matvec_torch(matrix: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
    weight, vector = torch.from_numpy(matrix), torch.ones(matrix.shape[1])
    return lambda: _timed(lambda: [torch.mv(weight, vector).numpy() for _ in range(_PRODUCTS)][-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_vs_hf")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="130m")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch-threads", type=int, metavar="N", help="PyTorch's own choice otherwise")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    if jax.default_backend() != "cpu":
        sys.exit("both libraries must run on the CPU: set JAX_PLATFORMS=cpu")
    if options.torch_threads is not None:
        torch.set_num_threads(options.torch_threads)
    setup = environment("jax", "jaxlib", "torch", "transformers", "numpy")
    setup["torch_threads"] = torch.get_num_threads()
    result = compare(GEOMETRIES[options.geometry], options.tokens, options.repeats)

    print(f"{options.geometry}, float32, batch 1, {options.tokens} tokens after {_PROMPT}, {options.repeats} repeats")
    print(f"the same {result['tokens']} tokens from both, {result['distinct_tokens']} distinct")
    for name, label in (("ssmkit", "ssmkit"), ("hf", "HF, bare loop"), ("hf_generate", "HF, generate")):
        median, fastest = result[f"{name}_ms_per_token"], result[f"{name}_fastest_ms_per_token"]
        print(f"{label:16s} {median:8.2f} ms/token   fastest {fastest:.2f}")
    print(f"HF / ssmkit      {result['ratio']:8.2f}            fastest {result['ratio_of_fastest']:.2f}")
    print(f"weights          {result['weight_bytes'] / 1e6:8.1f} MB read per token")
    print(
        f"ssmkit reads     {result['bandwidth_gb_per_s']:8.2f} GB/s, {result['fraction_of_matvec']:.0%} of what a "
        f"matrix-vector product reaches here, {result['matvec_gb_per_s']:.2f} GB/s"
    )
    print(", ".join(f"{name} {value}" for name, value in setup.items()))
    if options.json is not None:
        content = {"geometry": options.geometry, "repeats": options.repeats, "environment": setup, **result}
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
