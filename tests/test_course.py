import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from click.testing import CliRunner

from helpers import course
from helpers.course import CourseError, declared_parameters, find_notebook, run_course, write_report
from helpers.files import write_json
from helpers.paths import NOTEBOOKS
from helpers.settings import SettingsError, run_folder
from helpers.training.run_files import HistoryFile

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def outputs(run, name):
    nb = nbformat.read(run_folder(run) / "notebooks" / name, as_version=4)
    return [output for cell in nb.cells for output in cell.get("outputs", [])]


def test_an_installed_wheel_says_that_it_has_no_notebooks(monkeypatch, tmp_path):
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path / "notebooks")
    for ask in (course.all_notebooks, lambda: find_notebook("03")):
        with pytest.raises(CourseError, match=r"an installed wheel has none\. Run this in a clone"):
            ask()


def test_each_notebook_gets_the_parameters_it_declares(write_notebook):
    first = write_notebook("01_a.ipynb", 'run = "x"\nseed = 1', "print(run, seed)")
    second = write_notebook("02_b.ipynb", 'run = "x"\nstride = 8', "print(run, stride)")
    report = run_course([first, second], run="mine", parameters={"seed": 5}, defaults={"stride": 3, "top_k": 1})
    assert outputs("mine", "01_a.ipynb")[0].text == "mine 5\n"
    assert outputs("mine", "02_b.ipynb")[0].text == "mine 3\n"
    assert report == run_folder("mine") / "notebooks" / "report.html"


def test_an_unknown_parameter_is_refused_before_anything_runs(write_notebook):
    first = write_notebook("01_a.ipynb", 'run = "x"\nstride = 8')
    with pytest.raises(SettingsError, match=r"parameter 'strid'; did you mean 'stride'\?"):
        run_course([first], run="mine", parameters={"strid": 1})
    assert not run_folder("mine").exists()


@pytest.fixture
def without_execution(monkeypatch):
    """Do not execute notebooks, as each starts a kernel."""
    monkeypatch.setattr(course, "_execute", lambda *_, **__: None)


def test_measuring_forgetting_on_the_training_text_is_refused_before_anything_runs(write_notebook, without_execution):
    training = write_notebook("03_a.ipynb", 'run = "x"\nsource = "fables"')
    evaluation = write_notebook("04_b.ipynb", 'run = "x"\ngeneral_source = "python-reference"')
    parameters = {"source": "python-reference"}
    with pytest.raises(SettingsError, match="choose another general_source, such as 'fables'"):
        run_course([training, evaluation], run="mine", parameters=parameters)
    assert not run_folder("mine").exists()
    run_course([training, evaluation], run="mine", parameters=parameters | {"general_source": "fables"})
    run_course([training], run="mine", parameters=parameters)


def test_evaluating_an_unknown_run_warns_before_it_is_trained(write_notebook, without_execution):
    evaluation = write_notebook("04_b.ipynb", 'run = "x"\ngeneral_source = "python-reference"')
    run_folder("mine").mkdir(parents=True)
    write_json(run_folder("mine") / "settings.json", {})
    with pytest.warns(UserWarning, match=r"There is no run 'mien' in .*; did you mean 'mine'\? It is trained now"):
        run_course([evaluation], run="mien", parameters={})
    run_course([evaluation], run="mine", parameters={})
    run_course([write_notebook("03_a.ipynb", 'run = "x"\nsource = "fables"'), evaluation], run="new", parameters={})


def test_a_failing_cell_leaves_the_executed_notebook_and_the_report(write_notebook):
    good = write_notebook("01_a.ipynb", 'run = "x"', "print('fine')")
    bad = write_notebook("02_b.ipynb", 'run = "x"', "print('before')", "raise ValueError('broken')", "print('never')")
    with pytest.raises(CourseError, match=r"02_b\.ipynb failed in cell 4; .*\. ValueError: broken") as error:
        run_course([good, bad], run="mine", parameters={})
    assert str(run_folder("mine") / "notebooks" / "02_b.ipynb") in str(error.value)
    kinds = [output.output_type for output in outputs("mine", "02_b.ipynb")]
    assert "error" in kinds
    page = (run_folder("mine") / "notebooks" / "report.html").read_text(encoding="utf-8")
    assert "fine" in page
    assert "broken" in page


@pytest.mark.parametrize(("seconds", "least", "most"), [(0, 40, 100), (3600, 1, 4)], ids=["on every change", "rarely"])
def test_a_notebook_is_saved_at_intervals_and_completely_at_its_end(write_notebook, monkeypatch, seconds, least, most):
    from papermill import engines

    saved = []
    write = engines.write_ipynb
    monkeypatch.setattr(engines, "write_ipynb", lambda nb, path: (saved.append(path), write(nb, path)))
    monkeypatch.setattr(course, "_SECONDS_BETWEEN_SAVES", seconds)
    path = write_notebook("01_a.ipynb", 'run = "x"', *["print(run)"] * 20, "1 / 0")
    with pytest.raises(CourseError):
        run_course([path], run="mine", parameters={})
    assert least <= len(saved) <= most
    *printed, error = outputs("mine", "01_a.ipynb")
    assert "".join(output.text for output in printed) == "mine\n" * 20  # a kernel may send a line in two parts
    assert error.ename == "ZeroDivisionError"


