"""Notebook 03: plan a run, train it, stop and resume it, and leave a model that loads anywhere."""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "fine_tuning": "FineTuned as_batch chosen_precision fine_tune open_or_train",
        "callbacks": "TrainingBrokenError",
        "cards": "CARDS DEFAULT_CARD GraphicsCard find_card",
        "checkpoints": "last_whole_checkpoint",
        "engine": "equal_results_less_work",
        "plan": "plan_run",
        "model_card": "push_to_hub",
    },
)
