"""The checks of the exercises: each tries an answer on its own cases and raises a hint if something is wrong."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], None]
CHECKS: dict[str, tuple[Check, str]] = {}  # name -> the check, and the task in a few words


class Hint(Exception):  # noqa: N818 (a hint is not an error)
    """The answer is wrong; the message is a hint."""


class NotDoneError(Exception):
    """The function returns None, like the unwritten one in the notebook's cell."""


def _exercise(name: str, task: str) -> Callable:
    def register(examine: Callable[[Any], None]) -> Callable:
        CHECKS[name] = (examine, task)
        return examine

    return register


def _number(answer: Any) -> float:
    """Return an answer as a float; raise a hint if it is not a number, such as a word, a tuple or NaN."""
    try:
        number = float(answer)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise Hint(f"{answer!r} is not a number.")
    return number


def _expect(
    given: Any, expected: float, hint: str, mistakes: Mapping[float, str] | None = None, *, tolerance: float = 1e-3
) -> None:
    """Raise the hint of the usual mistake that gives this number, or else `hint` if the number is wrong."""
    number = _number(given)
    for wrong, mistake_hint in (mistakes or {}).items():
        if math.isclose(number, wrong, rel_tol=tolerance):
            raise Hint(mistake_hint)
    if not math.isclose(number, expected, rel_tol=tolerance, abs_tol=1e-9):
        raise Hint(f"{given!r} is not right. {hint}")


def _call(function: Callable, *arguments: Any) -> Any:
    if not callable(function):
        raise Hint(f"The answer must be a function, not {function!r}.")
    result = function(*arguments)
    if result is None:
        raise NotDoneError
    return result


@_exercise("environment-1", "what training GPT-2 medium keeps, in GiB")
def _kept(answer: Any) -> None:
    parameters, gib = 354_823_168, 1024**3
    mistakes = {
        16 * parameters / 1e9: "Those are GB of 1000**3 bytes; graphics cards are measured in GiB of 1024**3.",
        4 * parameters / gib: "Those are the weights alone: gradients and each of AdamW's averages are as large.",
        8 * parameters / gib: "Those are weights and gradients: AdamW's two averages are missing.",
        12 * parameters / gib: "AdamW keeps two averages for each weight, not one.",
    }
    # Wide enough for 5.3, rounded to two digits.
    _expect(answer, 16 * parameters / gib, "Four numbers of 4 bytes for each parameter.", mistakes, tolerance=3e-3)


@_exercise("environment-2", "does a driver run a wheel?")
def _wheels(answer: Any) -> None:
    for driver, cuda, fits in ((525, 12, True), (520, 12, False), (580, 13, True), (575, 13, False), (595, 12, True)):
        if bool(_call(answer, driver, cuda)) is not fits:
            raise Hint(f"Driver {driver} with a CUDA {cuda} wheel should give {fits}: newer drivers run older wheels.")


@_exercise("environment-3", "TFLOP/s of a matrix product")
def _tflops(answer: Any) -> None:
    mistakes = {0.016: "Each of the n**3 multiplications comes with an addition: count both."}
    _expect(_call(answer, 2000, 0.5), 0.032, "2 * n**3 operations, divided by the seconds and by 1e12.", mistakes)


@_exercise("environment-4", "a machine that trains on its card")
def _machine(answer: Any) -> None:
    if answer.card is None:
        raise Hint("It has no card: the driver's `cards` must hold one.")
    # Not the verdict: other problems of the reader's own machine do not matter here.
    for link in answer.chain():
        if link["status"] == "fail":
            raise Hint(
                f"The chain breaks at {link['link']}: {link['reading']}. Replace `machine.torch` or `driver` too."
            )
    if answer.card.preset != "16gb":
        raise Hint(f"Its card gets the preset {answer.card.preset}: the preset depends on the card's bytes.")


@_exercise("data-1", "blocks and tokens of three documents")
def _blocks(answer: Any) -> None:
    if not isinstance(answer, tuple | list):
        raise Hint("Two numbers are asked for, in the order of the question, as a tuple.")
    if tuple(answer) == (2, 12):
        raise Hint("Do not forget the end-of-text token that closes each document.")
    if tuple(answer) != (2, 15):
        raise Hint(f"{answer!r} is not right: 20 + 9 + 15 tokens and 3 end-of-texts, in blocks of 16.")


