"""mamba_ssm, the original implementation: Triton and CUDA kernels, with the decoding step as a CUDA graph."""

from typing import Any

import numpy as np
import torch
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.generation import update_graph_cache

from .._checkpoint import Checkpoint, read_config, read_tensors


class Model:
    """The steps of `MambaLMHeadModel.generate(cg=True)`, with the prompt and the decoding separated."""

    def __init__(self, checkpoint: Checkpoint):
        config = read_config(checkpoint.directory)
        sizes = {"d_state": "state_size", "headdim": "head_dim", "ngroups": "n_groups", "d_conv": "conv_kernel"}
        settings = MambaConfig(
            d_model=config["hidden_size"],
            n_layer=config["num_hidden_layers"],
            vocab_size=config["vocab_size"],
            ssm_cfg={"layer": "Mamba2", "expand": config["expand"]} | {k: config[v] for k, v in sizes.items()},
            rms_norm=True,
            residual_in_fp32=True,
            fused_add_norm=True,
            pad_vocab_size_multiple=1,
            tie_embeddings=config["tie_word_embeddings"],
        )
        self._model: Any = MambaLMHeadModel(settings, device="cuda", dtype=torch.bfloat16)
        tensors = {
            name.replace("backbone.embeddings.", "backbone.embedding."): torch.from_numpy(np.array(tensor))
            for name, tensor in read_tensors(checkpoint.directory)
        }
        tensors.setdefault("lm_head.weight", tensors["backbone.embedding.weight"])
        self._model.load_state_dict(tensors)
        self._model.eval()
        self._graphs: dict[int, Any] = {}

    @torch.inference_mode()
    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """As `Subject.prefill`."""
        return self._model(self._ids(tokens), num_last_tokens=1).logits[:, -1].float().cpu().numpy()

    @torch.inference_mode()
    def begin(self, prompt: np.ndarray, new: int) -> Any:
        """As `Subject.begin`: the graph of a step is captured anew for another number of rows."""
        inputs = self._ids(prompt)
        batch, time = inputs.shape
        longest = time + new + 1
        # The graph of one number of rows does not serve another, and the package makes a new one for more rows only.
        graph = update_graph_cache(self._model, self._graphs.get(batch), batch, time, longest)
        self._graphs = {batch: graph}
        parameters = graph.inference_params
        parameters.reset(longest, batch)
        logits = self._model(inputs, inference_params=parameters, num_last_tokens=1).logits[:, -1]
        parameters.seqlen_offset = time
        torch.cuda.synchronize()
        return logits, graph, time

    @torch.inference_mode()
    def decode(self, start: Any, new: int) -> np.ndarray:
        """As `Subject.decode`."""
        logits, graph, position = start
        chosen = []
        for i in range(new):
            token = logits.argmax(-1, keepdim=True)
            chosen.append(token)
            positions = torch.full_like(token, position + i)
            logits = graph.run(token, positions, position + i)[:, -1]
            graph.inference_params.seqlen_offset += 1
        return torch.cat(chosen, dim=1).cpu().numpy()

    @staticmethod
    def _ids(tokens: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(tokens, np.int64)).cuda()
