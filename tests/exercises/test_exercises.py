import json
import math
import re
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.environment import GIB, GpuReading, Nvml, diagnosis_of, read_machine
from helpers.environment.facts import Memory
from helpers.exercises import check, progress, verdicts
from helpers.exercises.checks import CHECKS
from helpers.paths import NOTEBOOKS
from helpers.settings import SettingsError


def sources(kind):
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == kind:
                yield "".join(cell["source"])


@cache
def solutions():
    """Return each exercise's solution as the notebooks show it: name -> code."""
    result = {}
    for text in sources("markdown"):
        for code in re.findall(r"<summary>Solution</summary>\s+```python\n(.*?)```", text, flags=re.DOTALL):
            result[re.search(r'check\("([\w-]+)"', code).group(1)] = code
    return result


@cache
def stubs():
    """Return each exercise's empty cell: name -> code."""
    named = {cell: re.search(r'^check\("([\w-]+)"', cell, flags=re.MULTILINE) for cell in sources("code")}
    return {result.group(1): cell for cell, result in named.items() if result}


@cache
def another_machine():
    """Return what notebook 1 defines for its last exercise."""
    card = GpuReading(0, "NVIDIA GeForce RTX 4070 Ti", total_bytes=12 * GIB, free_bytes=11 * GIB, capability=(8, 9))
    driver = Nvml("ok", driver="560.35.03", cuda=12060, cards=(card,))
    machine = replace(read_machine(quick=True), memory=Memory(32 * GIB, 16 * GIB))
    names = {"replace": replace, "GIB": GIB, "diagnosis_of": diagnosis_of}
    return {"card": card, "driver": driver, "machine": machine, **names}


def verdict_of(code):
    named = {"check": check, "run": "pocket", "math": math, "np": np, "torch": torch, "F": functional}
    namespace = named | another_machine()
    *body, last = code.strip().splitlines()
    exec("\n".join(body), namespace)
    return eval(last, namespace)


def test_every_exercise_has_a_notebook_cell_a_solution_and_a_tested_wrong_answer():
    assert set(solutions()) == set(stubs()) == set(CHECKS) == {name for name, *_ in WRONG}


def test_the_numbers_of_the_exercises_match_the_notebooks():
    numbers = re.findall(r"^\*\*(\d)\. ", "\n".join(sources("markdown")), flags=re.MULTILINE)
    assert list(stubs()) == list(solutions()) == list(CHECKS)
    assert [name[-1] for name in stubs()] == numbers


@pytest.mark.parametrize("name", CHECKS)
def test_the_solution_shown_passes(name):
    assert verdict_of(solutions()[name]).status == "right"


@pytest.mark.parametrize("name", CHECKS)
def test_the_empty_stub_is_not_done_yet_and_gets_no_hint(name):
    verdict = verdict_of(stubs()[name])
    assert verdict.status == "not done yet"
    assert verdict.message == "Write your answer in the cell above. A function must return its result."


def test_a_card_that_torch_cannot_see_is_not_accepted():
    given = another_machine()
    big = replace(given["card"], total_bytes=16 * GIB, free_bytes=15 * GIB)
    cpu_wheel = replace(read_machine(quick=True).torch, version="2.13.0+cpu", cuda=None, available=False)
    machine = replace(given["machine"], nvml=replace(given["driver"], cards=(big,)), torch=cpu_wheel)
    verdict = check("environment-4", diagnosis_of(machine))
    assert verdict.status == "not yet"
    assert "The chain breaks at wheel: torch 2.13.0+cpu is a CPU build" in verdict.message


def count_once(words):
    counts = Counter(pair for word in words for pair in pairwise(word))
    return SimpleNamespace(most_common=lambda n: [pair for pair, _ in counts.most_common(n)])


def merges_by_replacing(words, n):
    """Train on texts with a space between the pieces, as in the paper's own code."""
    counts, merges = Counter(" ".join(word) for word in words), []
    for _ in range(n):
        pairs = Counter()
        for word, count in counts.items():
            for pair in pairwise(word.split()):
                pairs[pair] += count
        merges.append(max(pairs, key=pairs.get))
        pattern = re.compile(rf"(?<!\S){re.escape(' '.join(merges[-1]))}(?!\S)")
        counts = Counter({pattern.sub("".join(merges[-1]), word): count for word, count in counts.items()})
    return merges


def merges_across_words(words, n):
    row, merges = list("".join(words)), []
    for _ in range(n):
        merges.append(Counter(pairwise(row)).most_common(1)[0][0])
        for i in reversed(range(len(row) - 1)):
            if tuple(row[i : i + 2]) == merges[-1]:
                row[i : i + 2] = ["".join(merges[-1])]
    return merges


