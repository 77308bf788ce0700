"""The rules themselves: a verdict that is changed anywhere must be noticed by a simulated machine."""

import ast
import inspect
from dataclasses import replace
from itertools import combinations

import pytest

from helpers.environment import card_checks, driver_checks, python_checks, report, system_checks
from helpers.environment.facts import Unread
from helpers.environment.report import diagnosis_of
from helpers.environment.rules import STATUSES, Finding, Rule
from helpers.environment.wheels import wheel_advice
from tests.environment.baselines import CONDA, LAPTOP, LINUX, WINDOWS, WSL2, blind, on, silent
from tests.environment.machines import TABLE

IDS = (
    "python_version env_kernel_match stale_imports package_floor torch_build platform_kind driver_floor nvml_alive "
    "cuda_available visible_devices wsl_libcuda arch_covered smoke_matmul gpu_identity vram_free other_processes "
    "sysmem_fallback throttle_power alloc_conf precision_choice ram_available disk_free paths "
    "tokenizer_and_model_files notebook_stack"
).split()
CHANGED = {"ok": "warn", "warn": "fail", "fail": "warn", "unknown": "fail"}


def expected(row, identity):
    return row.bad.get(identity, "ok")


def noticed_by(rows):
    """Return the first row whose verdicts are not all the expected ones."""
    for row in rows:
        for check in diagnosis_of(row.machine).checks:
            if check.status != expected(row, check.id):
                return row.name
    return None


def swapped(rule, one, other):
    def judge(machine):
        result = rule.judge(machine)
        return result._replace(status={one: other, other: one}.get(result.status, result.status))

    return replace(rule, judge=judge)


def test_the_25_checks_are_in_the_order_of_the_reference():
    assert [rule.id for rule in report.RULES] == IDS
    assert all(rule.why.endswith(".") for rule in report.RULES)


def test_the_worst_come_first_and_those_alike_keep_their_order():
    for row in TABLE:
        places = [(STATUSES.index(check.status), IDS.index(check.id)) for check in diagnosis_of(row.machine).checks]
        assert places == sorted(places)
        assert len(places) == len(IDS)


PAIRS = [
    pytest.param(rule, *pair, id=f"{rule.id}-{pair[0]}-{pair[1]}")
    for rule in report.RULES
    for pair in combinations(sorted({expected(row, rule.id) for row in TABLE}, key=STATUSES.index), 2)
]


@pytest.mark.parametrize(("rule", "one", "other"), PAIRS)
def test_two_verdicts_that_are_swapped_are_noticed(monkeypatch, rule, one, other):
    mutated = tuple(swapped(each, one, other) if each is rule else each for each in report.RULES)
    concerned = [row for row in TABLE if expected(row, rule.id) in (one, other)]
    assert noticed_by(concerned[:1]) is None
    monkeypatch.setattr(report, "RULES", mutated)
    assert noticed_by(concerned)


MODULES = (python_checks, driver_checks, card_checks, system_checks)


def spoken(module):
    """Return a module's syntax tree, and each place with a verdict: ok, warn, fail, unknown or NO_GPU."""
    tree = ast.parse(inspect.getsource(module))
    names = {*CHANGED, "NO_GPU"}
    return tree, [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in names]


def rules_with_one_verdict_changed(module, index):
    """Return a module's rules as they would be if one verdict in its source were another."""
    tree, places = spoken(module)
    finding = Finding(CHANGED.get(places[index].id, "warn"), "changed")
    mutant = finding if places[index].id == "NO_GPU" else lambda *_: finding
    places[index].id = "_mutant"
    namespace = {"__name__": module.__name__, "_mutant": mutant}
    exec(compile(tree, module.__file__, "exec"), namespace)
    return {value.id: value for value in namespace.values() if isinstance(value, Rule)}


PLACES = [
    pytest.param(module, index, id=f"{module.__name__.rpartition('.')[2]}-{place.lineno}-{place.id}")
    for module in MODULES
    for index, place in enumerate(spoken(module)[1])
]


