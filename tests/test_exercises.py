import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpers.environment import GIB, GpuReading, Nvml, diagnosis_of, read_machine
from helpers.environment.facts import Memory
from helpers.exercises import check, exercise_names, progress
from helpers.settings import NOTEBOOKS


def sources(kind):
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == kind:
                yield "".join(cell["source"])


def solutions():
    """Return each exercise's solution as the notebooks show it: name -> code."""
    result = {}
    for text in sources("markdown"):
        for code in re.findall(r"<summary>Solution</summary>\s+```python\n(.*?)```", text, flags=re.DOTALL):
            result[re.search(r'check\("([\w-]+)"', code).group(1)] = code
    return result


def stubs():
    """Return each exercise's empty cell: name -> code."""
    named = {cell: re.search(r'^check\("([\w-]+)"', cell, flags=re.MULTILINE) for cell in sources("code")}
    return {result.group(1): cell for cell, result in named.items() if result}


def another_machine():
    """Return what notebook 1 has at hand for its last exercise."""
    card = GpuReading(0, "NVIDIA GeForce RTX 4070 Ti", total_bytes=12 * GIB, free_bytes=11 * GIB, capability=(8, 9))
    driver = Nvml("ok", driver="560.35.03", cuda=12060, cards=(card,))
    machine = replace(read_machine(quick=True), memory=Memory(32 * GIB, 16 * GIB))
    names = {"replace": replace, "GIB": GIB, "diagnosis_of": diagnosis_of}
    return {"card": card, "driver": driver, "machine": machine, **names}


def verdict_of(code):
    import torch
    from torch.nn import functional

    namespace = {"check": check, "run": "pocket", "math": math, "torch": torch, "F": functional, **another_machine()}
    *body, last = code.strip().splitlines()
    exec("\n".join(body), namespace)
    return eval(last, namespace)


def test_every_exercise_stands_in_a_notebook_with_its_solution():
    assert set(solutions()) == set(stubs()) == set(exercise_names())


@pytest.mark.parametrize("name", exercise_names())
def test_the_solution_shown_passes(name):
    assert verdict_of(solutions()[name]).status == "right"


@pytest.mark.parametrize("name", exercise_names())
def test_the_empty_stub_is_not_done_yet_and_gets_no_hint(name):
    verdict = verdict_of(stubs()[name])
    assert verdict.status == "not done yet"
    assert verdict.message == "Write your answer into the cell above; a function has to return it."


WRONG = {
    "environment-1": (124_439_808 * 4 / 1e9, "GiB of 1024"),
    "environment-2": (lambda driver, cuda: driver == {12: 525, 13: 580}[cuda], "newer drivers run older wheels"),
    "environment-3": (lambda n, seconds: n**3 / seconds / 1e12, "count both"),
    "environment-4": (SimpleNamespace(exit_code=0, card=SimpleNamespace(preset="8gb")), "card's bytes"),
    "data-1": ((2, 12), "end-of-text"),
    "data-2": (lambda documents, eos, size: [[1, 2, 3, 0], [4, 0, 5, 6], [7, 0]], "incomplete block is dropped"),
    "data-4": (
        lambda train, test, n: sum(tuple(test[i : i + n]) in [(1, 2, 3), (2, 3, 4)] for i in range(5)) / 5,
        "counts once",
    ),
    "data-3": (lambda lengths, size: sum(lengths) / (size * len(lengths)), "useful share"),
    "training-1": (250, "not after each"),
    "training-2": (lambda step, peak, warmup, total: peak * min(1, step / warmup), "Half-way between the peak"),
    "training-3": (lambda logits, ids: math.log(7), "against ids"),
    "training-4": (lambda gradients, norm: [g.mul_(norm / g.norm()) for g in gradients] and 5.0, "by itself"),
    "evaluation-1": (math.log(4096), "exponential"),
    "evaluation-2": (lambda nats, n_bytes: nats / n_bytes, "ln 2"),
    "evaluation-3": (lambda tokens, n: len(set(tokens)) / len(tokens), "2 of 4"),
    "evaluation-4": (lambda rank, n: math.log2(rank), "log2 of the rank alone"),
    "troubleshooting-1": (lambda ids, mask: ids.masked_fill(ids == 9, -100), "never learns to stop"),
    "troubleshooting-2": ("not a number", "the log would show"),
    "troubleshooting-3": ("never moves", "Which of the two losses"),
    "troubleshooting-4": ("memorises", "Compare the labels with the input_ids"),
    "troubleshooting-5": (lambda n, speed, peak: 2 * n * speed / (peak * 1e12), "forward pass alone"),
}


