"""Measurements of a machine: step times and peaks of short training runs, and a plan's constants fitted to them.

A calibration is one JSON file per card or processor. Those of this machine are in `runs/.calibrations/`; those that
people have contributed are in `helpers/assets/calibrations/`, for plans on cards that are not in this machine.
"""

import datetime
import functools
import platform
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, field_serializer

from helpers.display import MIB, PlainTextMixin
from helpers.environment.card import GraphicsCard, same_card
from helpers.files import write_atomically
from helpers.paths import ASSETS, runs_folder
from helpers.settings import TrainingSettings
from helpers.training.memory import predict
from helpers.training.shape import GPT2Shape, operations_per_token, trained_parameters

SHIPPED = ASSETS / "calibrations"
_MIN_MEASUREMENTS = 4  # minimum number of measurements for a fit
_MAX_MEASUREMENTS = 200  # a file keeps this many of the newest measurements
# Whatever the fit says, the same steps take more or less time some minutes later: 4% on an H100, up to a quarter on a
# processor that other programs share.
_CARD_SPREAD, _PROCESSOR_SPREAD = 0.1, 0.2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _StepSettings(_Record):
    """The settings that affect a step's time or peak, except precision, because 'auto' depends on the machine."""

    block_size: PositiveInt
    per_device_train_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt  # after halved batches it may exceed the settings' limit
    gradient_checkpointing: bool
    lora_r: NonNegativeInt
    optim: str
    attn_pdrop: float


class Measurement(_Record):
    """One training run: its shape, the settings that matter, the median time of a step, and the peak.

    The peak is everything that the process holds on the card, or in main memory when training on a processor;
    `process_bytes` is what it held there before training.
    """

    shape: GPT2Shape
    settings: _StepSettings
    precision: Literal["bf16", "fp16", "no"]
    compiled: bool = False
    step_seconds: float = Field(gt=0)
    peak_bytes: PositiveInt
    process_bytes: NonNegativeInt = 0

    @classmethod
    def of(cls, shape: GPT2Shape, settings: TrainingSettings, **measured: Any) -> "Measurement":
        """Return a measurement of a run with these settings."""
        return cls(shape=shape, settings=settings.model_dump(include=set(_StepSettings.model_fields)), **measured)

    def is_like(self, other: "Measurement") -> bool:
        """Return whether two measurements have the same shape, settings, precision and compilation."""
        names = ("shape", "settings", "precision", "compiled")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @property
    def training(self) -> tuple[GPT2Shape, TrainingSettings]:
        """The shape and the settings of the run."""
        return self.shape, TrainingSettings().model_copy(update=dict(self.settings))

    @field_serializer("shape")
    def _as_object(self, shape: GPT2Shape) -> dict[str, Any]:
        return shape._asdict()


class Calibration(PlainTextMixin, _Record):
    """The measurements of one card or processor."""

    device: str = Field(min_length=1, max_length=200)  # as named by the driver; for a processor, with its threads
    is_processor: bool
    driver: str = ""  # its version; empty for a processor
    torch: str  # its version
    system: str
    date: datetime.date  # of the last measurement
    measurements: list[Measurement]  # one per kind of run, the newest last

    def step_seconds(
        self, shape: GPT2Shape, settings: TrainingSettings, precision: str, *, fastest: float = 0.0
    ) -> tuple[float, float] | None:
        """Return the shortest and longest time of an optimizer step; None if too little was measured.

        A run that was measured itself keeps its own time. For any other, the time is a sum of parts that grow with the
        layers, the operations, the values written and the trained weights, fitted to all measurements. A sum below
        `fastest`, the least time the card could need, is rejected: the measured models were too small to fill the card.
        """
        query = Measurement.of(shape, settings, precision=precision, step_seconds=1, peak_bytes=1)
        same = [row.step_seconds for row in self.measurements if row.is_like(query)]
        spread = _PROCESSOR_SPREAD if self.is_processor else _CARD_SPREAD
        if same:
            seconds = same[-1]
        elif precision in self._fits:
            factors, error, _ = self._fits[precision]
            seconds = sum(factor * part for factor, part in zip(factors, _work(shape, settings), strict=True))
            spread = max(spread, error)
            if seconds * (1 + spread) < fastest:
                return None
        else:
            return None
        return seconds * max(0.0, 1 - spread), seconds * (1 + spread)

    def overhead(self, precision: str, *, process_bytes: int = 0) -> tuple[int, float] | None:
        """Return constant bytes, and bytes per byte of activations, that no formula sees; None if not measured.

        On a processor the constant includes the process: `process_bytes`, or as it was in the smallest measured one.
        """
        if precision not in self._fits:
            return None
        *_, (constant, share) = self._fits[precision]
        if self.is_processor:
            constant += process_bytes or min(row.process_bytes for row in self._rows(precision))
        return constant, share

    @functools.cached_property
    def _fits(self) -> dict[str, tuple[list[float], float, tuple[int, float]]]:
        """For each precision with enough measurements: factors of the work, relative error, overhead."""
        rows = {precision: self._rows(precision) for precision in ("bf16", "fp16", "no")}
        return {
            precision: (*_fit_seconds(measured), _fit_overhead(measured, self.is_processor))
            for precision, measured in rows.items()
            if len(measured) >= _MIN_MEASUREMENTS
        }

    def __str__(self) -> str:
        """Return the measurements as text for a terminal."""
        lines = [f"{self.device}, {self.driver and f'driver {self.driver}, '}PyTorch {self.torch}, {self.date}"]
        for row in self.measurements:
            shape, settings = row.training
            tokens = settings.effective_batch_size * settings.block_size
            lines.append(
                f"{shape.n_layer:>3} x {shape.n_embd:<5}{settings.effective_batch_size:>4} x {settings.block_size:<6}"
                f"{'float32' if row.precision == 'no' else row.precision:<9}{row.step_seconds:>8.3f} s"
                f"{tokens / row.step_seconds:>10,.0f} tokens/s{row.peak_bytes / MIB:>9,.0f} MiB"
            )
        return "\n".join(lines)

    def _rows(self, precision: str) -> list[Measurement]:
        return [row for row in self.measurements if row.precision == precision and not row.compiled]


