import mmap
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from helpers.display import GIB
from helpers.environment.facts import Memory
from helpers.settings import SettingsError, TrainingSettings
from helpers.training import devices
from helpers.training.devices import CARDS, find_card, peak_bytes, reset_peak, this_device
from helpers.training.plan import plan_run


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_is_found_by_its_common_spellings_and_its_driver_name(card):
    for name in (card.name, card.name.lower(), f"NVIDIA GeForce {card.name}", card.name.replace(" ", "")):
        assert find_card(name) is card


def test_the_drivers_name_of_a_laptop_gpu_is_found():
    assert find_card("NVIDIA GeForce RTX 4070 Laptop GPU").total_bytes == 8 * GIB


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("RTX 3060", "did you mean 'RTX 3060 12 GB' or 'RTX 3060 Ti'?"), ("T44", "did you mean 'T4'?")],
)
def test_an_unknown_card_name_suggests_the_closest_names(name, nearest):
    with pytest.raises(SettingsError, match=re.escape(nearest)):
        find_card(name)


def test_an_unrecognisable_card_name_gets_the_full_list():
    with pytest.raises(SettingsError, match=r"there are A100, .*, RTX 4070 Ti, .*, T4, processor\."):
        find_card("qqq")


def test_a_card_without_bf16_uses_fp16_and_only_emulates_bf16():
    t4 = find_card("Tesla T4")
    assert (t4.precision("auto"), t4.precision("no")) == ("fp16", "no")
    assert t4.tflops("bf16") == t4.tflops("no") < t4.tflops("fp16")


def test_a_card_that_the_driver_does_not_describe_is_read_from_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "card_of_this_machine", lambda: None)
    seen = SimpleNamespace(name="AMD Radeon RX 7900 XTX", total_memory=24 * GIB, major=11, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: seen)
    card = this_device()
    assert (card.name, card.usable_bytes, card.is_processor) == (seen.name, 23 * GIB, False)
    assert "not known: the card's peak is not in the table" in str(plan_run(TrainingSettings(), card=card))
    seen.name = "NVIDIA GeForce RTX 4070 Ti"  # in a container without NVML
    assert this_device().half_tflops == find_card("RTX 4070 Ti").half_tflops


def test_the_precision_of_a_processor_does_not_depend_on_the_card_next_to_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(devices, "_product_tflops", lambda dtype: 0.1)
    assert devices.this_processor.__wrapped__().precision() == "no"


def test_a_container_limit_counts_as_the_memory_of_the_processor(monkeypatch):
    monkeypatch.setattr(devices, "_product_tflops", lambda dtype: 0.1)
    monkeypatch.setattr(devices, "read_memory", lambda: Memory(total_bytes=4 * GIB, available_bytes=GIB))
    assert devices.this_processor.__wrapped__().usable_bytes == 3 * GIB


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="reads Linux's resident memory")
def test_the_peak_counts_from_the_last_reset():
    with mmap.mmap(-1, 2**28) as pages:  # not from the heap, which may reuse memory freed by an earlier test
        pages.write(bytes(2**28))
    large = peak_bytes()
    reset_peak()
    assert peak_bytes() < large - 2**26


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="reads Linux's resident memory")
def test_the_peak_does_not_include_that_of_the_parent_process():
    held = torch.ones(2**28)  # float32, 1 GiB
    source = "from helpers.training.devices import *; reset_peak(); print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert int(child.stdout) < held.nbytes
