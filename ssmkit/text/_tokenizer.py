"""Text to token ids and back, through a `tokenizer.json`."""

import functools
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from .._config import checks_itself
from .._files import replacing
from ._chat import ChatFormat
from ._files import contents, read_tokenizer
from ._json import library_errors
from ._pieces import REPLACEMENT, Decoding


if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer

    from ._sentencepiece import SentencePiece

_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST_VOCABULARY = 1_000_000


class Tokenizer:
    """A `tokenizer.json` of the `tokenizers` library, or a SentencePiece model. It follows the rules of its file.

    Every mistake raises `ValueError`: a file that cannot be understood, a text that cannot be encoded, or invalid ids.
    If the underlying library panics, it writes its own lines to standard error before the error is raised.
    """

    def __init__(self, raw: "RawTokenizer | SentencePiece", chat: ChatFormat = ChatFormat()):  # noqa: B008 (immutable)
        """**Arguments:**

        - `raw`: a `tokenizers.Tokenizer`.
        - `chat`: how conversations are written; the default has no chat template.
        """
        self._raw, self._chat = raw, chat

    @classmethod
    @checks_itself
    def from_file(cls, source: str | os.PathLike[str], *, revision: str | None = None) -> "Tokenizer":
        """Read a `tokenizer.json`, without its truncation and padding.

        SentencePiece models (`tokenizer.model`, also Mistral's `tokenizer.model.v3` and the like) are read too, with
        the `sentencepiece` library: `pip install 'ssmkit[sentencepiece]'`. The chat templates and named special tokens
        beside the tokenizer are read with it.

        **Arguments:**

        - `source`: the file, its folder, or the id of a model on the Hugging Face hub. A `tokenizer.json` is preferred.
        - `revision`: a branch, tag or commit of a model on the hub; `None` for its main branch.

        **Raises:** `OSError` when the file does not exist, is not a regular file or is larger than 256 MiB;
        `ValueError` when it cannot be fetched or understood.
        """
        return cls(*read_tokenizer(source, revision))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE tokenizer: it can encode every text, and decoding returns the text exactly.

        No token has more than 256 bytes, so that training on a text without spaces is as quick as on any other.

        **Arguments:**

        - `texts`: the training text.
        - `vocab_size`: at least 256, for the bytes themselves, and at most 1,000,000. The tokenizer has fewer ids if
            the text has too few pairs.

        **Raises:** `ValueError` for another size, and for arguments that are not text.
        """
        from tokenizers import Regex, Tokenizer as RawTokenizer, decoders, models, pre_tokenizers, trainers

        if not 256 <= vocab_size <= _LARGEST_VOCABULARY:
            raise ValueError(
                f"`vocab_size` must be at least 256 (the bytes themselves) and at most {_LARGEST_VOCABULARY:,}, got "
                f"{str(vocab_size)[:50]}."
            )
        raw, words = RawTokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
        # The cost of a pair is proportional to the length of its word.
        short = pre_tokenizers.Split(Regex(".{1,256}"), "isolated")
        raw.pre_tokenizer = pre_tokenizers.Sequence([words, short])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        with library_errors("no tokenizer can be trained on these texts"):
            raw.train_from_iterator(texts, trainer)
        raw.pre_tokenizer, raw.decoder = words, decoders.ByteLevel()
        return cls(raw)

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return self._raw.get_vocab_size()

    @checks_itself
    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text.

        **Arguments:**

        - `text`: any text.
        - `special`: whether to add the special tokens that the tokenizer puts around a text, such as a beginning of
            text. Special tokens that are written in the text itself are always encoded.

        **Raises:** `ValueError` when the text cannot be encoded.
        """
        if not isinstance(text, str):
            raise ValueError(f"`text` must be a string, got {type(text).__name__}.")
        if half := _SURROGATE.search(text):
            raise ValueError(f"`text` is not Unicode text: half a character (a surrogate) stands at {half.start()}.")
        with library_errors("the tokenizer cannot encode this text"):
            return self._raw.encode(text, add_special_tokens=special).ids

    @checks_itself
    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of ids. Special tokens, and ids that the tokenizer does not have, are left out.

        **Raises:** `ValueError` for invalid ids.
        """
        return self._decode(_checked(tokens))

    def _decode(self, ids: list[int], *, special: bool = False) -> str:
        with library_errors("the tokenizer cannot decode these ids"):
            return self._raw.decode(ids, skip_special_tokens=not special)

    @checks_itself
    def decode_stream(self, tokens: Iterable[SupportsIndex], *, after: Iterable[SupportsIndex] = ()) -> Iterator[str]:
        """Decode a stream of ids to pieces of text that never split a character.

        Law: `decode(after) + "".join(decode_stream(tokens, after=after)) == decode(after + tokens)`, if `after` ends
        with a whole character. It holds for every tokenizer whose decoder never changes text that it has written, such
        as all byte-level tokenizers.

        **Arguments:**

        - `tokens`: the ids.
        - `after`: ids before the first of them, such as a prompt's: some decoders drop the space that a text begins
            with.
        """
        decoding = self.decoding(after)
        for token in tokens:
            (id,) = _checked([token])
            if piece := decoding.push(id):
                yield piece
        if rest := decoding.end():
            yield rest

    def decoding(self, after: Iterable[SupportsIndex] = ()) -> Decoding:
        """As `decode_stream`, for ids that the caller pushes."""
        return Decoding(self._decode, _checked(after))

    @checks_itself
    def byte_length(self, token: int) -> int:
        """The number of UTF-8 bytes of one id, even if they are only a part of a character.

        This is the length of the id inside a text. If a tokenizer writes spaces into its words (`▁the`), the space
        counts, although the first word of a text may have no space. The lengths of all ids of a text then add up to the
        length of the text plus this space.
        """
        (id,) = _checked([token])
        piece = self._raw.id_to_token(id) or ""
        text = self._decode([id], special=True)
        if REPLACEMENT in text and REPLACEMENT not in piece:
            # One byte is one letter of a byte-level vocabulary, or one entry such as `<0xE2>` of the others.
            return 1 if re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece) else len(piece)
        before = self._before or [id]
        return len(self._decode([*before, id], special=True).encode()) - len(
            self._decode(before, special=True).encode()
        )

    @functools.cached_property
    def _before(self) -> list[int]:
        """Ids of a text after which decoders write further ids as inside a text; no ids if it cannot be encoded."""
        try:
            return self.encode("a", special=False)
        except ValueError:
            return []

    @checks_itself
    def written(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of ids with their special tokens, which `decode` leaves out. A part of a character is U+FFFD.

        **Raises:** `ValueError` for invalid ids.
        """
        return self._decode(_checked(tokens), special=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token written as in the vocabulary, such as `<|endoftext|>`; `None` if there is none."""
        with library_errors("`token` must be a string of Unicode text"):
            return self._raw.token_to_id(token)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The special tokens that have a name, such as `bos_token`, by `tokenizer_config.json`."""
        return self._chat.special_tokens

    @property
    def chat_template(self) -> str | None:
        """The chat template, a text in the language of jinja2; `None` if there is none."""
        return self._chat.template

    @checks_itself
    def with_chat_template(self, template: str) -> "Tokenizer":
        """The same tokenizer with another chat template, such as the text of a file."""
        return Tokenizer(self._raw, self._chat.with_template(template))

    @checks_itself
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """Write a conversation as the model was trained to read it: the text that HF transformers makes of it.

        The template runs in the sandbox of jinja2, in a process of its own, with bounds on time (20 seconds) and memory
        (2 GiB). Encode the text with `special=False`, because a template writes special tokens itself; `encode_chat`
        does so.

        **Arguments:**

        - `messages`: the messages, for example `[{"role": "user", "content": "Hello"}]`.
        - `add_generation_prompt`: whether the text ends with the beginning of an answer.
        - `tools`: the JSON schemas of functions that the model may call.
        - `chat_template`: a template, or the name of one of the tokenizer's. `None` takes the one called `tool_use` if
            there are `tools`, and else the default.
        - `variables`: further variables of the template, such as `enable_thinking=False`. They replace special tokens
            of the same name.

        **Returns:** the text.

        **Raises:** `ValueError` when there is no template, or when the template refuses the conversation, is damaged,
        does what the sandbox forbids, or exceeds its bounds.
        """
        prompt = bool(add_generation_prompt)
        return self._chat.text(messages, prompt=prompt, tools=tools, template=chat_template, variables=variables)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> list[int]:
        """The ids of a conversation: those of `apply_chat_template`, with only the special tokens that it writes.

        **Arguments:**

        - `messages`: the messages.
        - `settings`: the other arguments of `apply_chat_template`.

        **Raises:** `ValueError`, as `apply_chat_template` and `encode`.
        """
        return self.encode(self.apply_chat_template(messages, **settings), special=False)

    def files(self) -> dict[str, bytes]:
        """The contents of the files that `save` writes into a folder, by their names; the tokenizer itself is first.

        **Raises:** `ValueError` when the tokenizer cannot be written.
        """
        with library_errors("the tokenizer cannot be written"):
            return contents(self._raw, self._chat)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `from_file` reads: a `tokenizer.json`, or the unchanged SentencePiece model.

        **Arguments:**

        - `path`: a file, replaced when it is written in full, or a folder that exists. A folder gets the chat template
            and the special tokens too.

        **Raises:** `OSError` when the file cannot be written, `ValueError` for a SentencePiece model and `.json`.
        """
        files, path = self.files(), Path(path)
        if path.is_dir():
            files = {path / name: content for name, content in files.items()}
        else:
            name, content = next(iter(files.items()))
            if name.endswith(".model") and ".model" not in path.name:
                raise ValueError(f"{path} would hold a SentencePiece model: name it {name}, or name a folder.")
            files = {path: content}
        for file, content in files.items():
            with replacing(file) as temporary:
                temporary.write_bytes(content)


def _checked(tokens: Any) -> list[int]:
    """Convert ids to Python integers.

    **Raises:** `ValueError` for invalid ids.
    """
    try:
        ids = [operator.index(token) for token in tokens]
    except TypeError:
        raise ValueError("`tokens` must be token ids: integers, such as a row of `generate`'s tokens.") from None
    if ids and not 0 <= min(ids) <= max(ids) < 2**32:
        raise ValueError(f"`tokens` must be token ids from 0 to 2**32 - 1, got ids from {min(ids)} to {max(ids)}.")
    return ids
