"""A conversation with a model, whose cache is kept from turn to turn."""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Generic, NamedTuple

import jax
import numpy as np

from .._arguments import check_model
from .._language_model import AbstractLanguageModel
from .._types import checks_itself, shown
from ..mixers._mixer import Cache
from ..text._tokenizer import Tokenizer
from ._generate import generate
from ._keys import Keys
from ._sampling import AbstractSampler, Greedy
from ._state import Generation
from ._stream import Stream, stream
from ._texts import read_tokenizer


class ChatCounts(NamedTuple):
    """The numbers of tokens of a turn, or of all turns."""

    prefilled: int = 0
    """The tokens of prompts that were consumed."""
    reused: int = 0
    """The tokens of prompts that a kept cache had consumed already."""
    generated: int = 0
    """The tokens of answers, stop tokens included."""
    restarts: int = 0
    """How often no kept cache was the beginning of the conversation, so that it was consumed from its beginning."""


class _State(NamedTuple):
    """What the model has consumed: as text, as ids, and as the cache after them."""

    text: str | None
    """The text of the ids, as a template writes it; `None` if the ids have none."""
    ids: list[int]
    generation: Generation[Any]


class Chat(Generic[Cache]):
    """A conversation, written by the tokenizer's chat template. Each turn consumes its own tokens only.

        chat = ssmkit.Chat(model, tokenizer)
        for piece in chat.send("Hello!"):
            print(piece, end="")

    The template writes the whole conversation at every turn. Two caches are kept: one after the last prompt, and one
    after its answer. The turn continues from the longest of them whose text is the beginning of what is written now. If
    none is, because the template or the user has changed earlier messages, the conversation is consumed from its
    beginning. From then on a third cache is kept, after the last message and before the words by which a template opens
    an answer, because some templates do not repeat these words. The answer is therefore always that to the conversation
    as written.
    """

    messages: list[dict[str, Any]]
    """The messages so far. They may be changed between turns."""
    turn: ChatCounts
    """The numbers of tokens of the last turn."""
    total: ChatCounts
    """The numbers of tokens of all turns."""

    @checks_itself
    def __init__(
        self,
        model: AbstractLanguageModel[Cache],
        tokenizer: Tokenizer,
        *,
        messages: Sequence[Mapping[str, Any]] = (),
        max_new_tokens: int = 512,
        sampler: AbstractSampler = Greedy(),  # noqa: B008 (immutable)
        stop_token: int | Sequence[int] | None = None,
        stop_text: str | Sequence[str] = (),
        key: Keys | None = None,
        variables: Mapping[str, Any] | None = None,
    ):
        """**Arguments:**

        - `model`: any language model.
        - `tokenizer`: a tokenizer with a chat template.
        - `messages`: the beginning of the conversation, such as `[{"role": "system", "content": "Be brief."}]`.
        - `max_new_tokens`: the largest number of tokens of an answer.
        - `sampler`, `stop_text`: as for `generate`. Of an answer that a stop text ends, the white space before it is
            left out of `messages`.
        - `stop_token`: as for `generate`; the default is `chat_stop_tokens(model, tokenizer)`: the model's own stop
            tokens, and the tokenizer's `eos_token`.
        - `key`: a `Sampler` needs it. Turn `i` uses `jax.random.fold_in(key, i)`.
        - `variables`: further arguments of `Tokenizer.apply_chat_template`, such as `{"enable_thinking": False}`.

        **Raises:** `ValueError` naming the argument.
        """
        check_model(model)
        if read_tokenizer(tokenizer) is None or tokenizer.chat_template is None:
            raise ValueError(
                "`tokenizer` must be an `ssmkit.Tokenizer` with a chat template: give it one by "
                f"`tokenizer.with_chat_template(text)`, got {shown(tokenizer)}."
            )
        if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in messages):
            raise ValueError(f"`messages` must be a list of messages, tables with `role`, got {shown(messages)}.")
        stops = chat_stop_tokens(model, tokenizer) if stop_token is None else stop_token
        stops = [stops] if isinstance(stops, int) else list(stops)
        self.messages = [dict(message) for message in messages]
        self.turn, self.total = ChatCounts(), ChatCounts()
        self._model, self._tokenizer, self._key = model, tokenizer, key
        self._asked = {"max_new_tokens": max_new_tokens, "sampler": sampler, "stop_token": stops}
        self._stop_text, self._variables = stop_text, dict(variables or {})
        self._states: list[_State] = []
        self._turns = 0

    @property
    def ids(self) -> list[int]:
        """The ids that the model has consumed up to the end of the last answer."""
        return list(self._states[0].ids) if self._states else []

    @property
    def generation(self) -> Generation[Cache] | None:
        """The generation of the last answer; `None` before the first."""
        return self._states[0].generation if self._states else None

    @property
    def cache_bytes(self) -> int:
        """The size of the kept caches."""
        return sum(leaf.nbytes for state in self._states for leaf in jax.tree.leaves(state.generation.cache))

    @checks_itself
    def send(self, content: str) -> Stream[Cache]:
        """Say something, and stream the answer.

        **Arguments:**

        - `content`: the message of the user.

        **Returns:** the pieces of the answer's text, as `ssmkit.stream` yields them. Both messages belong to the
        conversation once the stream has ended. A stream that is not read to its end leaves no trace; one that was ended
            by `stop` ends the answer there.

        **Raises:** `ValueError` when the template refuses the conversation; and as `ssmkit.stream`.
        """
        if not isinstance(content, str):
            raise ValueError(f"`content` must be a text, got {shown(content)}.")
        said = [*self.messages, {"role": "user", "content": content}]
        kept, counts = self._consumed(said)
        pieces = stream(
            self._model, kept[0].generation, tokenizer=self._tokenizer, stop_text=self._stop_text, **self._asked
        )
        return Stream(lambda goes_on: self._answer(said, kept, counts, pieces, goes_on))

    def _consumed(self, messages: list[dict[str, Any]]) -> tuple[list[_State], ChatCounts]:
        """The states after a conversation, first the one from which its answer is generated."""
        said = self._written(messages)
        start, new = self._beginning(self._states, *said)
        is_restart, kept, prefilled = start is None and bool(self._states), [], len(new)
        if is_restart or self.total.restarts:
            earlier = self._written(messages, add_generation_prompt=False)
            before, between = self._beginning(self._states, *earlier)
            kept = [self._after(before, earlier[0], between)]
            start, new = self._beginning([*kept, *self._states], *said)
            prefilled = len(between) + len(new)
        state = self._after(start, said[0], new)
        counts = ChatCounts(prefilled, max(0, len(state.ids) - prefilled), restarts=int(is_restart))
        return [state, *kept], counts

    def _written(self, messages: list[dict[str, Any]], **settings: Any) -> tuple[str, list[int]]:
        """The text of a conversation, and its ids."""
        text = self._tokenizer.apply_chat_template(messages, **settings, **self._variables)
        return text, self._tokenizer.encode(text, special=False)

    def _after(self, start: _State | None, text: str, new: list[int]) -> _State:
        """The state whose text is `text`, from the one before the ids `new`, or from the beginning."""
        key = None if self._key is None else jax.random.fold_in(self._key, self._turns)
        cache = None if start is None else start.generation.cache
        generation = generate(self._model, [new], 0, self._asked["sampler"], cache=cache, key=key)
        if start is None:
            return _State(text, new, generation)
        rows, earlier = generation.rows, start.generation.rows.history
        if rows.history is not None and earlier is not None:  # the first is of the new tokens only
            rows = dataclasses.replace(rows, history=rows.history | earlier)
        return _State(text, start.ids + new, dataclasses.replace(generation, rows=rows))

    def _beginning(self, states: list[_State], text: str, ids: list[int]) -> tuple[_State | None, list[int]]:
        """The first of `states`, the longest, that is the beginning of a conversation, and the ids that follow it.

        If there is none, `None` and all ids.
        """
        for state in states:
            count = len(state.ids)
            if ids[:count] == state.ids and len(ids) > count:
                return state, ids[count:]
            if state.text is not None and text.startswith(state.text) and (new := self._following(state, text)):
                return state, new
        return None, ids

    def _following(self, state: _State, text: str) -> list[int]:
        """The ids of the rest of a text, encoded as inside of it; none if they cannot be told apart.

        A model rarely writes a text in the tokens that the tokenizer would choose, so that ids differ where texts do
        not. The rest is encoded behind the special token that ended the answer, or else behind a line break or a
        letter, whichever stays a token of its own.
        """
        assert state.text is not None
        rest, last = text[len(state.text) :], state.ids[-1:]
        anchors = ("\n", "a") if self._tokenizer.decode(last) else (self._tokenizer.written(last),)
        for anchor in anchors:
            before, whole = (self._tokenizer.encode(each, special=False) for each in (anchor, anchor + rest))
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return []

    def _answer(
        self,
        said: list[dict[str, Any]],
        kept: list[_State],
        counts: ChatCounts,
        pieces: Stream[Cache],
        goes_on: Callable[[], bool],
    ) -> Generator[str, None, Generation[Cache]]:
        answer = ""
        for (piece,) in pieces:
            answer += piece or ""
            if piece:
                yield piece
            if not goes_on():
                pieces.stop()
        generation, prompt = pieces.generation, kept[0]
        new = np.asarray(generation.tokens)[0, : int(generation.lengths[0])].tolist()
        before, ids = self._tokenizer.written(prompt.ids), prompt.ids + new
        whole = self._tokenizer.written(ids)
        text = prompt.text + whole[len(before) :] if prompt.text is not None and whole.startswith(before) else None
        if bool(generation.finished[0]) and new[-1] not in self._asked["stop_token"]:  # a stop text has ended it
            answer = answer.rstrip()
        self.messages = [*said, {"role": "assistant", "content": answer}]
        self._states = [_State(text, ids, generation), *kept]
        self.turn = counts._replace(generated=len(new))
        self.total = ChatCounts(*map(sum, zip(self.total, self.turn, strict=True)))
        self._turns += 1
        return generation


def chat_stop_tokens(model: Any, tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer: the model's own stop tokens, and the tokenizer's `eos_token`."""
    name = tokenizer.special_tokens.get("eos_token")
    id = None if name is None else tokenizer.token_id(name)
    return sorted({*model.stop_tokens, *([id] if id is not None and id < model.vocab_size else [])})
