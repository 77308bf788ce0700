"""Mutation tests of the rules: some simulated machine must detect every changed verdict."""

import ast
import inspect
from dataclasses import replace

import pytest

from helpers.environment import card_checks, driver_checks, python_checks, system_checks
from helpers.environment.diagnosis import diagnosis_of
from helpers.environment.facts import Torch
from helpers.environment.fixes import newer_driver_or_older_wheel
from helpers.environment.rules import Finding, Rule
from tests.environment.baselines import CPU_WHEEL, LAPTOP, LINUX, WINDOWS, WSL2, blind, on, silent
from tests.environment.machines import TABLE

CHANGED = {"ok": "warn", "warn": "fail", "fail": "warn", "unknown": "fail"}
MODULES = (python_checks, driver_checks, card_checks, system_checks)


def find_verdicts(module):
    """Return a module's syntax tree, and each place with a verdict: ok, warn, fail, unknown or NO_GPU."""
    tree = ast.parse(inspect.getsource(module))
    names = {*CHANGED, "NO_GPU"}
    return tree, [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in names]


def rules_with_one_verdict_changed(module, index):
    """Return the rules of a module that are affected when one verdict in its source changes."""
    tree, places = find_verdicts(module)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    around = {node.name for node in functions if node.lineno <= places[index].lineno <= node.end_lineno}
    finding = Finding(CHANGED.get(places[index].id, "warn"), "changed")
    mutant = finding if places[index].id == "NO_GPU" else lambda *_: finding
    places[index].id = "_mutant"
    namespace = {"__name__": module.__name__, "_mutant": mutant}
    exec(compile(tree, module.__file__, "exec"), namespace)
    rules = {value.id: value for value in namespace.values() if isinstance(value, Rule)}
    return {name: rules[name] for name in around & rules.keys()} or rules  # a function shared by rules is not a rule


PLACES = [
    pytest.param(module, index, id=f"{module.__name__.rpartition('.')[2]}-{place.lineno}-{place.id}")
    for module in MODULES
    for index, place in enumerate(find_verdicts(module)[1])
]


@pytest.mark.parametrize(("module", "index"), PLACES)
def test_a_simulated_machine_detects_every_changed_verdict(module, index):
    mutated = rules_with_one_verdict_changed(module, index)
    assert mutated
    assert any(rule(row.machine).status != row.bad.get(name, "ok") for row in TABLE for name, rule in mutated.items())


# words that only one of the shells understands, as a fix would contain them
POWERSHELL = ("$env:", "Remove-Item", "Stop-Process", "winget", "Scripts\\")
POSIX = ("export ", "unset ", "sudo", "rm ", "kill ", "&&", "/bin/", "-e '.[")


def test_a_fix_is_written_for_the_shell_of_its_platform():
    for machine in (row.machine for row in TABLE):
        foreign = POSIX if machine.platform.kind == "Windows" else POWERSHELL
        for check in diagnosis_of(machine).checks:
            assert [word for word in foreign if word in check.fix] == [], check


@pytest.mark.parametrize(
    ("base", "tag", "older", "first"),
    [  # the drivers that CUDA's releases came with, from NVIDIA's table; Windows has none within 13
        (LINUX, "cu126", "560.28.02", "560.28.03"),
        (LINUX, "cu128", "570.25", "570.26"),
        (LINUX, "cu130", "580.65.05", "580.65.06"),
        (LINUX, "cu132", "595.45.03", "595.45.04"),
        (WINDOWS, "cu126", "560.75", "560.76"),
        (WINDOWS, "cu128", "570.64", "570.65"),
        (WSL2, "cu126", "560.75", "560.76"),
    ],
)
def test_a_driver_older_than_the_wheels_cuda_release_gives_a_warning(base, tag, older, first):
    def status(driver):
        machine = on(base, nvml={"driver": driver, "cuda": None}, torch={"cuda": f"{tag[2:4]}.{tag[4:]}"})
        return diagnosis_of(machine).check("driver_floor").status

    assert (status(older), status(first)) == ("warn", "ok")


@pytest.mark.parametrize(
    ("machine", "identity", "reading"),
    [
        (WINDOWS, "platform_kind",
         "Windows, AMD64; leave torch_compile off here (its files need long paths, which are off)"),
        (on(WINDOWS, storage={"long_paths": True}), "platform_kind", "Windows, AMD64"),
        (LINUX, "platform_kind", "Linux, x86_64"),
        (on(LINUX, platform={"container": "/.dockerenv"}), "platform_kind",
         "Linux, x86_64, in a container (/.dockerenv)"),
        (on(LINUX, nvml={"driver": "535.54.03", "cuda": 12020}), "driver_floor",
         "driver 535.54.03 supports CUDA 12.2, the wheel is for CUDA 13.0 (driver 580 or newer)"),
        (on(LINUX, nvml={"driver": "535.54.03", "cuda": None}), "driver_floor",
         "driver 535.54.03 supports CUDA 12, the wheel is for CUDA 13.0 (driver 580 or newer)"),
        (LINUX, "nvml_alive", "driver 580.65.06, 1 card"),
        (on(LINUX, nvml={"cards": LINUX.nvml.cards * 2}), "nvml_alive", "driver 580.65.06, 2 cards"),
        (on(LINUX, torch=blind("cu130", "CUDA said no")), "cuda_available", "torch sees no card: CUDA said no"),
        (on(WSL2, wsl={"dxg": False}), "wsl_libcuda", "/dev/dxg is missing"),
        (on(WSL2, wsl={"libcuda": False}), "wsl_libcuda", "/usr/lib/wsl/lib/libcuda.so.1 is missing"),
        (on(LINUX, card={"free_bytes": 9 * 1024**3}), "vram_free", "9.0 of 11.8 GiB free"),
        (on(LINUX, torch=Torch("broken", "libc10.so is missing")), "torch_build",
         "torch cannot be imported: libc10.so is missing"),
        (on(LINUX, torch=replace(CPU_WHEEL, version="2.13.0+rocm7.1")), "torch_build",
         "torch 2.13.0+rocm7.1 is a build for another maker's cards, but there is an NVIDIA card"),
        (on(LINUX, torch=Torch("broken", "libc10.so is missing", "2.13.0+cu130", "13.0")), "cuda_available",
         "unknown until torch_build is fixed"),
        (LAPTOP, "precision_choice", "mixed_precision: auto takes float32"),
        (on(LINUX, python={"kernel": "/gone/python", "kernel_exists": False}), "env_kernel_match",
         "the python3 kernel is /gone/python, which does not exist"),
    ],
)  # fmt: skip
def test_a_reading_describes_what_was_found(machine, identity, reading):
    assert diagnosis_of(machine).check(identity).reading == reading


def test_only_wsl2_is_told_about_its_folder_of_driver_libraries():
    for base, is_told in ((WSL2, True), (LINUX, False)):
        machine = on(base, nvml=silent("absent", "no library"), torch=blind(), platform={"nvidia_on_bus": True})
        assert ("/usr/lib/wsl/lib" in diagnosis_of(machine).check("cuda_available").fix) is is_told


@pytest.mark.parametrize(
    "machine",
    [
        on(LINUX, nvml={"driver": "535.54.03", "cuda": 12020}, torch=blind()),  # by the versions alone
        on(LINUX, torch=blind("cu130", "The NVIDIA driver on your system is too old")),
    ],
)
def test_a_driver_that_is_too_old_for_the_wheel_is_the_reason_why_torch_sees_no_card(machine):
    assert diagnosis_of(machine).check("cuda_available").fix == newer_driver_or_older_wheel(machine)