def _work(shape: GPT2Shape, settings: TrainingSettings) -> list[float]:
    """Return the work of an optimizer step: steps, layers launched, operations, values written, weights changed."""
    passes, repeats = settings.gradient_accumulation_steps, 4 / 3 if settings.gradient_checkpointing else 1
    tokens = passes * settings.per_device_train_batch_size * settings.block_size
    values = tokens * (shape.vocab_size / 8 + repeats * shape.n_layer * shape.n_embd)
    return [
        1.0,
        passes * shape.n_layer * repeats,
        tokens * operations_per_token(shape, settings.block_size, settings),
        values,
        trained_parameters(shape, settings),
    ]


def _fit_seconds(rows: list[Measurement]) -> tuple[list[float], float]:
    """Return the seconds per unit of each part of the work, all at least 0, and the largest relative error."""
    import numpy as np
    from scipy.optimize import nnls

    # divided by the measured time, so that relative errors count the same in short and long steps
    relative = np.array([[part / row.step_seconds for part in _work(*row.training)] for row in rows])
    scale = relative.max(axis=0)
    factors = nnls(relative / scale, np.ones(len(rows)))[0] / scale
    return factors.tolist(), float(np.abs(relative @ factors - 1).max())


def _fit_overhead(rows: list[Measurement], is_processor: bool) -> tuple[int, float]:
    """Return the constant bytes besides tensors and process, and the bytes per byte of activations."""
    import numpy as np
    from scipy.optimize import nnls

    options = {"on_processor": is_processor, "overhead": (0, 1.0)}
    predicted = [predict(*row.training, precision=row.precision, **options) for row in rows]
    peaks = np.array([float(row.peak_bytes) for row in rows])
    unexplained_bytes = [
        max(0, row.peak_bytes - row.process_bytes - memory.tensor_bytes)
        for row, memory in zip(rows, predicted, strict=True)
    ]
    parts = np.array([[1.0, memory.overhead] for memory in predicted])
    constant, share = nnls(parts / peaks[:, None], unexplained_bytes / peaks)[0]
    return int(constant), float(share)


def find_calibration(card: GraphicsCard) -> tuple[Calibration, str] | None:
    """Return the calibration of a card or of this processor, and where it was measured; or None."""
    name = processor_name() if card.is_processor else card.name
    for folder in (_local(), SHIPPED):
        for path in sorted(folder.glob("*.json")):
            calibration = _read(path, path.stat().st_mtime_ns)
            if calibration and calibration.is_processor == card.is_processor and same_card(calibration.device, name):
                return calibration, "this machine" if folder != SHIPPED else calibration.device
    return None


def add_measurements(card: GraphicsCard, measurements: Iterable[Measurement]) -> Calibration:
    """Add measurements to this machine's file; each replaces an older one of the same kind of run."""
    import torch

    device = processor_name() if card.is_processor else card.name
    folder = _local()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    with FileLock(path.with_suffix(".lock")):
        old = _read(path, path.stat().st_mtime_ns) if path.exists() else None
        rows = list(old.measurements) if old and old.torch == torch.__version__ else []
        for new in measurements:
            rows = [row for row in rows if not row.is_like(new)] + [new]
        calibration = Calibration(
            device=device, is_processor=card.is_processor, driver=card.driver, torch=torch.__version__,
            system=platform.system(), date=datetime.datetime.now(tz=datetime.UTC).date(),
            measurements=rows[-_MAX_MEASUREMENTS:],
        )  # fmt: skip
        write_atomically(path, calibration.model_dump_json(indent=1))
    return calibration


def processor_name() -> str:
    """Return this machine's processor and PyTorch's number of threads, which together determine its speed."""
    import torch

    n_threads = torch.get_num_threads()
    return f"{_processor_model()}, {n_threads} thread{'s' * (n_threads != 1)}"


@functools.cache
def _processor_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return re.search(r"model name\s*: (.+)", text)[1].strip()
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def _local() -> Path:
    return runs_folder() / ".calibrations"  # no run name begins with a dot


@functools.lru_cache(maxsize=64)
def _read(path: Path, mtime_ns: int) -> Calibration | None:
    """Return the content of a file; None, with a warning, if it is damaged or from another version."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        reason = "is not a calibration of this version and is left out: measure again with `calibrate`."
        warnings.warn(f"{path} {reason}", stacklevel=4)
        return None