def test_a_link_in_place_of_the_executed_notebook_is_replaced(write_notebook, runs, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    link = runs / "theirs/notebooks/01_a.ipynb"
    link.parent.mkdir(parents=True)
    try:
        link.symlink_to(mine)
    except OSError as error:
        pytest.skip(f"this system cannot create links: {error}")
    run_course([write_notebook("01_a.ipynb", 'run = "x"')], run="theirs", parameters={})
    assert mine.read_text() == "mine"
    assert not link.is_symlink()


def test_a_multi_line_error_is_shown_on_one_line(write_notebook):
    bad = write_notebook("01_a.ipynb", 'run = "x"', "raise ValueError('one\\n  \\x1b[1mtwo\\x1b[0m')")
    with pytest.raises(CourseError, match=r"ValueError: one two$") as error:
        run_course([bad], run="mine", parameters={})
    assert "\n" not in str(error.value)


def test_the_kernel_is_this_python_and_ends_with_its_notebook(write_notebook, tmp_path, monkeypatch):
    foreign = tmp_path / "jupyter/kernels/python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["no-such-python"], "display_name": "Python 3", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    code = (
        "import atexit, os, pathlib, sys, tempfile\nfolder = tempfile.TemporaryDirectory()\n"
        f"atexit.register(pathlib.Path({str(tmp_path / 'ended')!r}).touch);"
    )
    first = write_notebook("01_a.ipynb", 'run = "x"', code, "print(folder.name, sys.prefix, os.getpid(), sep='\\n')")
    run_course([first], run="mine", parameters={})
    folder, prefix, pid = outputs("mine", "01_a.ipynb")[0].text.splitlines()
    assert prefix == sys.prefix
    assert not psutil.pid_exists(int(pid))
    assert (tmp_path / "ended").exists()
    assert not Path(folder).exists()


def test_a_kernel_that_dies_is_reported(write_notebook):
    bad = write_notebook("01_a.ipynb", 'run = "x"', "import os; os._exit(1)")
    with pytest.raises(CourseError, match="lost its kernel"):
        run_course([bad], run="mine", parameters={})


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_finished_work_and_lets_the_cell_save(write_notebook, runs, tmp_path, number, exit_code):
    started, saved = tmp_path / "begun", tmp_path / "saved"
    saving = (
        f"import pathlib, time\ntry:\n    pathlib.Path({str(started)!r}).touch()\n    time.sleep(120)\n"
        f"except KeyboardInterrupt:\n    time.sleep(0.5)\n    pathlib.Path({str(saved)!r}).touch()\n    raise"
    )
    slow = write_notebook("01_a.ipynb", 'run = "x"', "print('done before')", saving)
    command = [sys.executable, "-m", "helpers", "run", "--run", "mine", str(slow)]
    child = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background test run ignores it
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not started.exists():
        time.sleep(0.3)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == exit_code
    assert "Traceback" not in errors
    assert "Interrupted" in errors
    assert saved.exists()
    assert outputs("mine", "01_a.ipynb")[0].text == "done before\n"
    assert (runs / "mine/notebooks/report.html").exists()


def test_on_windows_ctrl_c_does_not_reach_the_kernel_directly(monkeypatch):
    given = {}

    async def start_kernel(self, **how):
        given.update(how)

    monkeypatch.setattr("jupyter_client.AsyncKernelManager.start_kernel", start_kernel)
    monkeypatch.setattr("subprocess.CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    asyncio.run(course.this_python_kernel_manager()().start_kernel(cwd="here"))
    assert given == {"cwd": "here", "creationflags": 512}


def test_the_report_is_one_page_that_needs_no_network_and_escapes_text(write_notebook):
    widget = "from ipywidgets import IntSlider; IntSlider(description='slides')"
    hostile = write_notebook("01_a.ipynb", 'run = "x"', "print('<script>alert(1)</script>')", widget)
    report = run_course([hostile], run="mine", parameters={}).read_text(encoding="utf-8")
    assert "<script" not in report
    assert "&lt;script&gt;" in report
    assert 'src="http' not in report
    assert 'href="#01_a"' in report
    assert 'name="viewport"' in report
    assert write_report("mine").read_text(encoding="utf-8") == report


def test_the_values_of_parameters_are_read_where_they_are_literals(write_notebook):
    path = write_notebook("01_a.ipynb", 'run = "x"  # a name\nlearning_rate = 2e-3\nseed = 6 * 7')
    assert declared_parameters(path) == {"run": "x", "learning_rate": 2e-3, "seed": ...}


@pytest.mark.parametrize("content", ["", '{"cells": [', '{"a": 1}', "[]"])
def test_an_invalid_notebook_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "mine.ipynb").write_text(content)
    with pytest.raises(SettingsError, match=r"mine\.ipynb cannot be read as a notebook \("):
        declared_parameters(tmp_path / "mine.ipynb")


