"""Installs the course: the PyTorch wheel that fits this machine, then everything else in the tested versions.

Only the standard library is imported, because nothing is installed yet. pip installs PyTorch, so that pip's
configuration (a mirror, a folder of wheels, a proxy) applies to the largest download. uv installs the rest, in a
fraction of pip's time; if uv is not available, pip does.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from helpers.environment.access import Access
from helpers.environment.requirements import PYTHONS, pins
from helpers.environment.wheels import INDEX, build_of, requirement, triton_for_windows
from helpers.paths import LONGEST_WINDOWS_PATH, ROOT

RECORD = "gpt2-course.json"  # in an environment's folder; written last, when everything is installed
_GB_NEEDED = {"cpu": 3, "cuda": 8}  # measured: 2.2 and 5.9 GB, plus temporary files
_LONGEST_INSTALLED = 200  # characters below the environment's folder; the longest are JupyterLab's
_ON_WINDOWS = os.name == "nt"
_IMPORT_EVERYTHING = (  # imported once to compile their bytecode; _exit skips PyTorch's slow teardown
    "import os, datasets, ipykernel.kernelapp, ipywidgets, matplotlib.pyplot, nbconvert, optuna, papermill, peft; "
    "from transformers import Trainer, pipeline; os._exit(0)"
)
_UV_NAMES = {  # option of pip -> uv's variable; uv does not read pip's configuration
    "index-url": "UV_DEFAULT_INDEX",
    "find-links": "UV_FIND_LINKS",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
}


class InstallError(RuntimeError):
    """The installation cannot go on; the message says why and what to do."""


def environment_folder(*, here: bool = False) -> Path:
    """Return the environment's folder: this Python's own if the course is or will be installed there, else `.venv`.

    An environment that holds another clone stays that clone's.
    """
    own = Path(sys.prefix)
    project = _read_record(own).get("project")
    is_ours = project is not None and (Path(project) == ROOT or not Path(project).exists())  # a clone can be moved
    return own if here or is_ours else ROOT / ".venv"


def python_of(folder: Path) -> Path:
    """Return the Python of an environment: for this Python's own, the one that runs."""
    if folder == Path(sys.prefix):
        return Path(sys.executable)
    return folder / ("Scripts/python.exe" if _ON_WINDOWS else "bin/python")


def install(*, here: bool = False, torch: str = "auto") -> Path:
    """Install what is missing; return the environment's Python. A second call does nothing.

    Args:
        here: install into the Python that runs this, as in a conda environment or a container; else into `.venv`.
        torch: the tag of a wheel on PyTorch's index, such as 'cu126' or 'cpu'; 'auto' follows the doctor's advice,
            which keeps an installed torch that works.

    Raises:
        InstallError: this Python, machine or folder is not supported, or a download failed.
    """
    folder = environment_folder(here=here)
    python = python_of(folder)
    if _is_done(folder, torch):
        return python
    began = time.monotonic()
    _refuse_place(folder)
    if folder != Path(sys.prefix):
        _make_environment(folder)
    tag = _install_torch(python, folder, torch)
    _install_rest(python, folder)
    if _ON_WINDOWS:
        _install_triton(python)
    _refuse_another_helpers(python, folder)
    _say("Compiling what the notebooks import ...")
    if _run(python, "-c", _IMPORT_EVERYTHING, quiet=True) and _run(python, "-c", _IMPORT_EVERYTHING):
        raise InstallError(
            f"The installed packages cannot be imported (see above): `{python} -m helpers doctor` says more. After a "
            "fix, repeat the command to continue."
        )
    record = {"project": str(ROOT), "files": _fingerprint(), "torch": tag}
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    _say(f"Installed into {folder} in {time.monotonic() - began:.0f} s.")
    return python


def _say(line: str) -> None:
    print(line, flush=True)  # flush: pip and uv print in between


