import pytest
import torch

from helpers.environment.precision import has_bf16


def test_bf16_depends_on_the_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), False), ((8, 0), True), ((8, 9), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert has_bf16() is expected


@pytest.mark.parametrize(("name", "expected"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_bf16_depends_on_the_processor_without_a_gpu(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, raising=False)
    assert has_bf16() is expected
