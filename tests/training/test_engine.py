import platform
import warnings
from contextlib import contextmanager
from functools import partial
from inspect import signature
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.training import engine
from helpers.training.engine import (
    chunked_attention,
    chunked_loss,
    keep_freed_memory,
    optimised_model,
    use_causal_attention,
    use_chunked_loss,
    use_fused_gelu,
)

V = 211
SHAPES = [(1, 4), (3, 17), (4, 64)]  # (B, T): short, odd, all positions


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=V, n_positions=64, n_embd=48, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"
    return model


def batch(shape, *, padded):
    ids = torch.randint(V, shape, generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    if padded:
        labels[0, -(-shape[1] // 2) :] = -100  # the second half of the first row
    return ids, labels


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_equal(stock, ours):
    assert ours[0] == pytest.approx(stock[0], abs=1e-5)
    assert (ours[1] - stock[1]).abs().max() < 1e-4


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("change", [use_causal_attention, use_fused_gelu, use_chunked_loss, "all"])
def test_each_change_gives_the_stock_loss_and_gradients(model, change, shape, padded):
    ids, labels = batch(shape, padded=padded)
    stock = loss_and_gradients(model, input_ids=ids, attention_mask=(labels != -100).long(), labels=labels)
    if change == "all":
        with optimised_model(model):
            ours = loss_and_gradients(model, input_ids=ids, labels=labels)
    else:
        change(model)
        ours = loss_and_gradients(model, input_ids=ids, labels=labels)
    assert_equal(stock, ours)


def test_the_pocket_model_gives_its_stock_loss_and_gradients():
    from helpers.model import load_model

    model = load_model("pocket").eval()
    ids = torch.randint(4096, (2, 100), generator=torch.Generator().manual_seed(1))
    stock = loss_and_gradients(model, input_ids=ids, labels=ids)
    with optimised_model(model):
        assert_equal(stock, loss_and_gradients(model, input_ids=ids, labels=ids))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 51, 4096])
def test_the_chunk_size_does_not_change_loss_or_gradients(model, chunk_tokens):
    ids, labels = batch((3, 17), padded=True)
    stock = loss_and_gradients(model, input_ids=ids, labels=labels)
    use_chunked_loss(model, chunk_tokens=chunk_tokens)
    assert_equal(stock, loss_and_gradients(model, input_ids=ids, labels=labels))


def test_the_loss_of_an_accumulated_step_is_divided_by_the_label_count_of_all_passes(model):
    ids, labels = batch((3, 17), padded=False)
    stock = loss_and_gradients(model, input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(500))
    use_chunked_loss(model)
    assert_equal(stock, loss_and_gradients(model, input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(500)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_gives_the_stock_loss_and_gradients_with_all_blocks_in_one_graph(model, dtype):
    graphs = CompileCounterWithBackend("aot_eager")
    del model.transformer.h[1:]  # compiling a block takes seconds, and all of them are alike
    ids, labels = batch((3, 17), padded=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own warnings
        with optimised_model(model):
            eager = loss_and_gradients(model, input_ids=ids, labels=labels)
            compiled = torch.compile(model, backend=graphs)
            model.zero_grad()
            loss = compiled(input_ids=ids, labels=labels).loss
            loss.backward()
    torch.compiler.reset()
    (graph,) = graphs.graphs
    assert [node.meta["example_value"].shape for node in graph.graph.output_node().args[0]] == [(3, 17, 48)], "no loss"
    assert loss.item() == pytest.approx(eager[0], abs=1e-5)
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert (gradients - eager[1]).abs().max() < (1e-4 if dtype == torch.float32 else 2e-2)


def test_under_bf16_autocast_the_loss_is_close_to_the_stock_one(model):
    ids, labels = batch((4, 64), padded=False)
    with torch.autocast("cpu", torch.bfloat16):
        stock = loss_and_gradients(model, input_ids=ids, labels=labels)
        with optimised_model(model):
            ours = loss_and_gradients(model, input_ids=ids, labels=labels)
    assert ours[0] == pytest.approx(stock[0], rel=2e-3)  # bf16 keeps 8 bits
    assert torch.nn.functional.cosine_similarity(ours[1], stock[1], dim=0) > 0.999


def test_in_half_precision_the_matrix_sizes_of_the_head_suit_fast_gpu_kernels():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
                sizes.extend([*args[-2].shape, *args[-1].shape])
            return function(*args, **(kwargs or {}))

    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 20, 16, generator=generator).requires_grad_()
    weight, labels = torch.randn(V, 16, generator=generator).requires_grad_(), torch.arange(40).view(2, 20)
    with torch.autocast("cpu", torch.bfloat16):
        with Watch():
            loss = chunked_loss(hidden, weight, labels, chunk_tokens=8)
        stock = torch.nn.functional.cross_entropy(hidden[:, :-1].flatten(0, 1) @ weight.T, labels[:, 1:].flatten())
    assert len(sizes) == 3 * 5 * 4, "three products for each of five chunks"
    assert all(size % 8 == 0 for size in sizes), f"{V} words are padded to a multiple of 8"
    ours = torch.autograd.grad(loss, [hidden, weight])
    assert loss.item() == pytest.approx(stock.item(), rel=1e-2)
    for one, other in zip(ours, torch.autograd.grad(stock, [hidden, weight]), strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


def test_a_target_whose_probability_underflows_to_0_has_an_exact_loss():
    hidden = torch.full((1, 4, 1), 300.0, requires_grad=True)
    weight, labels = torch.linspace(-1, 1, V)[:, None].requires_grad_(), torch.zeros(1, 4, dtype=torch.long)
    loss = chunked_loss(hidden, weight, labels)
    stock = torch.nn.functional.cross_entropy((hidden[:, :-1] @ weight.T).flatten(0, 1), labels[:, 1:].flatten())
    assert loss.item() == pytest.approx(stock.item()) and loss > 500, "e^-500 is 0 in float32"
    ours = torch.autograd.grad(loss, [hidden, weight])
    for one, other in zip(ours, torch.autograd.grad(stock, [hidden, weight]), strict=True):
        assert torch.allclose(one, other)


def test_the_logits_of_all_tokens_never_exist_at_once():
    held = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            held.extend(t.numel() for t in (out if isinstance(out, tuple) else [out]) if isinstance(t, torch.Tensor))
            return out

    hidden, weight = torch.randn(4, 64, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
    with Watch():
        chunked_loss(hidden, weight, torch.randint(V, (4, 64)), chunk_tokens=32).backward()
    assert max(held) <= 32 * 256, "V padded to a multiple of 64"


def test_without_labels_the_model_returns_logits(model):
    ids, _ = batch((2, 9), padded=False)
    stock = model(input_ids=ids).logits
    use_chunked_loss(model)
    assert torch.equal(model(input_ids=ids).logits, stock)


def test_validation_needs_no_gradients(model):
    ids, labels = batch((2, 9), padded=False)
    stock = model(input_ids=ids, labels=labels).loss
    use_chunked_loss(model)
    with torch.no_grad():
        ours = model(input_ids=ids, labels=labels)
    assert ours.loss == pytest.approx(stock.item(), abs=1e-5)
    assert not ours.loss.requires_grad


def test_attention_runs_in_the_flash_kernel(model):
    use_causal_attention(model)
    ids, labels = batch((2, 33), padded=False)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):  # any other kernel is an error here
        model(input_ids=ids, labels=labels).loss.backward()


def query_key_value(n_tokens):
    shape = (3, 2, 4, n_tokens, 16)  # query, key and value; B, heads, T, head_dim
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return [part.clone().requires_grad_() for part in whole]


@pytest.mark.parametrize("n_tokens", [2, 127, 128, 129, 300])
def test_chunked_attention_matches_the_kernel(n_tokens):
    query, key, value = query_key_value(n_tokens)
    kernel = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    ours = chunked_attention(query, key, value)
    slope = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, kernel, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (query, key, value), slope),
        torch.autograd.grad(kernel, (query, key, value), slope),
        atol=1e-4,
        rtol=1e-4,
    )


def test_chunked_attention_never_holds_all_scores_at_once():
    query, key, value = query_key_value(1024)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
        chunked_attention(query, key, value)
    assert max(held) <= 2 * 4 * 128 * 1024


def test_dropout_in_parts_drops_a_share_and_keeps_the_mean():
    query, key, _ = query_key_value(300)
    torch.manual_seed(0)
    sums = chunked_attention(query, key, torch.ones_like(key), dropout=0.5)  # of the attention weights that were kept
    assert sums[:, :, 0].unique().tolist() == [0, 2], "a weight alone in its row is dropped or doubled"
    assert sums.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_tokens", "is_trained"), [(33, True), (33, False), (768, True)])
def test_the_cpu_kernel_is_used_for_float32_without_dropout_if_long_or_without_gradients(
    dropout, dtype, n_tokens, is_trained, monkeypatch
):
    calls = []
    monkeypatch.setattr(engine, "chunked_attention", lambda query, *_, **how: calls.append(how["dropout"]) or query)
    query = torch.zeros(1, 1, n_tokens, 16, dtype=dtype, requires_grad=is_trained)
    engine._causal_attention(None, query, query, query, None, dropout)
    in_kernel = dtype == torch.float32 and not dropout and (n_tokens == 768 or not is_trained)
    assert calls == ([] if in_kernel else [dropout])


@torch.no_grad()
def test_several_new_tokens_attend_to_the_full_cache(model):
    ids, _ = batch((2, 17), padded=False)
    name = "cache" if "cache" in signature(GPT2LMHeadModel.forward).parameters else "past_key_values"  # since 5.24
    stock = model(input_ids=ids).logits
    with optimised_model(model):
        first_part = model(input_ids=ids[:, :10], use_cache=True)
        continued = model(input_ids=ids[:, 10:], **{name: first_part.past_key_values}).logits
    torch.testing.assert_close(continued, stock[:, 10:], atol=1e-5, rtol=0)


def test_gradient_checkpointing_gives_the_same_loss_and_gradients(model):
    ids, labels = batch((3, 17), padded=False)
    stock = loss_and_gradients(model, input_ids=ids, labels=labels)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name since 5.23
    with optimised_model(model):
        assert_equal(stock, loss_and_gradients(model, input_ids=ids, labels=labels, use_cache=False))


def test_the_model_is_restored_after_the_block(model):
    config, modules = model.config.to_dict(), str(model)
    with pytest.raises(ZeroDivisionError), optimised_model(model):
        assert str(model) != modules
        raise ZeroDivisionError
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"
    assert str(model) == modules
    assert "forward" not in vars(model)


def test_a_model_that_was_changed_before_the_block_keeps_its_changes(model):
    ids, _ = batch((2, 17), padded=False)
    with optimised_model(model):
        with optimised_model(model):
            pass
        assert model(input_ids=ids, labels=ids).logits is None, "the outer block is still active"
    assert "forward" not in vars(model)
    model.forward = prepared = partial(model.forward)
    with optimised_model(model):
        pass
    assert model.forward is prepared


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_step_and_returned_at_the_end():
    import resource

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    n_pages = 2**26 // resource.getpagesize()
    with keep_freed_memory():
        torch.ones(2**24 + 2**22)  # float32, 80 MiB, freed at once
        before = faults()
        torch.ones(2**24)  # 64 MiB plus its alignment fits into the freed 80 MiB
        assert faults() - before < n_pages / 100, "the second one was allocated from the system again"
        held = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss < held - 2**26 / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_until_the_outer_block_ends(monkeypatch):
    ends = []
    libc = SimpleNamespace(mallopt=lambda *_: 1, malloc_trim=ends.append)
    monkeypatch.setattr(engine.ctypes, "CDLL", lambda _: libc)
    with keep_freed_memory():
        with keep_freed_memory():
            pass
        assert ends == []
    assert ends == [0]


def test_the_engine_keeps_freed_memory_on_a_cpu(model, monkeypatch):
    inside = []

    @contextmanager
    def noted():
        inside.append(True)
        yield
        inside.pop()

    monkeypatch.setattr(engine, "keep_freed_memory", noted)
    with optimised_model(model):
        assert inside
    assert not inside
