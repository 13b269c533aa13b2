"""The captured step of a stand-in."""

import numpy as np


class _Parameters:
    def __init__(self, batch):
        self._batch = batch
        self.read = np.zeros((1, 0), np.int64)
        self.seqlen_offset = 0

    def reset(self, longest, batch):
        assert batch == self._batch, "the package's states have the rows for which they were made"
        self.read, self.seqlen_offset = np.zeros((batch, 0), np.int64), 0


class _Graph:
    def __init__(self, model, batch):
        self._model = model
        self.batch = batch
        self.inference_params = _Parameters(batch)

    def run(self, token, positions, position):
        """The logits after one more token. Unlike the package's, a repeated position replaces what came after."""
        assert positions.shape == token.shape and np.all(positions == position)
        self.inference_params.read = self.inference_params.read[:, :position]
        return self._model(token, self.inference_params, num_last_tokens=1).logits


def update_graph_cache(model, graph, batch, time, longest):
    assert longest > time and batch > 0
    return graph if graph is not None and batch <= graph.batch else _Graph(model, batch)
