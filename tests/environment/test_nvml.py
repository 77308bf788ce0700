"""NVML with answers seen in the field and with impossible ones: a fake module in a real child process."""

import math
import os
import stat
from pathlib import Path

import pytest

from helpers.display import GIB
from helpers.environment.child import Answer
from helpers.environment.facts import Holder
from helpers.environment.nvml import WSL_SMI, driver_number, facts_from, read_nvml

PATIENT = 20.0  # seconds; a machine under load starts a Python slowly
HEALTHY = """
from types import SimpleNamespace as Answer

NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
GIB = 1024**3


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_LibRmVersionMismatch(NVMLError):
    pass


class NVMLError_GpuIsLost(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): return "580.65.06"
def nvmlSystemGetCudaDriverVersion_v2(): return 13000
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(card): return Answer(total=12 * GIB, free=11 * GIB, used=GIB)
def nvmlDeviceGetUtilizationRates(card): return Answer(gpu=37, memory=10)
def nvmlDeviceGetPowerUsage(card): return 120_500
def nvmlDeviceGetEnforcedPowerLimit(card): return 285_000
def nvmlDeviceGetName(card): return "NVIDIA GeForce RTX 4070 Ti"
def nvmlDeviceGetUUID(card): return f"GPU-{card}"
def nvmlDeviceGetCudaComputeCapability(card): return 8, 9
def nvmlDeviceGetNumGpuCores(card): return 7680
def nvmlDeviceGetMaxClockInfo(card, kind): return 2610
def nvmlDeviceGetTemperature(card, kind): return 45
def nvmlDeviceGetCurrentClocksEventReasons(card): return 0x21
def nvmlDeviceGetComputeRunningProcesses(card): return [Answer(pid=17, usedGpuMemory=GIB)]
def nvmlDeviceGetGraphicsRunningProcesses(card): return []
def nvmlSystemGetProcessName(pid): return "python"
"""


@pytest.fixture
def nvml(stub):
    """Return a function that changes some answers of a healthy NVML, and reads it."""

    def read(changes="", timeout_seconds=PATIENT):
        stub("pynvml", HEALTHY + changes)
        return read_nvml(timeout_seconds)

    return read


def test_a_healthy_card_is_read_completely(nvml):
    result = nvml()
    assert (result.state, result.cause, result.driver, result.cuda) == ("ok", "", "580.65.06", 13000)
    (card,) = result.usable
    assert (card.index, card.name, card.uuid) == (0, "NVIDIA GeForce RTX 4070 Ti", "GPU-0")
    assert (card.total_bytes, card.free_bytes, card.capability) == (12 * GIB, 11 * GIB, (8, 9))
    assert (card.cuda_cores, card.max_clock_mhz, card.utilisation_percent) == (7680, 2610, 37)
    assert (card.power_watts, card.power_limit_watts, card.temperature_celsius) == (120.5, 285.0, 45)
    assert card.slowed_by == ("its temperature",)  # 0x01 means idle, which is no slowdown
    assert card.holders == (Holder(17, "python", GIB),)


def test_a_missing_library_counts_as_no_driver(nvml):
    result = nvml("def nvmlInit(): raise NVMLError_LibraryNotFound('NVML Shared Library Not Found')")
    assert (result.state, result.cause, result.cards) == ("absent", "no NVML library", ())


def test_an_nvml_error_keeps_its_name_and_message(nvml):
    result = nvml(
        "def nvmlInit(): raise NVMLError_LibRmVersionMismatch('RM has detected an NVML/RM version mismatch.')"
    )
    assert result.state == "error"
    assert result.cause == "NVMLError_LibRmVersionMismatch: RM has detected an NVML/RM version mismatch."


def test_a_foreign_exception_in_nvml_is_a_crash_with_its_cause(nvml):
    result = nvml("def nvmlInit(): raise OSError('libnvidia-ml.so.1: file too short')")
    assert result.state == "crashed"
    assert "file too short" in result.cause


