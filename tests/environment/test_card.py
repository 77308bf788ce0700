"""Memory, speed, preset and precision of a card; the card read from a machine."""

from dataclasses import replace

import pytest

from helpers.display import GIB
from helpers.environment.card import CARDS, GraphicsCard, preset_for, read_card
from helpers.environment.facts import Unread
from tests.environment.baselines import CARD, LAPTOP, LINUX, blind, on, seeing, silent


@pytest.mark.parametrize(
    ("gib", "preset"),
    [(4, "pocket"), (6.9, "pocket"), (7, "8gb"), (8, "8gb"), (11, "rtx-4070-ti"), (12, "rtx-4070-ti"), (15.9, "16gb")],
)
def test_the_preset_depends_on_memory(gib, preset):
    assert preset_for(int(gib * GIB)) == GraphicsCard("any", int(gib * GIB), 0, 0).preset == preset


def test_read_card_returns_memory_driver_preset_and_precision():
    card = read_card(LINUX)
    assert (card.name, card.total_bytes, card.driver) == (CARD.name, CARD.total_bytes, "580.65.06")
    assert (card.preset, card.precision()) == ("rtx-4070-ti", "bf16")


def test_computed_peak_tflops_match_the_data_sheet():
    published = next(card for card in CARDS if card.name == "RTX 4070 Ti")
    card = read_card(LINUX)
    assert card.half_tflops == pytest.approx(published.half_tflops, rel=0.01)
    assert card.float32_tflops == pytest.approx(published.float32_tflops, rel=0.01)
    assert card.peak_tflops == {"float32": card.float32_tflops, "bfloat16": card.half_tflops}


def test_a_workstation_card_has_twice_the_tensor_throughput():
    geforce, workstation = (
        read_card(on(LINUX, card={"name": name, "capability": (8, 6)})) for name in ("RTX 3090", "RTX A6000")
    )
    assert workstation.half_tflops == 2 * geforce.half_tflops
    assert workstation.float32_tflops == geforce.float32_tflops


@pytest.mark.parametrize("missing", [{"cuda_cores": None}, {"max_clock_mhz": None}, {"capability": (13, 0)}])
def test_a_card_with_unknown_specifications_uses_its_data_sheet_peaks_if_any(missing):
    published = next(card for card in CARDS if card.name == "RTX 4070 Ti")
    assert read_card(on(LINUX, card=missing)).peak_tflops == published.peak_tflops
    assert read_card(on(LINUX, card=missing | {"name": "Quadro K2200"})).peak_tflops == {}


def test_a_card_without_bf16_trains_in_fp16():
    card = read_card(on(LINUX, card={"capability": (7, 5)}))
    assert (card.has_bf16, card.precision(), sorted(card.peak_tflops)) == (False, "fp16", ["float16", "float32"])


def test_read_card_is_none_without_a_card():
    assert read_card(LAPTOP) is None
    assert read_card(on(LINUX, torch=blind(), nvml=silent("absent"))) is None


def test_a_card_that_only_torch_sees_has_no_driver_version():
    card = read_card(on(LINUX, nvml=Unread("OSError"), torch=seeing()))
    assert (card.name, card.driver) == (CARD.name, "")


def test_a_card_of_unknown_size_has_no_usable_memory():
    assert GraphicsCard("any", None, 0, 0).usable_bytes == 0


def test_under_wsl2_torch_is_asked_for_the_card_if_nvml_fails(monkeypatch):
    calls = []

    def read_machine(*, quick=False):
        calls.append(quick)
        torch = replace(seeing(), available=None) if quick else seeing()
        return on(LINUX, nvml=silent("crashed"), torch=torch, wsl=Unread("OSError"))

    monkeypatch.setattr("helpers.environment.card.read_machine", read_machine)
    assert read_card().name == CARD.name
    assert calls == [True, False]
