"""Notebook 03: plan a run, train it, stop and resume it, and save a model that loads anywhere.

- `fine_tuning`, `finished_run`: train or resume a run, halving a batch that does not fit; open its model and results
- `experiments`: choose the model that the experiments of notebook 03 train
- `arguments`: turn the settings into `TrainingArguments` for this machine
- `callbacks`, `guards`, `stopping`: history and progress; end a broken training run; stop with a checkpoint
- `run_files`: settings.json, history.jsonl and checkpoints in a run's folder, and their size on disk
- `processes`: several processes that train one run
- `engine`, `autograd_functions`, `fused_softmax`: the same results in less memory and time: loss, attention, a kernel
- `muon`: an optimizer for pretraining
- `lora`: train an adapter beside a frozen model, and merge it
- `shape`: the sizes of a GPT-2, its parameters and operations
- `devices`: the card or processor to train on or plan for, and its peak memory
- `memory`, `plan`: predict the memory, time and disk of a run; the memory of evaluating a model
- `calibration`, `measuring`: measure short training runs on this machine, and fit predictions to them
- `slowness`: explain why steps have become slow
- `model_card`: the card of the final model
- `pruning`, `study_storage`: report a run to its study, which may stop it; where the study keeps its trials
- `commands`: `train`, `plan` and `calibrate` on the command line
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
        "engine": "CHUNK_TOKENS optimised_model",
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
