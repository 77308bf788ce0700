"""Trace the memory of a real training step without allocating it: fake CPU tensors behave as on a CUDA card.

FakeTensorMode runs every operation on shapes only, and MemTracker adds up the live storages. Where a CPU differs from a
GPU, the GPU's behaviour is emulated: the flash kernel, dropout that keeps its mask, autocast, half-precision products
accumulated in float32, and the fused softmax. Not traced: cuBLAS workspaces, fragmentation and what kernels allocate
for themselves.
"""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from inspect import signature

import pytest
import torch
from torch import distributed, nn
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AttentionInterface, DynamicCache, GPT2Config, GPT2LMHeadModel
from transformers.optimization import Adafactor

from helpers.evaluation.scoring import _token_nats
from helpers.settings import TrainingSettings
from helpers.training import autograd_functions
from helpers.training.engine import use_chunked_loss, use_fused_gelu
from helpers.training.lora import add_adapter
from helpers.training.muon import MuonWithAdamW

CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def peak_bytes(
    config: GPT2Config,
    settings: TrainingSettings,
    *,
    of: str = "step",
    sample_tokens: int = 0,
    n_processes: int = 1,
    fused_softmax: bool = False,
) -> int:
    """Return the peak bytes of all tensors in any step after the first, when the optimizer has its states.

    Args:
        config: the model configuration.
        settings: the training settings.
        of: 'step', 'validation' for a pass after a step, or 'sample' for generating up to `sample_tokens` tokens.
        sample_tokens: length of the sample, including its prompt.
        n_processes: number of training processes; all but one are simulated.
        fused_softmax: whether the gradients of the logits overwrite the logits, as in the Triton kernel.
    """
    batch, block, precision = settings.per_device_train_batch_size, settings.block_size, settings.mixed_precision
    with ExitStack() as stack:
        model, trained = stack.enter_context(fake_models(config, settings, fused_softmax=fused_softmax))
        optimizer = _stepped_once(trained, settings.optim)
        input_ids = torch.empty(batch, block, dtype=torch.int64)
        tracker = _Tracker()
        tracker.track_external(trained, *getattr(optimizer, "_parts", [optimizer]), input_ids)
        stack.enter_context(tracker)
        run = stack.enter_context(_in_processes(trained, n_processes)) if n_processes > 1 else trained
        if of != "step":
            trained.eval()
            with torch.no_grad(), torch.autocast("cpu", DTYPES.get(precision), enabled=precision in DTYPES):
                _validate(model, input_ids) if of == "validation" else _sample(trained, sample_tokens, tracker)
            return tracker.get_tracker_snapshot("peak")[CPU]["Total"]
        n_passes = min(settings.gradient_accumulation_steps, 2)  # all passes after the first are alike
        for n in range(n_passes):
            tracker.reset_mod_stats()
            with run.no_sync() if n_processes > 1 and n + 1 < n_passes else nullcontext():
                with torch.autocast("cpu", DTYPES.get(precision), enabled=precision in DTYPES):
                    loss = run(input_ids=input_ids, labels=input_ids, use_cache=False).loss
                loss.backward()
            del loss
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return tracker.get_tracker_snapshot("peak")[CPU]["Total"]


def scoring_peak_bytes(config: GPT2Config, *, batch: int, n_scored: int) -> int:
    """Return the peak bytes of all tensors while the last tokens of full-length windows are scored in float32."""
    with ExitStack() as stack:
        model = _on_meta(config).eval()
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_as_on_cuda())
        _give_storage(model)
        _choose(model, checkpointing=False)
        rows = torch.empty(batch, config.n_positions + 1, dtype=torch.int64)
        tracker = _Tracker()
        tracker.track_external(model, rows)
        head = model.lm_head.weight
        del model.lm_head  # the tracker allows one call per module
        model.lm_head = lambda hidden: hidden @ head.T
        stack.enter_context(tracker)
        with torch.no_grad():
            _token_nats(model, rows, n_scored)
        return tracker.get_tracker_snapshot("peak")[CPU]["Total"]


