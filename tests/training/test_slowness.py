import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpers.environment import GIB, GpuReading, Nvml, read_machine
from helpers.environment.facts import Unread
from helpers.training.slowness import SlownessWatch, slow_reason, slowdown
from helpers.troubleshooting import explain

STEADY, THREE_TIMES, TWICE = [1.0] * 30, [1.0] * 25 + [3.5] * 5, [1.0] * 25 + [2.0] * 5


@pytest.fixture(scope="module")
def host():
    return replace(read_machine(quick=True), on_battery=False)


def machine(host, *, kind="Windows", free_gib=6.0, slowed_by=(), on_battery=False):
    card = GpuReading(0, "RTX 4070 Ti", total_bytes=12 * GIB, free_bytes=int(free_gib * GIB), slowed_by=slowed_by)
    platform = replace(host.platform, kind=kind)
    return replace(host, platform=platform, nvml=Nvml("ok", driver="580.65", cards=(card,)), on_battery=on_battery)


@pytest.mark.parametrize(
    ("seconds", "state", "words"),
    [
        (THREE_TIMES, {"free_gib": 0.1}, r"3\.5 times as long .* 99% of the card's memory .*Sysmem Fallback"),
        (THREE_TIMES, {"slowed_by": ("its temperature",)}, r"slowed by its temperature\. If it is hot, improve"),
        (TWICE, {"free_gib": 0.1, "slowed_by": ("its power limit",)}, r"2\.0 times .* its power limit\. If it is hot"),
        (TWICE, {"on_battery": True}, r"runs on its battery, .*: plug in the power supply\."),
    ],
)
def test_the_reason_is_one_sentence_with_a_fix_and_explain_recognises_it(host, seconds, state, words):
    reason = slow_reason(seconds, machine(host, **state))
    assert re.search(words, reason)
    explanation = explain([{"step": 30, "warning": reason}])
    assert explanation.causes[0].id == ("E11" if "Sysmem" in reason else "E70")


@pytest.mark.parametrize("seconds", [STEADY, [1.0] * 8, [1.0] * 29 + [60.0]])
def test_steady_steps_and_a_single_slow_one_give_no_reason(host, seconds):
    assert slowdown(seconds) == 1
    assert slow_reason(seconds, machine(host, free_gib=0.1, slowed_by=("its temperature",), on_battery=True)) is None


def test_the_usual_step_time_is_that_of_the_previous_thousand_steps():
    assert slowdown([0.1] * 2000 + [1.0] * 1000 + [2.0] * 5) == 2


def test_slow_steps_without_an_explanation_are_not_reported(host):
    assert slow_reason(THREE_TIMES, machine(host)) is None


def test_spilling_into_main_memory_is_blamed_only_on_windows_and_wsl2(host):
    full = {"free_gib": 0.1, "slowed_by": ("its temperature",)}
    for kind, words in (("Linux", "slowed by its temperature"), ("WSL2", "99% of the card's memory")):
        assert words in slow_reason(THREE_TIMES, machine(host, kind=kind, **full))
    assert slow_reason(THREE_TIMES, machine(host, kind="Linux", free_gib=0.1)) is None


def test_unreadable_facts_do_not_stop_training(host):
    unread = replace(machine(host), platform=Unread("PermissionError"))
    assert slow_reason(THREE_TIMES, unread) is None


def test_the_reason_is_written_once_to_the_history_and_the_log(host, caplog):
    looks = []
    watch = SlownessWatch(read=lambda: looks.append(1) or machine(host, on_battery=True))
    state = SimpleNamespace(is_world_process_zero=True, global_step=30, log_history=[{"step": 20, "loss": 2.0}])
    watch.on_log(None, state, None)
    assert looks == [], "the machine is not read while nothing is slow"
    watch.seconds = TWICE
    for _ in range(3):
        watch.on_log(None, state, None)
    warnings = [row["warning"] for row in state.log_history if "warning" in row]
    assert warnings == caplog.messages
    assert len(warnings) == len(looks) == 1