@_exercise("data-2", "the share of padding")
def _padding(answer: Any) -> None:
    mistakes = {0.75: "That is the useful share; padding is the rest."}
    _expect(_call(answer, [50, 100], 100), 0.25, "Half of the first row is padding, none of the second.", mistakes)
    _expect(answer([300, 100], 100), 0.0, "A long document fills its row: the padding is 0, never negative.")


@_exercise("data-3", "train the merges of a byte-level BPE")
def _merges(answer: Any) -> None:
    first, second = _pairs(answer, ["aab"] * 3 + ["ab"])
    if first != ("a", "b"):
        raise Hint(f"In 'aab' three times and 'ab' once, 'a' and 'b' are neighbours most often: not {first}.")
    if second == ("a", "a"):
        raise Hint("After the first merge 'ab' is one piece: count the pairs again, in the merged words.")
    if second != ("a", "ab"):
        raise Hint(f"After ('a', 'b') the most frequent pair is ('a', 'ab'), not {second}.")
    if _pairs(answer, ["ab", "xyz", "xyv", "xyw"] + ["ab"] * 3)[0] != ("a", "b"):
        raise Hint("A word counts as often as it occurs: 'ab' four times outweighs 'xy' in three words.")
    if _pairs(answer, ["ab"] * 6 + ["bc"] * 3)[1] != ("b", "c"):
        raise Hint("A pair lies inside one word: the end of one word and the beginning of the next are not neighbours.")
    first, second = _pairs(answer, ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3)
    if (first, second) not in ((("e", "s"), ("es", "t")), (("s", "t"), ("e", "st"))):
        raise Hint(f"'newest' six times and 'widest' three times make 'est' first, not {first} and {second}.")


def _pairs(answer: Any, words: list[str]) -> list[tuple[str, str]]:
    merges = [tuple(pair) for pair in _call(answer, words, 2)]
    if [len(pair) for pair in merges] != [2, 2]:
        raise Hint(f"Two merges were asked for, each a pair of strings; yours are {merges}.")
    return merges


@_exercise("data-4", "find the leak in a dirty corpus")
def _leak(answer: Any) -> None:
    train = ["The quick brown fox jumps over the lazy dog today.", "One two three four five six seven."]
    test = [
        "Nobody knows the trouble that the brown fox has seen.",
        "THE QUICK, brown fox jumps over the lazy dog!",
        "",
    ]
    numbers = sorted(_call(answer, train, test, 5))
    if numbers == []:
        raise Hint("Test document 1 repeats a training document with other case and punctuation: normalise both.")
    if 0 in numbers:
        raise Hint("Test document 0 shares single words with the training text, which all English texts do.")
    if numbers != [1]:
        raise Hint(f"The positions of the leaked test documents should be [1], not {numbers}.")
    numbers = sorted(answer(train, ["and three four five six seven", "a six seven", "today one two three four"], 5))
    if 0 not in numbers:
        raise Hint("A sequence of n words leaks wherever it is in the document, also at its very end.")
    if numbers != [0]:
        raise Hint("A sequence of n words lies inside one document: do not join the training documents.")


@_exercise("training-1", "optimizer steps in an epoch")
def _steps(answer: Any) -> None:
    hint = "1000 blocks in steps of 4 x 4 = 16: 62 full steps and a last, smaller one."
    mistakes = {250: "One optimizer step comes after gradient_accumulation_steps passes, not after each."}
    _expect(answer, 63, hint, mistakes, tolerance=1e-9)


