"""How tokens are chosen, and where a text ends: options, and the settings of a checkpoint in their place."""

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ._prompts import unescaped


if TYPE_CHECKING:
    from .. import AbstractSampler
    from ..checkpoint import GenerationSettings
    from ..text._tokenizer import Tokenizer


_TEMPERATURE = 0.8  # where neither an option nor a file says how tokens are chosen

_BY_FILE = "by generation_config.json, or none"
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        help="0 takes the likeliest token.",
        show_default=f"by generation_config.json, or {_TEMPERATURE}",
    ),
]
TopKOption = Annotated[int | None, typer.Option(help="Choose among the K likeliest tokens.", show_default=_BY_FILE)]
TopPOption = Annotated[
    float | None,
    typer.Option(help="Choose among the likeliest tokens that make up this probability.", show_default=_BY_FILE),
]
MinPOption = Annotated[
    float | None,
    typer.Option(help="Choose among tokens at least this fraction as likely as the likeliest.", show_default=_BY_FILE),
]
RepetitionPenaltyOption = Annotated[
    float | None,
    typer.Option(help="Above 1, tokens that have occurred become less likely.", show_default=_BY_FILE),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, max=2**32 - 1, help="The seed of the random choices.", show_default="a new one")
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help=r"End before this text; `\n` and `\t` are escapes. Can be given more than once."),
]


class SamplingOptions(NamedTuple):
    """The options for sampling; `None` for those that were not given."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None

    def check(self) -> None:
        """**Raises:** `ValueError` naming every option that is out of range."""
        from ..generation._sampling import out_of_range

        given = self._replace(temperature=self.temperature or 1.0)  # 0 stands for the likeliest token
        problems = out_of_range(given, lambda name: f"--{name.replace('_', '-')}", "0 takes the likeliest token")
        if problems:
            raise ValueError("; ".join(problems))

    def completed(self, settings: "GenerationSettings") -> "SamplingOptions":
        """The options, with the settings of a checkpoint in place of those that were not given.

        If the settings say that nothing is random, the temperature is 0, unless an option says otherwise. If neither
        says how tokens are chosen, the temperature is 0.8.
        """
        own = SamplingOptions(*(getattr(settings, name) for name in self._fields))
        if settings.do_sample is False:
            own = own._replace(temperature=0.0)
            if any(value is not None for value in self[:4]):
                own = SamplingOptions(_TEMPERATURE, None, None, None, own.repetition_penalty)
        elif own.temperature is None:
            says_how = settings.do_sample or any(value is not None for value in own[:4])
            own = own._replace(temperature=1.0 if says_how else _TEMPERATURE)
        return own._replace(**{name: value for name, value in self._asdict().items() if value is not None})

    def sampler(self) -> "AbstractSampler":
        """The sampler of completed options. At temperature 0 filters change nothing, but the penalty does."""
        from .. import Greedy, Sampler

        if self.temperature != 0.0:
            filters = self.top_k, self.top_p, self.min_p, self.repetition_penalty
            return Sampler(_TEMPERATURE if self.temperature is None else self.temperature, *filters)
        penalty = self.repetition_penalty
        return Greedy() if penalty is None else Sampler(top_k=1, repetition_penalty=penalty)

    def told(self, given: "SamplingOptions", settings: "GenerationSettings") -> dict[str, str]:
        """The statistics' line about what a checkpoint's file has said; none if it has said nothing.

        **Arguments:**

        - `given`: the options of the user, of which `self` is the completion.
        - `settings`: the settings of the file.
        """
        said = {name: getattr(settings, name) for name in self._fields}
        if settings.do_sample is False:
            said["temperature"] = 0.0
        elif settings.do_sample or any(said[name] is not None for name in self._fields[:4]):
            said["temperature"] = self.temperature
        own = zip(self._fields, self, given, strict=True)
        by_file = [(name, value) for name, value, option in own if option is None and said[name] is not None]
        names = [f"{name} {value:g}" for name, value in by_file if value == said[name]]
        return {"sampling": f"{', '.join(names)} (generation_config.json)"} if names else {}


def stop_texts(stops: list[str] | None) -> list[str]:
    """The texts of `--stop`, with their escapes resolved.

    **Raises:** `ValueError` for an empty text.
    """
    if stops and "" in stops:
        raise ValueError("--stop must be a text of at least one character, got an empty one")
    return [unescaped(stop) for stop in stops or []]


def stop_tokens(words: "Tokenizer", stops: list[str], own: tuple[int, ...]) -> list[int]:
    """The ids to stop at: the model's own stop tokens, and stop texts that are special tokens.

    Decoding leaves special tokens out, so that they would never be found in a text.
    """
    ids = {words.token_id(stop) for stop in stops}
    return sorted(set(own) | {id for id in ids if id is not None and not words.decode([id])})


def settings_of(source: str | None, revision: str | None) -> Any:
    """How the model of `--model` is meant to generate, by the file beside it."""
    from ..checkpoint import generation_settings
    from ._models import or_embedded

    return generation_settings(or_embedded(source), revision=revision)
