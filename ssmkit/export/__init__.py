"""Models as artefacts that run without the model's Python code: StableHLO, weights and a manifest."""

from ._audit import foreign_operations as foreign_operations
from ._load import is_exported as is_exported, load_exported as load_exported
from ._model import ExportedModel as ExportedModel
from ._save import save_exported as save_exported
