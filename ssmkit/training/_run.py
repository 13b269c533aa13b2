"""From two text files to a model directory that every tool can read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .._files import replacing
from .._language_model import AbstractLanguageModel
from .._text import Tokenizer, read_text
from ..checkpoint import save_pretrained
from ._config import TrainConfig
from ._loop import Progress, check_texts, fit
from ._report import LossCurve


def train_files(
    make_model: Callable[[TrainConfig, int], AbstractLanguageModel],
    config: TrainConfig,
    *,
    train: Path,
    valid: Path,
    out: Path,
    report: Callable[[Progress], None],
) -> AbstractLanguageModel:
    """Train on a UTF-8 text file and save model, tokenizer and loss curve in `out`.

    Interrupted runs continue: call again with the same arguments.

    **Arguments:**

    - `make_model`: the model at step 0, from the configuration and the number of token ids.
    - `config`: the run.
    - `train`, `valid`: text files.
    - `out`: the directory, made if need be. A `tokenizer.json` in it is used; otherwise one is trained.
    - `report`: called with each `Progress`.

    **Returns:** the trained model, also saved in `out` in HF layout.

    **Raises:** `ValueError` for texts that are not UTF-8 or too short, and as `fit`.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: name a directory.")
    texts = {"train": read_text(train), "valid": read_text(valid)}
    tokenizer_path = out / "tokenizer.json"
    if tokenizer_path.exists():
        tokenizer = Tokenizer.from_file(tokenizer_path)
    else:
        tokenizer = Tokenizer.train(texts["train"].splitlines(keepends=True), config.vocab_size)
    tokens = {name: np.asarray(tokenizer.encode(text, special=False), np.int32) for name, text in texts.items()}
    model = make_model(config, tokenizer.vocab_size)
    check_texts(config, **tokens)

    # Nothing was written so far: a mistake leaves no tokenizer behind that a later run would take for its own.
    out.mkdir(parents=True, exist_ok=True)
    if not tokenizer_path.exists():
        with replacing(tokenizer_path) as temporary:
            tokenizer.save(temporary)
    curve = LossCurve(out)

    def record(progress: Progress) -> None:
        curve.append(progress)
        if progress.valid_loss is not None:
            curve.plot()
        report(progress)

    model = fit(model, config, **tokens, directory=out, report=record)
    save_pretrained(model, out, format="hf")
    return model
