"""Checks of Python, its environment and its packages."""

import re
from pathlib import PureWindowsPath

from helpers.environment import fixes, requirements
from helpers.environment.facts import Machine
from helpers.environment.requirements import version_number
from helpers.environment.rules import Finding, fail, ok, rule, warn
from helpers.environment.wheels import quote_program


@rule("The course's libraries install on Python 3.11 to 3.14; it is tested with these.")
def python_version(machine: Machine) -> Finding:
    """Fail for a Python that is older, newer or 32-bit."""
    python = machine.python
    reading = f"Python {'.'.join(map(str, python.version))}, {python.bits} bits"
    if python.bits < 64:
        return fail(f"{reading}: torch has no wheels for it", fixes.make_venv(machine))
    oldest, newest = requirements.PYTHONS
    if not oldest <= python.version[:2] <= newest:
        return fail(reading, fixes.make_venv(machine))
    return ok(reading)


@rule("What you install into one environment is missing in a kernel that runs another.")
def env_kernel_match(machine: Machine) -> Finding:
    """Fail if this Python, or the kernel that Jupyter would start, is not the environment that was meant."""
    python = machine.python
    if python.expected and not any(_normalize(python.prefix) == _normalize(prefix) for prefix in python.expected):
        expected = quote_program(machine, _python_of(machine, python.expected[0]))  # the project's own is the first
        return fail(
            f"runs {python.prefix}, not {python.expected[0]}",
            f"{expected} -m ipykernel install --sys-prefix ; then choose that kernel, or start Python as {expected}",
        )
    kernel = python.kernel
    # Jupyter replaces a kernel's plain `python` by its own Python, so only a path can point elsewhere
    is_path = kernel and ("/" in kernel or "\\" in kernel)
    elsewhere = is_path and not _normalize(kernel).startswith(f"{_normalize(python.prefix)}/")
    if elsewhere or not python.kernel_exists:
        return fail(
            f"the python3 kernel is {kernel}" + ("" if python.kernel_exists else ", which does not exist"),
            f"{fixes.python_command(machine)} -m ipykernel install --sys-prefix ; then choose that kernel",
        )
    return ok(python.prefix)


def _python_of(machine: Machine, prefix: str) -> str:
    """Return an environment's Python; on Windows, conda and venv keep it in different folders."""
    if machine.platform.kind != "Windows":
        return f"{prefix}/bin/python"
    is_conda = PureWindowsPath(prefix).parent.name == "envs"
    return str(PureWindowsPath(prefix, "python.exe" if is_conda else "Scripts/python.exe"))


def _normalize(path: str) -> str:
    """Return a path in one spelling, without `os.path`, which knows only the rules of the system it runs on."""
    plain = path.replace("\\", "/").rstrip("/")
    return plain.lower() if re.match(r"[A-Za-z]:", plain) else plain


@rule("Python keeps using a module that it has already imported, whatever pip has installed since.")
def stale_imports(machine: Machine) -> Finding:
    """Fail if the version of a loaded module differs from the installed one."""
    loaded = machine.packages.loaded
    stale = requirements.find_stale_imports(loaded, machine.packages.installed)
    if stale:
        return fail("; ".join(stale), f"{fixes.RESTART_FIRST}.")
    return ok(", ".join(f"{name} {version}" for name, version in loaded.items()) or "nothing is loaded yet")


@rule("Older libraries lack functions that the course uses; newer major versions may have changed them.")
def package_floor(machine: Machine) -> Finding:
    """Fail for a missing or too old package or another `helpers`; warn about untested major versions and `pynvml`."""
    packages = machine.packages
    # a missing torch is reported by torch_build, with the right wheel
    missing = [name for name in packages.required if name not in packages.installed and name != "torch"]
    old, new = [], []
    for name in filter(packages.installed.get, packages.required):
        version, floor, tested = packages.installed[name], packages.required[name], packages.pinned.get(name)
        if version_number(version) < version_number(floor):
            old.append(f"{name} {version} is below {floor}")
        elif tested and version_number(version)[:1] > version_number(tested)[:1]:
            new.append(f"{name} {version} is a newer major version than the tested {tested}")
    if missing or old:
        parts = [f"missing: {', '.join(missing)}"] if missing else []
        return fail("; ".join(parts + old), fixes.install_project(machine))
    if new:
        return warn("; ".join(new), fixes.install_project(machine))
    python = fixes.python_command(machine)
    if "helpers" in packages.installed:  # notebooks would import that one
        return fail(
            f"another package called helpers ({packages.installed['helpers']}) is installed",
            f"{python} -m pip uninstall -y helpers ; {python} -m helpers install --here",
        )
    if "pynvml" in packages.installed:
        return warn(
            f"pynvml {packages.installed['pynvml']} is deprecated",
            f"{python} -m pip uninstall -y pynvml ; {python} -m pip install --force-reinstall nvidia-ml-py",
        )
    if not packages.required:
        return warn("what the course requires is not known", "Run the doctor from the course's own folder.")
    return ok(f"{len(packages.required)} packages, each new enough")