@contextmanager
def fake_models(
    config: GPT2Config, settings: TrainingSettings, *, fused_softmax: bool = False
) -> Iterator[tuple[GPT2LMHeadModel, nn.Module]]:
    """Yield a fake model that behaves as on CUDA, and the module to train: the model itself or with an adapter."""
    model = _on_meta(config)  # outside FakeTensorMode, so that no initial weights are drawn
    half = DTYPES.get(settings.mixed_precision)
    trained = add_adapter(model, settings, half=half) if settings.lora_r else model
    with FakeTensorMode(), _as_on_cuda(fused_softmax=fused_softmax):
        _give_storage(trained)
        _choose(model, checkpointing=settings.gradient_checkpointing)
        yield model, trained


def _validate(model: GPT2LMHeadModel, input_ids: torch.Tensor) -> None:
    model(input_ids=input_ids, labels=input_ids, use_cache=False)


def _sample(model: nn.Module, n_tokens: int, tracker: "_Tracker") -> None:
    """Read all tokens but two, then generate those as `generate` does, with the logits of the last position only."""
    name = "cache" if "cache" in signature(GPT2LMHeadModel.forward).parameters else "past_key_values"  # since 5.24
    how = {name: DynamicCache(), "use_cache": True, "logits_to_keep": 1}
    model(input_ids=torch.empty(1, n_tokens - 2, dtype=torch.int64), **how)
    for _ in range(2):
        tracker.reset_mod_stats()
        model(input_ids=torch.empty(1, 1, dtype=torch.int64), **how)


@contextmanager
def _in_processes(model: nn.Module, n_processes: int) -> Iterator[nn.Module]:
    """Yield the model as trained by the first of several processes that exchange nothing."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=n_processes)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, init_sync=False)
        parallel.register_comm_hook(None, _exchange_nothing)
        yield parallel
    finally:
        distributed.destroy_process_group()


def _exchange_nothing(state: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class _Tracker(MemTracker):
    """Sum two gradients of a tensor in place, as autograd does when no dispatch mode is active."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        if func is torch.ops.aten.add.Tensor and is_backward and args[0].shape == args[1].shape:
            func = torch.ops.aten.add_.Tensor
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        """Install no hooks on frozen parameters: torch refuses hooks on tensors without a gradient."""
        is_trained = all(parameter.requires_grad for parameter in module.parameters())
        return super()._track_module_params_and_buffers(module, install_grad_hooks and is_trained)


def _on_meta(config: GPT2Config) -> GPT2LMHeadModel:
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model.train()


def _give_storage(model: nn.Module) -> None:
    """Replace meta tensors with fake CPU tensors and keep tied weights tied."""
    memo: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                module._parameters[name] = memo.setdefault(id(parameter), fake)


def _choose(model: GPT2LMHeadModel, *, checkpointing: bool) -> None:
    AttentionInterface.register("traced", _flash_attention)
    model.set_attn_implementation("traced")
    use_fused_gelu(model)
    use_chunked_loss(model)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.23
        (enable or model.gradient_checkpointing_enable)()


def _stepped_once(model: nn.Module, optim: str) -> torch.optim.Optimizer:
    """Return the Trainer's optimizer after its first step, when it has states for every trained weight."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optim == "adafactor":
        optimizer = Adafactor(trained, lr=1e-3, scale_parameter=False, relative_step=False)
    elif optim == "muon":
        optimizer = MuonWithAdamW(model, TrainingSettings())
    else:
        optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _flash_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    out = flash(query, key, value, dropout, is_causal=True, scale=scaling)[0]
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def _as_on_cuda(*, fused_softmax: bool = False) -> Iterator[None]:
    """Compute as CUDA does: one byte per element of a dropout mask, products accumulated in float32."""

    def masked_dropout(input, p=0.5, training=True, inplace=False):
        return torch.ops.aten.native_dropout(input, p, training)[0] if p and training else input

    def add_product(total, left, right):
        total += 0

    def in_place(logits, targets, vocab_size):
        return logits.new_zeros((), dtype=torch.float32), logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "dropout", masked_dropout)
        patch.setattr(autograd_functions, "_add_product", add_product)
        if fused_softmax:
            patch.setattr(autograd_functions.fused_softmax, "works_on", lambda device: True)
            patch.setattr(autograd_functions.fused_softmax, "nats_and_gradients", in_place)
        yield
    gc.collect()  # so that the tracker's weak references die with their targets
