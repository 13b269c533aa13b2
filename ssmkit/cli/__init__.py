"""The command line: a file per command, and one place where mistakes become a line and an exit code."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ._bench import bench
from ._convert import convert
from ._export import export
from ._generate import generate
from ._inspect import inspect
from ._score import score
from ._train import train


# Plain text: help and messages read the same on a terminal, in a pipe and in a log.
app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
for _command in (generate, score, inspect, convert, export, train):
    app.command()(_command)
app.add_typer(bench, name="bench")

# The root of the errors that typer raises about arguments; its home depends on the version of typer.
_ArgumentError: type[Exception] = next(
    error for error in typer.BadParameter.__mro__ if error.__name__ == "ClickException"
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(f"ssmkit {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """State-space models: generate, score, inspect, convert, export, train, bench.

    Results go to standard output, everything else to standard error.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    **Arguments:**

    - `arguments`: the words after `ssmkit`; `None` takes them from the command line.

    **Returns:** the exit code: 0; 1 when computing failed; 2 for bad input, after one line on standard error; 130 when
    interrupted. A reader that closes the pipe early is no error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
    except BrokenPipeError:
        _discard_output()
        return 0


def _run(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = 0
        try:
            with command.make_context("ssmkit", words) as context:
                command.invoke(context)
        except typer.Exit as stop:
            code = stop.exit_code
        sys.stdout.flush()
        return code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        raise
    except FloatingPointError as error:
        return _fail(error, 1)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error, 2)
    except ValueError as error:
        return _fail(error, 2)
    except _ArgumentError as error:
        return _fail(getattr(error, "format_message", error.__str__)(), 2)


def _show_warning(message: Warning | str, *place: object, **more: object) -> None:
    """One line, without the place in the source that Python adds."""
    print(f"warning: {message}", file=sys.stderr)


def _fail(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _discard_output() -> None:
    """Nobody reads on: let what is still buffered vanish, so that Python does not complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
