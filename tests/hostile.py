"""Saved checkpoints to be changed, one key at a time."""

import json
import pathlib

import jax
from fuzz_checkpoints import GEOMETRY

from ssmkit import save_pretrained
from ssmkit.models import Mamba, Mamba2, Mamba2Config, MambaConfig


DIALECTS = {
    "mamba2 hf": (Mamba2(Mamba2Config(**GEOMETRY, head_dim=4), key=jax.random.key(0)), "hf"),
    "mamba2 state-spaces": (Mamba2(Mamba2Config(**GEOMETRY, head_dim=4), key=jax.random.key(0)), "state-spaces"),
    "mamba hf": (Mamba(MambaConfig(**GEOMETRY), key=jax.random.key(0)), "hf"),
    "mamba state-spaces": (Mamba(MambaConfig(**GEOMETRY), key=jax.random.key(0)), "state-spaces"),
}


def save(folder: pathlib.Path, dialect: str) -> pathlib.Path:
    model, format = DIALECTS[dialect]
    save_pretrained(model, folder / "model", format=format)
    return folder / "model"


def set_key(folder: pathlib.Path, key: str, text: str) -> None:
    """Put JSON text into `config.json`; a dot leads into `ssm_cfg`."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    place, name = (content["ssm_cfg"], key[8:]) if key.startswith("ssm_cfg.") else (content, key)
    place[name] = "@"
    path.write_text(json.dumps(content).replace('"@"', text))