@pytest.mark.parametrize(("module", "index"), PLACES)
def test_a_verdict_that_is_changed_anywhere_in_the_source_is_noticed(module, index):
    mutated = rules_with_one_verdict_changed(module, index)
    assert mutated
    assert any(rule(row.machine).status != expected(row, name) for row in TABLE for name, rule in mutated.items())


def test_the_four_modules_hold_all_the_rules():
    _, places = spoken(python_checks)
    assert len(places) > 10
    result = {value.id for module in MODULES for value in vars(module).values() if isinstance(value, Rule)}
    assert result == set(IDS)


@pytest.mark.parametrize("error", [ValueError("boom"), KeyError("boom"), RecursionError("boom")], ids=repr)
def test_a_rule_that_breaks_is_unknown_with_its_cause_and_the_others_go_on(monkeypatch, error):
    def judge(machine):
        raise error

    broken = replace(report.RULES[6], judge=judge)
    monkeypatch.setattr(report, "RULES", (*report.RULES[:6], broken, *report.RULES[7:]))
    diagnosis = diagnosis_of(LINUX)
    assert {check.id: check.status for check in diagnosis.checks if check.status != "ok"} == {"driver_floor": "unknown"}
    assert diagnosis.checks[0].reading == f"the check itself broke ({type(error).__name__}: {error})"
    assert (diagnosis.exit_code, len(diagnosis.checks)) == (0, 25)


def test_what_could_not_be_read_is_unknown_with_its_cause():
    diagnosis = diagnosis_of(on(LINUX, memory=Unread("OSError: no /proc")))
    assert diagnosis.check("ram_available").reading == "could not be read (OSError: no /proc)"


def test_a_machine_of_which_nothing_could_be_read_still_gets_25_answers():
    nothing = Unread("OSError: strange")
    groups = "python platform packages torch nvml process memory storage files power".split()
    diagnosis = diagnosis_of(replace(LINUX, **dict.fromkeys(groups, nothing)))
    result = {check.id: check.status for check in diagnosis.checks}
    no_card = {"wsl_libcuda", "arch_covered", "gpu_identity", "vram_free", "other_processes"}  # none that is known of
    assert result == {name: "ok" if name in no_card else "unknown" for name in IDS}
    assert (diagnosis.exit_code, diagnosis.mode, diagnosis.card, diagnosis.wheel) == (0, "cpu", None, None)


def test_an_unread_platform_leaves_what_does_not_depend_on_it():
    diagnosis = diagnosis_of(on(LINUX, platform=Unread("OSError: strange")))
    result = {check.id: check.status for check in diagnosis.checks if check.status != "ok"}
    assert result == dict.fromkeys(("platform_kind", "driver_floor", "sysmem_fallback", "paths"), "unknown")
    assert diagnosis.mode == "gpu"


# words that only one of the shells knows, as they would stand in a fix
POWERSHELL = ("$env:", "Remove-Item", "Stop-Process", "winget", "Scripts\\")
POSIX = ("export ", "unset ", "sudo", "rm ", "kill ", "&&", "/bin/", "-e '.[")


def test_a_fix_speaks_the_shell_of_its_platform():
    for machine in (row.machine for row in TABLE):
        foreign = POSIX if machine.platform.kind == "Windows" else POWERSHELL
        for check in diagnosis_of(machine).checks:
            assert [word for word in foreign if word in check.fix] == [], check


@pytest.mark.parametrize(
    ("base", "tag", "older", "first"),
    [  # the drivers that CUDA's releases came with, from NVIDIA's table; Windows has none within 13
        (LINUX, "cu121", "530.30.01", "530.30.02"),
        (LINUX, "cu124", "550.54.13", "550.54.14"),
        (LINUX, "cu126", "560.28.02", "560.28.03"),
        (LINUX, "cu128", "570.25", "570.26"),
        (LINUX, "cu130", "580.65.05", "580.65.06"),
        (LINUX, "cu132", "595.45.03", "595.45.04"),
        (WINDOWS, "cu121", "531.13", "531.14"),
        (WINDOWS, "cu124", "551.60", "551.61"),
        (WINDOWS, "cu126", "560.75", "560.76"),
        (WINDOWS, "cu128", "570.64", "570.65"),
        (WSL2, "cu126", "560.75", "560.76"),
    ],
)
def test_a_driver_older_than_the_wheels_own_release_is_warned_of(base, tag, older, first):
    def status(driver):
        machine = on(base, nvml={"driver": driver, "cuda": None}, torch={"cuda": f"{tag[2:4]}.{tag[4:]}"})
        return diagnosis_of(machine).check("driver_floor").status

    assert (status(older), status(first)) == ("warn", "ok")


