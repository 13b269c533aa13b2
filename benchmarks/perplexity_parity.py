"""The perplexity of a text by ssmkit and by HF transformers, from the same files. The two must agree.

The text is one sequence of any length for both: each carries its own cache from piece to piece. HF's cache is first
compared with its forward pass without a cache.
"""

import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import transformers

import ssmkit


BAR = 0.0005
_PIECE = 1024
_EXACT = 1e-5


def measure(directory: pathlib.Path | None, text: str) -> dict[str, Any]:
    """Both perplexities and their difference. Weights are float32 in both, however they are stored.

    **Arguments:**

    - `directory`: the folder of the model and its tokenizer; `None` takes the embedded model.
    - `text`: the predicted text.

    **Raises:** `SystemExit` when HF's cache is not exact.
    """
    directory = pathlib.Path(ssmkit.default_model_path()) if directory is None else directory
    tokens = np.asarray(ssmkit.Tokenizer.from_file(directory).encode(text))
    model = ssmkit.from_pretrained(directory, dtype=jnp.float32)
    theirs = transformers.Mamba2ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    error = _cache_error(theirs, tokens[:777])
    if error > _EXACT:
        raise SystemExit(
            f"HF's cached logits differ from its uncached ones by {error:.1e} of the largest: no reference"
        )

    start = time.perf_counter()
    score = ssmkit.score(model, tokens)
    middle = time.perf_counter()
    nats = _hf_nats(theirs, tokens, model.vocab_size)
    end = time.perf_counter()
    expected = math.exp(nats / (len(tokens) - 1))
    return {
        "tokens": score.tokens,
        "ssmkit": score.perplexity,
        "hf": expected,
        "difference": score.perplexity - expected,
        "hf_cache_error": error,
        "ssmkit_seconds": middle - start,
        "hf_seconds": end - middle,
    }


def _hf_nats(theirs: Any, tokens: np.ndarray, vocab_size: int) -> float:
    """The negative log-probability of every token except the first. Padding rows of the vocabulary do not count."""
    inputs, targets = torch.from_numpy(tokens[:-1]), torch.from_numpy(tokens[1:])
    nats, cache = 0.0, None
    for part, following in zip(_pieces(inputs, _PIECE), _pieces(targets, _PIECE), strict=True):
        logits, cache = _advance(theirs, part, cache)
        logits = logits[:, :vocab_size].double()
        nats += torch.nn.functional.cross_entropy(logits, following, reduction="sum").item()
    return nats


def _cache_error(theirs: Any, tokens: np.ndarray) -> float:
    """The distance of HF's logits by pieces from those of a forward pass without a cache, relative to the largest."""
    inputs, cache, cached = torch.from_numpy(tokens), None, []
    for part in _pieces(inputs, 300):
        logits, cache = _advance(theirs, part, cache)
        cached.append(logits)
    with torch.inference_mode():
        whole = theirs(inputs[None], use_cache=False).logits[0]
    return float((torch.cat(cached) - whole).abs().max() / whole.abs().max())


def _advance(theirs: Any, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    with torch.inference_mode():
        result = theirs(tokens[None], cache_params=cache, use_cache=True)
    return result.logits[0], result.cache_params


def _pieces(tokens: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Pieces of `size` tokens. The last piece is longer if a single token would remain.

    HF computes a single token in another way: it does not clip the time step there.
    """
    pieces = list(torch.split(tokens, size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def agrees(result: dict[str, Any]) -> bool:
    """Whether the difference is within the bound."""
    return abs(result["difference"]) <= BAR


def table(result: dict[str, Any]) -> str:
    """The figures, a line for each."""
    return "\n".join(
        [
            f"tokens predicted  {result['tokens']}",
            f"ssmkit            {result['ssmkit']:.6f}   in {result['ssmkit_seconds']:.1f} s",
            f"HF transformers   {result['hf']:.6f}   in {result['hf_seconds']:.1f} s",
            f"difference        {result['difference']:+.6f}   (bar {BAR})",
            f"HF's cached logits are within {result['hf_cache_error']:.1e} of its uncached ones",
        ]
    )
