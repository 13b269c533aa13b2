"""SentencePiece models (`tokenizer.model`), read and run by the `sentencepiece` library."""

from collections.abc import Iterable
from typing import NamedTuple


class Encoding(NamedTuple):
    """The result of encoding a text."""

    ids: list[int]


class SentencePiece:
    """A SentencePiece model with the methods of `tokenizers.Tokenizer` that `ssmkit.Tokenizer` uses.

    The `sentencepiece` library runs it. Conversions to `tokenizers` give other ids for texts with several spaces,
    unknown characters or user-defined symbols. Control symbols such as `<s>` in a text are never read as control
    symbols.
    """

    def __init__(self, content: bytes, *, begin: bool, end: bool):
        """**Arguments:**

        - `content`: the content of the model's file.
        - `begin`, `end`: whether encoding adds the symbols of the beginning and the end of a text, if the model has
            them.

        **Raises:** any exception of the library for a damaged model, or `ImportError` when the library is missing.
        """
        import sentencepiece

        self.content = content
        self.adds_begin, self.adds_end = begin, end
        self._model = sentencepiece.SentencePieceProcessor()
        self._model.LoadFromSerializedProto(content)
        self._size = self._model.GetPieceSize()
        self._begin = [id for id in (self._model.bos_id(),) if begin and id >= 0]
        self._end = [id for id in (self._model.eos_id(),) if end and id >= 0]

    def get_vocab_size(self) -> int:
        """The number of ids."""
        return self._size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """The ids of a text."""
        ids = self._model.EncodeAsIds(text)
        return Encoding([*self._begin, *ids, *self._end] if add_special_tokens else ids)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids. Control symbols have no text, and ids that the model does not have are left out."""
        del skip_special_tokens
        return self._model.DecodeIds([id for id in ids if id < self._size and not self._model.IsControl(id)])

    def id_to_token(self, id: int) -> str | None:
        """The piece of an id."""
        return self._model.IdToPiece(id) if id < self._size else None

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece."""
        id = self._model.PieceToId(token)  # of the unknown piece, if there is none
        return id if 0 <= id < self._size and self._model.IdToPiece(id) == token else None
