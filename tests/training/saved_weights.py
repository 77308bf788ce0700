"""Load and compare the weights of saved models."""

import torch
from safetensors.torch import load


def weights(folder):
    """Return the weights in a model folder, by name."""
    return load((folder / "model.safetensors").read_bytes())  # not memory-mapped: Windows cannot delete a mapped file


def same_weights(one, other):
    """Return whether the weights of two models are bit-identical."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