@pytest.mark.parametrize("name", exercise_names())
def test_the_usual_wrong_answer_gets_its_own_hint(name):
    answer, words = WRONG[name]
    verdict = check(name, answer)
    assert verdict.status == "not yet"
    assert words in verdict.message


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
    ("training-1", 63.0),
    ("training-2", transformers_schedule),
    ("training-3", loss_by_hand),
    ("training-4", clip_with_torch),
    ("troubleshooting-1", labels_by_where),
    ("troubleshooting-1", labels_in_a_copy),
    ("troubleshooting-5", lambda n, speed, peak: n * speed * 6e-12 / peak),
]
OTHER_WRONG = [
    ("data-1", 3, "as a tuple"),
    ("training-1", "63 steps", "is not a number"),
    ("training-1", 62, "a last, smaller one"),
    ("training-2", linear, "straight line"),
    ("training-2", 0.5, "must be a function"),
    ("training-3", lambda logits, ids: logits.flatten(0, 1).logsumexp(-1).mean(), "against ids"),
    ("training-4", lambda gradients, norm: 5.0, "in place"),
    ("training-4", lambda gradients, norm: [g.mul_(0.2) for g in gradients] and 5.0, "must stay as it is"),
    ("training-4", lambda gradients, norm: [g.clamp_(-norm, norm) for g in gradients] and 5.0, "by itself"),
    ("troubleshooting-2", "T7", "is none of"),
    ("troubleshooting-5", lambda n, speed, peak: 600 * n * speed / (peak * 1e12), "in per cent"),
    ("troubleshooting-5", lambda n, speed, peak: 6 * n * speed / peak, "10**12"),
]


@pytest.mark.parametrize(("name", "answer"), OTHER_RIGHT)
def test_every_right_form_passes(name, answer):
    assert check(name, answer).status == "right"


@pytest.mark.parametrize(("name", "answer", "words"), OTHER_WRONG)
def test_every_usual_mistake_gets_its_own_hint(name, answer, words):
    verdict = check(name, answer)
    assert verdict.status == "not yet"
    assert words in verdict.message


def test_what_is_solved_is_kept_in_the_folder_of_the_run_and_stays_solved(runs):
    check("training-1", None, run="mine")
    assert not (runs / "mine").exists(), "no answer leaves nothing"
    check("training-1", 62, run="mine")
    assert progress("mine").statuses["training-1"] == "not yet"
    check("training-1", 63, run="mine")
    check("training-1", 250, run="mine")
    assert progress("mine").statuses["training-1"] == "right"
    assert set(progress("other").statuses.values()) == {"not done yet"}
    assert str(progress("mine")) == f"1 of {len(exercise_names())} exercises are solved."


@pytest.mark.parametrize("content", ["", "[]", '{"training-1": 3}', '{"training-9": "right"}'])
def test_a_damaged_record_counts_as_nothing_solved(runs, content):
    (runs / "pocket").mkdir(parents=True)
    (runs / "pocket" / "exercises.json").write_text(content)
    assert str(progress()).startswith("0 of")


def test_progress_is_one_page_that_needs_nothing_else():
    check("training-1", 63)
    page = progress().write_page().read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "optimizer steps in an epoch" in page
    assert "src=" not in page


def test_an_answer_that_raises_does_not_stop_the_notebook():
    verdict = check("data-2", lambda documents, eos, size: 1 / 0)
    assert verdict.message == "It raises ZeroDivisionError: division by zero"


def test_a_verdict_is_shown_escaped():
    assert "<b>x</b>" not in check("environment-1", "<b>x</b>")._repr_html_()


def test_an_unknown_exercise_is_our_own_mistake():
    with pytest.raises(KeyError):
        check("nothing", 1)
