"""Expected exceptions as an exit code and a line. Any other exception is a bug, and keeps its traceback."""

import errno
import os
import sys

import typer

from .._shown import first_line


# The base class of the errors that typer raises about arguments; its module depends on the version of typer.
_ArgumentError: type[Exception] = next(
    error for error in typer.BadParameter.__mro__ if error.__name__ == "ClickException"
)


def explain(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the message for an exception.

    **Arguments:**

    - `error`: the exception that a command raised.

    **Returns:** the code: 0 when the reader of standard output closed it, 1 when the computation failed, 2 for bad
    input or a bad environment, 130 when interrupted. The message may be empty. `None` for a bug.
    """
    if isinstance(error, BrokenPipeError):
        return 0, ""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, ""
    if isinstance(error, SystemExit):  # of a measurement
        return (1, error.code) if isinstance(error.code, str) else (error.code or 0, "")
    if isinstance(error, _ArgumentError):
        return 2, getattr(error, "format_message", error.__str__)()
    if isinstance(error, FloatingPointError):
        return 1, str(error)
    if isinstance(error, MemoryError):
        return 1, f"not enough memory: {first_line(error) or 'nothing is left'}"
    if isinstance(error, OSError):
        return 2, _of_the_system(error)
    if isinstance(error, ValueError):
        return 2, str(error)
    if str(error).startswith("RESOURCE_EXHAUSTED"):  # a code of XLA's interface
        return 1, f"not enough memory: {first_line(error)}"
    reason = _why_no_device()
    return None if reason is None else (2, reason)


# The errors of writing to a stream; errors of writing to a file name the file.
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def _of_the_system(error: OSError) -> str:
    if error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if error.errno in _WRITING:
        return f"standard output: {error.strerror}"
    try:
        os.getcwd()
    except OSError:
        return "the working directory does not exist any more"
    return error.strerror or str(error)


def _why_no_device() -> str | None:
    """Why JAX has no device to compute on, from its exceptions of many kinds; `None` if it has one."""
    jax = sys.modules.get("jax")
    try:
        if jax is not None:
            jax.devices()
        return None
    except Exception as error:
        reason = first_line(error) or type(error).__name__
        return f"JAX has no device to compute on (JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS')!r}): {reason}"
