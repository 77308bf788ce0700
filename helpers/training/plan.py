"""Plan a run before it starts: does it fit the card, with which batch, how long does it take, how much disk is needed?

Planning for a card downloads and measures nothing: memory comes from `memory`; time comes from a calibration if there
is one, otherwise from the card's published peak and typical utilisation. This machine's processor is measured.
"""

import bisect
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from helpers.data.text_size import TokenCounts, count_tokens
from helpers.display import PlainTextMixin, duration_range, html_table, html_text, size_text
from helpers.model import check_shape
from helpers.settings import SettingsError, TrainingSettings, describe_without_effect
from helpers.training import processes
from helpers.training.arguments import checkpoints_kept, compiles, describe_long_warmup
from helpers.training.calibration import Calibration, find_calibration
from helpers.training.devices import DEFAULT_CARD, GraphicsCard, find_card, held_bytes, this_device
from helpers.training.memory import Memory, estimate_overhead, evaluation_bytes, predict
from helpers.training.run_files import disk_bytes
from helpers.training.shape import (
    GPT2Shape,
    operations_per_token,
    parameters,
    read_shape,
)

if TYPE_CHECKING:
    from transformers import GPT2Config

MAX_BATCH = 1024  # the settings' upper limit for a batch and for accumulation
# Model FLOPs utilisation (MFU), the share of the card's peak that training reaches: published are 18% for a plain
# trainer on an A100 and 57% for a tuned one on a card like the RTX 4070 Ti. Ours, compiled, reaches 34% on an H100 with
# 8 blocks of 1,024 tokens per pass and 42% with 64, and 37% on an H200 with 8; smaller cards are not measured yet.
UTILISATION = (0.20, 0.50)
# Time to launch the kernels of one layer's forward and backward pass, with its share of the optimizer step: 2.1 to
# 4.3 ms measured on server processors (2026-11); the lower value is an estimate for a faster processor.
_LAYER_SECONDS = (1e-3, 4.3e-3)
# A forward pass alone, as a share of a training pass: a third by its operations; more where launches take the time
# (0.47 on an H100's server), and 0.31 to 0.41 for the pocket model on a processor.
_FORWARD_SHARE = (0.3, 0.5)
_LEANER = ({"optim": "adafactor"}, {"lora_r": 16})  # other ways to train a model whose optimizer states do not fit
_BAR, _FULL_BLOCK = 30, "\u2588"  # the longest bar in characters, and its character