def test_a_hanging_nvml_is_stopped_at_the_time_limit(nvml):
    result = nvml("def nvmlInit():\n    import time\n    time.sleep(600)", timeout_seconds=0.5)
    assert (result.state, result.cause, result.cards) == ("hung", "no answer within 0.5 s", ())


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("function", ["nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"])
def test_a_crash_while_listing_processes_keeps_the_cards(nvml, function):
    result = nvml(
        f"""
def nvmlDeviceGetCount(): return 2
def {function}(card):
    import os, signal
    if card == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return [Answer(pid=17, usedGpuMemory=GIB)]
"""
    )
    assert (result.state, result.cause, result.driver) == ("crashed", "ended by SIGSEGV", "580.65.06")
    assert [card.total_bytes for card in result.usable] == [12 * GIB, 12 * GIB]
    assert [len(card.holders) for card in result.cards] == [1, 0]  # the first card's processes are kept


def test_a_hang_while_listing_processes_keeps_the_cards(nvml):
    result = nvml(
        "def nvmlDeviceGetComputeRunningProcesses(card):\n    import time\n    time.sleep(600)", timeout_seconds=2
    )
    assert result.state == "hung"
    assert [card.name for card in result.usable] == ["NVIDIA GeForce RTX 4070 Ti"]


def test_one_broken_card_of_four_does_not_affect_the_others(nvml):
    result = nvml(
        """
def nvmlDeviceGetCount(): return 4
def nvmlDeviceGetMemoryInfo(card):
    if card == 2:
        raise NVMLError_GpuIsLost("GPU is lost")
    return Answer(total=(8 + card) * GIB, free=GIB)
"""
    )
    assert result.state == "ok"
    assert [card.index for card in result.usable] == [0, 1, 3]
    assert result.cards[2].error == "NVMLError_GpuIsLost: GPU is lost"


def test_a_card_that_raises_another_error_does_not_affect_the_others(nvml):
    result = nvml(
        """
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index):
    if index == 0:
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid start byte")
    return index
"""
    )
    assert result.state == "ok"
    assert [card.index for card in result.usable] == [1]
    assert result.cards[0].error.startswith("UnicodeDecodeError")


def test_it_is_an_error_if_all_cards_are_broken(nvml):
    result = nvml("def nvmlDeviceGetMemoryInfo(card): raise NVMLError_GpuIsLost('GPU is lost')")
    assert (result.state, result.cause, result.usable) == ("error", "NVMLError_GpuIsLost: GPU is lost", ())


def test_a_driver_without_cards_is_read(nvml):
    result = nvml("def nvmlDeviceGetCount(): return 0")
    assert (result.state, result.driver, result.cards) == ("ok", "580.65.06", ())


@pytest.mark.parametrize("count", ["2**31", "'four'"])
def test_an_implausible_number_of_cards_counts_as_none(nvml, count):
    result = nvml(f"def nvmlDeviceGetCount(): return {count}")
    assert (result.state, result.cards) == ("ok", ())


def test_unsupported_values_are_none_and_the_rest_is_read(nvml):
    refusing = "".join(
        f"def {name}(*_): raise NVMLError_NotSupported('Not Supported')\n"
        for name in (
            "nvmlDeviceGetUtilizationRates nvmlDeviceGetPowerUsage nvmlDeviceGetEnforcedPowerLimit nvmlDeviceGetName "
            "nvmlDeviceGetUUID nvmlDeviceGetCudaComputeCapability nvmlDeviceGetNumGpuCores nvmlDeviceGetMaxClockInfo "
            "nvmlDeviceGetTemperature nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetComputeRunningProcesses "
            "nvmlDeviceGetGraphicsRunningProcesses nvmlSystemGetCudaDriverVersion_v2"
        ).split()
    )
    result = nvml(refusing)
    (card,) = result.usable
    assert (result.state, result.cuda, card.total_bytes, card.name) == ("ok", None, 12 * GIB, "")
    assert card.capability is card.cuda_cores is card.utilisation_percent is card.power_watts is card.slowed_by is None
    assert card.holders == ()


def test_bytes_are_decoded_as_text(nvml):
    result = nvml(
        """
def nvmlSystemGetDriverVersion(): return b"470.82"
def nvmlDeviceGetName(card): return b"Card \\xff"
def nvmlDeviceGetUUID(card): return b"GPU-aa"
def nvmlSystemGetProcessName(pid): return b"python3 \\xfe"
"""
    )
    (card,) = result.usable
    assert (result.driver, card.name, card.uuid) == ("470.82", "Card �", "GPU-aa")
    assert card.holders[0].name == "python3 �"


