"""What the numbers in a log show: each check returns a sentence with the numbers it saw, or None.

`helpers/assets/failures.yaml` refers to the checks by name.
"""

import math
import re
from collections.abc import Sequence
from statistics import median

from helpers.display import GIB, MIB
from helpers.troubleshooting.reading import Reading

_VOCABULARIES = (50257, 4096)  # GPT-2 and the pocket model
_UNITS = {"KiB": 1024, "MiB": MIB, "GiB": GIB, "bytes": 1}
_NUMBER = r"\d{1,12}(?:\.\d{1,12})?"  # not [\d.]+: people write "..." for a number, and web addresses end in .it
_SIZE = rf"({_NUMBER}) (KiB|MiB|GiB|bytes)"
_RATE = re.compile(rf"({_NUMBER})(it/s|s/it)")
_OOM = re.compile(r"(?:CUDA|HIP|XPU) out of memory", re.IGNORECASE)


def series(reading: Reading, name: str) -> list[float]:
    """Return one column of the last run in the log."""
    return [row[name] for row in reading.last_run if name in row]


def nothing_to_learn(reading: Reading) -> str | None:
    """Look for a loss of exactly 0 with a gradient of 0: all labels are masked."""
    rows = [row for row in reading.last_run if "loss" in row]
    zero = [row for row in rows if row["loss"] == 0 and row.get("grad_norm", 0.0) == 0]
    return f"loss is exactly 0 and the gradient 0 in {len(zero)} of {len(rows)} rows" if zero else None


def not_finite(reading: Reading) -> str | None:
    """Look for a loss or a gradient that is NaN or infinite, or a loss that ends above that of a uniform guess."""
    rows = reading.last_run
    for number, row in enumerate(rows, 1):
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in row and not math.isfinite(row[name]):
                if name == "grad_norm" and row.get("loss") != 0 and _recovers(rows[number - 1 :]):
                    continue
                # by default the Trainer logs a NaN loss as 0, but does not filter the gradient next to it
                note = f", next to a logged loss of {row['loss']:g}" if name != "loss" and "loss" in row else ""
                return f"{name} is {row[name]} in row {number}{note}"
    losses = series(reading, "loss")
    if len(losses) >= 3 and losses[-1] > 2 * losses[0] and losses[-1] > math.log(max(_VOCABULARIES)):
        return f"the loss rose from {losses[0]:.4g} to {losses[-1]:.4g}, beyond a uniform guess among all tokens"
    return None


def _recovers(rows: "Sequence[dict[str, float]]") -> bool:
    """Return whether later gradients are mostly finite: fp16's scaler skips steps while it looks for its scale."""
    norms = [row["grad_norm"] for row in rows if "grad_norm" in row]
    return math.isfinite(norms[-1]) and sum(map(math.isfinite, norms)) >= len(norms) / 2


def flat(reading: Reading) -> str | None:
    """Look for a loss that never moves: it stays at a uniform guess, or has no gradient or no learning rate."""
    losses = series(reading, "loss")
    if len(losses) < 3 or not all(math.isfinite(loss) and loss > 0 for loss in losses):
        return None
    spread, mean = max(losses) - min(losses), sum(losses) / len(losses)
    gradients, rates = series(reading, "grad_norm"), series(reading, "learning_rate")
    sizes = [int(size) for size in re.findall(r"vocab_size\W{1,4}([1-9]\d{2,5})", reading.text)]
    if gradients and not any(gradients):
        return f"the gradient is 0 in all {len(gradients)} rows while the loss is {mean:.4g}"
    if len(rates) > 2 and not any(rates[1:]):
        return f"the learning rate is 0 in all but the first of {len(rates)} rows"
    for size in (*sizes, *_VOCABULARIES):
        if spread < 0.02 * mean and abs(mean - math.log(size)) < 0.02 * mean:
            return f"the loss stays at {mean:.2f} from first to last: ln({size:,}) = {math.log(size):.2f} is a guess"
    return None