def leaks_by_joined_words(train, test, n):
    def runs(text):
        words = re.sub(r"[^\w\s]", "", text.casefold()).split()
        return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}

    return {i for i, text in enumerate(test) if any(runs(text) & runs(other) for other in train)}


def leaks_but_at_the_end(train, test, n):
    def runs(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + n]) for i in range(len(words) - n)}

    return [i for i, text in enumerate(test) if any(runs(text) & runs(other) for other in train)]


def shares_any_word(train, test, n):
    seen = {word for text in train for word in re.findall(r"\w+", text.lower())}
    return [i for i, text in enumerate(test) if seen & set(re.findall(r"\w+", text.lower()))]


def windows_by_while(n_tokens, context, stride):
    found, reached, start = [], 0, 0
    while reached < n_tokens:
        end = min(start + context, n_tokens)
        found.append([start, end, end - reached])
        reached, start = end, start + stride
    return found


def windows_without_stop(n_tokens, context, stride):
    found, reached = [], 0
    for start in range(0, n_tokens, stride):
        end = min(start + context, n_tokens)
        found.append((start, end, end - reached))
        reached = end
    return found


def resampled_share(base, tuned, *, paired):
    rng, n = np.random.default_rng(7), len(base)
    first = rng.integers(n, size=(2000, n))
    second = first if paired else rng.integers(n, size=(2000, n))
    return np.mean(tuned[second].sum(1) >= base[first].sum(1))


def share_of_mean_gains(base, tuned, n_bytes):
    gains = (base - tuned) / n_bytes
    draws = np.random.default_rng(7).integers(len(gains), size=(2000, len(gains)))
    return (gains[draws].mean(1) < 0).mean()


def linear(step, peak, warmup, total):
    return peak * (step / warmup if step < warmup else (total - step) / (total - warmup))


def transformers_schedule(step, peak, warmup, total):
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    return get_cosine_schedule_with_warmup(optimizer, warmup, total).lr_lambdas[0](step) * peak


def clip_with_torch(gradients, max_norm):
    import torch

    holders = [torch.nn.Parameter(gradient.clone()) for gradient in gradients]
    for holder, gradient in zip(holders, gradients, strict=True):
        holder.grad = gradient
    return torch.nn.utils.clip_grad_norm_(holders, max_norm)


def loss_by_hand(logits, ids):
    log_p = logits[:, :-1].log_softmax(-1)
    return -log_p.gather(-1, ids[:, 1:, None]).mean()


def labels_by_where(ids, mask):
    import torch

    return torch.where(mask.bool(), ids, -100)


def labels_in_a_copy(ids, mask):
    labels = ids.clone()
    labels[mask == 0] = -100
    return labels


