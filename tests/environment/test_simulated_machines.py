"""Fault injection: the doctor diagnoses each simulated machine as a support engineer would."""

import re

import pytest

from helpers.environment.diagnosis import RULES, diagnosis_of
from tests.environment.machines import TABLE


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_the_doctor_diagnoses_each_machine_like_a_support_engineer(row):
    diagnosis = diagnosis_of(row.machine)
    assert {check.id: check.status for check in diagnosis.checks if check.status != "ok"} == row.bad
    assert (diagnosis.exit_code, diagnosis.mode, diagnosis.wheel.tag) == (row.exit_code, row.mode, row.wheel)
    preset = (diagnosis.card.preset, diagnosis.card.precision()) if diagnosis.card else (None, None)
    assert preset == (row.preset, row.precision)
    assert re.fullmatch(row.fix, diagnosis.checks[0].fix), diagnosis.checks[0]
    for name, fix in row.also.items():
        assert re.fullmatch(fix, diagnosis.check(name).fix), diagnosis.check(name)


def test_every_problem_has_a_fix_and_every_ok_has_none():
    """An unknown status may have no fix: often all you can do is look elsewhere."""
    for check in (check for row in TABLE for check in diagnosis_of(row.machine).checks):
        if check.status in ("warn", "fail"):
            assert check.fix, check
        if check.status == "ok":
            assert not check.fix, check
        assert check.reading, check


def test_the_table_is_large_and_names_each_machine_once():
    assert len(TABLE) >= 65
    assert len({row.name for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_check_appears_with_status_ok_and_with_another(rule):
    statuses = {row.bad.get(rule.id, "ok") for row in TABLE}
    assert "ok" in statuses
    assert len(statuses) > 1
