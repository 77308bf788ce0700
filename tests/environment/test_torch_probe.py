"""A torch that is missing, broken, slow or strange: fake packages called torch in a real child process."""

import importlib.machinery
import os
import sys

import pytest

from helpers.environment.child import Answer
from helpers.environment.torch_probe import facts_from, has_bf16, read_torch, read_torch_files

PATIENT = 20.0  # seconds; a machine under load starts a Python slowly
BUILD = """
import types
__version__ = "2.13.0+cu130"
version = types.SimpleNamespace(cuda="13.0")
"""
CARD = """
def properties(index):
    name = "NVIDIA GeForce RTX 4070 Ti"
    return types.SimpleNamespace(name=name, total_memory=12 * 1024**3, uuid="aa", major=8, minor=9)

def codes():
    return ["sm_80", "sm_86", "compute_90"]

def seen():
    import warnings
    warnings.warn("this card is strange")
    return True

cuda = types.SimpleNamespace(is_available=seen, get_device_properties=properties, get_arch_list=codes)
"""


@pytest.fixture
def torch(stub):
    """Return a function that creates a fake torch from its source and reads it."""

    def read(source, timeout_seconds=PATIENT):
        stub("torch", source)
        return read_torch(timeout_seconds)

    return read


def test_the_installed_torch_is_read_and_works():
    torch = pytest.importorskip("torch")
    result = read_torch()
    assert (result.state, result.cause, result.version) == ("ok", "", torch.__version__)
    assert (result.cuda, result.available) == (torch.version.cuda, torch.cuda.is_available())
    assert (result.product, result.product_device) == ("ok", "cuda" if result.available else "cpu")


