"""A training run as a trial of a study: report its losses, and stop a trial that falls behind the others.

A study's worker names the trial in an environment variable of the notebook kernels that it starts. Training in such a
kernel reports each validation loss to the study, which decides whether to prune the trial.
"""

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.training.study_storage import open_storage

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.pruners import BasePruner
    from transformers import TrainerCallback

PLACE = "COURSE_TRIAL"  # environment variable with the trial's place, as JSON: its storage, study and id


class TrialPrunedError(RuntimeError):
    """A study's trial was stopped because its validation loss fell behind the median of the others."""


def pruning_callback(run: str) -> "TrainerCallback | None":
    """Return the callback that reports a run to its study; None if this process is not running a trial of it.

    Training raises `TrialPrunedError` when the study's pruner says so. Losses are compared after the same share of the
    text, so trials with different batch sizes stay comparable.
    """
    place = json.loads(os.environ.get(PLACE) or "{}")
    if place.get("run") != run:
        return None
    from transformers import TrainerCallback

    class Pruning(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trial = trial_at(place) if state.is_world_process_zero else None

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            if self.trial is None or state.global_step >= state.max_steps:
                return
            thousandths_read = round(1000 * state.epoch)  # Optuna's steps are integers
            # A trial that resumes from its checkpoint repeats what it reported after it. Optuna keeps the first value
            # of a step, which is the same, and warns.
            with warnings.catch_warnings(action="ignore"):
                self.trial.report(metrics["eval_loss"], thousandths_read)
            if self.trial.should_prune():
                self.trial.set_user_attr("pruned", state.global_step)
                raise TrialPrunedError(
                    f"The validation loss {metrics['eval_loss']:.3f} at step {state.global_step} is worse than the "
                    "median of the study's other trials at this point: the trial is stopped because `prune` is on."
                )

    return Pruning()


def trial_at(place: dict[str, Any]) -> "Trial":
    """Return the running trial at a place, for reporting losses and asking whether it is pruned."""
    import optuna

    storage = open_storage(place["address"], Path(place["folder"]))
    sampler = optuna.samplers.RandomSampler()  # never used: the trial's values are already chosen
    study = optuna.load_study(study_name=place["study"], storage=storage, pruner=pruner(True), sampler=sampler)
    return optuna.Trial(study, place["trial_id"])


def pruner(prune: bool) -> "BasePruner":
    """Return Optuna's median pruner, which waits for four finished trials, or a pruner that never prunes."""
    from optuna.pruners import MedianPruner, NopPruner

    return MedianPruner(n_startup_trials=4, n_min_trials=3) if prune else NopPruner()