@dataclass(frozen=True)
class RunPlan(PlainTextMixin):
    """A predicted run. Sizes are in bytes; times are in seconds, as (shortest, longest)."""

    settings: TrainingSettings
    shape: GPT2Shape
    card: GraphicsCard
    precision: str  # what `mixed_precision` means on the card
    memory: Memory
    largest_batch: int  # blocks in the largest pass that fits even with accumulation; 0: none
    suggested: dict[str, Any]  # the largest pass that fits at the same effective batch; empty when none fits
    leaner: dict[str, Any]  # if none fits: another optimizer or an adapter that does; may be empty
    train_tokens: int
    validation_tokens: int
    tokens_are: str  # where these numbers come from
    pass_seconds: tuple[float, float] | None  # per forward and backward pass; None if it is not known
    seconds_are: str  # where this time comes from, or why it is not known

    @property
    def headroom_bytes(self) -> int:
        """Usable memory of the card that stays free; a negative value is missing memory."""
        return self.card.usable_bytes - self.memory.total_bytes

    @property
    def fits(self) -> bool:
        """Whether the peak is at most the card's usable memory."""
        return self.headroom_bytes >= 0

    @property
    def passes_per_epoch(self) -> int:
        """Number of forward and backward passes to read the training text once."""
        blocks = _count_blocks(self.settings, self.train_tokens)
        return math.ceil(blocks / self.settings.per_device_train_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps to read the training text once."""
        return math.ceil(self.passes_per_epoch / self.settings.gradient_accumulation_steps)

    @property
    def steps(self) -> int:
        """Number of optimizer steps in the run."""
        return math.ceil(self.steps_per_epoch * self.settings.num_train_epochs)

    @property
    def evaluation_note(self) -> str:
        """A note if notebook 4 needs much of the card and more memory than training does; otherwise empty."""
        needed, usable = evaluation_bytes(self.shape), self.card.usable_bytes
        if self.card.is_processor or needed <= min(usable, max(self.memory.total_bytes, usable // 2)):
            return ""
        if needed > usable:
            return f"does not fit: notebook 4 measures in float32, which takes {size_text(needed)}"
        return f"{size_text(needed)} in notebook 4, which measures in float32: more than the training takes"

    @property
    def tokens_per_step(self) -> int:
        """Number of tokens per optimizer step."""
        return self.settings.effective_batch_size * self.settings.block_size

    @property
    def epoch_seconds(self) -> tuple[float, float] | None:
        """Shortest and longest time of an epoch, without validations; None if it is not known."""
        return self._seconds(self.passes_per_epoch)

    @property
    def training_seconds(self) -> tuple[float, float] | None:
        """Shortest and longest time of all optimizer steps; None as for an epoch."""
        return self._seconds(self.passes_per_epoch * self.steps / self.steps_per_epoch)  # the last epoch may be partial

    @property
    def n_validations(self) -> int:
        """Number of validations: one every `eval_steps` steps, and one after the last step."""
        return math.ceil(self.steps / self.settings.eval_steps)

    @property
    def validation_seconds(self) -> tuple[float, float] | None:
        """Shortest and longest time of all validations; None as for an epoch."""
        n_blocks = self.n_validations * (self.validation_tokens // self.settings.block_size)
        batch = limited_to_text(self.settings, self.train_tokens).per_device_train_batch_size
        return self._seconds(n_blocks / batch / _pass_work(self.settings), _FORWARD_SHARE)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Shortest and longest time of all steps and validations; None as for an epoch."""
        both = self.training_seconds, self.validation_seconds
        return self.training_seconds and tuple(map(sum, zip(*both, strict=True)))

    def _seconds(self, n_passes: float, shares: tuple[float, float] = (1.0, 1.0)) -> tuple[float, float] | None:
        """Return the shortest and longest time of passes, or of a share of each; None if it is not known."""
        if self.pass_seconds is None:
            return None
        return tuple(n_passes * share * seconds for share, seconds in zip(shares, self.pass_seconds, strict=True))

    @property
    def disk_bytes(self) -> int:
        """Disk space for the run."""
        return disk_bytes(self.shape, self.settings)

    @property
    def verdict(self) -> str:
        """One line without a full stop: the run fits, or how much memory is missing and which settings fit instead."""
        if self.fits:
            return f"fits: {size_text(self.memory.total_bytes)} predicted, {size_text(self.headroom_bytes)} to spare"
        missing = f"does not fit: needs {size_text(-self.headroom_bytes)} more"
        if changes := self.suggested or self.leaner:
            other = "" if self.suggested else ", and no batch fits all weights with this optimizer"
            return f"{missing}{other}; {' with '.join(f'{name} {value}' for name, value in changes.items())} fits"
        memory = self.memory
        is_too_large = memory.weights + memory.gradients + memory.optimizer > self.card.usable_bytes
        shorter = "" if is_too_large else ", a shorter block_size"
        return f"{missing}, and no batch fits: take a smaller model{shorter} or a larger card"

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows shown besides the memory, as (name, value)."""
        kept = checkpoints_kept(self.settings)
        notes = {
            "evaluation": self.evaluation_note,
            "warm-up": describe_long_warmup(self.settings, self.steps),
            "without effect": describe_without_effect(self.settings),
        }
        if self.card.is_processor and self.settings.torch_compile == "always":
            notes["compiled"] = "on a processor the peak is predicted for a model that is not compiled"
        return [
            ("largest batch", f"{self.largest_batch} blocks of {self.settings.block_size} tokens, also accumulated"),
            ("training text", f"{self.train_tokens:,} tokens ({self.tokens_are})"),
            ("steps", f"{self.steps:,} of {self.tokens_per_step:,} tokens"),
            ("time", self._time()),
            ("disk", f"{size_text(self.disk_bytes)}: {kept} + 1 checkpoints and the model"),
            *((name, note) for name, note in notes.items() if note),
        ]

    def _time(self) -> str:
        if not self.seconds:
            return self.seconds_are
        epochs = f"{self.settings.num_train_epochs:g} epoch{'s' * (self.settings.num_train_epochs != 1)}"
        validations = "without validations"
        if self.validation_tokens:
            number = f"{self.n_validations:,} validation{'s' * (self.n_validations != 1)}"
            validations = f"including {number} ({_range(self.validation_seconds)})"
        return f"{_range(self.seconds)} for {epochs}, {validations}, {self.seconds_are}"

    @property
    def title(self) -> str:
        """The model, its precision and the card, as a heading."""
        one = "" if self.card.is_processor else "one "
        precision = "float32" if self.precision == "no" else self.precision
        name = self.settings.model_name_or_path
        model = f"a new model of {parameters(self.shape):,} weights" if self.settings.new_shape else name
        return f"Predicted: {model} in {precision} on {one}{self.card.name}"

    def __str__(self) -> str:
        """Return the plan as text for a terminal, which may not have the character of the bars."""
        return html_text(self._repr_html_()).replace(_FULL_BLOCK, "#")

    def _repr_html_(self) -> str:
        where, rest = ("memory", "the system") if self.card.is_processor else ("the card", "the driver and a desktop")
        sizes = [
            *((name.replace("_", " "), size, "") for name, size in self.memory.parts.items()),
            ("peak", self.memory.total_bytes, f"at {self.memory.moment}"),
            (where, self.card.usable_bytes, f"usable; 1 GiB is left for {rest}"),
        ]
        longest = max(self.memory.total_bytes, self.card.usable_bytes)
        bars = [
            (name, size_text(size), _FULL_BLOCK * round(_BAR * size / longest), remark) for name, size, remark in sizes
        ]
        return f"{html_table([], bars, caption=self.title)}{html_table([], self.rows())}<p>{escape(self.verdict)}</p>"


def plan_run(
    settings: TrainingSettings,
    *,
    card: GraphicsCard | None = None,
    shape: GPT2Shape | None = None,
    train_tokens: int | None = None,
    validation_tokens: int = 0,
    process_bytes: int = 0,
    n_processes: int = 1,
) -> RunPlan:
    """Predict memory, time and disk of a run on one card.

    Args:
        settings: the settings of the run.
        card: by default the RTX 4070 Ti from the table.
        shape: the shape of the model; by default looked up by the model's name.
        train_tokens: tokens of the training text; by default looked up or estimated, like those of the validation text.
        validation_tokens: if `train_tokens` is given, the tokens of the validation text.
        process_bytes: on a processor, the process's memory besides training; by default estimated or measured.
        n_processes: how many processes train together, each on a card like this one with its share of the text.

    Raises:
        SettingsError: the model's shape is not known, or it has fewer positions than a block has tokens.
    """
    TrainingSettings.check_type(settings)
    card, shape = card or find_card(DEFAULT_CARD), shape or planned_shape(settings)
    if settings.block_size > shape.n_positions:
        raise SettingsError(
            f"block_size = {settings.block_size} is longer than the {shape.n_positions} positions of "
            f"{settings.model_name_or_path!r}: use at most {shape.n_positions}."
        )
    precision = card.precision(settings.mixed_precision)
    measured = find_calibration(card)
    overhead = measured and measured[0].overhead(precision, process_bytes=process_bytes)
    overhead = overhead or estimate_overhead(on_processor=card.is_processor, process_bytes=process_bytes)
    as_given = None if train_tokens is None else TokenCounts(train_tokens, validation_tokens, "as given")
    counts = as_given or count_tokens(settings)
    compiled = not card.is_processor and compiles(settings, counts.train // settings.block_size, on_card=True)
    options = {
        "precision": precision, "on_processor": card.is_processor, "overhead": overhead,
        "n_processes": n_processes, "compiled": compiled,
    }  # fmt: skip

    def memory(changed: TrainingSettings) -> Memory:
        return predict(shape, changed, **options)

    def fits(**changes: Any) -> bool:
        changed = limited_to_text(settings.model_copy(update=changes), counts.train)
        return memory(changed).total_bytes <= card.usable_bytes

    def is_too_large(batch: int) -> bool:  # with earlier passes' gradients in memory: holds for any accumulation
        changes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 2}
        return memory(settings.model_copy(update=changes)).total_bytes > card.usable_bytes

    max_batch = min(MAX_BATCH, _count_blocks(settings, counts.train))
    largest_batch = bisect.bisect_left(range(1, max_batch + 1), True, key=is_too_large)
    limited, ways = limited_to_text(settings, counts.train), same_effective_batch(settings)
    suggested = next((changes for changes in ways if fits(**changes)), {})
    # the settings allow no adapter with a new model or with Muon
    leaner_ways = _LEANER[:1] if settings.from_scratch or settings.optim == "muon" else _LEANER
    leaner_candidates = [] if suggested or settings.lora_r else [change | way for change in leaner_ways for way in ways]
    leaner = next((changes for changes in leaner_candidates if fits(**changes)), {})
    time = _time_of_a_pass(limited, shape, card, precision, measured)
    return RunPlan(settings, shape, card, precision, memory(limited), largest_batch, suggested, leaner, *counts, *time)


def _time_of_a_pass(
    settings: TrainingSettings,
    shape: GPT2Shape,
    card: GraphicsCard,
    precision: str,
    measured: tuple[Calibration, str] | None,
) -> tuple[tuple[float, float] | None, str]:
    """Return the shortest and longest time of a training pass, and where it comes from; None and why if not known."""
    passes, tokens = settings.gradient_accumulation_steps, settings.per_device_train_batch_size * settings.block_size
    tflops, work = card.tflops(precision), tokens * operations_per_token(shape, settings.block_size, settings) / 1e12
    compute = tflops and (work / tflops / UTILISATION[1], work / tflops / UTILISATION[0])
    if measured:
        calibration, where = measured
        is_bound = compute and not card.is_processor and precision != "no"  # TF32 can exceed the float32 peak
        fastest = passes * compute[0] if is_bound else 0.0
        if step_seconds := calibration.step_seconds(shape, settings, precision, fastest=fastest):
            shortest, longest = step_seconds
            return (shortest / passes, longest / passes), f"measured on {where}"
    if not compute:
        return None, "not known: the card's peak is not in the table"
    layers = shape.n_layer * _pass_work(settings)
    launch = layers * _LAYER_SECONDS[0], layers * _LAYER_SECONDS[1]
    low, high = (f"{100 * share:.0f}" for share in UTILISATION)
    source = f"from {high} to {low}% of {tflops:,.3g} TFLOP/s"
    if launch > compute:
        source = "from the time to launch kernels; the model is too small to fill the card"
    # The card computes while the processor launches the next kernels, so the slower of the two decides.
    return tuple(map(max, compute, launch)), source


def _range(seconds: tuple[float, float]) -> str:
    return "less than 1 s" if seconds[1] < 1 else duration_range(*seconds)


def limited_to_text(settings: TrainingSettings, train_tokens: int) -> TrainingSettings:
    """Return the settings with the batch and the passes per step limited to what the text can fill.

    >>> limited_to_text(TrainingSettings(block_size=100, per_device_train_batch_size=64), 1000).effective_batch_size
    10
    """
    blocks = _count_blocks(settings, train_tokens)
    batch = min(settings.per_device_train_batch_size, blocks)
    passes = min(settings.gradient_accumulation_steps, math.ceil(blocks / batch))
    return settings.model_copy(update={"per_device_train_batch_size": batch, "gradient_accumulation_steps": passes})


def _pass_work(settings: TrainingSettings) -> float:
    """Return the work of a training pass; checkpointing repeats its forward pass, a third of it."""
    return 4 / 3 if settings.gradient_checkpointing else 1.0


def _count_blocks(settings: TrainingSettings, train_tokens: int) -> int:
    return max(1, train_tokens // settings.block_size)


def planned_shape(settings: TrainingSettings) -> GPT2Shape:
    """Return the shape of the model that a run trains, with the full vocab_size if the tokenizer is yet to be trained.

    Raises:
        SettingsError: the shape is impossible, or not known without a download.
    """
    shape = read_shape(settings.model_name_or_path)
    if settings.from_scratch:
        dropouts = {"resid_pdrop": settings.resid_pdrop, "embd_pdrop": settings.resid_pdrop}
        vocabulary = {"vocab_size": settings.vocab_size} if settings.tokenizer == "train" else {}
        shape = shape._replace(**settings.new_shape, **dropouts, **vocabulary)
    check_shape(shape)
    return shape


def same_effective_batch(settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return all settings that keep the effective batch: the largest passes first, checkpointing last.

    They include passes larger than the current one, which may fit too: with checkpointing if it was off, or without
    accumulation, whose gradients stay in memory between the passes.

    >>> two = TrainingSettings(per_device_train_batch_size=2)
    >>> [(way["per_device_train_batch_size"], "gradient_checkpointing" in way) for way in same_effective_batch(two)]
    [(2, False), (1, False), (2, True), (1, True)]
    """
    effective = settings.effective_batch_size
    ways = [
        {"per_device_train_batch_size": batch, "gradient_accumulation_steps": effective // batch}
        for batch in range(min(effective, MAX_BATCH), 0, -1)
        if effective % batch == 0 and effective // batch <= MAX_BATCH
    ]
    return ways if settings.gradient_checkpointing else ways + [way | {"gradient_checkpointing": True} for way in ways]


def predict_on_this_machine(settings: TrainingSettings, config: "GPT2Config", *, train_tokens: int) -> dict[str, Any]:
    """Predict time and memory of a run on this machine's GPU, or on its processor.

    Call it after the model is loaded but before it is moved to the GPU.

    Returns:
        `on`: the device; `seconds`: [shortest, longest] of the steps, None if the card's peak is unknown; `peak_bytes`;
        `process_bytes`: what this process holds besides training.
    """
    card, shape = this_device(), GPT2Shape(**{name: getattr(config, name) for name in GPT2Shape._fields})
    held = held_bytes(parameters(shape))
    plan = plan_run(
        settings, card=card, train_tokens=train_tokens, shape=shape, process_bytes=held,
        n_processes=processes.n_processes(),
    )  # fmt: skip
    return {
        "on": plan.card.name,
        "seconds": plan.training_seconds and list(plan.training_seconds),
        "peak_bytes": plan.memory.total_bytes + (0 if card.is_processor else held),  # the plan assumes an empty card
        "process_bytes": held,
    }