@_exercise("training-2", "the next-token loss")
def _next_token(answer: Any) -> None:
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)  # a separate one: the notebook's random state does not change
    logits, ids = torch.randn(2, 5, 7, generator=generator), torch.randint(7, (2, 5), generator=generator)
    unshifted = float(F.cross_entropy(logits.flatten(0, 1), ids.flatten()))
    expected = float(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    mistakes = {unshifted: "That scores each token against itself: shift the labels by one."}
    hint = "Mean cross-entropy of logits[:, :-1] against ids[:, 1:]."
    _expect(_call(answer, logits, ids), expected, hint, mistakes, tolerance=1e-4)


@_exercise("training-3", "the cosine schedule with warm-up")
def _schedule(answer: Any) -> None:
    _expect(_call(answer, 5, 1.0, 10, 110), 0.5, "Half-way through the warm-up it is half the peak.")
    _expect(answer(10, 1.0, 10, 110), 1.0, "At the end of the warm-up it is the peak.")
    _expect(answer(60, 1.0, 10, 110), 0.5, "Half-way between the peak and the end it is half the peak.")
    _expect(answer(110, 1.0, 10, 110), 0.0, "At the last step it is 0.", tolerance=1e-6)
    line = {0.75: "That is a straight line: a cosine falls slowly at first, then faster, then slowly again."}
    quarter = (1 + math.cos(math.pi / 4)) / 2
    _expect(answer(35, 1.0, 10, 110), quarter, "A quarter of the way down, cos(pi / 4) counts.", line)
    try:
        first = answer(0, 2.0, 0, 100)
    except ZeroDivisionError:
        raise Hint("warmup can be 0, and is divided by: without a warm-up it begins at the peak.") from None
    _expect(first, 2.0, "Without a warm-up it begins at the peak.")


@_exercise("training-4", "gradient clipping")
def _clip(answer: Any) -> None:
    import torch

    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])]
    norm = _call(answer, gradients, 1.0)
    after = [gradient.flatten().tolist() for gradient in gradients]

    def became(*values: float) -> bool:  # a divisor with 1e-6 added gives 0.999999
        return all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip((*after[0], *after[1]), values, strict=True))

    if became(1, 0, 0, 1):
        raise Hint(
            "Each gradient was clipped separately, which changes the direction of the step: scale all by one factor."
        )
    _expect(norm, 5.0, "The norm before clipping is the root of 3**2 + 4**2.")
    if became(3, 0, 0, 4):
        raise Hint("The gradients are as large as before: change the tensors themselves, in place.")
    if not became(0.6, 0, 0, 0.8):
        raise Hint(f"The gradients (3, 0) and (0, 4), clipped to norm 1, became {after}.")
    small = [torch.tensor([0.3, 0.4])]
    answer(small, 1.0)
    _expect(small[0].norm().item(), 0.5, "A gradient whose norm is below max_norm must stay as it is.")


@_exercise("training-5", "label smoothing")
def _smoothing(answer: Any) -> None:
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(6, 7, generator=generator), torch.randint(7, (6,), generator=generator)
    plain = float(F.cross_entropy(logits, targets))
    uniform = float(-logits.log_softmax(-1).mean())
    expected = 0.8 * plain + 0.2 * uniform
    mistakes = {
        plain: "That is the loss without smoothing.",
        0.8 * plain + 0.2 * (7 * uniform - plain) / 6: "The target gets its part of the share too, like every token.",
        0.8 * plain + 0.2 * 7 * uniform: "The share is divided among the V tokens: take their mean.",
        plain + 0.2 * uniform: "The share is taken from the target, which keeps 1 - share.",
    }
    hint = "The mean of (1 - share) x the target's nats + share x the mean nats of all V tokens."
    _expect(_call(answer, logits, targets, 0.2), expected, hint, mistakes, tolerance=1e-4)
    _expect(answer(logits, targets, 0.0), plain, "A share of 0 changes nothing.", tolerance=1e-4)


@_exercise("evaluation-1", "a perplexity by hand")
def _by_hand(answer: Any) -> None:
    mistakes = {
        math.log(512) / 4: "That is the loss in nats; perplexity is its exponential.",
        9 / 4: "That is the loss in bits; perplexity is 2 to that power.",
        5.5: "That is the mean of 1/p: take the mean of the logarithms, then the exponential.",
        4.0: "That is 1 over the mean probability: take the mean of the logarithms, then the exponential.",
        512: "That is the product: the exponential of the sum. Divide the sum by the number of tokens first.",
    }
    _expect(answer, 512**0.25, "exp of the mean of -ln p.", mistakes, tolerance=2e-3)


@_exercise("evaluation-2", "bits per byte from a perplexity")
def _bits(answer: Any) -> None:
    mistakes = {
        math.log(16) / 4: "Those are nats per byte: divide by ln 2, or take log2.",
        16.0: "Bytes divide, tokens multiply: each token costs log2(perplexity) bits.",
        4.0: "Those are bits per token: multiply by the tokens, divide by the bytes.",
    }
    hint = "Perplexity 16 costs 4 bits per token; 100 tokens in 400 bytes make 1 bit per byte."
    _expect(_call(answer, 16.0, 100, 400), 1.0, hint, mistakes)
    _expect(answer(32.0, 300, 1000), 1.5, "300 tokens of 5 bits each in 1,000 bytes make 1.5 bits per byte.")


