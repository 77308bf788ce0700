import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpers.environment import GIB, GpuReading, Nvml, diagnosis_of, read_machine
from helpers.environment.facts import Memory
from helpers.exercises import check, exercise_names
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

    namespace = {"check": check, "math": math, "torch": torch, "F": functional, **another_machine()}
    *body, last = code.strip().splitlines()
    exec("\n".join(body), namespace)
    return eval(last, namespace)


def test_every_exercise_stands_in_a_notebook_with_its_solution():
    assert set(solutions()) == set(stubs()) == set(exercise_names())


@pytest.mark.parametrize("name", exercise_names())
def test_the_solution_shown_passes(name):
    assert verdict_of(solutions()[name]).status == "right"


@pytest.mark.parametrize("name", exercise_names())
def test_the_empty_stub_is_not_done_yet_and_gets_a_hint(name):
    verdict = verdict_of(stubs()[name])
    assert verdict.status == "not done yet"
    assert verdict.message.startswith("Hint: ")


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
    "training-2": (lambda step, peak, warmup, total: peak * min(1, step / warmup), "middle of the cosine"),
    "training-3": (lambda logits, ids: math.log(7), "against ids"),
    "evaluation-1": (math.log(4096), "exponential"),
    "evaluation-2": (lambda nats, n_bytes: nats / n_bytes, "ln 2"),
    "evaluation-3": (lambda tokens, n: len(set(tokens)) / len(tokens), "2 of 4"),
    "evaluation-4": (lambda rank, n: math.log2(rank), "log2 of the rank alone"),
    "troubleshooting-1": (lambda ids, mask: ids.masked_fill(ids == 9, -100), "never learns to stop"),
    "troubleshooting-2": ("T6", "not a number"),
    "troubleshooting-3": ("T7", "Which of the two losses"),
    "troubleshooting-4": ("T9", "Compare the labels with the input_ids"),
    "troubleshooting-5": (lambda batch, passes, most: (most, passes), "product must stay"),
}


@pytest.mark.parametrize("name", exercise_names())
def test_the_usual_wrong_answer_gets_its_own_hint(name):
    answer, words = WRONG[name]
    verdict = check(name, answer)
    assert verdict.status == "not yet"
    assert words in verdict.message


def test_an_answer_that_raises_does_not_stop_the_notebook():
    verdict = check("data-2", lambda documents, eos, size: 1 / 0)
    assert verdict.message == "It raises ZeroDivisionError: division by zero"


def test_a_verdict_is_shown_escaped():
    assert "<b>x</b>" not in check("environment-1", "<b>x</b>")._repr_html_()


def test_an_unknown_exercise_is_our_own_mistake():
    with pytest.raises(KeyError):
        check("nothing", 1)
