"""What holds the project together: pins that agree, imports that point one way, notebooks stored clean."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from helpers.settings import NOTEBOOKS, DataSettings, EvaluationSettings, RunSettings, TrainingSettings

ROOT = NOTEBOOKS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
REQUIREMENTS = [
    Requirement(text) for text in sum(PROJECT["optional-dependencies"].values(), list(PROJECT["dependencies"]))
]

MAY_IMPORT = {
    "html_table": set(),
    "processes": set(),
    "settings": {"html_table"},
    "whole": {"settings"},
    "history": {"whole"},
    "sources": {"settings", "model"},
    "tokens": set(),
    "duplicates": set(),
    "leakage": set(),
    "store": set(),
    "staging": {"duplicates", "store", "tokens"},
    "splitting": {"settings", "staging"},
    "parts": {"settings", "leakage", "splitting", "staging", "store"},
    "quality": {"settings", "data", "html_table"},
    "token_view": {"tokens"},
    "data_plots": {"plots", "quality"},
    "data": {
        "settings",
        "model",
        "sources",
        "tokens",
        "duplicates",
        "leakage",
        "store",
        "staging",
        "splitting",
        "parts",
        "quality",
        "whole",
    },
    "model": {"settings"},
    "autograd_functions": set(),
    "engine": {"autograd_functions"},
    "memory": {"settings", "engine"},
    "cards": {"settings", "environment"},
    "plan": {"settings", "cards", "memory", "sources"},
    "callbacks": {"settings", "history"},
    "stopping": set(),
    "checkpoints": set(),
    "measured": set(),
    "environment": {"settings", "model"},
    "token_windows": set(),
    "scoring": {"settings", "engine", "model", "token_windows"},
    "bootstrap": set(),
    "generation": {"settings", "model", "html_table"},
    "suffix_array": set(),
    "copying": {"settings", "suffix_array", "html_table"},
    "model_card": {"settings", "model", "sources", "whole"},
    "figures": {"settings", "model_card", "whole"},
    "evaluation": {
        "settings",
        "data",
        "model",
        "scoring",
        "bootstrap",
        "generation",
        "copying",
        "figures",
        "model_card",
        "html_table",
    },
    "canaries": {"settings", "data", "model", "training", "evaluation"},
    "plots": {"bootstrap"},
    "failures": {
        "settings",
        "environment",
        "cards",
        "plan",
        "data",
        "model",
        "memory",
        "evaluation",
        "checkpoints",
        "training",
        "html_table",
    },
    "exercises": set(),
    "training": {
        "settings",
        "data",
        "model",
        "engine",
        "callbacks",
        "checkpoints",
        "forecast",
        "measured",
        "model_card",
        "pruning",
        "stopping",
        "history",
        "processes",
        "whole",
    },
    "forecast": {"settings", "cards", "memory", "model", "plan"},
    "pruning": {"sweep"},
    "comparison": {"settings", "comparison_page", "history", "model_card"},
    "comparison_page": {"bootstrap", "comparison", "comparison_plots", "whole", "html_table"},
    "comparison_plots": {"comparison", "history", "plots"},
    "sweep": {
        "settings",
        "course",
        "plan",
        "cards",
        "memory",
        "environment",
        "forecast",
        "failures",
        "pruning",
        "comparison",
        "comparison_page",
        "whole",
    },
    "pocket": {"settings", "model", "evaluation"},
    "course": {"settings"},
    "__main__": {"settings", "processes", "course", "training", "environment", "cards", "plan", "failures", "sweep"},
    "widgets": {
        "whole",
        "settings",
        "cards",
        "memory",
        "plan",
        "data",
        "quality",
        "staging",
        "model",
        "training",
        "callbacks",
        "stopping",
    },
    "__init__": set(),
}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement):
    pins = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    assert pins[requirement.name] in requirement.specifier


def test_conda_installs_the_same_project_with_the_cuda_wheel():
    python = next(line for line in CONDA["dependencies"] if isinstance(line, str) and line.startswith("python="))
    assert python.split("=")[1] + ".0" in SpecifierSet(PROJECT["requires-python"])
    pip = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert "--extra-index-url https://download.pytorch.org/whl/cu126" in pip
    assert "--constraint constraints.txt" in pip
    assert f"torch=={PINS['torch']}+cu126" in pip
    assert any(line.startswith("--editable .") for line in pip)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("torch", "words"),
    [
        ("auto", "-m helpers.environment --wheel --pip-args"),
        ("cu126", f"--index-url https://download.pytorch.org/whl/cu126 torch=={PINS['torch']}+cu126"),
        ("", ""),
    ],
)
def test_make_installs_the_wheel_that_is_asked_for(tmp_path, torch, words):
    asked = ["make", "-n", "course", f"TORCH={torch}", f"VENV={tmp_path / 'none'}"]
    printed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wheels = [line for line in printed.splitlines() if "pip install" in line and "--editable" not in line]
    assert len(wheels) == 1 + bool(torch), "pip itself, and the wheel where one is named"
    assert words in wheels[-1]


def tracked_text():
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if not name.endswith((".safetensors", ".png")) and (ROOT / name).exists():
            yield name, (ROOT / name).read_text(encoding="utf-8")


def test_no_file_names_a_machines_path():
    home = re.compile(r"/(?:home|Users|root)/\w+|" + re.escape(str(ROOT)))
    assert [name for name, text in tracked_text() if home.search(text)] == []


def test_no_file_names_a_package_registry():
    hosts = re.compile(r"pypi\.(?:org|io)|python" r"hosted|anaconda\.(?:org|com)", re.IGNORECASE)
    assert [name for name, text in tracked_text() if hosts.search(text)] == []


def test_importing_the_package_imports_nothing_heavy():
    source = "import sys, helpers; print(sorted({'torch', 'transformers', 'datasets', 'pydantic'} & set(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
    assert child.stdout == "[]\n"


def test_the_settings_come_without_torch():
    source = "import sys, helpers.settings, helpers.__main__; print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
    assert child.stdout == "False\n"


def test_every_module_imports_only_what_it_may():
    for path in (ROOT / "helpers").rglob("*.py"):
        module = path.relative_to(ROOT / "helpers").with_suffix("").parts[0]
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
        ours = {name.split(".")[1] for name in found if name.startswith("helpers.")}
        ours |= {a.name for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "helpers" for a in n.names}
        assert ours - {module} <= MAY_IMPORT[module], path


def notebooks():
    return sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
class TestNotebook:
    def test_is_stored_clean(self, path):
        nb = json.loads(path.read_text(encoding="utf-8"))
        assert nb["metadata"]["kernelspec"]["name"] == "python3"
        assert "papermill" not in nb["metadata"]
        code = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)

    def test_parameters_are_literals_with_the_settings_defaults(self, path):
        nb = json.loads(path.read_text(encoding="utf-8"))
        tagged = [cell for cell in nb["cells"] if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1
        tree = ast.parse("".join(tagged[0]["source"]))
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
        kinds = {"02": DataSettings, "03": TrainingSettings, "04": EvaluationSettings}
        assert values == kinds.get(path.stem[:2], RunSettings)().model_dump()

    def test_keeps_to_the_budget_of_a_lesson(self, path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        read = [cell for cell in code if "parameters" not in cell["metadata"].get("tags", [])]  # that one is a list
        sizes = sorted(sum(1 for line in "".join(cell["source"]).splitlines() if line.strip()) for cell in read)
        after_prose = [b["cell_type"] == "markdown" for b, c in pairwise(cells) if c in code]
        assert 20 <= len(code) <= 34
        assert sizes[len(sizes) // 2] <= 4
        assert sizes[-1] <= 25
        assert sum(after_prose) / len(code) >= 0.85


def test_there_are_five_notebooks():
    assert len(notebooks()) == 5
