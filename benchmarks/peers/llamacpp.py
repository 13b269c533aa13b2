"""llama.cpp, by the functions of its Python package that mirror its C interface."""

import ctypes
from typing import Any

import llama_cpp
import numpy as np

from .._checkpoint import Checkpoint
from .._environment import cores
from ._gguf import convert


_lib: Any = llama_cpp  # by its types, its pointers may be null
_MOST_TOKENS = 512  # per call for a prompt, as llama.cpp's own programs do


class Model:
    """llama.cpp with one context per number of sequences, because a context's memory is made for this number."""

    def __init__(self, checkpoint: Checkpoint, *, weights: str = "float32"):
        _quiet()
        _lib.llama_backend_init()
        parameters = _lib.llama_model_default_params()
        # Its matrix products on AMX crash with Q8_0 weights (llama.cpp issue 20824); AVX-512 remains.
        parameters.use_extra_bufts = False
        path = str(convert(checkpoint.directory, weights)).encode()
        self._model = _lib.llama_model_load_from_file(path, parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path.decode()}")
        self._vocab = _lib.llama_vocab_n_tokens(_lib.llama_model_get_vocab(self._model))
        self._contexts: dict[int, Any] = {}

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """As `Subject.prefill`."""
        context = self._fresh(len(tokens))
        starts = range(0, tokens.shape[1], _MOST_TOKENS)
        return [self._consume(context, tokens[:, start : start + _MOST_TOKENS], start) for start in starts][-1]

    def begin(self, prompt: np.ndarray, new: int) -> Any:
        """As `Subject.begin`."""
        return self.prefill(prompt), prompt.shape[1]

    def decode(self, start: Any, new: int) -> np.ndarray:
        """As `Subject.decode`: the context holds the sequences of the last call of `begin`."""
        logits, position = start
        chosen = np.zeros((len(logits), new), np.int32)
        context = self._contexts[len(logits)]
        for i in range(new):
            chosen[:, i] = logits.argmax(-1)
            logits = self._consume(context, chosen[:, i : i + 1], position + i)
        return chosen

    def _fresh(self, sequences: int) -> Any:
        """A new, empty context."""
        if sequences not in self._contexts:
            parameters = _lib.llama_context_default_params()
            parameters.n_seq_max = sequences
            parameters.n_ctx = 1 << 17
            parameters.n_batch = parameters.n_ubatch = _MOST_TOKENS
            parameters.n_threads = parameters.n_threads_batch = cores()
            context = _lib.llama_init_from_model(self._model, parameters)
            if not context:
                raise RuntimeError(f"llama.cpp makes no context for {sequences} sequences")
            self._contexts[sequences] = context
        context = self._contexts[sequences]
        _lib.llama_memory_clear(_lib.llama_get_memory(context), True)
        return context

    def _consume(self, context: Any, tokens: np.ndarray, position: int) -> np.ndarray:
        """The logits after the last of these tokens, for every sequence."""
        rows, time = tokens.shape
        logits = np.empty((rows, self._vocab), np.float32)
        together = max(_MOST_TOKENS // time, 1)  # sequences per call
        for first in range(0, rows, together):
            part = tokens[first : first + together]
            batch = _lib.llama_batch_init(part.size, 0, 1)
            batch.n_tokens = part.size
            for i, token in enumerate(part.ravel()):
                row, column = divmod(i, time)
                batch.token[i], batch.pos[i] = int(token), position + column
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, first + row
                batch.logits[i] = column == time - 1
            status = _lib.llama_decode(context, batch)
            _lib.llama_batch_free(batch)
            if status != 0:
                raise RuntimeError(f"llama.cpp's decode returned {status}")
            for row in range(len(part)):
                found = _lib.llama_get_logits_ith(context, row * time + time - 1)
                logits[first + row] = np.ctypeslib.as_array(found, (self._vocab,))
        return logits


@llama_cpp.llama_log_callback
def _silence(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Silence the log of llama.cpp, which would fill the screen."""


def _quiet() -> None:
    _lib.llama_log_set(_silence, ctypes.c_void_p(0))