def test_a_missing_torch_is_absent(torch):
    result = torch("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    assert (result.state, result.cause, result.version) == ("absent", "torch is not installed", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "raise OSError('[WinError 126] The specified module could not be found. Error loading \"c10.dll\"')",
            "WinError 126",
        ),
        ("raise ImportError('libcudnn.so.9: cannot open shared object file')", "ImportError: libcudnn.so.9"),
        ("import no_such_part_of_torch", "no_such_part_of_torch"),
        ("def (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("", "what is imported as torch is not torch"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_broken_with_its_cause(torch, line, words):
    result = torch(line)
    assert (result.state, result.version) == ("broken", "")
    assert words in result.cause


def test_a_torch_that_hangs_at_import_is_stopped_at_the_time_limit(torch):
    result = torch("import time\ntime.sleep(600)", timeout_seconds=0.5)
    assert (result.state, result.cause, result.version) == ("hung", "no answer within 0.5 s", "")


def test_a_torch_that_hangs_on_cuda_has_already_reported_its_build(torch):
    source = BUILD + "import time\ncuda = types.SimpleNamespace(is_available=lambda: time.sleep(600))"
    result = torch(source, timeout_seconds=2)
    assert (result.state, result.version, result.cuda, result.available) == ("hung", "2.13.0+cu130", "13.0", None)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_torch_that_crashes_at_import_is_reported_with_its_signal(torch):
    result = torch("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    assert (result.state, result.cause) == ("crashed", "ended by SIGILL")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_crash_in_the_matrix_product_keeps_the_report_about_the_card(torch):
    crash = "class Generator:\n    def manual_seed(self, seed):\n        import os\n        os.kill(os.getpid(), 11)\n"
    result = torch(BUILD + CARD + crash)
    assert (result.state, result.cause, result.available, result.product) == ("crashed", "ended by SIGSEGV", True, "")
    assert (result.name, result.total_bytes, result.uuid) == ("NVIDIA GeForce RTX 4070 Ti", 12 * 1024**3, "aa")
    assert (result.capability, result.codes) == ((8, 9), ("sm_80", "sm_86", "compute_90"))
    assert result.warnings == ("this card is strange",)


def test_an_exception_in_the_matrix_product_is_reported_in_one_line(torch):
    error = "def Generator():\n    raise RuntimeError('no kernel image is available\\nCUDA kernel errors ...')\n"
    result = torch(BUILD + CARD + error)
    assert (result.state, result.bf16) == ("ok", True)
    assert (result.product, result.product_device) == ("RuntimeError: no kernel image is available", "cuda")


def test_an_exception_without_a_message_is_reported_by_its_class(torch):
    result = torch(BUILD + CARD + "def Generator():\n    raise RuntimeError\n")
    assert (result.state, result.product) == ("ok", "RuntimeError")


def test_an_unreadable_card_adds_its_error_to_the_warnings(torch):
    result = torch(
        BUILD + CARD + "def properties(index): raise RuntimeError('lost')\ncuda.get_device_properties = properties"
    )
    assert result.available is True
    assert result.warnings == ("this card is strange", "RuntimeError: lost")


def test_invalid_output_means_a_broken_torch(torch):
    result = torch("import os\nprint('Bus error', flush=True)\nos._exit(0)")
    assert result.state == "broken"
    assert "Bus error" in result.cause


@pytest.mark.parametrize(("bf16", "cuda"), [(True, "12.6"), (False, None)])
def test_facts_are_read_from_the_answer(bf16, cuda):
    value = {"version": "2.13.0", "cuda": cuda, "available": False, "bf16": bf16, "capability": [7, 5], "seconds": 1.0}
    result = facts_from(Answer("ok", value))
    assert (result.version, result.cuda, result.available, result.bf16) == ("2.13.0", cuda, False, bf16)
    assert (result.capability, result.warnings) == ((7, 5), ())


class TestFilesOnly:
    """A quick read takes torch's version from its files and imports nothing."""

    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """Return a function that creates a torch with this version.py where this process finds it."""

        def make(version_file, name="torch/__init__.py"):
            path = tmp_path / "site" / name
            path.parent.mkdir(parents=True)
            path.write_text("raise AssertionError('imported')")
            if version_file is not None:
                (path.parent / "version.py").write_text(version_file)
            spec = importlib.machinery.PathFinder.find_spec("torch", [str(tmp_path / "site")])
            monkeypatch.setattr("helpers.environment.torch_probe.find_spec", lambda _: spec)
            return read_torch_files()

        return make

    def test_version_and_cuda_are_read(self, package):
        result = package("__version__ = '2.13.0+cu126'\ncuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n")
        assert (result.state, result.version, result.cuda, result.available) == ("quick", "2.13.0+cu126", "12.6", None)

    def test_a_cpu_build_has_no_cuda(self, package):
        result = package("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.1'\n")
        assert (result.version, result.cuda) == ("2.13.0+cpu", None)

    @pytest.mark.parametrize("name", ["torch/__init__.py", "torch.py"])
    def test_a_torch_without_its_version_file_is_broken(self, package, name):
        result = package(None, name)
        assert result.state == "broken"
        assert "version.py" in result.cause

    def test_a_leftover_folder_is_absent(self, package):
        assert package(None, "torch/lib/__init__.py").state == "absent"

    def test_no_torch_is_absent(self, monkeypatch):
        monkeypatch.setattr("helpers.environment.torch_probe.find_spec", lambda _: None)
        assert read_torch_files().state == "absent"

    def test_another_module_called_torch_is_broken(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
        result = read_torch_files()
        assert (result.state, result.cause) == ("broken", "torch.__spec__ is None")


def test_bf16_depends_on_the_gpu_if_there_is_one(monkeypatch):
    import torch as real

    monkeypatch.setattr(real.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), False), ((8, 0), True), ((8, 9), True)):
        monkeypatch.setattr(real.cuda, "get_device_capability", lambda capability=capability: capability)
        assert has_bf16() is expected


@pytest.mark.parametrize(("name", "expected"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
@pytest.mark.parametrize("has_gpu", [False, True])
def test_bf16_depends_on_the_processor_without_a_gpu(monkeypatch, name, expected, has_gpu):
    import torch as real

    monkeypatch.setattr(real.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(real.cpu, "get_capabilities", lambda: {name: True}, raising=False)
    assert has_bf16(on_processor=has_gpu) is expected