def overfits(reading: Reading) -> str | None:
    """Look for a loss on held-out text that rises while the training loss still falls."""
    train: list[float] = []
    points = []  # (held-out loss, training loss so far)
    for row in reading.last_run:
        if "loss" in row:
            train.append(row["loss"])
        if "eval_loss" in row:
            points.append((row["eval_loss"], train[-1] if train else math.nan))
    if len(points) < 3:
        return None
    best = min(range(len(points)), key=lambda number: points[number][0])
    (low, train_then), (last, train_now) = points[best], points[-1]
    if last > 1.05 * low and train_now < train_then:
        return f"eval_loss rose from {low:.3f} to {last:.3f} while loss fell from {train_then:.3f} to {train_now:.3f}"
    return None


def rate_jumps(reading: Reading) -> str | None:
    """Look for a learning rate that had begun to fall and jumps up again: another schedule took over."""
    if re.search(r"restarts", reading.text):  # cosine_with_restarts jumps on purpose
        return None
    rates = series(reading, "learning_rate")
    for before, last, now in zip(rates, rates[1:], rates[2:], strict=False):
        if before > last > 0 and now > 1.2 * last:
            return f"the learning rate fell to {last:.4g} and jumped to {now:.4g}"
    return None


def sees_no_next_token(reading: Reading) -> str | None:
    """Look for a loss that falls although the next token is never right."""
    losses = series(reading, "loss")
    for name in sorted({name for row in reading.rows for name in row if "accuracy" in name}):
        accuracies = series(reading, name)
        if losses and losses[-1] < 0.5 * losses[0] and accuracies and accuracies[-1] <= 0.01:
            return f"{name} is {accuracies[-1]:g} although the loss fell from {losses[0]:.3g} to {losses[-1]:.3g}"
    return None


def waits_for_data(reading: Reading) -> str | None:
    """Look for steps that often wait for data, or a GPU that a Python process holds but leaves mostly idle."""
    for name in ("data_wait_share", "wait_share"):
        shares = series(reading, name)
        if shares and median(shares) > 0.4:
            return f"{100 * median(shares):.0f}% of a step waits for data"
    # P0 to P4: an idle desktop's card is in a lower state, where a few per cent refer to a much lower clock
    load = re.search(r"\bP[0-4]\b.*MiB / +\d+MiB \| +(\d+)% ", reading.text)
    if load and 0 < int(load[1]) < 50 and re.search(r"\bC\b.*python", reading.text):
        return f"nvidia-smi: a Python process holds the card, which is busy {load[1]}% of the time"
    return None


def no_end_in_labels(reading: Reading) -> str | None:
    """Look for labels without a single end-of-text token."""
    shares = series(reading, "eos_share")
    return "no row has an end-of-text among its labels" if shares and not any(shares) else None


def slows_down(reading: Reading) -> str | None:
    """Look for steps that take more than five times as long in the last third as in the first."""
    seconds = series(reading, "step_seconds")
    for line in () if seconds else reading.lines:
        rates = _RATE.findall(line)
        seconds += [float(n) if unit == "s/it" else 1 / float(n) for n, unit in rates[-1:] if float(n) > 0]
    if len(seconds) < 9:
        return None
    third = len(seconds) // 3
    first, last = median(seconds[:third]), median(seconds[-third:])
    if last > 5 * first and last > 0.5:
        return f"a step took {first:.3g} s at first and takes {last:.3g} s now"
    return None


def repeats(reading: Reading) -> str | None:
    """Look for generated text in which most trigrams occurred before."""
    if reading.errors or reading.rows or re.search(r"[=%{}\[\]|]|\d:\d", reading.text):
        return None  # logs always repeat themselves: only plain prose is judged
    words = reading.text.split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(words) < 30 or (share := 1 - len(set(trigrams)) / len(trigrams)) < 0.5:
        return None
    return f"{100 * share:.0f}% of its three-word sequences repeat an earlier one"


