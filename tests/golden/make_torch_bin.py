"""Write `torch.bin`, a real `torch.save` file for the tests that run without PyTorch. Needs PyTorch."""

import pathlib

import torch


def main():
    """A module's `state_dict` (with its `_metadata`), then tensors that are tied, strided, shared, empty and typed."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors = torch.nn.Linear(2, 3).state_dict()
    tensors["weight"], tensors["bias"] = torch.arange(6.0).reshape(3, 2), torch.arange(3.0)
    tensors |= {
        "tied": tensors["weight"],
        "parameter": torch.nn.Parameter(torch.full((2,), 7.0)),
        "transposed": base.T,
        "window": base[1:, 2:4],
        "expanded": base[1:2].expand(3, 6),
        "scalar": torch.tensor(0.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "half": torch.arange(5).to(torch.float16),
        "brain": torch.arange(5).to(torch.bfloat16),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
    }
    torch.save(tensors, pathlib.Path(__file__).with_name("torch.bin"))


if __name__ == "__main__":
    main()
