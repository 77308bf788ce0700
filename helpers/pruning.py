"""Stops a trial that falls behind: a Trainer callback that reports each validation loss to the study it belongs to.

A sweep's worker names the trial in the environment of the kernels that it starts; without that name there is no
callback. Losses are compared where as much of the text was read, so trials of other batch sizes stay comparable.
"""

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback

PLACE = "COURSE_TRIAL"  # the environment variable with a trial's place in its study's storage


class TrialPrunedError(RuntimeError):
    """A trial of a study that was stopped because its validation loss fell behind the median of the others."""


def reporting(run: str) -> "TrainerCallback | None":
    """Return the callback for the trial that this process works for; None where `run` is no such trial.

    Its training raises `TrialPrunedError` once the study's pruner says so.
    """
    place = json.loads(os.environ.get(PLACE) or "{}")
    if place.get("run") != run:
        return None
    from transformers import TrainerCallback

    from helpers.sweep.queue import trial_at

    class Reporting(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trial = trial_at(place) if state.is_world_process_zero else None

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            if self.trial is None or state.global_step >= state.max_steps:
                return
            share = round(1000 * state.epoch)  # thousandths of the text read
            self.trial.report(metrics["eval_loss"], share)
            if self.trial.should_prune():
                self.trial.set_user_attr("pruned", state.global_step)
                raise TrialPrunedError(
                    f"The validation loss {metrics['eval_loss']:.3f} at step {state.global_step} is worse than the "
                    "median of the study's other trials at this point: the trial is stopped, as `prune` asks."
                )

    return Reporting()