def memory_sizes(reading: Reading) -> "dict[str, float]":
    """Return the sizes in bytes that a CUDA out-of-memory message names; empty if there is no such message.

    The keys are `requested`, `total`, `free`, `this_process`, `allocated` and `reserved` (by PyTorch, but unused).
    """
    message = next((error for error in reversed(reading.errors) if _OOM.search(error)), "")
    message = message or next((line for line in reversed(reading.lines) if _OOM.search(line)), "")
    patterns = {
        "requested": rf"Tried to allocate {_SIZE}",
        "total": rf"total capaci?ty of {_SIZE}|{_SIZE} total capacity",  # PyTorch 2.1 wrote "capacty"
        "free": rf"of which {_SIZE} is free|; {_SIZE} free",
        "this_process": rf"this process has {_SIZE} memory in use",
        "allocated": rf"{_SIZE} is allocated by PyTorch|; {_SIZE} already allocated",
        "reserved": rf"{_SIZE} is reserved by PyTorch but unallocated",
        "reserved_in_total": rf"{_SIZE} reserved in total",  # before PyTorch 2.1
    }
    sizes = {}
    for name, pattern in patterns.items():
        if match := re.search(pattern, message):
            number, unit = [group for group in match.groups() if group]
            sizes[name] = float(number) * _UNITS[unit]
    if {"reserved_in_total", "allocated"} <= set(sizes):
        sizes["reserved"] = sizes["reserved_in_total"] - sizes["allocated"]
    return sizes


def fragmented(reading: Reading) -> str | None:
    """Look for memory that PyTorch holds but cannot use in one piece."""
    sizes = memory_sizes(reading)
    if not {"reserved", "requested"} <= set(sizes):
        return None
    reserved, requested = sizes["reserved"], sizes["requested"]
    if reserved > max(requested, 0.1 * sizes.get("total", GIB)):
        return f"{reserved / GIB:.2f} GiB are reserved and unused, {requested / GIB:.2f} GiB were requested"
    return None


def others_hold_memory(reading: Reading) -> str | None:
    """Look for memory on the card that is neither free nor held by this process."""
    sizes = memory_sizes(reading)
    if {"total", "free", "this_process"} <= set(sizes):
        others = sizes["total"] - sizes["free"] - sizes["this_process"]
        if others > max(1.5 * GIB, 0.15 * sizes["total"]):
            return f"other programs hold {others / GIB:.1f} of {sizes['total'] / GIB:.1f} GiB"
    return None


def named_holder(reading: Reading) -> str | None:
    """Look for another process that the message names by its id, and whose memory would have been enough.

    In a container PyTorch names only its own process in this way, and then does not say "this process". Desktop
    programs hold some hundred MiB on every card, so a process must hold at least a fifth of the card.
    """
    sizes = memory_sizes(reading)
    if not {"this_process", "total"} <= set(sizes):
        return None
    holders = re.findall(rf"Process (\d+) has {_SIZE} memory in use", reading.text)
    number, size, unit = max(holders, key=lambda item: float(item[1]) * _UNITS[item[2]], default=("", "0", "GiB"))
    held = float(size) * _UNITS[unit]
    if held < 0.2 * sizes["total"] or held + sizes.get("free", 0) < sizes.get("requested", 0):
        return None
    return f"process {number} holds {size} {unit}"


def small_card(reading: Reading) -> str | None:
    """Look for a card with less memory than the course's main recipe needs."""
    total = memory_sizes(reading).get("total", 12 * GIB)
    return f"the card has {total / GIB:.1f} GiB; the course's main recipe is for 12" if total < 11 * GIB else None


def more_than_once(reading: Reading) -> str | None:
    """Look for a second out-of-memory error; runners are ignored, which stop at the first one and print it twice."""
    if re.search("PapermillExecutionError|CellExecutionError", reading.text):
        return None
    count = sum(bool(_OOM.search(error)) for error in reading.errors)
    return f"out of memory {count} times in one session" if count > 1 else None
