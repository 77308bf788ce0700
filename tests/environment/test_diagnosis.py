"""The diagnosis: order, verdict, unreadable facts, JSON."""

import ast
import builtins
import json
import re
from dataclasses import replace
from types import NoneType

import pytest

from helpers.display import html_text
from helpers.environment import diagnosis
from helpers.environment.diagnosis import diagnosis_of
from helpers.environment.facts import Unread
from helpers.environment.rules import STATUSES
from helpers.paths import NOTEBOOKS
from tests.environment.baselines import CPU_WHEEL, LAPTOP, LINUX, WINDOWS, blind, on, silent
from tests.environment.machines import TABLE

IDS = [rule.id for rule in diagnosis.RULES]
OPTIONAL_SIZE = (int, NoneType)
CARD = {
    "name": str,
    "total_bytes": OPTIONAL_SIZE,
    "free_bytes": OPTIONAL_SIZE,
    "capability": ([int], NoneType),
    "holders": [{"pid": int, "name": str, "used_bytes": OPTIONAL_SIZE}],
    "preset": str,
    "precision": str,
    "driver": str,
    "peak_tflops": {str: float},
}
SHAPE = {
    "verdict": str,
    "exit_code": int,
    "mode": str,
    "platform": str,
    "quick": bool,
    "card": (CARD, NoneType),
    "wheel": ({"tag": str, "pip_args": str, "pip": str, "conda": str, "reason": str}, NoneType),
    "checks": [{"id": str, "status": str, "reading": str, "why": str, "fix": str}],
}


def test_each_check_says_why_it_matters_in_a_sentence():
    assert IDS
    assert all(rule.why.endswith(".") for rule in diagnosis.RULES)


def test_checks_are_sorted_by_severity_and_otherwise_keep_their_order():
    for row in TABLE:
        places = [(STATUSES.index(check.status), IDS.index(check.id)) for check in diagnosis_of(row.machine).checks]
        assert places == sorted(places)
        assert len(places) == len(IDS)


@pytest.mark.parametrize("error", [ValueError("boom"), KeyError("boom"), RecursionError("boom")], ids=repr)
def test_a_rule_that_raises_is_unknown_with_its_cause_and_the_others_run(monkeypatch, error):
    def judge(machine):
        raise error

    broken = replace(diagnosis.RULES[6], judge=judge)
    monkeypatch.setattr(diagnosis, "RULES", (*diagnosis.RULES[:6], broken, *diagnosis.RULES[7:]))
    found = diagnosis_of(LINUX)
    assert {check.id: check.status for check in found.checks if check.status != "ok"} == {"driver_floor": "unknown"}
    assert found.checks[0].reading == f"the check itself broke ({type(error).__name__}: {error})"
    assert (found.exit_code, len(found.checks)) == (0, len(IDS))


def test_an_unreadable_fact_makes_its_check_unknown_with_the_cause():
    diagnosis = diagnosis_of(on(LINUX, memory=Unread("OSError: no /proc")))
    assert diagnosis.check("ram_available").reading == "could not be read (OSError: no /proc)"


def test_an_entirely_unreadable_machine_still_gets_every_check():
    nothing = Unread("OSError: strange")
    groups = "python platform packages torch nvml memory storage files".split()
    diagnosis = diagnosis_of(replace(LINUX, **dict.fromkeys(groups, nothing)))
    result = {check.id: check.status for check in diagnosis.checks}
    no_card = {"wsl_libcuda", "arch_covered", "gpu_identity", "vram_free", "other_processes"}  # no card is known
    no_card |= {"visible_devices", "throttle_power"}  # judged by plain values
    assert result == {name: "ok" if name in no_card else "unknown" for name in IDS}
    assert (diagnosis.exit_code, diagnosis.mode, diagnosis.card, diagnosis.wheel) == (0, "cpu", None, None)


