"""One small model of HF transformers, with which this package's own is compared."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Variant(NamedTuple):
    """A model of HF transformers."""

    hf_class: str
    """The name of its class, such as `Lfm2ForCausalLM`; that of its configuration follows."""
    config: dict[str, Any]
    """The arguments of its configuration."""
    mend: Callable[[Any], None] = lambda model: None
    """Mends what this version of HF transformers computes wrongly."""


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 800.0, "factor": 6.0, "original_max_position_embeddings": 100}
"""Scaled rotations; some pairs of 8 features keep their own frequencies."""
