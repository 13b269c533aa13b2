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
    """llama.cpp with one context at a time: its memory is made for a number of sequences and of their tokens."""

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
        self._context: Any = None
        self._made_for = 0, 0

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """As `Subject.prefill`."""
        return self._read(tokens, tokens.shape[1])

    def begin(self, prompt: np.ndarray, new: int) -> Any:
        """As `Subject.begin`."""
        return self._read(prompt, prompt.shape[1] + new), prompt.shape[1]

    def decode(self, start: Any, new: int) -> np.ndarray:
        """As `Subject.decode`: the context holds the sequences of the last call of `begin`."""
        logits, position = start
        chosen = np.zeros((len(logits), new), np.int32)
        for i in range(new):
            chosen[:, i] = logits.argmax(-1)
            logits = self._consume(chosen[:, i : i + 1], position + i)
        return chosen

    def _read(self, tokens: np.ndarray, room: int) -> np.ndarray:
        """The logits after prompts, in an empty context with room for so many tokens of each."""
        self._clear(len(tokens), room)
        starts = range(0, tokens.shape[1], _MOST_TOKENS)
        return [self._consume(tokens[:, start : start + _MOST_TOKENS], start) for start in starts][-1]

    def _clear(self, sequences: int, room: int) -> None:
        """Empty the context, or make another if it has too little room, or is for another number of sequences."""
        if self._made_for[0] == sequences and self._made_for[1] >= room:
            _lib.llama_memory_clear(_lib.llama_get_memory(self._context), True)
            return
        if self._context:
            _lib.llama_free(self._context)
        parameters = _lib.llama_context_default_params()
        parameters.n_seq_max = sequences
        parameters.n_ctx = sequences * max(_MOST_TOKENS, 1 << (room - 1).bit_length())
        parameters.n_batch = parameters.n_ubatch = _MOST_TOKENS
        parameters.n_threads = parameters.n_threads_batch = cores()
        self._context = _lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {sequences} sequences of {room} tokens")
        self._made_for = sequences, parameters.n_ctx // sequences

    def _consume(self, tokens: np.ndarray, position: int) -> np.ndarray:
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
            status = _lib.llama_decode(self._context, batch)
            _lib.llama_batch_free(batch)
            if status != 0:
                raise RuntimeError(f"llama.cpp's decode returned {status}")
            for row in range(len(part)):
                found = _lib.llama_get_logits_ith(self._context, row * time + time - 1)
                logits[first + row] = np.ctypeslib.as_array(found, (self._vocab,))
        return logits


@llama_cpp.llama_log_callback
def _silence(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Silence the log of llama.cpp, which would fill the screen."""


def _quiet() -> None:
    _lib.llama_log_set(_silence, ctypes.c_void_p(0))
