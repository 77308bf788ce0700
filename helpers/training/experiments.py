"""Choose the model for the experiments of notebook 03: the reader's own, or the shipped pocket model instead.

The experiments train it many times, for a few steps each. The measured speed of the reader's own run tells how long
that would take, so one rule keeps them to minutes on every machine.
"""

from helpers.data.preparation import sample_settings
from helpers.display import duration_text
from helpers.settings import DataSettings, TrainingSettings
from helpers.training.finished_run import FinishedRun

_STEPS = 64  # in all experiments together, each with its validation
_MAX_EXPERIMENT_SECONDS = 300
_TOKENS = 200_000  # of the reader's text, enough for a few steps
_NOT_COPIED = {"run", "model_name_or_path", "tokenizer", "vocab_size", "block_size", "streaming", "max_tokens"}


def choose_experiment(settings: TrainingSettings, trained: FinishedRun) -> tuple[TrainingSettings, str]:
    """Return the settings of the run for the experiments, and a sentence that gives the reason.

    The pocket model, with its own defaults and on the beginning of the reader's text, is used if the reader's model
    would take more than five minutes, and for an adapter or another optimizer, which need a different training loop.
    """
    seconds = trained.facts["seconds"] / trained.facts["steps"] * _STEPS
    name = f"{settings.run[:53]}-experiment"  # a name has at most 64 characters
    is_pocket = settings.model_name_or_path == "pocket" and not settings.from_scratch
    if settings.lora_r or settings.optim != "adamw_torch_fused":
        why = "Adapters and other optimizers need a different training loop"
    elif seconds > _MAX_EXPERIMENT_SECONDS and not is_pocket:
        why = f"At the speed of your run the experiments below would take {duration_text(seconds)}"
    elif settings.streaming:  # a stream is endless, but the experiments' loops read all rows
        experiment = sample_settings(settings).model_copy(update={"run": name})
        return experiment, "The experiments below train your model on the beginning of your text."
    else:
        return settings, "The experiments below train your model on your text."
    text_settings = {name: getattr(settings, name) for name in DataSettings.model_fields.keys() - _NOT_COPIED}
    experiment = TrainingSettings(
        run=name,
        block_size=min(settings.block_size, TrainingSettings().block_size),
        max_tokens=min(settings.max_tokens or _TOKENS, _TOKENS),
        **text_settings,
    )
    return experiment, f"{why}: up to the exercises the pocket model is trained instead, on the beginning of your text."