@pytest.mark.parametrize("name", ["03", "03_fine_tuning", "03_fine_tuning.ipynb"])
def test_a_notebook_is_found_by_its_number_or_name(name):
    assert find_notebook(name).stem == "03_fine_tuning"


def test_an_unknown_notebook_gets_a_suggestion():
    with pytest.raises(SettingsError, match="did you mean '03_fine_tuning'"):
        find_notebook("fine_tunning")


def test_the_course_has_five_notebooks_in_order():
    assert [path.stem[:2] for path in course.course_notebooks()] == ["01", "02", "03", "04", "05"]
    assert find_notebook("06") == course.all_notebooks()[-1]


def test_papermill_is_imported_without_the_slow_grammar():
    source = (
        "import sys; from helpers.course import declared_parameters, find_notebook\n"
        "print('run' in declared_parameters(find_notebook('02')), sys.modules.get('rfc3987_syntax'))"
    )
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=NOTEBOOKS.parent)
    assert child.stdout == "True None\n", child.stderr


def test_shutting_down_a_busy_kernel_prints_no_traceback(write_notebook, capfd):
    slow = write_notebook(
        "01_a.ipynb",
        'run = "x"',
        "import time\n"
        "handlers = get_ipython().kernel.shell_handlers\n"
        "answer = handlers['kernel_info_request']  # papermill asks once more after the last cell\n"
        "async def answer_slowly(*message):\n"
        "    await answer(*message)\n"
        "    time.sleep(30)\n"
        "handlers['kernel_info_request'] = answer_slowly",
    )
    run_course([slow], run="mine", parameters={})
    assert "KeyboardInterrupt" not in capfd.readouterr().err


class Bar:
    """A progress bar that records the text drawn after it."""

    def __init__(self, *, is_terminal):
        self.fp, self.drawn, self.is_seen = SimpleNamespace(isatty=lambda: is_terminal), [], threading.Event()

    def set_postfix_str(self, text):
        self.drawn.append(text)
        self.is_seen.set()


def test_the_progress_bar_of_a_training_cell_shows_the_step(runs, monkeypatch):
    monkeypatch.setattr(course, "_SECONDS_BETWEEN_REDRAWS", 0.001)
    (runs / "mine").mkdir(parents=True)
    rows = [{"step": 10, "loss": 3.5, "epoch": 0.1}, {"step": 10, "eval_loss": 3.4, "epoch": 0.1}]
    HistoryFile(runs / "mine").write(rows)
    bar = Bar(is_terminal=True)
    with course._redrawing(bar, runs / "mine"):
        assert bar.is_seen.wait(60)
    assert bar.drawn[0] == "step 10, loss 3.500"
    assert not any(thread.name == "bar" for thread in threading.enumerate())


def test_a_progress_bar_outside_a_terminal_is_not_redrawn(runs, monkeypatch):
    monkeypatch.setattr(course, "_SECONDS_BETWEEN_REDRAWS", 0.001)
    for bar in (Bar(is_terminal=False), None):
        with course._redrawing(bar, runs / "mine"):
            assert not any(thread.name == "bar" for thread in threading.enumerate())


def papermill(*arguments):
    from papermill.cli import papermill

    return CliRunner().invoke(papermill, ["--no-progress-bar", *map(str, arguments)])


PREPARE = """
from helpers.data import prepare
from helpers.settings import DataSettings
prepare(DataSettings.from_notebook(globals()))
"""


def test_plain_papermill_runs_a_notebook_from_any_folder(tmp_path, monkeypatch, runs, text_file, write_notebook):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = write_notebook("a.ipynb", 'run = "x"\nblock_size = 256\nsource = "fables"', PREPARE)
    result = papermill(path, "out.ipynb", "-p", "run", "mine", "-p", "block_size", "64", "-p", "source", text_file)
    assert result.exit_code == 0, result.exception
    assert '"block_size": 64' in (runs / "mine/data/data.json").read_text()


def test_plain_papermill_stops_at_an_unknown_parameter(tmp_path, monkeypatch, write_notebook):
    monkeypatch.chdir(tmp_path)
    result = papermill(write_notebook("a.ipynb", 'run = "x"', PREPARE), "out.ipynb", "-p", "blok_size", "64")
    assert result.exit_code != 0
    assert "did you mean 'block_size'?" in str(result.exception)
