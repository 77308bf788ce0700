"""Claims of README and guide that can be checked: the loop runs, the study file is valid, commands exist."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers.__main__ import main
from helpers.course import find_notebook
from helpers.environment.tasks import TASKS
from helpers.paths import NOTEBOOKS
from helpers.settings import TrainingSettings, check_values, read_run_settings
from helpers.studies.study_file import read_study
from helpers.widgets.training_panel import save_parameters
from tests.command_line import call

PAGES = [NOTEBOOKS.parent / "README.md", NOTEBOOKS / "GUIDE.md", NOTEBOOKS / "README.md"]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


RECORD = """
import json
from helpers.settings import TrainingSettings, run_folder
settings = TrainingSettings.from_notebook(globals())
run_folder(run).mkdir(parents=True, exist_ok=True)
(run_folder(run) / "settings.json").write_text(json.dumps({"settings": settings.model_dump()}))
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_shell_loop_runs_the_notebook_with_each_parameter_file(tmp_path, tiny_settings):
    """Runs only the parameters of notebook 03, because training takes long; the tests of `sweep` train with it."""
    (loop,) = (block for block in blocks("bash") if block.startswith("for file in"))
    nb = nbformat.read(find_notebook("03"), as_version=4)
    nb.cells = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    nb.cells += [nbformat.v4.new_code_cell(RECORD)]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nb, tmp_path / "notebooks/03_fine_tuning.ipynb")
    (tmp_path / "mine").mkdir()
    expected = {
        run: tiny_settings.model_copy(update={"run": run, "learning_rate": rate, "sample_prompt": ""})
        for run, rate in (("slow", 1e-4), ("fast", 1e-2))
    }
    for run, settings in expected.items():
        save_parameters(settings).rename(tmp_path / f"mine/{run}.yaml")
    (tmp_path / "rfc3987_syntax.py").touch()  # replaces a grammar that takes each process 2 s to load
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(["bash", "-e", "-c", loop], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert {run: read_run_settings(run) for run in expected} == expected
    assert all((tmp_path / f"{run}.ipynb").exists() for run in expected)


def test_the_study_file_is_valid(tmp_path):
    (tmp_path / "study.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    study = read_study(tmp_path / "study.yaml")
    assert (len(study.points), study.is_grid) == (30, False)


def test_every_named_command_and_option_exists():
    lines = re.findall(r"^python3 -m helpers (.*)$", TEXT, re.MULTILINE)
    assert len(lines) > 10
    for line in lines:
        words = line.partition("#")[0].split()
        if words[0] in TASKS:
            continue
        command = main.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} - options == set() or "[" in line, line


@pytest.mark.parametrize("page", PAGES, ids=["README", "GUIDE", "notebooks"])
def test_every_linked_file_exists(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_linked_section_of_the_guide_exists():
    headings = re.findall(r"^###? (.+)$", PAGES[1].read_text(encoding="utf-8"), re.MULTILINE)
    sections = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    notebooks = "".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS.glob("*.ipynb"))
    linked = re.findall(r"GUIDE\.md#([\w-]+)", TEXT + notebooks)
    assert "plain-papermill-with-a-file-for-each-run" in linked
    assert set(linked) <= sections


def test_every_file_linked_in_a_notebook_exists():
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", "".join("".join(cell["source"]) for cell in cells))
        assert [link for link in links if not (NOTEBOOKS / link).exists()] == [], notebook.name


def test_the_new_gpt2_can_be_planned_as_shown_and_its_training_settings_are_valid():
    lines = [line for text in blocks("bash") for line in text.splitlines() if "--preset pocket-pretraining" in line]
    plan, train = (shlex.split(line.replace("my_texts/", "fables"), comments=True)[3:] for line in lines)
    planned = call(*plan, "--gpu", "4090")
    assert planned.exit_code == 0
    assert "a new model of 2,615,424 weights" in planned.output
    given = dict(zip(train[train.index("-p") + 1 :: 3], train[train.index("-p") + 2 :: 3], strict=True))
    settings = TrainingSettings.from_preset("pocket-pretraining", **check_values(given))
    assert (settings.vocab_size, settings.n_layer) == (8192, 6)
