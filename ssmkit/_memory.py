"""What a device that has too little memory says."""

import contextlib
from collections.abc import Callable, Iterator

import jax


@contextlib.contextmanager
def memory_errors(message: Callable[[Exception], str]) -> Iterator[None]:
    """A context in which XLA's error for too little memory is a `MemoryError` with a message that says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(message(error)) from error