def test_the_memory_of_a_process_can_be_unknown(nvml):
    result = nvml(
        """
def nvmlDeviceGetComputeRunningProcesses(card):
    return [Answer(pid=17, usedGpuMemory=None), Answer(pid=18, usedGpuMemory=2**64 - 1)]
"""
    )
    assert result.cards[0].holders == (Holder(17, "python", None), Holder(18, "python", None))


def test_a_process_that_computes_and_draws_is_listed_once_with_its_memory(nvml):
    result = nvml("def nvmlDeviceGetGraphicsRunningProcesses(card): return [Answer(pid=17, usedGpuMemory=None)]")
    assert result.cards[0].holders == (Holder(17, "python", GIB),)


def test_an_invalid_process_list_keeps_the_cards(nvml):
    result = nvml("def nvmlDeviceGetComputeRunningProcesses(card): return [None]")
    assert result.state == "ok"
    assert result.usable[0].holders == ()


def test_implausible_numbers_are_none(nvml):
    result = nvml(
        """
NONSENSE = [float("nan"), float("inf"), -1_000_000, "banana", None, [1], {}, 10**400]  # one kind of it for each card
def nvmlDeviceGetCount(): return len(NONSENSE)
def nvmlSystemGetCudaDriverVersion_v2(): return "13.0"
def nvmlDeviceGetMemoryInfo(card): return Answer(total=12 * GIB, free=NONSENSE[card])
def nvmlDeviceGetUtilizationRates(card): return Answer(gpu=NONSENSE[card])
def nvmlDeviceGetPowerUsage(card): return NONSENSE[card]
def nvmlDeviceGetEnforcedPowerLimit(card): return NONSENSE[card]
def nvmlDeviceGetCudaComputeCapability(card): return [NONSENSE[card], 9]
def nvmlDeviceGetNumGpuCores(card): return NONSENSE[card]
def nvmlDeviceGetMaxClockInfo(card, kind): return NONSENSE[card]
def nvmlDeviceGetTemperature(card, kind): return NONSENSE[card]
def nvmlDeviceGetCurrentClocksEventReasons(card): return NONSENSE[card]
def nvmlDeviceGetComputeRunningProcesses(card): return [Answer(pid=17, usedGpuMemory=NONSENSE[card])]
"""
    )
    assert (result.state, result.cuda, len(result.usable)) == ("ok", None, 8)
    for card in result.usable:
        assert card.free_bytes is card.capability is card.cuda_cores is card.max_clock_mhz is card.slowed_by is None
        assert (
            card.utilisation_percent is card.power_watts is card.power_limit_watts is card.temperature_celsius is None
        )
        assert card.holders == (Holder(17, "python", None),)


def test_negative_free_memory_is_none():
    card = {"index": 0, "name": "x", "total_bytes": 12 * GIB, "free_bytes": 12 * GIB - 17 * 10**12}
    result = facts_from(Answer("ok", {"driver": "580.1", "cards": [card]}))
    assert (result.state, result.cards[0].free_bytes) == ("ok", None)


@pytest.mark.parametrize("total", [math.nan, -1, "12 GB", None, 17 * 10**15, 0])
def test_a_card_without_a_plausible_size_is_nonsense(total):
    result = facts_from(
        Answer("ok", {"driver": "580.1", "cards": [{"index": 0, "total_bytes": total, "free_bytes": 1}]})
    )
    assert (result.state, result.usable) == ("nonsense", ())


@pytest.mark.parametrize("value", [{"driver": "banana"}, {"driver": None}, {"driver": ""}, {}])
def test_an_implausible_driver_version_is_nonsense(value):
    assert facts_from(Answer("ok", value)).state == "nonsense"


@pytest.mark.parametrize(
    ("driver", "number"),
    [
        ("580.65.06", (580, 65, 6)),
        ("r999-preview", (999,)),
        ("1000.1", (1000, 1)),
        ("560.35.03-open", (560, 35, 3)),
        ("31.0.15.4617", ()),
        ("", ()),
        ("5800000", ()),
    ],
)
def test_driver_number_parses_unknown_versions_and_rejects_other_text(driver, number):
    assert driver_number(driver) == number


