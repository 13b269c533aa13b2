"""SentencePiece models (`tokenizer.model`), read and run by the `sentencepiece` library."""

from collections.abc import Iterable
from typing import NamedTuple


class Encoding(NamedTuple):
    """What encoding gives."""

    ids: list[int]


class SentencePiece:
    """A SentencePiece model with those methods of `tokenizers.Tokenizer` that `ssmkit.Tokenizer` asks for.

    Its own library runs it: conversions to `tokenizers` give other ids where texts have several spaces, unknown
    characters or symbols that users defined. Control symbols such as `<s>` are never read out of a text.
    """

    def __init__(self, content: bytes, *, begin: bool, end: bool):
        """**Arguments:**

        - `content`: of the model's file.
        - `begin`, `end`: whether encoding adds the symbols of the beginning and the end of a text, where it has them.

        **Raises:** whatever the library raises for a damaged model, and when it is not there.
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
        """The text of ids. Control symbols have none, and ids that the model does not have are left out."""
        del skip_special_tokens
        return self._model.DecodeIds([id for id in ids if id < self._size and not self._model.IsControl(id)])

    def id_to_token(self, id: int) -> str | None:
        """The piece of an id."""
        return self._model.IdToPiece(id) if id < self._size else None

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece."""
        id = self._model.PieceToId(token)  # of the unknown piece, if there is none
        return id if 0 <= id < self._size and self._model.IdToPiece(id) == token else None
