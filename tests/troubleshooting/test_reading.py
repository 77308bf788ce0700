"""A text is read as the program printed it, in whatever form it was pasted."""

import codecs
import json
import traceback

import pytest

from helpers.troubleshooting import explain
from helpers.troubleshooting.reading import decode, read, read_text

ERROR = (
    'Traceback (most recent call last):\n  File "train.py", line 31, in <module>\n    trainer.train()\n'
    "RuntimeError: CUDA error: no kernel image is available for execution on the device\nSee the documentation."
)
MESSAGE = ERROR.split("\n")[3]


def each(prefix):
    return "\n".join(prefix + line for line in ERROR.split("\n"))


FORMS = {
    "as it is": ERROR,
    "quoted": each("> "),
    "quoted twice": each("> > "),
    "indented": each("        "),
    "fenced": f"```\n{ERROR}\n```",
    "fenced python": f"```python\n{ERROR}\n```",
    "in backticks": f"`{MESSAGE}`",
    "in bold": f"**{MESSAGE}**",
    "rank": each("[rank0]: "),
    "rank in brackets": each("[0]: "),
    "stderr": each("stderr: "),
    "docker compose": each("trainer-1  | "),
    "time stamps": each("2026-11-25 23:59:59,123 "),
    "ISO time stamps": each("2026-11-25T23:59:59.123456Z "),
    "short time stamps": each("[23:59:59] "),
    "glog": each("E1125 23:59:59.123000 4711 torch/run.py:779] "),
    "service and time": each("trainer-1  | 2026-11-25 23:59:59 "),
    "carriage returns": ERROR.replace("\n", "\r\n"),
    "after a progress bar": " 1/9 [00:01]\r 2/9 [00:02]\r" + ERROR,
    "ANSI": f"\x1b[31mRuntimeError\x1b[0m: \x1b[1m{MESSAGE.split(': ', 1)[1]}\x1b[0m",
    "a link of a terminal": "\x1b]8;;file:///x.py\x1b\\" + MESSAGE.replace("device", "device\x1b]8;;\x1b\\\x07"),
    "JSON lines": json.dumps({"level": "ERROR", "message": ERROR}) + "\n",
    "docker's JSON": "\n".join(json.dumps({"log": f"{line}\n", "stream": "stderr"}) for line in ERROR.split("\n")),
    "a logger": f"2026-11-25 23:59:59,123 - train - ERROR - {MESSAGE}",
    "a logger's own line": f"ERROR:root:{MESSAGE}",
    "in a report": f"### What happens\n\nI see this after a minute:\n\n```\n{ERROR}\n```\n\nWhat can I do?",
}


def test_an_error_is_recognised_in_every_form():
    answers = {form: [cause.id for cause in explain(text).causes] for form, text in FORMS.items()}
    assert {form: got for form, got in answers.items() if got != ["E25"]} == {}


@pytest.mark.parametrize(
    "data",
    [
        MESSAGE.encode(),
        codecs.BOM_UTF8 + MESSAGE.encode(),
        MESSAGE.encode("utf-16"),
        codecs.BOM_UTF16_BE + MESSAGE.encode("utf-16-be"),
    ],
)
def test_a_file_is_read_in_the_encodings_that_shells_write(data):
    assert decode(data) == MESSAGE


def test_invalid_bytes_do_not_stop_it():
    assert "loss nan" in decode(b"step 3: loss nan \xff\n")


def notebook(*outputs):
    prose = {"cell_type": "markdown", "source": ["If the loss is nan: CUDA out of memory, Killed"]}
    code = {"cell_type": "code", "source": ["raise MemoryError"], "outputs": list(outputs)}
    return json.dumps({"cells": [prose, code], "nbformat": 4, "metadata": {}})


def test_only_errors_and_printed_tracebacks_of_a_notebook_are_read():
    error = {"output_type": "error", "ename": "RuntimeError", "evalue": "x", "traceback": ERROR.split("\n")}
    assert explain(notebook(error)).causes[0].id == "E25"
    printed = {"output_type": "stream", "name": "stdout", "text": ["loss nan\n", "Killed\n"]}
    assert explain(notebook(printed)).causes == ()
    child = {"output_type": "stream", "name": "stdout", "text": f"starting\n{ERROR}\n"}  # of !python train.py
    assert explain(notebook(child)).causes[0].id == "E25"
    broken = {"output_type": "error", "ename": "KeyError", "evalue": "3", "traceback": ["KeyError: 3", 4]}
    assert explain(notebook(broken, {"output_type": "stream", "text": 5})).headline == "KeyError: 3"
    assert explain('{"cells": [1, {"outputs": null}, {"outputs": [2]}, {"outputs": 3}]}').causes == ()


def test_an_error_in_the_middle_of_a_very_long_log_is_kept():
    """The middle of a long text is left out, except for lines that look like errors."""
    bars = "\r".join(f" {n}/100000 [00:01<00:01, 900.00it/s]" for n in range(100_000))
    reading = read_text(f"{bars}\n{MESSAGE}\n{bars}")
    assert len(reading.text) < 3_000_000
    assert reading.errors[0].startswith(MESSAGE)


def test_twenty_of_many_similar_errors_and_the_first_and_last_of_many_others_are_read():
    alike = "".join(f"ERROR: worker {n} has failed\n" for n in range(1000))
    errors = read_text(f"{alike}{MESSAGE}\n{alike}ERROR: the end").errors
    assert [error.split("\n")[0] for error in errors[-2:]] == ["error: worker 999 has failed", "error: the end"]
    assert len(errors) == 20 + 2
    assert errors[0].startswith(MESSAGE)
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh"]
    errors = read_text("\n".join(f"ERROR: {word}" for word in words)).errors
    assert len(errors) == 200
    assert (errors[0].split("\n")[0], errors[-1]) == ("error: aaa", "error: hhh")


class TestExceptionGroup:
    @pytest.fixture
    def group(self):
        parts = [ValueError("a bad row"), ExceptionGroup("inner", [RuntimeError(MESSAGE.split(": ", 1)[1])])]
        try:
            raise ExceptionGroup("two workers failed", parts) from OSError("the first cause")
        except ExceptionGroup as error:
            return error

    def test_its_inner_errors_are_explained(self, group):
        assert explain(group).causes[0].id == "E25"
        kinds = [error.split(":")[0] for error in read(group).errors]
        assert kinds == ["OSError", "ExceptionGroup", "ValueError", "ExceptionGroup", "RuntimeError"]

    def test_a_printed_group_is_read_like_the_exception(self, group):
        text = "".join(traceback.format_exception(group))
        assert explain(text).causes[0].id == "E25"
        assert read_text(text).errors == read(group).errors

    def test_a_group_that_contains_itself_does_not_hang(self, group):
        group.exceptions[0].__context__ = group
        assert explain(group).causes[0].id == "E25"


def test_a_line_marked_as_an_error_by_a_logger_is_an_error():
    assert read_text("12:00:00 - root - ERROR - the disk is gone").errors == ("error: the disk is gone",)
    assert read_text("train.py: error: unrecognized arguments: --lr").errors[0].startswith("error: unrecognized")
    assert read_text("0 errors, 3 warnings\nINFO no error here").errors == ()
