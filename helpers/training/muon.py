"""Muon for the blocks' matrices and AdamW for the rest, as one optimizer that the Trainer saves and resumes."""

from typing import TYPE_CHECKING, Any

import torch

from helpers.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


class MuonWithAdamW(torch.optim.Optimizer):
    """Train the blocks' matrices with Muon, and embeddings, biases and norms with AdamW.

    Muon replaces the momentum of a matrix by the nearest matrix whose singular values are all about 1
    (https://kellerjordan.github.io/posts/muon/). Its steps are scaled to match AdamW's, so that the same learning rate
    and weight decay suit both (https://arxiv.org/abs/2502.16982).
    """

    def __init__(self, model: "GPT2LMHeadModel", settings: TrainingSettings) -> None:
        options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        named = list(model.named_parameters())
        muon_names = {name for name, weights in named if weights.ndim == 2 and ".h." in name}
        matrices = [weights for name, weights in named if name in muon_names]
        embeddings = [weights for name, weights in named if weights.ndim == 2 and name not in muon_names]
        vectors = [weights for _, weights in named if weights.ndim == 1]  # the Trainer does not decay these either
        groups = [{"params": embeddings}, {"params": vectors, "weight_decay": 0.0}]
        parts = [
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options),
            torch.optim.AdamW(groups, betas=(0.9, settings.adam_beta2), fused=True, **options),
        ]
        # The groups are the parts' own dicts: a scheduler that changes one changes the part's learning rate.
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts

    def step(self, closure: Any = None) -> None:
        """Update the weights once."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers, for a checkpoint."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore states returned by `state_dict`."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]  # loading made new ones