class TestWithoutTheLibrary:
    """Without nvidia-ml-py, `nvidia-smi` answers the same questions."""

    @pytest.fixture
    def smi(self, stub, tmp_path, monkeypatch):
        """Return a function that makes an `nvidia-smi` of a shell script, and reads through it."""
        if os.name != "posix":
            pytest.skip("the fake is a shell script")
        stub("pynvml", "raise ImportError('No module named pynvml')")
        programs = tmp_path / "programs"
        programs.mkdir()
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

        def read(script, timeout_seconds=PATIENT, first_line="#!/bin/sh\n"):
            program = programs / "nvidia-smi"
            program.write_bytes(first_line.encode() + script.encode("latin-1"))
            program.chmod(stat.S_IRWXU)
            return read_nvml(timeout_seconds)

        return read

    def test_a_healthy_card_is_read(self, smi):
        result = smi("echo 0, GPU-aa, NVIDIA GeForce RTX 4070 Ti, 580.65.06, 12282, 11000, 8.9")
        assert (result.state, result.driver) == ("ok", "580.65.06")
        (card,) = result.usable
        assert (card.total_bytes, card.free_bytes) == (12282 * 1024**2, 11000 * 1024**2)
        assert (card.uuid, card.name, card.capability) == ("GPU-aa", "NVIDIA GeForce RTX 4070 Ti", (8, 9))

    def test_a_driver_too_old_for_compute_cap_is_queried_without_it(self, smi):
        unknown = 'case "$*" in *compute_cap*) echo Field "compute_cap" is not a valid field to query.; exit 2;; esac\n'
        result = smi(unknown + "echo 0, GPU-aa, NVIDIA GeForce GTX 970, 470.256.02, 4040, 3900")
        assert (result.state, result.driver) == ("ok", "470.256.02")
        assert (result.usable[0].total_bytes, result.usable[0].capability) == (4040 * 1024**2, None)

    def test_it_is_queried_for_the_fields_that_are_read(self, smi, tmp_path):
        smi(f'echo "$@" > {tmp_path}/asked')
        fields = "index,uuid,name,driver_version,memory.total,memory.free,compute_cap"
        assert (tmp_path / "asked").read_text() == f"--query-gpu={fields} --format=csv,noheader,nounits\n"

    def test_memory_that_is_not_reported_breaks_only_that_card(self, smi):
        result = smi("echo 0, GPU-aa, One, 580.1, [N/A], [N/A], [N/A]\necho 1, GPU-bb, Two, 580.1, 8000, [N/A], 12.0")
        assert result.state == "ok"
        (card,) = result.usable
        assert (card.index, card.free_bytes, card.capability) == (1, None, (12, 0))
        assert result.cards[0].error == "NotSupported: nvidia-smi says '[N/A]'"

    def test_a_version_mismatch_is_recognised(self, smi):
        result = smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
        assert result.state == "error"
        assert result.cause.startswith("NVMLError_LibRmVersionMismatch: Failed to initialize NVML")

    def test_a_driver_that_is_not_loaded_is_recognised(self, smi):
        output = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
        result = smi(f'echo "{output}" >&2; exit 9')
        assert (result.state, result.cause) == ("error", f"NVMLError_DriverNotLoaded: {output}")

    @pytest.mark.parametrize("output", ["", "a, b, c, d, e, f, g"])
    def test_invalid_output_is_nonsense(self, smi, output):
        assert smi(f"echo {output}").state == "nonsense"

    def test_a_name_with_invalid_bytes_is_still_read(self, smi):
        result = smi("echo '0, GPU-aa, Card \xff, 580.1, 8000, 7000, 8.6'")
        assert (result.state, result.usable[0].name) == ("ok", "Card �")

    def test_a_hanging_nvidia_smi_is_stopped_at_the_time_limit(self, smi):
        assert smi("sleep 600", timeout_seconds=0.5).state == "hung"

    def test_an_nvidia_smi_that_cannot_run_counts_as_no_driver(self, smi):
        result = smi("", first_line="#!/no/such/shell\n")
        assert result.state == "absent"
        assert result.cause.startswith("nvidia-smi cannot be run")

    @pytest.mark.skipif(Path(WSL_SMI).exists(), reason="this WSL2 has nvidia-smi outside PATH")
    def test_a_missing_nvidia_smi_counts_as_no_driver(self, smi, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        result = read_nvml(PATIENT)
        assert (result.state, result.cause) == ("absent", "no nvidia-smi")

    def test_a_broken_library_is_treated_as_missing(self, smi, stub):
        stub("pynvml", "raise OSError('half installed')")
        assert smi("echo 0, GPU-aa, One, 580.1, 8000, 7000, 8.6").state == "ok"
