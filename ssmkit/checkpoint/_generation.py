"""How a checkpoint is meant to generate: its `generation_config.json`."""

import dataclasses
import math
import os
import pathlib

from .._config import checks_itself
from .._keys import Key, fields_of
from .._kinds import Problems, boolean, integer, optional, real, token_ids
from ._errors import CheckpointError
from ._hub import locate
from ._json import read_json


GENERATION_FILE = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """The settings of a `generation_config.json` that matter here, with the meaning of HF transformers.

    `None` stands for what the file does not say, and for values without effect, such as `top_k` 0 or `top_p` 1.
    """

    eos_token_id: int | tuple[int, ...] | None = None
    """The id that ends a text, or several: often one of a text and one of a turn."""
    do_sample: bool | None = None
    """Whether tokens are chosen at random."""
    temperature: float | None = None
    """The temperature; 0 takes the likeliest token."""
    top_k: int | None = None
    """The number of likeliest tokens among which one is chosen."""
    top_p: float | None = None
    """The probability of the likeliest tokens among which one is chosen."""
    min_p: float | None = None
    """The least probability of a token, as a fraction of that of the likeliest."""
    repetition_penalty: float | None = None
    """Above 1, tokens that have occurred become less likely."""


_KINDS = {
    "eos_token_id": token_ids,
    "do_sample": optional(boolean),
    "temperature": optional(real(lambda x: x == 0 or 1e-6 <= x < math.inf, "0, or a finite number of at least 1e-6")),
    "top_k": optional(integer()),
    "top_p": optional(real(lambda x: 0 < x <= 1, "a number in (0, 1]")),
    "min_p": optional(real(lambda x: 0 <= x <= 1, "a number in [0, 1]")),
    "repetition_penalty": optional(real(lambda x: 0 < x < math.inf, "a finite number above 0")),
}
_TABLE = {name: Key(kind, name, None) for name, kind in _KINDS.items()}
_NEUTRAL = {
    "top_k": lambda value: value <= 0,
    "top_p": lambda value: value == 1,
    "min_p": lambda value: value == 0,
    "repetition_penalty": lambda value: value == 1,
}


@checks_itself
def generation_settings(source: str | os.PathLike[str], *, revision: str | None = None) -> GenerationSettings:
    """Read how a checkpoint is meant to generate.

    **Arguments:**

    - `source`, `revision`: as for `from_pretrained`; also the folder of an exported model.

    **Returns:** the settings; all of them are `None` if there is no `generation_config.json`.

    **Raises:** `CheckpointError` listing every setting that is none.
    """
    return read_generation(locate(source, revision).fetch([GENERATION_FILE]))


def read_generation(folder: pathlib.Path) -> GenerationSettings:
    """As `generation_settings`, of a local folder."""
    path = folder / GENERATION_FILE
    if not path.exists():
        return GenerationSettings()
    try:
        found = fields_of(read_json(path), _TABLE)
    except Problems as problems:
        raise CheckpointError(f"`{path}` holds settings for generation that are none.", problems.lines) from None
    is_neutral = lambda name, value: value is not None and name in _NEUTRAL and _NEUTRAL[name](value)
    return GenerationSettings(**{name: None if is_neutral(name, value) else value for name, value in found.items()})
