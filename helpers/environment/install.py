"""Installs the course: the PyTorch wheel that fits this machine, then everything else in the tested versions.

Only the standard library is imported, because nothing is installed yet. PyTorch comes through pip, so that whatever pip
is configured for (a mirror, a folder of wheels, a proxy) holds for the largest download. The rest comes through uv,
which takes a fraction of pip's time, or through pip where uv cannot be had.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from helpers.environment.access import Access
from helpers.environment.requirements import PYTHONS, pins
from helpers.environment.wheels import CAME_WITH, INDEX, build_of, requirement, triton_for_windows
from helpers.paths import LONGEST_WINDOWS_PATH, ROOT

RECORD = "gpt2-course.json"  # in an environment's folder: what was installed there, last of all
_GB_NEEDED = {"cpu": 3, "cuda": 8}  # measured: 2.2 and 5.9 GB, and what is unpacked on the way
_LONGEST_INSTALLED = 200  # characters below the environment's folder; the longest are JupyterLab's
_ANSWER_SECONDS = 10
_ON_WINDOWS = os.name == "nt"
_NEEDED_BY_NOTEBOOKS = (  # imported once, so that their bytecode is there; the exit skips PyTorch's slow end
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
    """Return the folder of the environment: this Python's own if the course is or shall be there, else `.venv`."""
    own = Path(sys.prefix)
    return own if here or (own / RECORD).is_file() else ROOT / ".venv"


def python_of(folder: Path) -> Path:
    """Return the Python of an environment; of this Python's own, the one that runs."""
    if folder == Path(sys.prefix):
        return Path(sys.executable)
    return folder / ("Scripts/python.exe" if _ON_WINDOWS else "bin/python")


def install(*, here: bool = False, torch: str = "auto") -> Path:
    """Install what is missing; return the environment's Python. A second call finds that nothing is to be done.

    Args:
        here: install into the Python that runs this, such as a conda environment or a container's; else into `.venv`.
        torch: the tag of a wheel on PyTorch's own index, such as 'cu126' or 'cpu'; 'auto' is what the doctor advises,
            and what is installed already, if it works.

    Raises:
        InstallError: this Python, this machine or this folder cannot be installed to, or a download failed.
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
    _say("Python compiles what the notebooks import ...")
    if _run(python, "-c", _NEEDED_BY_NOTEBOOKS, quiet=True) and _run(python, "-c", _NEEDED_BY_NOTEBOOKS):
        raise InstallError(
            f"What was installed cannot be imported (see above): `{python} -m helpers doctor` says more. After a fix "
            "the same command goes on from there."
        )
    record = {"project": str(ROOT), "files": _fingerprint(), "torch": tag}
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    _say(f"Installed into {folder} in {time.monotonic() - began:.0f} s.")
    return python


def _say(line: str) -> None:
    print(line, flush=True)  # in order with what pip and uv print


def _fingerprint() -> str:
    """Return a hash of what decides the versions: a change of it is installed at the next command."""
    content = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def _is_done(folder: Path, torch: str) -> bool:
    """Say whether everything is there, and still found. Without a wish for a wheel, the one that is there is right."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        # as paths: in Windows' terminals the same folder is C:\course or c:\course
        wishes = (ROOT, _fingerprint()) == (Path(record["project"]), record["files"])
        is_recorded = wishes and torch in ("auto", record["torch"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # an update of the system may have replaced the Python by another version, which looks elsewhere for packages
    return is_recorded and _run(python_of(folder), "-c", "import click", quiet=True) == 0


def _refuse_place(folder: Path) -> None:
    """Raise `InstallError` for a Python or a folder that the course cannot be installed with."""
    if not (ROOT / "pyproject.toml").is_file():
        raise InstallError(f"{ROOT} is not a clone of the course: there is no pyproject.toml to install from.")
    oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
    here = f"This is Python {sys.version.partition(' ')[0]}{'' if sys.maxsize > 2**32 else ' of 32 bits'}"
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1] or sys.maxsize <= 2**32:
        raise InstallError(
            f"{here}, and the course needs {oldest} to {newest} of 64 bits. Install one of them, and start this with "
            f"it: `{'py -3.13' if _ON_WINDOWS else 'python3.13'}` in place of `{Path(sys.executable).stem}`."
        )
    longest = len(str(folder)) + _LONGEST_INSTALLED
    if _ON_WINDOWS and longest > LONGEST_WINDOWS_PATH and not Access().long_paths():
        raise InstallError(
            f"The folder {ROOT} is too deep: installed files would have paths of {longest} characters, and Windows "
            f"allows {LONGEST_WINDOWS_PATH}. Move it to a place such as C:\\course, or switch long paths on."
        )


def _make_environment(folder: Path) -> None:
    """Make a virtual environment; one that does not work (interrupted, moved, another Python) is made again."""
    python = python_of(folder)
    probe = f"import pip, sys; sys.exit(not {PYTHONS[0]} <= sys.version_info[:2] <= {PYTHONS[1]})"
    if python.exists() and _run(python, "-c", probe, quiet=True) == 0:
        return
    if folder.exists():
        _say(f"{folder} does not work; it is made again.")
    if _run(sys.executable, "-m", "venv", "--clear", str(folder)) != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise InstallError(
            f"{folder} could not be made (see above). On Debian and Ubuntu: sudo apt install python3-venv ; then the "
            "same command again. If files are in use, close JupyterLab first."
        )


def _install_torch(python: Path, folder: Path, torch: str) -> str:
    """Install PyTorch; return the tag of its wheel."""
    if torch != "auto":
        wanted, index, reason = requirement(torch, pins(Access())["torch"]), f"{INDEX}/{torch}", "As asked for."
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
    """Install a torch and return its tag; where one for the CPU was only advised, any index's build will do."""
    plain = wanted.partition("+")[0]  # the part after + is known to PyTorch's own index alone
    # the usual index has no CUDA for Windows, and for Linux one that not every driver runs
    may_differ = is_advised and index and "+cu" not in wanted
    if may_differ and not _answers(index):
        _say(f"{INDEX} does not answer, so {plain} comes from pip's usual index, which may be another build.")
    elif _pip(python, wanted, *(["--index-url", index] if index else [])) == 0:
        return build_of(wanted)
    elif not may_differ:
        blocked = f" Where {INDEX} is blocked: `{python} -m pip install {plain}`, which is kept if it uses your card."
        raise InstallError(_stopped(f"{wanted} could not be installed") + (blocked if "+cu" in wanted else ""))
    else:
        _say(f"{wanted} could not be installed from {INDEX}, so {plain} comes from pip's usual index.")
    if _pip(python, plain) != 0:
        raise InstallError(_stopped(f"{plain} could not be installed"))
    return build_of(_installed_torch(python))


def _remove_companions(python: Path) -> None:
    """Remove what was built for the torch that was replaced: transformers would import it, and fail."""
    names = "*{each.name for each in distributions()} & {'torchvision', 'torchaudio'}"
    found = _ask(python, "-c", f"from importlib.metadata import distributions; print({names})").split()
    if found and _run(python, "-m", "pip", "uninstall", "-y", *found) == 0:
        _say(f"Removed, because they were built for another torch and the course needs neither: {', '.join(found)}.")


def _installed_torch(python: Path) -> str:
    """Return the version of the installed torch with its build, which its files tell; '' for none or an incomplete one.

    pip writes a package's metadata after its files, so an interrupted installation has files alone.
    """
    read = (
        "from contextlib import suppress\nfrom importlib.metadata import version\n"
        "from helpers.environment.torch_probe import read_torch_files as read\n"
        "with suppress(ImportError): version('torch') and print(read().version)"
    )
    return _ask(python, "-c", read).strip()


def _refuse_full_disk(folder: Path, build: str) -> None:
    free, needed = shutil.disk_usage(folder).free / 1e9, _GB_NEEDED[build]
    if free < needed:
        raise InstallError(
            f"{free:.1f} GB are free at {folder}, and the installation takes about {needed} GB. Free some space, or "
            "move the project to a larger disk; then repeat the command."
        )


def _answers(url: str) -> bool:
    """Say whether an index can be reached, within seconds: pip would try for minutes."""
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=_ANSWER_SECONDS):  # noqa: S310 (https, our own constant)
            return True
    except urllib.error.URLError as error:  # a Python without certificates of its own: pip brings some
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except OSError:
        return False


