"""Notebook 03: plan a run, train it, stop and resume it, and leave a model that loads anywhere.

- `fine_tuning`, `finished_run`: train a run, resume it, halve a batch that does not fit; open it, with its measurements
- `experiments`: which model the experiments of notebook 03 train
- `arguments`: what the settings mean on this machine, as `TrainingArguments`
- `callbacks`, `guards`, `stopping`: history and progress; what ends a broken training; a stop that saves
- `run_files`: settings.json, history.jsonl and checkpoints in a run's folder
- `processes`: several processes in one training
- `engine`, `autograd_functions`, `fused_softmax`: the same results with less memory and time: loss, attention, a kernel
- `muon`: an optimizer for pretraining
- `lora`: train an adapter beside a frozen model, and merge it
- `shape`: the sizes of a GPT-2, its parameters and operations
- `devices`: the card or processor to train on or to plan for, and the peak of its memory
- `memory`, `plan`: predict memory, time and disk of a run; the memory that measuring a model takes
- `calibration`, `measuring`: short trainings that are measured here, and predictions fitted to them
- `slowness`: say why steps have become slow
- `model_card`: the card of the final model
- `pruning`, `study_storage`: a training reports to its study, which may stop it; where the study keeps its trials
- `commands`: `train`, `plan` and `calibrate` of the command line
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "fine_tuning": "as_batch fine_tune open_or_train save_model",
        "finished_run": "FinishedRun open_run",
        "experiments": "choose_experiment",
        "arguments": "chosen_precision",
        "callbacks": "Progress",
        "guards": "TrainingBrokenError",
        "stopping": "TrainingStoppedError",
        "run_files": "check_same_values is_finished kept_eval_loss last_complete_checkpoint",
        "processes": "is_first_process is_in_training leave_process_group",
        "engine": "CHUNK_TOKENS equal_results_less_work",
        "shape": "GPT2Shape read_shape",
        "devices": (
            "CARDS DEFAULT_CARD GraphicsCard card_of_this_machine find_card peak_bytes reset_peak this_device "
            "this_processor"
        ),
        "plan": "RunPlan plan_run planned_shape",
        "calibration": "Calibration find_calibration",
        "measuring": "calibrate",
        "model_card": "write_model_card",
        "pruning": "TrialPrunedError",
    },
)
