"""Write a tiny checkpoint and its logits and greedy tokens by HF transformers, for the tests that run without it.

Needs PyTorch and transformers. Run as `PYTHONPATH=tests python tests/golden/make_mamba2.py`.
"""

import pathlib

import numpy as np
import torch
import transformers
from mamba2_numpy import CONFIG, random_parameters


FOLDER = pathlib.Path(__file__).parent
LENGTHS = (1, 2, 3, 17, 255, 256, 257, 611)
CONFIGURATION = CONFIG | {"n_groups": 2, "use_bias": True, "head_dim": 16, "num_heads": 4, "chunk_size": 64}


def main():
    """Logits after every token of short sequences, after the last one of long sequences."""
    model = transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(**CONFIGURATION, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    ).eval()
    parameters = random_parameters(CONFIGURATION, seed=2)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()}, strict=True)
    model.save_pretrained(FOLDER / "mamba2")
    (FOLDER / "mamba2" / "generation_config.json").unlink(missing_ok=True)

    tokens = np.random.default_rng(3).integers(0, CONFIGURATION["vocab_size"], max(LENGTHS))
    arrays = {"tokens": tokens.astype(np.uint8)}
    with torch.no_grad():
        for length in LENGTHS:
            logits = model(torch.from_numpy(tokens[None, :length]), use_cache=False).logits[0].numpy()
            arrays[f"logits_{length}"] = logits if length <= 17 else logits[-1:]
        losses = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits[:-1]).double(), torch.from_numpy(tokens[1:]), reduction="sum"
        )
        arrays["nats"] = losses.numpy()
    for length in (1, 17):
        prompt = torch.from_numpy(tokens[None, :length])
        greedy = model.generate(prompt, max_new_tokens=64, do_sample=False)[0, length:].numpy()
        arrays[f"greedy_{length}"] = greedy.astype(np.uint8)
        # no step may be nearly a tie, or another order of summation could choose otherwise
        with torch.no_grad():
            sequence = np.concatenate([tokens[:length], greedy[:-1]])
            logits = model(torch.from_numpy(sequence[None]), use_cache=False).logits[0, length - 1 :]
        first, second = logits.topk(2).values.T
        if not torch.equal(logits.argmax(1), torch.from_numpy(greedy)) or (first - second).min() < 1e-2:
            raise SystemExit("a greedy step is nearly a tie: choose another seed")
    np.savez_compressed(FOLDER / "mamba2_golden.npz", **arrays)


if __name__ == "__main__":
    main()
