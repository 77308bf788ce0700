import errno
import os
import re
import signal
import subprocess
import sys
import warnings

import pytest

from helpers import course
from helpers.files import write_json
from helpers.paths import ROOT
from helpers.settings import TrainingSettings
from helpers.training import fine_tuning as training
from tests.command_line import call


@pytest.fixture
def run_calls(monkeypatch):
    """Record what `run` would execute."""
    calls = []
    monkeypatch.setattr(
        course, "run_course", lambda notebooks, **rest: calls.append((notebooks, rest)) or "report.html"
    )
    return calls


def test_help_fits_every_command_and_task_into_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = call("--help").output.partition("Commands:")[2].splitlines()
    assert len(listed) > 20
    assert [line for line in listed if len(line) > 80 or "..." in line] == []


def test_run_takes_all_five_notebooks_and_the_pocket_preset(run_calls):
    assert call("run").exit_code == 0
    notebooks, rest = run_calls[0]
    assert len(notebooks) == 5
    assert rest["run"] == "pocket"
    assert rest["parameters"] == {}


def test_run_uses_the_preset_and_the_command_line_overrides_it(run_calls):
    assert call("run", "--preset", "guide", "--run", "mine", "-p", "learning_rate", "3e-4", "03").exit_code == 0
    notebooks, rest = run_calls[0]
    assert [path.stem for path in notebooks] == ["03_fine_tuning"]
    assert rest["run"] == "mine"
    assert rest["parameters"] == {"learning_rate": 3e-4}
    assert rest["defaults"]["block_size"] == 512


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train --lr 3", "There is no option '--lr'; did you mean 'learning_rate' or "),
        ("run --batch-size 3", "'per_device_eval_batch_size'? A setting is given as `-p NAME VALUE`."),
        ("plan --rnu x", "There is no option '--rnu'; did you mean '--run'?"),
        ("train --json", "There is no option '--json'; there are --parameter, --preset, --run."),
        ("export a --format gguf", "There is no option '--format'; there are --"),
    ],
)
def test_an_unknown_option_names_the_setting_or_the_options(arguments, sentence):
    result = call(*arguments.split())
    assert result.exit_code == 2
    assert sentence in result.output


def test_the_courses_own_warnings_are_shown_without_a_source_line(monkeypatch):
    formatted = []
    warn = ("Waiting.", UserWarning, str(ROOT / "helpers/training/commands.py"), 45, "finished = fine_tune()")
    monkeypatch.setattr(
        course, "run_course", lambda *_, **__: formatted.append(warnings.formatwarning(*warn)) or "report.html"
    )
    call("run")
    assert formatted == ["Warning: Waiting.\n"]
    assert "commands.py:45: UserWarning: Waiting." in warnings.formatwarning(*warn), "only while a command runs"


def test_a_run_name_stays_text(run_calls):
    call("run", "--run", "007")
    assert run_calls[0][1]["run"] == "007"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--preset", "gide"], "did you mean 'guide'?"),
        (["run", "-p", "learning_rat", "1"], "did you mean 'learning_rate'?"),
        (["run", "--run", "../x"], "not a plain name"),
        (["run", "--run", ""], "not a plain name"),
        (["run", "3"], "There is no notebook '3'"),
        (["run", "-p", "lora_r", "4", "-p", "from_scratch", "true"], "lora_r = 4 freezes a pretrained model"),
        (["train", "-p", "block_size", "7"], "at least 8"),
        (["run", "--run", "a", "-p", "run", "b"], "The run has two names, 'a' and 'b'"),
        (["train", "-p", "stride", "7"], "stride is a setting of another notebook or command"),
    ],
)
def test_a_usage_error_gives_one_sentence_and_exit_code_2(arguments, words):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert words in result.output


@pytest.mark.parametrize("notebooks", [[], ["03"]])
def test_settings_that_differ_from_the_runs_are_refused_before_a_notebook_starts(run_calls, runs, notebooks):
    (runs / "mine").mkdir(parents=True)
    write_json(runs / "mine/settings.json", {"settings": TrainingSettings(run="mine", seed=7).model_dump()})
    result = call("run", "--run", "mine", *notebooks)  # the notebook has the default
    assert (result.exit_code, run_calls) == (2, [])
    assert "was started with seed = 7, not 42: choose another run name" in result.output
    assert call("run", "--run", "mine", "-p", "seed", "7", *notebooks).exit_code == 0
    assert call("run", "--run", "mine", "-p", "seed", "8", "01").exit_code == 0


def test_objects_in_an_errors_frames_are_freed_before_its_message(monkeypatch):
    class Bar:
        def __del__(self):
            print("the bar ends", file=sys.stderr)

    def fail(*_, **__):
        _bar = Bar()
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(course, "run_course", fail)
    assert call("run").stderr.startswith("the bar ends\nError: The disk is full")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not allow control characters in names")
