"""The command line: one file per command, and one place that turns errors into a line and an exit code."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ._bench import bench
from ._chat import chat
from ._compile import compile_
from ._convert import convert
from ._export import export
from ._failures import explain
from ._generate import generate
from ._inspect import inspect
from ._score import score
from ._streams import prepare, settle, tell
from ._train import train


# Plain text: help and messages read the same on a terminal, in a pipe and in a log.
app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
_COMPLETE = "_SSMKIT_COMPLETE"
for _command in (generate, chat, score, inspect, convert, export, train):
    app.command()(_command)
app.command("compile")(compile_)
app.add_typer(bench, name="bench")


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
    """State-space models: generate, chat, score, inspect, convert, export, compile, train, bench.

    Results go to standard output, everything else to standard error.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    **Arguments:**

    - `arguments`: the words after `ssmkit`; `None` takes them from the command line.

    **Returns:** the exit code: 0 for success; 1 when the computation failed; 2 for bad input, after one line on
    standard error; 130 when interrupted. A reader that closes the pipe early is not an error.

    **Raises:** any exception that is a bug.
    """
    failure: BaseException | None = None
    code = 0
    try:
        prepare()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _run(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        failure = error
    refused = settle()
    if refused is not None and (failure is None or isinstance(failure, OSError)):
        failure = refused
    if failure is None:
        return code
    explained = explain(failure)
    if explained is None:
        raise failure
    code, message = explained
    if message:
        tell(f"error: {message}")
    return code


def _show_warning(message: Warning | str, *place: object, **more: object) -> None:
    """Show a warning on one line, without the source line that Python adds."""
    tell(f"warning: {message}")


def _run(words: list[str]) -> int:
    if _COMPLETE in os.environ:  # the shell asks what may come next, in variables of its own
        app(prog_name="ssmkit")
    try:
        with typer.main.get_command(app).make_context("ssmkit", words) as context:
            context.command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0
