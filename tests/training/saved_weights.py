"""The weights that a training has saved."""

import torch
from safetensors.torch import load


def weights(folder):
    """Return the weights in the folder of a model, by name."""
    return load((folder / "model.safetensors").read_bytes())  # not mapped: Windows deletes no mapped file


def same_weights(one, other):
    """Return whether the weights of two models are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
