"""Measure this machine with short training runs of models of several shapes, for `python -m helpers calibrate`."""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from helpers.model import quiet
from helpers.settings import TrainingSettings
from helpers.training import devices, processes
from helpers.training.arguments import autocast_dtype, chosen_precision, float32_products, training_arguments
from helpers.training.calibration import Calibration, Measurement, add_measurements
from helpers.training.callbacks import StepTimer
from helpers.training.devices import GraphicsCard, this_device
from helpers.training.engine import optimised_model
from helpers.training.fine_tuning import as_batch, new_trainer
from helpers.training.lora import add_adapter
from helpers.training.memory import predict
from helpers.training.shape import GPT2Shape, parameters, read_shape

_STEPS = 4  # the first one includes setup and is not counted
_POCKET, _SHALLOW, _GPT2 = read_shape("pocket"), GPT2Shape(2, 768, 12), read_shape("gpt2")
# Shape, block size, batch: small ones first, because not every system can reset the peak memory in between. If time
# runs out, the first four still predict GPT-2 within 15%; with the two-layer model at 256 as the fifth, 39% off.
_RUNS_TO_MEASURE = (
    (_POCKET, 64, 1),
    (_POCKET, 256, 1),
    (_POCKET, 256, 4),
    (_SHALLOW._replace(vocab_size=4096), 256, 1),
    (_SHALLOW._replace(n_layer=4), 256, 1),
    (_SHALLOW, 1024, 1),
)
_RUNS_ON_A_CARD = ((_GPT2, 256, 1), (_GPT2, 1024, 1), (_GPT2, 1024, 4), (_GPT2, 1024, 8))


def calibrate(*, budget_seconds: float = 60.0) -> Calibration:
    """Measure the step time and peak memory of short training runs, and store them for this machine's plans.

    No run is started later than `budget_seconds` after the end of the first one, which sets up the libraries.
    """
    device = this_device()
    return add_measurements(device, list(_measurements(device, budget_seconds)))


def _measurements(device: GraphicsCard, budget_seconds: float) -> Iterator[Measurement]:
    process_bytes, end = None, math.inf
    for shape, block_size, batch in _RUNS_TO_MEASURE if device.is_processor else (*_RUNS_TO_MEASURE, *_RUNS_ON_A_CARD):
        settings = TrainingSettings(block_size=block_size, per_device_train_batch_size=batch, torch_compile="never")
        precision = chosen_precision(settings)
        if predict(shape, settings, precision=precision).total_bytes > device.usable_bytes:
            return
        measured = measure(shape, settings)
        if process_bytes is None:  # later runs reuse what earlier ones leave, such as cuBLAS's workspaces
            process_bytes = measured.process_bytes
        yield measured.model_copy(update={"process_bytes": process_bytes})
        end = min(end, time.perf_counter() + budget_seconds)
        if time.perf_counter() > end:
            return


def measure(shape: GPT2Shape, settings: TrainingSettings) -> Measurement:
    """Train a model with random weights on random tokens for a few steps; return the median step time and the peak."""
    import torch
    from accelerate.utils.memory import clear_device_cache
    from transformers import GPT2Config, GPT2LMHeadModel

    with processes.one_training_at_a_time(), torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder, quiet():
        torch.manual_seed(settings.seed)
        config = GPT2Config(**shape._asdict(), attn_pdrop=settings.attn_pdrop, bos_token_id=None, eos_token_id=None)
        model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"
        trained = add_adapter(model, settings, half=autocast_dtype(settings)) if settings.lora_r else model
        n_rows = _STEPS * settings.effective_batch_size
        rows = [{"input_ids": ids} for ids in torch.randint(shape.vocab_size, (n_rows, settings.block_size))]
        one_epoch = settings.model_copy(update={"num_train_epochs": 1})
        arguments = training_arguments(one_epoch, Path(folder))
        arguments.eval_strategy = arguments.save_strategy = "no"
        timer = StepTimer(is_exact=True)
        if torch.cuda.is_available():
            clear_device_cache(garbage_collection=True)  # an earlier Trainer has reference cycles
        process_bytes = devices.held_bytes(parameters(shape))
        devices.reset_peak()
        with optimised_model(model), float32_products():
            trainer = new_trainer(
                {}, model=trained, args=arguments, train_dataset=rows, data_collator=as_batch, callbacks=[timer]
            )
            trainer.train()
    peak_bytes = devices.peak_bytes()
    if not torch.cuda.is_available():  # Linux is off by some pages, so a tiny run may seem to need none
        peak_bytes = max(peak_bytes, process_bytes)
    return Measurement.of(
        shape,
        settings,
        precision=chosen_precision(settings),
        step_seconds=statistics.median(timer.seconds[1:]),
        peak_bytes=peak_bytes,
        process_bytes=process_bytes,
    )