@_exercise("evaluation-3", "write the sliding window")
def _windows(answer: Any) -> None:
    for (n_tokens, context, stride), expected in {
        (10, 4, 2): [(0, 4, 4), (2, 6, 2), (4, 8, 2), (6, 10, 2)],
        (9, 4, 2): [(0, 4, 4), (2, 6, 2), (4, 8, 2), (6, 9, 1)],
        (8, 4, 4): [(0, 4, 4), (4, 8, 4)],
        (3, 4, 2): [(0, 3, 3)],
    }.items():
        windows = [tuple(map(int, window)) for window in _call(answer, n_tokens, context, stride)]
        case = f"{n_tokens} tokens, context {context}, stride {stride}"
        if sum(scored for *_, scored in windows) > n_tokens:
            raise Hint(f"{case}: tokens are scored twice. Score only what no earlier window contained.")
        if sum(scored for *_, scored in windows) < n_tokens:
            raise Hint(f"{case}: some tokens are never scored. The first window scores all of its tokens.")
        if any(end > n_tokens for _, end, _ in windows):
            raise Hint(f"{case}: a window ends past the end of the text.")
        if any(scored == 0 for *_, scored in windows):
            raise Hint(f"{case}: the last window scores nothing. Stop when a window reaches the end of the text.")
        if windows != expected:
            raise Hint(f"{case}: {windows} should be {expected}.")


@_exercise("evaluation-4", "write the paired bootstrap")
def _bootstrap(answer: Any) -> None:
    import numpy as np

    random = np.random.default_rng(1)
    n_bytes = random.integers(100, 5000, 40).astype(float)
    base = n_bytes * random.uniform(0.5, 3.0, 40)
    share = _number(_call(answer, base, base - 0.02 * n_bytes, n_bytes))
    if share > 0.99:
        raise Hint("Here the tuned model is better on every document: count the draws in which it is not.")
    if share > 0.01:
        raise Hint("Here the tuned model is better on every document: use the same draw of documents for both models.")
    if _number(answer(base, base * 1.02, n_bytes)) < 0.99:
        raise Hint("Here the tuned model is worse on every document, so there is no draw in which it is better.")
    skewed = np.array([10_000.0] + [100.0] * 9)
    gain = np.array([-1000.0] + [20.0] * 9)  # worse on the long document, which dominates the sum
    share = _number(answer(skewed, skewed - gain, skewed))
    if abs(share - (1 - 0.9**10)) > 0.05:
        raise Hint(
            f"Nine short documents gain a little, a long one loses a lot: about {1 - 0.9**10:.0%} of the draws contain "
            f"the long one and are not better, not {share:.0%}. Sum the nats of a draw; a mean per document hides this."
        )


@_exercise("troubleshooting-1", "labels that keep the real end")
def _labels(answer: Any) -> None:
    import torch

    ids, mask = torch.tensor([[5, 6, 9, 9, 9]]), torch.tensor([[1, 1, 1, 0, 0]])
    labels = _call(answer, ids, mask).tolist()
    if labels == [[5, 6, -100, -100, -100]]:
        raise Hint("The real end-of-text lost its label too: this model never learns to stop.")
    if ids.tolist() != [[5, 6, 9, 9, 9]]:
        raise Hint("The ids themselves were changed: work on a copy.")
    if labels != [[5, 6, 9, -100, -100]]:
        raise Hint(f"ids {ids.tolist()} with mask {mask.tolist()} should give [[5, 6, 9, -100, -100]], not {labels}.")


@_exercise("troubleshooting-2", "your model FLOPs utilisation")
def _utilisation(answer: Any) -> None:
    hint = "A million parameters, 2,000 tokens per second and a peak of 0.06 TFLOP/s give 20%."
    mistakes = {
        0.2 / 3: "That counts the forward pass alone; the backward pass takes twice as many operations.",
        20.0: "That is a percentage; give the share, between 0 and 1.",
        2e11: "The peak is in TFLOP/s: 10**12 operations per second.",
        5.0: "That is the peak divided by what was reached.",
    }
    _expect(_call(answer, 1_000_000, 2_000.0, 0.06), 0.2, hint, mistakes)
    _expect(answer(124_000_000, 40_000.0, 80.0), 0.372, "Another model and card give 37.2%.")