OTHER_RIGHT = [
    ("environment-1", 5.3),
    ("environment-2", lambda driver, cuda: driver >= 525 if cuda == 12 else driver >= 580),
    ("environment-3", lambda n, seconds: (n**3 + n**3) * 1e-12 / seconds),
    ("data-1", [2, 15]),
    ("data-2", lambda lengths, width: 1 - np.minimum(lengths, width).mean() / width),
    ("data-3", merges_by_replacing),
    ("data-4", leaks_by_joined_words),
    ("scratch-3", 10.8),
    ("evaluation-1", 2 ** (9 / 4)),
    ("evaluation-2", lambda perplexity, n_tokens, n_bytes: n_tokens * math.log(perplexity) / math.log(2) / n_bytes),
    ("evaluation-3", windows_by_while),
    ("evaluation-4", lambda base, tuned, n_bytes: resampled_share(base, tuned, paired=True)),
    ("training-1", 63.0),
    ("training-3", transformers_schedule),
    ("training-2", loss_by_hand),
    ("training-4", clip_with_torch),
    ("training-5", lambda logits, ids, share: functional.cross_entropy(logits, ids, label_smoothing=share)),
    ("troubleshooting-3", "Never moves "),
    ("troubleshooting-1", labels_by_where),
    ("troubleshooting-1", labels_in_a_copy),
    ("troubleshooting-2", lambda n, speed, peak: n * speed * 6e-12 / peak),
]
WRONG = [  # at least one for each exercise
    ("environment-1", 354_823_168 * 4 / 1024**3, "weights alone"),
    ("environment-2", lambda driver, cuda: driver == {12: 525, 13: 580}[cuda], "newer drivers run older wheels"),
    ("environment-3", lambda n, seconds: n**3 / seconds / 1e12, "count both"),
    ("environment-4", SimpleNamespace(chain=list, card=SimpleNamespace(preset="8gb")), "card's bytes"),
    ("data-1", (2, 12), "end-of-text"),
    ("data-2", lambda lengths, width: sum(lengths) / (width * len(lengths)), "useful share"),
    ("data-3", lambda words, n: count_once(words).most_common(n), "count the pairs again"),
    ("data-4", lambda train, test, n: [i for i, text in enumerate(test) if text in train], "normalise both"),
    ("training-1", 250, "not after each"),
    ("training-3", lambda step, peak, warmup, total: peak * min(1, step / warmup), "Half-way between the peak"),
    ("training-2", lambda logits, ids: math.log(7), "against ids"),
    ("training-4", lambda gradients, norm: [g.mul_(norm / g.norm()) for g in gradients] and 5.0, "clipped separately"),
    ("evaluation-1", math.log(512) / 4, "the loss in nats"),
    ("evaluation-2", lambda perplexity, n_tokens, n_bytes: math.log(perplexity) * n_tokens / n_bytes, "take log2"),
    (
        "evaluation-3",
        lambda n, context, stride: [(i, min(i + context, n), min(context, n - i)) for i in range(0, n, stride)],
        "scored twice",
    ),
    ("evaluation-4", lambda base, tuned, n_bytes: resampled_share(base, tuned, paired=False), "the same draw"),
    ("troubleshooting-1", lambda ids, mask: ids.masked_fill(ids == 9, -100), "never learns to stop"),
    ("troubleshooting-3", "not a number", "the log would show"),
    ("troubleshooting-4", "never moves", "Which of the two losses"),
    ("troubleshooting-5", "memorises", "Compare the labels with the input_ids"),
    ("troubleshooting-2", lambda n, speed, peak: 2 * n * speed / (peak * 1e12), "forward pass alone"),
    ("scratch-1", lambda layers, width, tokens, places: 163_037_184, "do not count it twice"),
    ("scratch-2", lambda q, k, v: (q @ k.T / 2).softmax(-1) @ v, "Tokens read later ones"),
    ("scratch-3", math.log2(50257), "natural logarithm"),
    ("scratch-4", lambda n, tokens, peak, mfu: 2 * n * tokens / (peak * 1e12 * mfu) / 86_400, "forward pass alone"),
    ("environment-1", 354_823_168 * 16 / 1e9, "GiB of 1024"),
    ("environment-1", 354_823_168 * 8 / 1024**3, "averages are missing"),
    ("data-2", lambda lengths, width: 1 - sum(lengths) / (width * len(lengths)), "never negative"),
    ("data-3", merges_across_words, "inside one word"),
    ("data-3", lambda words, n: [("a", "b")], "Two merges"),
    ("data-3", lambda words, n: ["a b", "a ab"], "a pair of strings"),
    ("data-3", lambda words, n: merges_by_replacing(sorted(set(words)), n), "as often as it occurs"),
    ("data-4", shares_any_word, "shares single words"),
    ("data-4", leaks_but_at_the_end, "at its very end"),
    ("data-4", lambda train, test, n: leaks_by_joined_words([" ".join(train)], test, n), "inside one document"),
    ("evaluation-1", 5.5, "mean of 1/p"),
    ("evaluation-1", 9 / 4, "the loss in bits"),
    ("evaluation-2", lambda perplexity, n_tokens, n_bytes: math.log2(perplexity), "bits per token"),
    ("evaluation-3", windows_without_stop, "scores nothing"),
    ("evaluation-3", lambda n, context, stride: [(0, context, context)], "never scored"),
    ("evaluation-4", share_of_mean_gains, "Sum the nats"),
    ("evaluation-2", lambda perplexity, n_tokens, n_bytes: math.log(perplexity, 16), "300 tokens"),
    ("evaluation-4", lambda base, tuned, n_bytes: 1 - resampled_share(base, tuned, paired=True), "it is not"),
    ("evaluation-4", lambda base, tuned, n_bytes: math.nan, "nan is not a number"),
    ("data-1", 3, "as a tuple"),
    ("training-1", "63 steps", "is not a number"),
    ("training-1", 62, "a last, smaller one"),
    ("training-3", linear, "straight line"),
    ("training-3", lambda step, *shape: transformers_schedule(step, *shape) if step else 0 / shape[1], "can be 0"),
    ("training-3", 0.5, "must be a function"),
    ("training-2", lambda logits, ids: logits.flatten(0, 1).logsumexp(-1).mean(), "against ids"),
    ("training-4", lambda gradients, norm: 5.0, "in place"),
    ("training-5", lambda logits, ids, share: functional.cross_entropy(logits, ids), "without smoothing"),
    (
        "training-5",
        lambda logits, ids, share: functional.cross_entropy(logits, ids) - share * logits.log_softmax(-1).mean(),
        "keeps 1 - share",
    ),
    ("training-5", lambda logits, ids, share: -logits.log_softmax(-1).mean(), "mean nats of all V tokens"),
    ("training-5", lambda logits, ids, share: functional.cross_entropy(logits, ids, label_smoothing=0.2), "share of 0"),
    ("training-4", lambda gradients, norm: [g.mul_(0.2) for g in gradients] and 5.0, "must stay as it is"),
    (
        "training-4",
        lambda gradients, norm: [g.mul_(0.2 if len(gradients) > 1 else math.nan) for g in gradients] and 5.0,
        "is not a number",
    ),
    (
        "training-4",
        lambda gradients, norm: [g.mul_(norm / (g.norm() + 1e-6)) for g in gradients] and 5.0,
        "clipped separately",
    ),
    ("training-4", lambda gradients, norm: [g.clamp_(-norm, norm) for g in gradients] and 5.0, "clipped separately"),
    ("troubleshooting-3", "T7", "is not one of"),
    ("troubleshooting-2", lambda n, speed, peak: 600 * n * speed / (peak * 1e12), "a percentage"),
    ("troubleshooting-2", lambda n, speed, peak: 6 * n * speed / peak, "10**12"),
]


