"""The checks of the exercises: `check("data-1", answer)` says right, not yet (with a hint), or not done yet.

A check tries an answer on cases of its own and never stops the notebook: what the answer raises becomes a hint.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

_CHECKS: dict[str, tuple[Callable[[Any], None], str]] = {}


@dataclass(frozen=True)
class Verdict:
    """The result of a check: `status` is 'right', 'not yet' or 'not done yet'."""

    status: str
    message: str

    def _repr_html_(self) -> str:
        mark = {"right": "\u2713", "not yet": "\u2717", "not done yet": "\u2026"}[self.status]
        return f"<p><b>{mark} {self.status}.</b> {escape(self.message)}</p>"


class _Hint(Exception):  # noqa: N818 (a hint is no error)
    pass


def check(name: str, answer: Any) -> Verdict:
    """Check the answer to one exercise; an answer of None, or a function that returns None, is 'not done yet'.

    Raises:
        KeyError: there is no exercise of that name.
    """
    examine, hint = _CHECKS[name]
    if answer is None:
        return Verdict("not done yet", f"Hint: {hint}")
    try:
        examine(answer)
    except _NotDoneError:
        return Verdict("not done yet", f"Hint: {hint}")
    except _Hint as hint_for_it:
        return Verdict("not yet", str(hint_for_it))
    except Exception as error:  # noqa: BLE001 (a learner's code may raise anything)
        return Verdict("not yet", f"It raises {type(error).__name__}: {error}")
    return Verdict("right", "On to the next one.")


class _NotDoneError(Exception):
    pass


def exercise_names() -> list[str]:
    """Return the names of all exercises."""
    return list(_CHECKS)


def _exercise(name: str, hint: str) -> Callable:
    def register(examine: Callable[[Any], None]) -> Callable:
        _CHECKS[name] = (examine, hint)
        return examine

    return register


def _expect(given: Any, expected: float, hint: str, *, tolerance: float = 1e-3) -> None:
    if not math.isclose(float(given), expected, rel_tol=tolerance, abs_tol=1e-9):
        raise _Hint(f"{given!r} is not right. {hint}")


def _call(function: Callable, *arguments: Any) -> Any:
    result = function(*arguments)
    if result is None:
        raise _NotDoneError
    return result


@_exercise("environment-1", "a float32 weight takes 4 bytes; a GiB is 1024**3 of them.")
def _weights(answer: Any) -> None:
    if math.isclose(float(answer), 124_439_808 * 4 / 1e9, rel_tol=1e-3):
        raise _Hint("Those are GB of 1000**3 bytes; graphics cards are sold and measured in GiB of 1024**3.")
    _expect(answer, 124_439_808 * 4 / 1024**3, "Multiply the parameters by 4 bytes, divide by 1024**3.")


@_exercise("environment-2", "a CUDA 12 wheel needs driver 525, a CUDA 13 wheel driver 580.")
def _wheels(answer: Any) -> None:
    for driver, cuda, fits in ((525, 12, True), (520, 12, False), (580, 13, True), (575, 13, False), (595, 12, True)):
        if bool(_call(answer, driver, cuda)) is not fits:
            raise _Hint(f"Driver {driver} with a CUDA {cuda} wheel should give {fits}: newer drivers run older wheels.")


@_exercise("environment-3", "an (n, n) product does n*n*n multiplications and as many additions.")
def _tflops(answer: Any) -> None:
    if math.isclose(_call(answer, 1000, 1.0), 1e-3, rel_tol=1e-3):
        raise _Hint("Each of the n**3 multiplications comes with an addition: count both.")
    _expect(answer(2000, 0.5), 0.032, "2 * n**3 operations, divided by the seconds and by 1e12.")


@_exercise("environment-4", "begin with `replace(card, ...)`; driver, wheel and card have to match.")
def _machine(answer: Any) -> None:
    if answer.card is None:
        raise _Hint("It has no card: the driver's `cards` must hold one.")
    if answer.exit_code != 0:
        raise _Hint(f"{answer.verdict} A CPU wheel cannot see the card: give `machine.torch` another version.")
    if answer.card.preset != "16gb":
        raise _Hint(f"Its card gets the preset {answer.card.preset}: the preset depends on the card's bytes.")


@_exercise("data-1", "add up the tokens, one end-of-text more for each document, and divide by the block size.")
def _blocks(answer: Any) -> None:
    if answer in (2, (2, 12)):
        raise _Hint("Do not forget the end-of-text token that closes each document.")
    if tuple(answer) != (2, 15):
        raise _Hint(f"{answer!r} is not right: 20 + 9 + 15 tokens and 3 end-of-texts, in blocks of 16.")


@_exercise("data-2", "build one long list, `stream`, then slice it at multiples of block_size.")
def _pack(answer: Any) -> None:
    blocks = [list(row) for row in _call(answer, [[1, 2, 3], [4], [5, 6, 7]], 0, 4)]
    if blocks == [[1, 2, 3, 4], [5, 6, 7]] or not any(0 in row for row in blocks):
        raise _Hint("The end-of-text token (0 here) must follow each document.")
    if blocks == [[1, 2, 3, 0], [4, 0, 5, 6], [7, 0]]:
        raise _Hint("The last, incomplete block is dropped: every block has exactly block_size tokens.")
    if blocks != [[1, 2, 3, 0], [4, 0, 5, 6]]:
        raise _Hint(f"Yours makes {blocks} of [[1,2,3],[4],[5,6,7]] with end-of-text 0 and block_size 4.")


@_exercise("data-3", "a document longer than the block is cut to it; the others are filled up to it.")
def _padding(answer: Any) -> None:
    share = _call(answer, [50, 100], 100)
    if math.isclose(share, 0.75):
        raise _Hint("That is the useful share; padding is the rest.")
    _expect(share, 0.25, "Half of the first row is padding, none of the second.")
    _expect(answer([300, 100], 100), 0.0, "A long document fills its row: the padding is 0, never negative.")


@_exercise("data-4", "put each n-gram into a set, as a tuple; then intersect two sets.")
def _leak(answer: Any) -> None:
    share = _call(answer, [1, 2, 3, 4, 5], [2, 3, 4, 9, 2, 3, 4], 3)
    if math.isclose(share, 2 / 5):
        raise _Hint("An n-gram that is twice in the test counts once: compare sets.")
    _expect(share, 1 / 4, "Of the test's four different n-grams, only (2,3,4) is in the training ids.")
    _expect(answer([1, 2, 3], [1, 3, 2], 2), 0.0, "The order counts: (1,3) and (3,2) are not in 1, 2, 3.")


@_exercise("training-1", "batch times accumulation; an epoch is all blocks once, the last step may be smaller.")
def _steps(answer: Any) -> None:
    if answer == 250:
        raise _Hint("One optimizer step comes after gradient_accumulation_steps passes, not after each.")
    _expect(answer, 63, "1000 blocks in steps of 4 x 4 = 16: 62 full steps and a last, smaller one.", tolerance=1e-9)


@_exercise("training-2", "during the warm-up: peak * step / warmup; after it: half a cosine from peak to 0.")
def _schedule(answer: Any) -> None:
    _expect(_call(answer, 5, 1.0, 10, 110), 0.5, "Half-way through the warm-up it is half the peak.")
    _expect(answer(10, 1.0, 10, 110), 1.0, "At the end of the warm-up it is the peak.")
    _expect(answer(60, 1.0, 10, 110), 0.5, "In the middle of the cosine it is half the peak.")
    _expect(answer(110, 1.0, 10, 110), 0.0, "At the last step it is 0.", tolerance=1e-6)


@_exercise("training-3", "position t predicts token t + 1: logits[:, :-1] against ids[:, 1:].")
def _next_token(answer: Any) -> None:
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    logits, ids = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    loss = float(_call(answer, logits, ids))
    if math.isclose(loss, float(F.cross_entropy(logits.flatten(0, 1), ids.flatten())), rel_tol=1e-4):
        raise _Hint("That scores each token against itself: shift the labels by one.")
    expected = float(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    _expect(loss, expected, "Mean cross-entropy of logits[:, :-1] against ids[:, 1:].", tolerance=1e-4)


@_exercise("evaluation-1", "what does a model know that gives each of 4,096 tokens the same probability?")
def _uniform(answer: Any) -> None:
    if math.isclose(float(answer), math.log(4096), rel_tol=1e-3):
        raise _Hint("That is the loss in nats; perplexity is its exponential.")
    _expect(answer, 4096, "The loss is ln(4096); perplexity is exp of the loss.")


@_exercise("evaluation-2", "nats divided by ln 2 are bits.")
def _bits(answer: Any) -> None:
    bits_per_byte = _call(answer, 100.0, 50)
    if math.isclose(bits_per_byte, 2.0):
        raise _Hint("Those are nats per byte: divide by ln 2.")
    _expect(bits_per_byte, 100 / math.log(2) / 50, "Divide the summed nats by ln 2, then by the bytes.")


@_exercise("evaluation-3", "collect the n-grams in a set; divide its size by their number.")
def _distinct(answer: Any) -> None:
    _expect(_call(answer, [1, 2, 1, 2, 1], 2), 0.5, "Of (1,2) (2,1) (1,2) (2,1) two are different: 2 of 4.")
    _expect(answer([1, 2, 3], 1), 1.0, "Three different tokens of three.")


@_exercise("evaluation-4", "the most probable has rank 1, and log2(1) is 0.")
def _exposure(answer: Any) -> None:
    if math.isclose(_call(answer, 4, 1024), 2.0):
        raise _Hint("That is log2 of the rank alone: the best-kept secret would get the highest value.")
    _expect(answer(1, 1024), 10.0, "The most probable of 1,024 has the highest exposure, log2(1024) bits.")
    _expect(answer(4, 1024), 8.0, "log2(1024) is 10 and log2(4) is 2.")


@_exercise("troubleshooting-1", "use the mask, not the token: the first end-of-text is text, the later ones padding.")
def _labels(answer: Any) -> None:
    import torch

    ids, mask = torch.tensor([[5, 6, 9, 9, 9]]), torch.tensor([[1, 1, 1, 0, 0]])
    labels = _call(answer, ids, mask).tolist()
    if labels == [[5, 6, -100, -100, -100]]:
        raise _Hint("The real end-of-text lost its label too: this model never learns to stop.")
    if ids.tolist() != [[5, 6, 9, 9, 9]]:
        raise _Hint("The ids themselves were changed: work on a copy.")
    if labels != [[5, 6, 9, -100, -100]]:
        raise _Hint(f"ids {ids.tolist()} with mask {mask.tolist()} should give [[5, 6, 9, -100, -100]], not {labels}.")


_SEEN_IN = {
    "T6": "the log would show a loss or a gradient that is not a number",
    "T7": "the loss would not move",
    "T8": "the labels in the rows would differ from the tokens",
    "T9": "held-out loss would rise while training loss falls",
    "T16": "the learning rate would jump up in the middle of the run",
}


def _diagnosis(answer: Any, right: str, hint: str) -> None:
    if answer == right:
        return
    if answer not in _SEEN_IN:
        raise _Hint(f"{answer!r} is none of {', '.join(_SEEN_IN)}.")
    raise _Hint(f"With {answer}, {_SEEN_IN[answer]}; that is not the case here. {hint}")


@_exercise("troubleshooting-2", "compare the first loss with the last, and with ln(4,096).")
def _run_a(answer: Any) -> None:
    _diagnosis(answer, "T7", "There is a gradient and a learning rate, and yet the loss does not move.")


@_exercise("troubleshooting-3", "put the two losses next to each other, row by row.")
def _run_b(answer: Any) -> None:
    _diagnosis(answer, "T9", "Which of the two losses falls to the end, and which does not?")


@_exercise("troubleshooting-4", "the log looks fine: look at the row below it.")
def _run_c(answer: Any) -> None:
    _diagnosis(answer, "T8", "Compare the labels with the input_ids, position by position.")


@_exercise("troubleshooting-5", "halve the one, double the other, until the batch is at most what fits.")
def _smaller_batch(answer: Any) -> None:
    for (batch, steps, most), expected in (((16, 1, 4), (4, 4)), ((8, 2, 8), (8, 2)), ((4, 4, 1), (1, 16))):
        smaller = tuple(_call(answer, batch, steps, most))
        if smaller[0] * smaller[1] != batch * steps:
            raise _Hint(f"{batch} x {steps} became {smaller[0]} x {smaller[1]}: their product must stay the same.")
        if smaller != expected:
            raise _Hint(f"Batch {batch} with {steps} passes, when {most} fits, should give {expected}, not {smaller}.")
