"""What the numbers of a log show."""

import math

import pytest

from helpers.troubleshooting import explain
from tests.troubleshooting import explain_cases


def test_repeated_words_are_counted_in_runs_of_three():
    (evidence,) = explain("one two three " * 12).causes[0].evidence
    assert evidence == "91% of its three-word sequences repeat an earlier one"  # of 34 sequences 3 are new


def test_a_nan_gradient_is_quoted_as_evidence():
    rows = [{"loss": 0.0, "grad_norm": math.nan, "step": n} for n in range(3)]
    assert explain(rows).causes[0].evidence == ("grad_norm is nan in row 1, next to a logged loss of 0",)


def test_the_sizes_in_an_out_of_memory_error_decide_its_causes():
    causes = explain(explain_cases.oom(total=7.99, own=3.0)).causes
    assert [cause.id for cause in causes] == ["E12", "T1", "E15"]
    assert causes[0].evidence == ("other programs hold 5.0 of 8.0 GiB",)
    assert "8.0 GiB" in causes[2].evidence[0]


def test_in_a_container_pytorchs_own_process_is_not_blamed():
    text = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 496.00 MiB. GPU 0 has a total capacty of "
        "14.75 GiB of which 235.06 MiB is free. Process 20398 has 14.52 GiB memory in use. Of the allocated "
        "memory 14.06 GiB is allocated by PyTorch, and 330.42 MiB is reserved by PyTorch but unallocated."
    )
    assert [cause.id for cause in explain(text).causes] == ["T1"]


def test_the_older_message_also_shows_fragmentation():
    text = (
        "RuntimeError: CUDA out of memory. Tried to allocate 1.65 GiB (GPU 1; 15.79 GiB total capacity; 3.53 GiB "
        "already allocated; 1.40 GiB free; 12.28 GiB reserved in total by PyTorch)"
    )
    assert [cause.id for cause in explain(text).causes] == ["T2", "T1"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("the data are from https://news.example.it/stories", []),
        ("vocab_size: 000\n" + "step 1: loss 9.0\n" * 3, []),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate ... GiB", ["T1"]),
        ("CUDA out of memory. Process 1 has ... GiB memory in use, this process has .. MiB memory in use", ["T1"]),
    ],
)
def test_dots_are_not_read_as_numbers(text, ids):
    assert [cause.id for cause in explain(text).causes] == ids