@pytest.mark.parametrize(("name", "answer"), OTHER_RIGHT)
def test_every_alternative_right_answer_passes(name, answer):
    assert check(name, answer).status == "right"


@pytest.mark.parametrize(("name", "answer", "words"), WRONG)
def test_every_common_wrong_answer_gets_its_own_hint(name, answer, words):
    verdict = check(name, answer)
    assert verdict.status == "not yet"
    assert words in verdict.message


def test_a_check_does_not_change_the_rng_state_of_the_notebook():
    before = torch.manual_seed(1).get_state()
    for name, answer in OTHER_RIGHT:
        check(name, answer)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_solved_exercise_is_recorded_in_the_run_folder_and_stays_solved(runs):
    check("training-1", None, run="mine")
    assert not (runs / "mine").exists(), "no answer writes nothing"
    check("training-1", 62, run="mine")
    assert progress("mine").statuses["training-1"] == "not yet"
    check("training-1", 63, run="mine")
    check("training-1", 250, run="mine")
    assert progress("mine").statuses["training-1"] == "right"
    assert set(progress("other").statuses.values()) == {"not done yet"}
    assert str(progress("mine")) == f"1 of {len(CHECKS)} exercises are solved."


def test_two_concurrent_checks_keep_both_verdicts(monkeypatch):
    def read_slowly(run):
        statuses = original(run)
        time.sleep(0.2)  # in which the other one can write
        return statuses

    original = verdicts._read_statuses
    monkeypatch.setattr(verdicts, "_read_statuses", read_slowly)
    checks = [threading.Thread(target=check, args=(name, 0)) for name in ("training-1", "environment-1")]
    for thread in checks:
        thread.start()
    for thread in checks:
        thread.join()
    assert list(progress().statuses.values()).count("not yet") == 2


@pytest.mark.parametrize("content", ["", "[]", '{"training-1": 3}', '{"training-9": "right"}'])
def test_a_damaged_record_counts_as_nothing_solved(runs, content):
    (runs / "pocket").mkdir(parents=True)
    (runs / "pocket" / "exercises.json").write_text(content)
    assert str(progress()).startswith("0 of")


def test_the_progress_page_is_self_contained():
    check("training-1", 63)
    page = progress().write_page().read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "optimizer steps in an epoch" in page
    assert "src=" not in page


def test_an_answer_that_raises_does_not_stop_the_notebook():
    verdict = check("data-2", lambda lengths, width: 1 / 0)
    assert verdict.message == "Your answer raises ZeroDivisionError: division by zero"


def test_a_verdict_is_escaped_in_html():
    assert "<b>x</b>" not in check("environment-1", "<b>x</b>")._repr_html_()


@pytest.mark.parametrize(("name", "advice"), [("data1", "; did you mean 'data-1'"), (1, "; there are data-1, ")])
def test_an_unknown_exercise_is_an_error_that_names_those_there_are(name, advice):
    with pytest.raises(SettingsError, match=f"There is no exercise {name!r}{advice}"):
        check(name, 1)


def test_the_progress_of_a_run_without_answers_names_the_runs_that_have_some():
    assert (
        str(progress("anna")) == f"0 of {len(CHECKS)} exercises are solved. No answer has been checked in run 'anna'."
    )
    check("training-1", 0, run="anna")
    assert str(progress("anna")) == f"0 of {len(CHECKS)} exercises are solved."
    assert str(progress("ana")).endswith("No answer has been checked in run 'ana'; did you mean 'anna'?")
