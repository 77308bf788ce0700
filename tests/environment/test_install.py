"""What an installation runs, in which order, and its message when something fails; nothing is downloaded."""

import json
import shutil
import subprocess
import sys
import types
import venv
from pathlib import Path

import pytest

from helpers.environment import install as module
from helpers.environment.install import RECORD, InstallError, environment_folder, install, python_of

ADVICE = {
    "pip_args": "torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126",
    "reason": "Driver 535.",
}


CPU_ADVICE = {
    "pip_args": "torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu",
    "reason": "No card.",
}


class Shell:
    """Replaces `subprocess.run`: records the commands, and answers as pip, uv and Python would."""

    def __init__(self, folder):
        self.folder = folder
        self.ran = []
        self.advice = dict(ADVICE)
        self.torch = ""  # the installed one
        self.failing = ()  # a command that contains one of these fails
        self.imported = str(module.ROOT / "helpers" / "__init__.py")
        self.companions = ""  # the installed packages that were built for another torch
        self.pip_config = ""
        self.uv_env = None

    def run(self, command, **options):
        line = " ".join(command[1:])
        self.ran.append(line)
        if any(part in line for part in self.failing):
            return types.SimpleNamespace(returncode=1, stdout="")
        if line.startswith("-m venv"):
            python_of(self.folder).parent.mkdir(parents=True, exist_ok=True)
            python_of(self.folder).write_text("")
        if "pip install" in line and "torch==" in line:
            (self.torch,) = (word.partition("==")[2] for word in command if word.startswith("torch=="))
        if "-m uv" in line:
            self.uv_env = options["env"]
        return types.SimpleNamespace(returncode=0, stdout=self.answer(line))

    def answer(self, line):
        if "--wheel --json" in line:
            return json.dumps(self.advice) if self.advice else ""
        if "torchvision" in line:
            return f"{self.companions}\n"
        if "read_torch_files" in line:
            return f"{self.torch}\n"
        if "version('torch')" in line:
            return f"{self.torch}\n"
        if "import helpers" in line:
            return f"{self.imported}\n"
        return self.pip_config

    def commands(self, word):
        return [line for line in self.ran if word in line]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Return the shell of an empty clone with an index that answers and room on the disk."""
    clone = tmp_path / "Kurs für GPT 2"
    clone.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (clone / name).write_bytes((module.ROOT / name).read_bytes())
    shell = Shell(clone / ".venv")
    monkeypatch.setattr(module, "ROOT", clone)
    monkeypatch.setattr(module, "Access", lambda: types.SimpleNamespace(project=clone, long_paths=lambda: True))
    monkeypatch.setattr(subprocess, "run", shell.run)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "system"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=50e9))
    shell.imported = str(clone / "helpers" / "__init__.py")
    return shell


def test_a_fresh_clone_gets_an_environment_then_the_advised_wheel_then_the_rest(shell, capsys):
    assert install() == python_of(shell.folder)
    steps = [
        next(i for i, line in enumerate(shell.ran) if word in line)
        for word in ("-m venv", "+cu126", "-m uv", "import Trainer")
    ]
    assert steps == sorted(steps)
    (torch,) = [line for line in shell.commands("pip install") if "torch==2.13.0+cu126" in line]
    assert torch.endswith("--index-url https://download.pytorch.org/whl/cu126")
    assert json.loads((shell.folder / RECORD).read_text(encoding="utf-8"))["torch"] == "cu126"
    assert "Driver 535." in capsys.readouterr().out


def test_the_rest_is_installed_at_the_pins_with_the_advised_torch(shell):
    shell.advice["pip_args"] = "torch==2.11.0+cu128 --index-url https://download.pytorch.org/whl/cu128"
    install()
    lines = (shell.folder / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("torch==")] == ["torch==2.11.0+cu128"]
    assert len(lines) > 100
    assert f"--editable {shell.folder.parent}[test,gpu]" in shell.commands("-m uv")[0]


def test_a_second_call_installs_nothing(shell):
    install(torch="cpu")
    shell.ran.clear()
    install()
    install(torch="cpu")
    assert shell.ran == ["-c import click"] * 2


@pytest.mark.parametrize("change", ["pins", "wheel", "clone", "record"])
def test_a_change_of_pins_wheel_clone_or_record_installs_again(shell, change):
    install()
    shell.ran.clear()
    record = shell.folder / RECORD
    if change == "pins":
        (shell.folder.parent / "constraints.txt").write_text("torch==2.14.1\n")
    elif change == "clone":  # an environment that was copied with its clone refers to the old one
        record.write_text(record.read_text(encoding="utf-8").replace("Kurs", "Old"))
    elif change == "record":
        record.write_text("{")
    install(torch="cpu" if change == "wheel" else "auto")
    assert shell.commands("-m uv")
    assert not shell.commands("-m venv")


def test_another_spelling_of_the_same_folder_installs_nothing(shell):
    install()
    shell.ran.clear()
    record, here = shell.folder / RECORD, str(shell.folder.parent)
    content = json.loads(record.read_text(encoding="utf-8"))
    assert content["project"] == here
    other = here.swapcase() if sys.platform == "win32" else f"{here}/."
    record.write_text(json.dumps(content | {"project": other}), encoding="utf-8")
    install()
    assert shell.ran == ["-c import click"]


def test_a_finished_environment_whose_python_was_replaced_is_rebuilt(shell):
    install()
    shell.ran.clear()
    shell.failing = ("import click", "import pip")  # a newer Python looks into another folder for packages
    install()
    assert shell.commands("-m venv --clear")
    assert shell.commands("-m uv")


def test_a_broken_environment_is_rebuilt(shell, capsys):
    python_of(shell.folder).parent.mkdir(parents=True)
    python_of(shell.folder).write_text("interrupted")
    shell.failing = ("import pip",)
    install()
    assert shell.commands("-m venv --clear")
    assert "does not work; it is created again" in capsys.readouterr().out


def test_an_index_that_fails_gives_the_default_wheel_and_one_line(shell, capsys):
    shell.failing = ("--index-url",)
    shell.advice = CPU_ADVICE
    install()
    assert shell.torch == "2.13.0"
    assert shell.commands("--index-url")[0].endswith("--retries 1")
    assert len([line for line in shell.commands("pip install") if line.endswith(" torch==2.13.0")]) == 1
    assert capsys.readouterr().out.count("so torch==2.13.0 comes from pip's usual index, which may be another") == 1


def test_a_cuda_wheel_is_never_replaced_by_the_default_one_and_the_next_call_retries(shell):
    shell.failing = ("--index-url",)
    with pytest.raises(InstallError, match=r"\+cu126 could not be installed: .* -m pip install torch==2\.13\.0`"):
        install()
    assert shell.torch == ""
    shell.failing = ()
    install()
    assert shell.torch == "2.13.0+cu126"


def test_packages_built_for_the_replaced_torch_are_removed(shell, capsys):
    shell.torch, shell.companions = "2.8.0+cu126", "torchaudio torchvision"
    install()
    assert shell.commands("-m pip uninstall -y torchaudio torchvision")
    assert "needs neither: torchaudio, torchvision." in capsys.readouterr().out


def test_packages_built_for_a_kept_torch_stay(shell):
    shell.torch, shell.companions = "2.13.0+cu126", "torchvision"
    install()
    assert not shell.commands("uninstall")


def test_a_failed_import_is_not_recorded_as_installed(shell):
    shell.failing = ("import Trainer",)
    with pytest.raises(InstallError, match=r"cannot be imported .*-m helpers doctor`"):
        install()
    assert not (shell.folder / RECORD).exists()


@pytest.mark.parametrize("has_metadata", [True, False], ids=["complete", "interrupted"])
def test_a_torch_without_its_metadata_does_not_count_as_installed(tmp_path, has_metadata):
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").rglob("site-packages")
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").touch()
    (site / "torch" / "version.py").write_text("__version__ = '9.9.9+cpu'\n")
    if has_metadata:
        (site / "torch-9.9.9.dist-info").mkdir()
        (site / "torch-9.9.9.dist-info" / "METADATA").write_text("Name: torch\nVersion: 9.9.9\n")
    assert module._installed_torch(python_of(tmp_path / "env")) == ("9.9.9+cpu" if has_metadata else "")


def test_a_requested_wheel_is_installed_or_fails_but_is_never_replaced(shell):
    install(torch="cu130")
    assert shell.torch == "2.13.0+cu130"
    shell.failing = ("--index-url",)
    with pytest.raises(InstallError, match=r"torch==2\.13\.0\+cpu could not be installed: pip's lines above"):
        install(torch="cpu")


def test_a_kept_torch_is_not_downloaded_again(shell):
    shell.torch = "2.13.0+cu126"
    install()
    assert not shell.commands("--index-url")


def test_a_failed_triton_installation_on_windows_is_only_a_warning(shell, monkeypatch, capsys):
    monkeypatch.setattr(module, "_ON_WINDOWS", True)
    shell.failing = ("triton-windows==3.7.*",)
    install()
    assert "works without it, but takes longer" in capsys.readouterr().out
    assert (shell.folder / RECORD).exists()


@pytest.mark.parametrize(("on_windows", "tag"), [(True, "cpu"), (False, "cu126")])
def test_triton_for_windows_is_not_installed_for_a_cpu_wheel_or_on_linux(shell, monkeypatch, on_windows, tag):
    monkeypatch.setattr(module, "_ON_WINDOWS", on_windows)
    install(torch=tag)
    assert not shell.commands("triton-windows")


def test_pip_installs_the_rest_if_uv_fails(shell, capsys):
    shell.failing = ("-m uv",)
    install()
    assert [line for line in shell.commands("pip install") if "--editable" in line and "-m uv" not in line]
    assert "pip tries" in capsys.readouterr().out


def test_uv_gets_pips_configuration(shell, monkeypatch):
    for name in ("UV_DEFAULT_INDEX", "UV_FIND_LINKS", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    shell.pip_config = (
        "global.index-url='https://mirror.example/simple'\n:env:.find-links='/wheels /more'\nuser.quiet='1'"
    )
    install()
    assert shell.uv_env["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert shell.uv_env["UV_FIND_LINKS"] == "/wheels,/more"


def test_install_here_uses_and_remembers_the_current_environment(shell, monkeypatch, tmp_path):
    (tmp_path / "system").mkdir()
    shell.failing = ()
    assert install(here=True) == Path(sys.executable)
    assert not shell.commands("-m venv")
    assert environment_folder() == tmp_path / "system"


def test_the_environment_of_another_clone_stays_its_own_while_that_clone_exists(shell, tmp_path):
    (tmp_path / "system").mkdir()
    shell.failing = ()
    install(here=True)
    record = tmp_path / "system" / RECORD
    (tmp_path / "another clone").mkdir()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"project": str(tmp_path / "another clone")}))
    assert environment_folder() == module.ROOT / ".venv"
    assert environment_folder(here=True) == tmp_path / "system"
    (tmp_path / "another clone").rename(tmp_path / "moved")
    assert environment_folder() == tmp_path / "system", "this clone may be the one that was moved"


@pytest.mark.parametrize("damaged", ["", "[]", '{"project": 7, "files": [], "torch": null}'])
def test_a_damaged_record_counts_as_no_installation(shell, tmp_path, damaged):
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / RECORD).write_text(damaged)
    assert environment_folder() == module.ROOT / ".venv"


def test_a_full_disk_is_refused_before_anything_is_downloaded(shell, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=4e9))
    with pytest.raises(InstallError, match=r"4\.0 GB are free at .*takes about 8 GB"):
        install()
    assert not shell.commands("pip install")
    shell.advice["pip_args"] = "torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu"
    install()


def test_an_unreadable_machine_asks_for_the_wheel_by_name(shell):
    shell.advice = {}
    with pytest.raises(InstallError, match="name one, as in `--torch cpu`"):
        install()


def test_a_machine_without_a_wheel_gets_the_reason(shell):
    shell.advice = {"pip_args": "", "reason": "no wheel for macOS on x86_64"}
    with pytest.raises(InstallError, match="no wheel for macOS"):
        install()


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 15, 0)])
@pytest.mark.parametrize(("on_windows", "other"), [(False, r"python3\.13"), (True, r"py -3\.13")])
def test_an_unsupported_python_is_refused_with_a_command_to_use_instead(shell, monkeypatch, version, on_windows, other):
    monkeypatch.setattr(module, "_ON_WINDOWS", on_windows)
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(InstallError, match=rf"needs 64-bit Python 3\.11 to 3\.14.*`{other}` instead of"):
        install()


def test_a_32_bit_python_is_refused(shell, monkeypatch):
    facts = {"version": "3.12.4 (Windows)", "version_info": (3, 12, 4), "maxsize": 2**31 - 1, "executable": "python"}
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(**facts))
    with pytest.raises(InstallError, match=r"This is Python 3\.12\.4 \(32-bit\), and the course needs 64-bit Python"):
        module._refuse_place(shell.folder)


def test_a_folder_too_deep_for_windows_is_refused(shell, monkeypatch):
    monkeypatch.setattr(module, "_ON_WINDOWS", True)
    monkeypatch.setattr(module, "Access", lambda: types.SimpleNamespace(long_paths=lambda: False))
    deep = Path(str(shell.folder.parent) + "/long" * 20)
    with pytest.raises(InstallError, match="is too deep"):
        module._refuse_place(deep)
    module._refuse_place(Path("C:/course/.venv"))  # not too deep
    monkeypatch.setattr(module, "_ON_WINDOWS", False)
    module._refuse_place(deep)


def test_python_of_follows_the_windows_layout(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_ON_WINDOWS", True)
    assert python_of(tmp_path) == tmp_path / "Scripts" / "python.exe"


def test_a_missing_venv_module_names_the_debian_package(shell):
    shell.failing = ("-m venv",)
    with pytest.raises(InstallError, match="sudo apt install python3-venv"):
        install()


def test_another_package_called_helpers_is_refused(shell):
    shell.imported = "/site-packages/helpers/__init__.py"
    with pytest.raises(InstallError, match=r"Another package called `helpers` is in the way: /site-packages"):
        install()
    assert not (shell.folder / RECORD).exists()


def test_installing_outside_a_clone_is_refused(shell):
    (shell.folder.parent / "pyproject.toml").unlink()
    with pytest.raises(InstallError, match="is not a clone of the course"):
        install()
