"""An artefact that several modules of tests read."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from helpers import VOCAB

from ssmkit import save_exported
from ssmkit.models import Mamba2, Mamba2Config


LENGTHS = (2, 16)


PROMPTS = [[1, 2, 3], [4], list(range(1, 18)) * 2]
CONFIG = Mamba2Config(
    vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, state_size=4, head_dim=4, chunk_size=4, eos_token_id=3
)


@pytest.fixture(scope="session")
def exported_source():
    """What the artefact is made of."""
    return Mamba2(CONFIG, key=jax.random.key(0))


@pytest.fixture(scope="session")
def artefact(exported_source, tmp_path_factory):
    """A folder that no test may change."""
    folder = tmp_path_factory.mktemp("export") / "model"
    save_exported(exported_source, folder, lengths=LENGTHS)
    return folder


@pytest.fixture
def artefact_copy(artefact, tmp_path):
    """A folder to spoil."""
    return shutil.copytree(artefact, tmp_path / "copy")


def close(got, expected, bound=1e-6):
    return float(jnp.max(jnp.abs(got - expected))) <= bound * float(jnp.max(jnp.abs(expected)))
