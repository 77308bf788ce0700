import pytest
import torch

from helpers.training import autograd_functions, fused_softmax
from helpers.training.engine import chunked_loss


@pytest.fixture(autouse=True)
def clear_cache():
    fused_softmax._works_on_a_card.cache_clear()
    yield
    fused_softmax._works_on_a_card.cache_clear()


def test_a_cpu_uses_pytorch_even_if_triton_is_installed(monkeypatch):
    monkeypatch.setattr(fused_softmax, "has_triton", lambda: True)
    assert not fused_softmax.works_on(torch.device("cpu"))


@pytest.mark.parametrize(("system", "missing"), [("Linux", "gcc"), ("Windows", "Python's headers")])
def test_if_triton_fails_pytorch_is_used_with_a_warning(monkeypatch, system, missing):
    def without_gcc(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(fused_softmax, "has_triton", lambda: True)
    monkeypatch.setattr(fused_softmax, "nats_and_gradients", without_gcc)
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **how: None)  # there may be no card
    with pytest.warns(UserWarning, match=f"cannot compile here .*C compiler.*{missing}.*install") as warned:
        assert not fused_softmax.works_on(torch.device("cuda"))
        assert not fused_softmax.works_on(torch.device("cuda", 0)), "the same card, as tensors name it"
    assert len(warned) == 1


def test_the_gradient_of_the_head_is_not_a_view_that_autograd_would_copy():
    hidden, weight = torch.randn(2, 8, 4, requires_grad=True), torch.randn(65, 4, requires_grad=True)
    loss = chunked_loss(hidden, weight, torch.randint(65, (2, 8)), chunk_tokens=4)
    with torch.autocast("cpu", torch.bfloat16):
        in_half = chunked_loss(hidden, weight, torch.randint(65, (2, 8)), chunk_tokens=4)
    for one in (loss, in_half):
        (gradient,) = torch.autograd.grad(one, weight)
        assert gradient.shape == weight.shape
        assert gradient._base is None


def test_validation_computes_no_gradients(monkeypatch):
    monkeypatch.setattr(autograd_functions, "_add_product", None)
    hidden, weight = torch.randn(1, 8, 4, requires_grad=True), torch.randn(65, 4, requires_grad=True)
    labels = torch.randint(65, (1, 8))
    with torch.no_grad():
        loss = chunked_loss(hidden, weight, labels)
    expected = torch.nn.functional.cross_entropy((hidden @ weight.T)[0, :-1], labels[0, 1:])
    torch.testing.assert_close(loss, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: `make test TORCH=auto` on one")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_matches_pytorch(dtype):
    assert fused_softmax.works_on(torch.device("cuda"))
    torch.manual_seed(0)
    logits = (3 * torch.randn(6, 50304, device="cuda")).to(dtype)
    targets = torch.randint(50257, (6,), device="cuda")
    targets[2], targets[4] = -100, 50256
    nats, gradients = fused_softmax.nats_and_gradients(logits.clone(), targets, 50257)
    expected_nats, expected = autograd_functions._nats_and_gradients(logits, targets, 50257)
    torch.testing.assert_close(nats, expected_nats)
    rows = targets != -100
    torch.testing.assert_close(gradients[rows], expected[rows])
    assert not gradients[:, 50257:].any()
