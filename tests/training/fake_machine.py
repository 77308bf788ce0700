"""Measurements of an imaginary machine whose speed is known exactly."""

from helpers.settings import TrainingSettings
from helpers.training.calibration import Measurement
from helpers.training.memory import predict
from helpers.training.shape import GPT2Shape, operations_per_token, read_shape

RUNS = [
    (shape, TrainingSettings(block_size=block, per_device_train_batch_size=batch, gradient_checkpointing=checkpointing))
    for shape in (read_shape("pocket"), GPT2Shape(2, 768, 12))
    for block, batch, checkpointing in ((64, 1, False), (256, 2, False), (256, 2, True))
]
OPERATIONS_PER_SECOND, LAYER_SECONDS, PROCESS_BYTES, UNSEEN_BYTES = 1e11, 0.002, 400 * 2**20, 50 * 2**20


def step_seconds(shape, settings):
    tokens = settings.effective_batch_size * settings.block_size
    layers = shape.n_layer * settings.gradient_accumulation_steps * (4 / 3 if settings.gradient_checkpointing else 1)
    operations = tokens * operations_per_token(shape, settings.block_size, settings)
    return LAYER_SECONDS * layers + operations / OPERATIONS_PER_SECOND


def peak_bytes(shape, settings, *, on_processor):
    options = {"precision": "no", "on_processor": on_processor, "overhead": (UNSEEN_BYTES, 0.0)}
    return predict(shape, settings, **options).total_bytes + PROCESS_BYTES * on_processor


def measurement(shape, settings, *, on_processor=True, **changes):
    measured = {
        "precision": "no",
        "step_seconds": step_seconds(shape, settings),
        "peak_bytes": peak_bytes(shape, settings, on_processor=on_processor),
        "process_bytes": PROCESS_BYTES * on_processor,
    }
    return Measurement.of(shape, settings, **measured | changes)


def measurements(*, on_processor=True):
    return [measurement(*training, on_processor=on_processor) for training in RUNS]
