"""What a run is predicted to take on this machine, to be kept beside what it then takes."""

import functools
import time
from typing import TYPE_CHECKING, Any

from helpers.settings import TrainingSettings
from helpers.training.cards import GraphicsCard, card_of_this_machine
from helpers.training.memory import GPT2Shape
from helpers.training.plan import plan_run

if TYPE_CHECKING:
    from transformers import GPT2Config

_SIDE = 768  # of the square matrices multiplied: large enough for a processor's full speed


def forecast(settings: TrainingSettings, config: "GPT2Config", *, train_tokens: int) -> dict[str, Any]:
    """Predict a run on the GPU that is here, or on the processor.

    Args:
        settings: the run's.
        config: the model's.
        train_tokens: tokens of the training text.

    Returns:
        `on`: the device; `seconds`: [shortest, longest] of the training, None where the card's peak is not known;
        `peak_bytes`: on the GPU, None on a processor, whose memory is not predicted.
    """
    import torch

    card = card_of_this_machine() if torch.cuda.is_available() else None
    device = card or this_processor()
    shape = GPT2Shape(**{name: getattr(config, name) for name in GPT2Shape._fields})
    planned = plan_run(settings, card=device, train_tokens=train_tokens, shape=shape)
    epoch = planned.epoch_seconds
    return {
        "on": device.name,
        "seconds": epoch and [settings.num_train_epochs * seconds for seconds in epoch],
        "peak_bytes": planned.memory.total_bytes if card else None,
    }


@functools.cache
def this_processor() -> GraphicsCard:
    """Return the processor as if it were a card: its memory, and the speed of a matrix product measured now."""
    import psutil
    import torch

    from helpers.environment.precision import has_bf16

    speed = {dtype: _product_tflops(dtype) for dtype in (torch.bfloat16, torch.float32)}
    total_bytes = psutil.virtual_memory().total
    return GraphicsCard("this processor", total_bytes, *speed.values(), has_bf16=has_bf16())


def _product_tflops(dtype: Any) -> float:
    """Return 10**12 operations a second of the fastest of a few products."""
    import torch

    one = torch.ones(_SIDE, _SIDE, dtype=dtype)
    fastest = min(_seconds(lambda: one @ one) for _ in range(5))
    return 2 * _SIDE**3 / fastest / 1e12


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