_SYMPTOMS = {
    "not a number": "the log would show a loss or a gradient that is not a number",
    "never moves": "the loss would not move",
    "labels shifted twice": "the labels in the rows would differ from the tokens",
    "memorises": "held-out loss would rise while training loss falls",
    "another schedule": "the learning rate would jump up in the middle of the run",
}


def _diagnosis(right: str, where: str) -> Check:
    def examine(answer: Any) -> None:
        answer = answer.strip().lower() if isinstance(answer, str) else answer
        if answer not in _SYMPTOMS:
            raise Hint(f"{answer!r} is not one of {', '.join(map(repr, _SYMPTOMS))}.")
        if answer != right:
            raise Hint(f"With {answer!r}, {_SYMPTOMS[answer]}; that is not the case here. {where}")

    return examine


_exercise("troubleshooting-3", "the first broken run")(
    _diagnosis("never moves", "Compare the first loss with the last.")
)
_exercise("troubleshooting-4", "the second broken run")(
    _diagnosis("memorises", "Which of the two losses falls to the end, and which does not?")
)
_exercise("troubleshooting-5", "the third broken run")(
    _diagnosis("labels shifted twice", "Compare the labels with the input_ids, position by position.")
)


@_exercise("scratch-1", "count the weights of a GPT-2")
def _weights(answer: Any) -> None:
    count = _call(answer, 12, 768, 50257, 1024)
    mistakes = {
        124_439_808 + 50257 * 768: "The head shares the token embedding: do not count it twice.",
        124_439_808 - 1024 * 768: "The position embedding is missing.",
        124_439_808 - 12 * 9 * 768: "The biases of the blocks' matrices are missing.",
        124_439_808 - 12 * 4 * 768: "Each block has two norms, with a weight and a bias for each dimension.",
        124_439_808 - 2 * 768: "The last norm, after the blocks, is missing.",
    }
    _expect(count, 124_439_808, "GPT-2 has 124,439,808 weights.", mistakes, tolerance=1e-9)
    _expect(answer(4, 192, 4096, 256), 2_615_424, "The pocket model has 2,615,424.", tolerance=1e-9)


@_exercise("scratch-2", "write causal attention")
def _attention(answer: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    q, k, v = (3 * torch.randn(5, 4, generator=generator) for _ in range(3))
    result, scores = _call(answer, q, k, v), q @ k.T
    mask = torch.full((5, 5), -torch.inf).triu(diagonal=1)

    def is_it(scores: Any, dim: int = -1) -> bool:
        return tuple(result.shape) == (5, 4) and torch.allclose(result, scores.softmax(dim) @ v, atol=1e-4)

    if is_it(scores / 2):
        raise Hint("Tokens read later ones: set those scores to -inf before the softmax.")
    if is_it(scores + mask):
        raise Hint("The scores are too large: divide them by the root of the width, here 2.")
    if is_it((scores / 2).tril()):
        raise Hint("A score of 0 does not mask: the softmax turns it into a probability. Use -inf.")
    if not is_it(scores / 2 + mask):
        raise Hint("It should be softmax(q k^T / sqrt(D) + mask) v, with the softmax over the keys, and shape (T, D).")


@_exercise("scratch-3", "the first loss of a new model")
def _first_loss(answer: Any) -> None:
    mistakes = {
        math.log2(50257): "Those are bits: a loss in nats uses the natural logarithm.",
        50257: "That is the perplexity of a guess; the loss is its logarithm.",
        1 / 50257: "That is the probability of each token; the loss is minus its logarithm.",
    }
    _expect(answer, math.log(50257), "A uniform guess among V tokens costs ln V nats.", mistakes, tolerance=3e-3)


@_exercise("scratch-4", "the days that training takes")
def _days(answer: Any) -> None:
    days, right = _call(answer, 124e6, 2.5e9, 80.0, 0.4), 124e6 * 6 * 2.5e9 / 32e12 / 86_400
    mistakes = {
        right / 3: "That is the forward pass alone: the backward pass costs twice as much again.",
        right * 24: "Those are hours.",
        right * 86_400: "Those are seconds.",
        right * 0.4: "The card reaches only a share of its peak (the MFU): divide by it too.",
    }
    hint = "6 operations for each weight and token, over peak and share, in days of 86,400 s."
    _expect(days, right, hint, mistakes)