def test_control_characters_in_a_file_name_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "a\x1b[2J\x07.csv").write_text("a,a\n1,2\n")
    result = call("train", "--run", "x", "-p", "source", str(tmp_path))
    assert result.exit_code == 2
    assert "a .csv has 2 columns called 'a'" in result.output
    assert "\x1b[2J" not in result.output
    assert "\x07" not in result.output


def test_a_failing_notebook_gives_exit_code_1(monkeypatch):
    def fail(*_, **__):
        raise course.CourseError("02_data.ipynb failed")

    monkeypatch.setattr(course, "run_course", fail)
    result = call("run")
    assert (result.exit_code, result.output) == (1, "Error: 02_data.ipynb failed\n")


@pytest.mark.parametrize("command", [["run", "01"], ["train"]])
def test_an_unusable_runs_folder_gives_one_sentence_and_exit_code_1(command, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "a file" / "runs"))
    result = call(*command)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "cannot be used" in result.output


def test_damaged_settings_of_a_run_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/settings.json").write_text('{"settings"')
    result = call("train", "--run", "mine")
    assert result.exit_code == 2
    assert f"{tmp_path / 'mine' / 'settings.json'} is damaged" in result.output


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot signal a single process")
@pytest.mark.parametrize("module", ["shlex", "click"])  # imported before and after the check of what is installed
def test_an_interrupt_during_the_imports_prints_nothing(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-m", "helpers", "settings"],
        env=env, cwd=ROOT, capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    assert (child.returncode, child.stdout, child.stderr) == (-signal.SIGINT, b"", b"")


def test_an_interrupt_gives_exit_code_130_and_says_that_finished_work_is_kept(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fine_tune", stop)
    result = call("train")
    assert result.exit_code == 130
    assert "completed work is kept" in result.output


def test_arguments_are_taken_as_they_are(tmp_path):
    (tmp_path / "a.txt").touch()
    command = [sys.executable, "-m", "helpers", "run", "--run", "*", "-p", "sample_prompt", "$PATH *"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "run = '*' is not a plain name" in child.stderr


def test_explain_prints_a_progress_bar_in_a_code_page_without_block_characters(tmp_path):
    (tmp_path / "log.txt").write_text("RuntimeError: CUDA out of memory \u2588", encoding="utf-8")
    command = [sys.executable, "-m", "helpers", "explain", str(tmp_path / "log.txt")]
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}  # as under Windows
    child = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, check=False)
    assert (child.returncode, child.stderr) == (0, b"")
    assert b"CUDA out of memory ?" in child.stdout


def test_settings_lists_every_setting_with_its_help():
    from helpers.settings import known_settings

    output = call("settings").output
    assert all(f"{name} = " in output for name in known_settings())


def test_sigterm_gives_exit_code_143_and_restores_the_signal_handler(monkeypatch):
    previous = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(training, "fine_tune", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    result = call("train")
    assert result.exit_code == 143
    assert "completed work is kept" in result.output
    assert signal.getsignal(signal.SIGTERM) is previous


@pytest.mark.parametrize("command", ["run", "train", "plan"])
@pytest.mark.parametrize(("name", "value"), [("source", "nowhere.txt"), ("model_name_or_path", "./nowhere")])
def test_a_missing_text_or_model_is_refused_before_anything_starts(run_calls, command, name, value):
    result = call(command, "-p", name, value)
    assert (result.exit_code, run_calls) == (2, [])
    assert "is not there" in result.output


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("sharing", "export mine"),
        ("sharing", "demo mine"),
        ("sharing", "share mine me/mine"),
        ("studies", "sweep rates"),
        ("training", "train"),
        ("training", "calibrate"),
        ("troubleshooting", "explain LICENSE"),
    ],
)
def test_a_slow_command_starts_by_saying_what_it_does(monkeypatch, package, words):
    monkeypatch.chdir(ROOT)

    def tell(sentence):
        raise course.CourseError(sentence)

    monkeypatch.setattr(f"helpers.{package}.commands.announce", tell)
    assert re.fullmatch(r"Error: [A-Z].* \.\.\.\n", call(*words.split(" ")).output)


def test_run_warns_at_once_about_a_setting_without_effect(run_calls):
    result = call("run", "-p", "lora_alpha", "64", "03")
    assert (result.exit_code, len(run_calls)) == (0, 1)
    assert result.stderr == "Warning: lora_alpha = 64 has no effect with lora_r = 0.\n"


def test_run_resolves_a_relative_path_in_the_callers_folder(run_calls, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    assert call("run", "-p", "source", "mine.txt", "02").exit_code == 0
    assert run_calls[0][1]["parameters"] == {"source": str(tmp_path / "mine.txt")}
