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