def _install_rest(python: Path, folder: Path) -> None:
    """Install the project and its dependencies at the pinned versions, beside the torch that is there."""
    constraints = folder / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = _ask(python, "-c", "from importlib.metadata import version; print(version('torch'))").strip()
    kept = [f"torch=={torch}", *(line for line in lines if not line.startswith("torch=="))]
    constraints.write_text("\n".join(kept), encoding="utf-8")
    asked = ["--constraint", str(constraints), "--editable", f"{ROOT}[test,gpu]"]
    has_uv = _pip(python, "--quiet", "--constraint", str(constraints), "uv") == 0
    by_uv = ["-m", "uv", "pip", "install", "--python", str(python), *asked]
    if has_uv and _run(python, *by_uv, env=_uv_settings(python)) == 0:
        return
    _say("uv could not install everything; pip tries, which takes longer.")
    if _pip(python, *asked) != 0:
        raise InstallError(_stopped("Not everything could be installed"))


def _install_triton(python: Path) -> None:
    """Install what the loss's kernel needs beside a CUDA wheel for Windows; the course works without it."""
    wanted = triton_for_windows(_installed_torch(python))
    if wanted and _pip(python, "--quiet", wanted) != 0:
        _say(f"{wanted} could not be installed: training works without it, but takes longer and more memory.")


def _uv_settings(python: Path) -> dict[str, str]:
    """Return the variables that tell uv what pip is configured for."""
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


def _stopped(what: str) -> str:
    return (
        f"{what}: pip's lines above say why. Behind a proxy set HTTPS_PROXY. What is installed stays, and the same "
        "command goes on from there."
    )


def _pip(python: Path, *arguments: str) -> int:
    # what the notebooks import is compiled at the end; compiling all of torch would take longer than the rest
    return _run(python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *arguments)


def _run(program: Path | str, *arguments: str, env: dict[str, str] | None = None, quiet: bool = False) -> int:
    hide = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.run([str(program), *arguments], cwd=ROOT, env=env, stdout=hide, stderr=hide).returncode  # noqa: S603
    except OSError:  # a Python whose own files are gone
        return 1


def _ask(python: Path, *arguments: str, cwd: Path = ROOT) -> str:
    """Return what a command of the environment prints; an error is printed, and gives what was printed until then."""
    env = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(  # noqa: S603
        [str(python), *arguments], cwd=cwd, env=env, stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    return done.stdout


def tag_named(text: str) -> str:
    """Return the tag of a wheel that a person named; raise `InstallError` for what cannot be one.

    >>> tag_named("cu126"), tag_named("")
    ('cu126', 'auto')
    """
    tag = text.strip().lower() or "auto"
    cuda = [f"cu{major}{minor}" for major, minor in CAME_WITH]
    if tag not in ("auto", "cpu", "xpu", *cuda) and not re.fullmatch(r"rocm\d+(\.\d+)+", tag):
        raise InstallError(
            f"There is no PyTorch wheel {text!r} for this course: write auto, cpu, {', '.join(cuda)}, or a tag for "
            f"cards of another maker, which {INDEX} lists."
        )
    return tag