def test_an_unreadable_platform_affects_only_the_checks_that_depend_on_it():
    diagnosis = diagnosis_of(on(LINUX, platform=Unread("OSError: strange")))
    result = {check.id: check.status for check in diagnosis.checks if check.status != "ok"}
    assert result == dict.fromkeys(("platform_kind", "driver_floor", "sysmem_fallback", "paths"), "unknown")
    assert diagnosis.mode == "gpu"


@pytest.mark.parametrize(
    ("machine", "verdict"),
    [
        (LINUX, "Ready to train on the GPU: NVIDIA GeForce RTX 4070 Ti, preset rtx-4070-ti."),
        (LAPTOP, "CPU course mode: everything runs, on the CPU with the pocket model."),
        (on(LINUX, torch=blind(), nvml=silent("absent")), "Not ready: fix nvml_alive, cuda_available first."),
        (on(WINDOWS, torch=Unread("OSError")), "A card was found (NVIDIA GeForce RTX 4070 Ti, preset rtx-4070-ti), but "
         "torch did not answer. On the CPU everything runs."),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence(machine, verdict):
    assert diagnosis_of(machine).verdict == verdict


def has_shape(value, shape):
    """Return whether a value has exactly these keys and types, recursively; a tuple lists the alternatives."""
    if isinstance(shape, tuple):
        return any(has_shape(value, each) for each in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(has_shape(each, shape[0]) for each in value)
    if isinstance(shape, dict) and str in shape:
        return isinstance(value, dict) and all(has_shape(each, shape[str]) for each in value.values())
    if isinstance(shape, dict):
        return (
            isinstance(value, dict) and list(value) == list(shape) and all(has_shape(value[k], shape[k]) for k in shape)
        )
    return type(value) is shape


class TestJson:
    @pytest.mark.parametrize("name", ["plain", "card", "strange card", "broken"])
    def test_it_has_the_documented_shape(self, diagnoses, name):
        document = json.loads(json.dumps(diagnoses[name].to_dict()))
        assert has_shape(document, SHAPE)
        assert (document["card"] is None) == (name in ("plain", "broken"))
        assert (document["exit_code"], document["mode"]) in {(0, "cpu"), (1, "cpu"), (0, "gpu"), (1, "gpu")}
        assert sorted(check["id"] for check in document["checks"]) == sorted(IDS)
        order = [("fail", "unknown", "warn", "ok").index(check["status"]) for check in document["checks"]]
        assert order == sorted(order)
        assert document["exit_code"] == int(order[0] == 0)

    def test_every_name_in_it_is_documented(self, diagnoses):
        names = set()

        def collect(value):
            if isinstance(value, dict):
                names.update(value)
                for key in value:
                    collect(value[key])
            elif isinstance(value, list):
                for each in value:
                    collect(each)

        document = json.loads(json.dumps(diagnoses["card"].to_dict()))
        document["card"]["peak_tflops"] = {}  # its names are number formats
        collect(document)
        documented = re.findall(r"`(\w+)`", type(diagnoses["card"]).to_dict.__doc__)
        assert names == set(documented)

    def test_has_shape_detects_a_wrong_document(self, diagnoses):
        document = json.loads(json.dumps(diagnoses["card"].to_dict()))
        for damage in (
            lambda t: t.pop("mode"),
            lambda t: t.update(more=1),
            lambda t: t.update(quick=0),
            lambda t: t["card"].update(total_bytes="12 GB"),
            lambda t: t["card"]["holders"][0].pop("pid"),
            lambda t: t["checks"][7].update(fix=None),
        ):
            damaged = json.loads(json.dumps(document))
            damage(damaged)
            assert not has_shape(damaged, SHAPE)


def test_on_windows_the_commands_are_labelled_for_powershell():
    synced = {"storage": {"project": "C:\\Ada\\OneDrive\\course"}}
    for shown in (str(diagnosis_of(on(WINDOWS, **synced))), diagnosis_of(on(WINDOWS, **synced))._repr_html_()):
        assert "The commands are for PowerShell." in shown
    assert "PowerShell" not in str(diagnosis_of(on(LINUX, **synced)))


def test_the_name_of_a_check_can_break_only_after_an_underscore(diagnoses):
    page = diagnoses["card"]._repr_html_()
    assert "<code>env_<wbr>kernel_<wbr>match</code>" in page
    assert "env_kernel_match" in html_text(page)


def test_a_process_name_is_escaped_in_html(diagnoses):
    page = diagnoses["card"]._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_control_characters_in_a_card_name_do_not_reach_the_terminal():
    card = replace(LINUX.cards[0], name="RTX \x1b[31m4070")
    shown = str(diagnosis_of(on(LINUX, nvml=replace(LINUX.nvml, cards=(card,)))))
    assert "RTX 4070, preset" in shown
    assert "\x1b" not in shown


def chain(machine):
    rows = diagnosis_of(machine).chain()
    assert [row["link"] for row in rows] == ["card", "driver", "wheel", "runtime", "torch", "product"]
    return {row["link"]: row["status"] for row in rows}


def test_the_first_equivalent_command_shows_free_memory_only_with_a_card():
    without, with_card = diagnosis_of(LAPTOP), diagnosis_of(LINUX)
    assert without.equivalents()[0]["here"] == without.check("nvml_alive").reading
    assert with_card.check("vram_free").reading in with_card.equivalents()[0]["here"]
    assert with_card.equivalents()[1]["here"] == "no nvcc"
    assert diagnosis_of(on(LINUX, platform={"nvcc": "11.5"})).equivalents()[1]["here"] == "nvcc 11.5"


def test_every_link_of_the_chain_is_ok_on_a_ready_machine():
    assert set(chain(LINUX).values()) == {"ok"}
    readings = {row["link"]: row["reading"] for row in diagnosis_of(LINUX).chain()}
    assert readings["runtime"].startswith("CUDA 13.0; driver 580.65.06")


def test_a_missing_link_is_absent_rather_than_ok():
    laptop = chain(LAPTOP)
    assert {laptop[link] for link in ("card", "driver", "runtime", "torch")} == {"absent"}
    assert laptop["product"] == "ok", "the CPU computes it"


def test_links_after_a_broken_one_are_absent():
    broken = chain(on(WINDOWS, torch=CPU_WHEEL))
    assert (broken["card"], broken["driver"], broken["wheel"]) == ("ok", "ok", "fail")
    assert {broken[link] for link in ("runtime", "torch", "product")} == {"absent"}


@pytest.mark.parametrize("machine", [LINUX, LAPTOP], ids=["card", "no card"])
def test_notebook_01_can_show_its_diagnosis_with_and_without_a_card(machine):
    cells = json.loads((NOTEBOOKS / "01_environment.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "".join(f"{''.join(cell['source'])}\n" for cell in cells if cell["cell_type"] == "code")
    n_shown = 0
    for statement in ast.parse(re.sub(r"^%.*$", "", code, flags=re.MULTILINE)).body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        if {node.id for node in names} - stored - set(dir(builtins)) == {"diagnosis"}:
            exec(ast.unparse(statement), {"diagnosis": diagnosis_of(machine)})
            n_shown += 1
    assert n_shown >= 5


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (LINUX, ""),
        (LAPTOP, ""),
        (on(LINUX, torch=CPU_WHEEL), "Not ready: fix torch_build first."),
        (on(LINUX, nvml={"driver": "535.183.01", "cuda": 12020}, torch=blind()), "Not ready: fix driver_floor"),
    ],
    ids=["card in use", "no card", "CPU wheel", "old driver"],
)
def test_unused_card_explains_why_a_run_did_not_use_the_card(monkeypatch, machine, reason):
    monkeypatch.setattr(diagnosis, "read_machine", lambda quick=False: machine)
    assert reason in diagnosis.unused_card()
    assert bool(reason) == bool(diagnosis.unused_card())