@pytest.mark.parametrize(
    ("base", "older", "first"),
    [(LINUX, "525.60.12", "525.60.13"), (WINDOWS, "528.32", "528.33"), (WSL2, "528.32", "528.33")],
)
def test_the_floor_of_cuda_12_is_the_platforms_own(base, older, first):
    tags = [
        wheel_advice(on(base, nvml={"driver": driver, "cuda": None})).tag for driver in (older, first, "579.99", "580")
    ]
    assert tags == ["cpu", "cu126", "cu126", "cu130"]


@pytest.mark.parametrize(
    ("machine", "identity", "reading"),
    [
        (WINDOWS, "platform_kind",
         "Windows, AMD64; leave torch_compile off here (it needs triton, which is for Linux)"),
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
        (LAPTOP, "precision_choice", "mixed_precision: auto takes float32"),
        (on(LINUX, python={"kernel": "/gone/python", "kernel_exists": False}), "env_kernel_match",
         "the python3 kernel is /gone/python, which does not exist"),
    ],
)  # fmt: skip
def test_a_reading_says_what_was_seen(machine, identity, reading):
    assert diagnosis_of(machine).check(identity).reading == reading


def test_the_wheel_of_a_venv_and_of_conda_is_the_same_by_the_right_pip():
    venv, conda = wheel_advice(LINUX), wheel_advice(CONDA)
    wheel = "-m pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130"
    assert venv.pip == f"/course/.venv/bin/python {wheel}"
    assert venv.conda == f"conda run -n gpt2-course python {wheel}"
    assert conda.pip == conda.conda == f"/opt/conda/envs/gpt2-course/bin/python {wheel}"
    assert "conda channel ended" in conda.reason
    assert "conda" not in venv.reason
    assert wheel_advice(on(LINUX, platform={"kind": "macOS"})).pip_args == "torch==2.13.0"
    assert venv.pip_args == conda.pip_args == wheel.removeprefix("-m pip install ")


def test_the_last_torch_with_a_cuda_12_wheel_is_named_where_the_pin_is_newer():
    packages = replace(LINUX.packages, pinned={"torch": "2.15.0"})
    old_driver = on(LINUX, packages=packages, nvml={"driver": "560.35.03", "cuda": 12060})
    assert wheel_advice(old_driver).pip_args.startswith("torch==2.14.1+cu126 ")
    assert wheel_advice(on(LINUX, packages=packages)).pip_args.startswith("torch==2.15.0+cu130 ")


def test_a_toolkit_changes_no_verdict_and_the_reason_says_why():
    with_nvcc = on(LINUX, platform={"nvcc": "11.5"})
    assert diagnosis_of(with_nvcc).checks == diagnosis_of(LINUX).checks
    assert wheel_advice(with_nvcc).pip == wheel_advice(LINUX).pip
    assert "nvcc 11.5) does not matter" in wheel_advice(with_nvcc).reason


@pytest.mark.parametrize(
    ("machine", "verdict"),
    [
        (LINUX, "Ready to train on the GPU: NVIDIA GeForce RTX 4070 Ti, preset rtx-4070-ti."),
        (LAPTOP, "CPU course mode: everything runs, on the CPU with the pocket model."),
        (on(LINUX, torch=blind(), nvml=silent("absent")), "Not ready: fix nvml_alive, cuda_available first."),
        (on(WINDOWS, torch=Unread("OSError")), "A card is there (NVIDIA GeForce RTX 4070 Ti, preset rtx-4070-ti), but "
         "torch could not be asked; on the CPU everything runs."),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence(machine, verdict):
    assert diagnosis_of(machine).verdict == verdict
