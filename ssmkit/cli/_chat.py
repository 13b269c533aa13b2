"""`ssmkit chat`."""

import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import aligned
from ._models import device_name, enable_compilation_cache, load_model, load_tokenizer
from ._options import DTypeOption, ModelOption, QuantizeOption, RevisionOption, TokenizerOption, TokenizerRevisionOption
from ._prompts import unescaped
from ._sampling import (
    MinPOption,
    RepetitionPenaltyOption,
    SamplingOptions,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    settings_of,
    stop_texts,
    stop_tokens,
)
from ._streams import input_lines, tell


if TYPE_CHECKING:
    from .. import Chat, ChatCounts, Stream
    from ..text._tokenizer import Tokenizer


def chat(
    model: ModelOption = None,
    revision: RevisionOption = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system message, before the first turn.", show_default="none")
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="How turns become text, in jinja2.", show_default="the tokenizer's own"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most new tokens of an answer.")] = 512,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    tokenizer: TokenizerOption = None,
    tokenizer_revision: TokenizerRevisionOption = None,
    dtype: DTypeOption = None,
    quantize: QuantizeOption = None,
) -> None:
    r"""Talk with a model.

    Each line is a turn; `\n` and `\t` are escapes. Answers are written as they are generated. Lines that begin with a
    slash are commands: /reset, /system TEXT, /stats, /help and /exit. Ctrl-D leaves too. On a terminal, Ctrl-C ends an
    answer, and a second Ctrl-C forgets the turn.
    """
    enable_compilation_cache()
    options = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty)
    options.check()
    stops = stop_texts(stop)
    words = _with_template(load_tokenizer(model, revision, tokenizer, tokenizer_revision), model, chat_template)
    import jax

    from .. import Chat, chat_stop_tokens

    loaded = load_model(model, revision, dtype, quantize)
    settings = settings_of(model, revision)
    chosen = options.completed(settings)
    seed = random.randrange(2**32) if seed is None else seed
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    session = _Session(
        Chat(
            loaded,
            words,
            messages=_beginning(system),
            max_new_tokens=max_new_tokens,
            sampler=chosen.sampler(),
            stop_token=stop_tokens(words, stops, tuple(chat_stop_tokens(loaded, words))),
            stop_text=stops,
            key=jax.random.key(seed),
        ),
        _stopped_by_interrupt if is_terminal else lambda _: contextlib.nullcontext(),
    )
    used_seed = {} if chosen.temperature == 0.0 else {"seed": str(seed)}
    about = {"device": device_name()} | chosen.told(options, settings) | used_seed
    if is_terminal:
        tell(aligned(about) + "\nCtrl-D or /exit leaves, /help lists the commands.")
    for line in _typed() if is_terminal else input_lines():
        try:
            if not session.take(line):
                break
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            tell("\nThis turn is forgotten.")
        except (ValueError, FloatingPointError) as error:
            if not is_terminal:
                raise
            tell(f"error: {error}")
    if not is_terminal:
        tell(aligned(session.statistics() | about))


def _with_template(words: "Tokenizer", model: str | None, file: str | None) -> "Tokenizer":
    """**Raises:** `ValueError` when neither the tokenizer nor the user has a template."""
    from ..text._chat import read_template

    if file is not None:
        return words.with_chat_template(read_template(Path(file)))
    if words.chat_template is None:
        name = "the embedded model" if model is None else f"`{model}`"
        raise ValueError(f"{name} has no chat template, which says how turns become text: pass --chat-template FILE")
    return words


def _beginning(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": unescaped(system)}]


def _typed() -> Iterator[str]:
    """The lines that a user types at a prompt, until the end of input."""
    try:
        import readline  # noqa: F401 (lets `input` edit lines)
    except ImportError:
        pass
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


@contextlib.contextmanager
def _stopped_by_interrupt(stream: "Stream") -> Iterator[None]:
    """The first Ctrl-C ends the stream with the tokens so far; a second one is a `KeyboardInterrupt`."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        stream.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Session:
    """A chat, what it took, and the commands that a user can type."""

    def __init__(self, chat: "Chat", guard: Callable[["Stream"], contextlib.AbstractContextManager[None]]):
        """**Arguments:** `guard`: the context in which an answer is streamed."""
        self._chat, self._guard = chat, guard
        self._seconds = [0.0, 0.0]  # of the last answer, and of all of them
        self._commands: dict[str, Callable[[str], bool]] = {
            "/reset": self._reset,
            "/system": self._system,
            "/stats": self._stats,
            "/help": self._help,
            "/exit": lambda _: False,
        }

    def take(self, line: str) -> bool:
        """Run a command, or send a message and write the answer.

        **Returns:** whether the session goes on.

        **Raises:** `ValueError` for an unknown command, and when the template refuses the message.
        """
        if not line.strip():
            return True
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            if name not in self._commands:
                raise ValueError(f"{name} is no command: {', '.join(self._commands)}; a space before it sends it")
            return self._commands[name](rest.strip())
        started, last = time.perf_counter(), ""
        stream = self._chat.send(unescaped(line))
        with self._guard(stream):
            for piece in stream:
                last = piece
                _write(piece)
        if not last.endswith("\n"):
            _write("\n")
        seconds = time.perf_counter() - started
        self._seconds = [seconds, self._seconds[1] + seconds]
        return True

    def statistics(self) -> dict[str, str]:
        """The numbers of tokens, the speed and the caches, as lines."""
        return {
            "last turn": _counted(self._chat.turn, self._seconds[0]),
            "all turns": _counted(self._chat.total, self._seconds[1]),
            "restarts": str(self._chat.total.restarts),
            "caches": f"{self._chat.cache_bytes:,} bytes",
        }

    def _reset(self, _: str) -> bool:
        self._chat.messages = [message for message in self._chat.messages[:1] if message["role"] == "system"]
        return True

    def _system(self, text: str) -> bool:
        self._reset("")
        self._chat.messages = _beginning(text or None)
        return True

    def _stats(self, _: str) -> bool:
        tell(aligned(self.statistics()))
        return True

    def _help(self, _: str) -> bool:
        tell(aligned(_HELP))
        return True


_HELP = {
    "/reset": "Forget all turns; the system message stays.",
    "/system TEXT": "Forget all turns, and begin with this system message.",
    "/stats": "Tokens prefilled and reused, tokens per second, and the size of the caches.",
    "/exit": "Leave, as Ctrl-D does.",
}


def _counted(counts: "ChatCounts", seconds: float) -> str:
    speed = f", {counts.generated / seconds:.1f} tokens/s" if seconds else ""
    return f"{counts.prefilled} tokens prefilled, {counts.reused} reused, {counts.generated} generated{speed}"


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