def _fingerprint() -> str:
    """Return a hash of the files that determine the versions: after a change, the next command installs again."""
    content = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def _read_record(folder: Path) -> dict[str, str]:
    """Return what the last complete installation into an environment wrote; empty if there was none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and all(isinstance(value, str) for value in record.values()) else {}


def _is_done(folder: Path, torch: str) -> bool:
    """Return whether everything is installed and still works; with torch='auto', any installed wheel will do."""
    record = _read_record(folder)
    # as paths: Windows' terminals write the same folder as C:\course or c:\course
    is_current = Path(record.get("project", "")) == ROOT and record.get("files") == _fingerprint()
    is_installed = is_current and torch in ("auto", record.get("torch"))
    # a system update may have replaced the Python by another version, which looks elsewhere for packages
    return is_installed and _run(python_of(folder), "-c", "import click", quiet=True) == 0


def _refuse_place(folder: Path) -> None:
    """Raise `InstallError` for a Python or a folder that the course cannot be installed into."""
    if not (ROOT / "pyproject.toml").is_file():
        raise InstallError(f"{ROOT} is not a clone of the course: there is no pyproject.toml to install from.")
    oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
    here = f"This is Python {sys.version.partition(' ')[0]}{'' if sys.maxsize > 2**32 else ' (32-bit)'}"
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1] or sys.maxsize <= 2**32:
        raise InstallError(
            f"{here}, and the course needs 64-bit Python {oldest} to {newest}. Install one of them, then use it: "
            f"`{'py -3.13' if _ON_WINDOWS else 'python3.13'}` instead of `{Path(sys.executable).stem}`."
        )
    longest = len(str(folder)) + _LONGEST_INSTALLED
    if _ON_WINDOWS and longest > LONGEST_WINDOWS_PATH and not Access().long_paths():
        raise InstallError(
            f"The folder {ROOT} is too deep: installed files would have paths of {longest} characters, and Windows "
            f"allows {LONGEST_WINDOWS_PATH}. Move it to a place such as C:\\course, or enable long paths."
        )


def _make_environment(folder: Path) -> None:
    """Create a virtual environment; one that does not work (interrupted, moved, another Python) is created again."""
    python = python_of(folder)
    probe = f"import pip, sys; sys.exit(not {PYTHONS[0]} <= sys.version_info[:2] <= {PYTHONS[1]})"
    if python.exists() and _run(python, "-c", probe, quiet=True) == 0:
        return
    if folder.exists():
        _say(f"{folder} does not work; it is created again.")
    if _run(sys.executable, "-m", "venv", "--clear", str(folder)) != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise InstallError(
            f"{folder} could not be created (see above). On Debian and Ubuntu: sudo apt install python3-venv ; then "
            "repeat the command. If files are in use, close JupyterLab first."
        )


def _install_torch(python: Path, folder: Path, torch: str) -> str:
    """Install PyTorch; return the tag of its wheel."""
    if torch != "auto":
        wanted, index, reason = requirement(torch, pins(Access())["torch"]), f"{INDEX}/{torch}", "As requested."
    else:
        answer = _ask(python, "-m", "helpers.environment", "--wheel", "--json")
        if not answer:
            raise InstallError("Which PyTorch wheel fits is not known (see above): name one, as in `--torch cpu`.")
        advice = json.loads(answer)
        if not advice["pip_args"]:
            raise InstallError(advice["reason"])
        wanted, _, index = advice["pip_args"].partition(" --index-url ")
        reason = advice["reason"]
    _say(f"PyTorch: {wanted}. {reason}")
    if _installed_torch(python) == wanted.partition("==")[2]:
        return build_of(wanted)
    _refuse_full_disk(folder, "cuda" if "+cu" in wanted else "cpu")
    tag = _download_torch(python, wanted, index, is_advised=torch == "auto")
    _remove_companions(python)
    return tag


def _download_torch(python: Path, wanted: str, index: str, *, is_advised: bool) -> str:
    """Install a torch and return its tag; if a CPU build was only advised, a build from any index will do."""
    plain = wanted.partition("+")[0]  # only PyTorch's own index knows the part after +
    # the usual index has no CUDA build for Windows, and for Linux one that not every driver runs
    may_differ = is_advised and index and "+cu" not in wanted
    retries = ("--retries", "1") if may_differ else ()  # an index that does not answer would cost minutes
    if _pip(python, wanted, *(("--index-url", index) if index else ()), *retries) == 0:
        return build_of(wanted)
    if not may_differ:
        hint = (
            f" {INDEX} lists the wheels that exist; where it is blocked: `{python} -m pip install {plain}`, which is "
            "kept if it uses your card."
        )
        raise InstallError(_failure(f"{wanted} could not be installed") + (hint if index else ""))
    _say(f"{INDEX} gave no {wanted}, so {plain} comes from pip's usual index, which may be another build.")
    if _pip(python, plain) != 0:
        raise InstallError(_failure(f"{plain} could not be installed"))
    return build_of(_installed_torch(python))


def _remove_companions(python: Path) -> None:
    """Remove packages that were built for the replaced torch: transformers would import them and fail."""
    names = "*{each.name for each in distributions()} & {'torchvision', 'torchaudio'}"
    found = _ask(python, "-c", f"from importlib.metadata import distributions; print({names})").split()
    if found and _run(python, "-m", "pip", "uninstall", "-y", *found) == 0:
        _say(f"Removed, because they were built for another torch and the course needs neither: {', '.join(found)}.")


def _installed_torch(python: Path) -> str:
    """Return the installed torch's version and build, read from its files; '' if it is missing or incomplete.

    pip writes a package's metadata after its files, so an interrupted installation leaves only files.
    """
    source = (
        "from contextlib import suppress\nfrom importlib.metadata import version\n"
        "from helpers.environment.torch_probe import read_torch_files as read\n"
        "with suppress(ImportError): version('torch') and print(read().version)"
    )
    return _ask(python, "-c", source).strip()


def _refuse_full_disk(folder: Path, build: str) -> None:
    free, needed = shutil.disk_usage(folder).free / 1e9, _GB_NEEDED[build]
    if free < needed:
        raise InstallError(
            f"{free:.1f} GB are free at {folder}, and the installation takes about {needed} GB. Free some space, or "
            "move the project to a larger disk; then repeat the command."
        )


def _install_rest(python: Path, folder: Path) -> None:
    """Install the project and its dependencies at the pinned versions, and keep the installed torch."""
    constraints = folder / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = _ask(python, "-c", "from importlib.metadata import version; print(version('torch'))").strip()
    kept = [f"torch=={torch}", *(line for line in lines if not line.startswith("torch=="))]
    constraints.write_text("\n".join(kept), encoding="utf-8")
    arguments = ["--constraint", str(constraints), "--editable", f"{ROOT}[test,gpu]"]
    has_uv = _pip(python, "--quiet", "--constraint", str(constraints), "uv") == 0
    by_uv = ["-m", "uv", "pip", "install", "--python", str(python), *arguments]
    if has_uv and _run(python, *by_uv, env=_uv_settings(python)) == 0:
        return
    _say("uv could not install everything; pip tries, which takes longer.")
    if _pip(python, *arguments) != 0:
        raise InstallError(_failure("Not everything could be installed"))


def _install_triton(python: Path) -> None:
    """Install Triton for a CUDA wheel on Windows: the fused loss kernel needs it, but the course works without it."""
    wanted = triton_for_windows(_installed_torch(python))
    if wanted and _pip(python, "--quiet", wanted) != 0:
        _say(f"{wanted} could not be installed: training works without it, but takes longer and more memory.")


def _uv_settings(python: Path) -> dict[str, str]:
    """Return environment variables that give uv pip's configuration."""
    variables = {}
    for line in _ask(python, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        variable = _UV_NAMES.get(name.rpartition(".")[2])
        if variable and value[:1] in ("'", '"'):
            words = str(ast.literal_eval(value)).split()
            variables[variable] = (",".join if variable == "UV_FIND_LINKS" else " ".join)(words)
    return {**variables, **os.environ}


def _refuse_another_helpers(python: Path, folder: Path) -> None:
    """Raise `InstallError` if another package called `helpers` comes first when a notebook imports it."""
    imported = _ask(python, "-c", "import helpers; print(helpers.__file__)", cwd=folder).strip()
    if Path(imported).parent != ROOT / "helpers":
        raise InstallError(
            f"Another package called `helpers` is in the way: {imported}. Remove it: {python} -m pip uninstall -y "
            "helpers ; then repeat the command."
        )


def _failure(what: str) -> str:
    return (
        f"{what}: pip's lines above say why. Behind a proxy set HTTPS_PROXY. What is installed stays; repeat the "
        "command to continue."
    )


def _pip(python: Path, *arguments: str) -> int:
    # `install` compiles what the notebooks import; compiling all of torch would take longer than everything else
    return _run(python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *arguments)


def _run(program: Path | str, *arguments: str, env: dict[str, str] | None = None, quiet: bool = False) -> int:
    hide = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.run([str(program), *arguments], cwd=ROOT, env=env, stdout=hide, stderr=hide).returncode  # noqa: S603
    except OSError:  # a Python whose own files are gone
        return 1


def _ask(python: Path, *arguments: str, cwd: Path = ROOT) -> str:
    """Return what a command of the environment prints, even if it fails; its errors are shown."""
    env = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(  # noqa: S603
        [str(python), *arguments], cwd=cwd, env=env, stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    return done.stdout
