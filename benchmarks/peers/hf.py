"""HF transformers, which uses PyTorch operations and no compiled kernels of its own on a CPU."""

import inspect
from typing import Any

import numpy as np
import torch
import transformers

from .._checkpoint import Checkpoint
from .._environment import on_cpu


transformers.logging.set_verbosity_error()  # that optional kernels are missing
transformers.logging.disable_progress_bar()


class Model:
    """A minimal loop of a cached step and an argmax. Without `bare`, it is `generate`, from the prompt on."""

    def __init__(self, checkpoint: Checkpoint, *, weights: str = "float32", bare: bool = True):
        self._device = "cpu" if on_cpu() or not torch.cuda.is_available() else "cuda"
        dtype = getattr(torch, weights)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=dtype)
        self._model = model.eval().to(self._device)
        words = inspect.signature(model.forward).parameters
        self._cache = "cache_params" if "cache_params" in words else "past_key_values"
        self._bare = bare

    @torch.inference_mode()
    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """As `Subject.prefill`: the head sees the last position only."""
        return self._after(self._ids(tokens))[0].float().cpu().numpy()

    @torch.inference_mode()
    def begin(self, prompt: np.ndarray, new: int) -> Any:
        """As `Subject.begin`."""
        inputs = self._ids(prompt)
        if not self._bare:
            return inputs
        return self._after(inputs)

    @torch.inference_mode()
    def decode(self, start: Any, new: int) -> np.ndarray:
        """As `Subject.decode`."""
        if not self._bare:
            settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            whole = self._model.generate(start, attention_mask=torch.ones_like(start), **settings)
            return whole[:, start.shape[1] :].cpu().numpy()
        (logits, cache), chosen = start, []
        for _ in range(new):
            token = logits.argmax(-1, keepdim=True)
            chosen.append(token)
            logits, cache = self._after(token, cache)
        return torch.cat(chosen, dim=1).cpu().numpy()

    def _after(self, inputs: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """The logits after these tokens, and the cache, which families name differently."""
        result = self._model(inputs, use_cache=True, logits_to_keep=1, **{self._cache: cache})
        return result.logits[:, -1], getattr(result, self._cache)

    def _ids(self, tokens: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(tokens, np.int64)).to(self._device)
