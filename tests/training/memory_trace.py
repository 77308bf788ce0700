"""Trace the memory of a real training step without using it: fake tensors on a CPU that behave as on a CUDA card.

FakeTensorMode runs every operation on shapes only, and MemTracker adds up the live storages. A CPU differs from a GPU
in four places, where the GPU's behaviour is restored: the flash kernel, dropout that keeps its mask, `pow` in float32
under autocast, and autocast itself. Not traced: cuBLAS workspaces, fragmentation, what a kernel allocates for itself.
"""

import gc
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation
from transformers.optimization import Adafactor

from helpers.settings import TrainingSettings
from helpers.training.engine import use_chunked_loss, use_fused_gelu
from helpers.training.lora import add_adapter

CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def peak_bytes(config: GPT2Config, settings: TrainingSettings, *, engine: str) -> int:
    """Return the peak bytes of all tensors from the second step of a training on, when the optimizer has its states."""
    batch, block, precision = settings.per_device_train_batch_size, settings.block_size, settings.mixed_precision
    with ExitStack() as stack:
        model = _on_meta(config)  # its initial weights are drawn outside, where meta tensors draw none
        trained = model
        if settings.lora_r:
            trained = add_adapter(model, settings, half=DTYPES.get(precision))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_as_on_cuda())
        _give_storage(trained)
        _choose(model, engine=engine, checkpointing=settings.gradient_checkpointing)
        optimizer = _stepped_once(trained, settings.optim)
        input_ids = torch.empty(batch, block, dtype=torch.int64)
        tracker = _Tracker()
        tracker.track_external(trained, optimizer, input_ids)
        stack.enter_context(tracker)
        for _ in range(min(settings.gradient_accumulation_steps, 2)):  # from the second pass on all are alike
            tracker.reset_mod_stats()
            with torch.autocast("cpu", DTYPES[precision]) if precision in DTYPES else nullcontext():
                loss = trained(input_ids=input_ids, labels=input_ids, use_cache=False).loss
            loss.backward()
            del loss
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return tracker.get_tracker_snapshot("peak")[CPU]["Total"]


class _Tracker(MemTracker):
    """Add up two gradients of one tensor in place, as autograd does whenever no dispatch mode is on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        if func is torch.ops.aten.add.Tensor and is_backward and args[0].shape == args[1].shape:
            func = torch.ops.aten.add_.Tensor
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        """Install no hooks on frozen parameters, which have no gradient: torch would refuse them."""
        is_trained = all(parameter.requires_grad for parameter in module.parameters())
        return super()._track_module_params_and_buffers(module, install_grad_hooks and is_trained)


def _on_meta(config: GPT2Config) -> GPT2LMHeadModel:
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model.train()


def _give_storage(model: nn.Module) -> None:
    """Replace what is on `meta` by fake CPU tensors; tied weights stay one."""
    memo: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                module._parameters[name] = memo.setdefault(id(parameter), fake)


def _choose(model: GPT2LMHeadModel, *, engine: str, checkpointing: bool) -> None:
    AttentionInterface.register("traced", _flash_attention)
    model.set_attn_implementation("traced")
    if engine == "course":
        use_fused_gelu(model)
        use_chunked_loss(model)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.23 on
        (enable or model.gradient_checkpointing_enable)()


def _stepped_once(model: nn.Module, optim: str) -> torch.optim.Optimizer:
    """Return the Trainer's optimizer with its states for each trained weight, as it is after the first step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optim == "adafactor":
        optimizer = Adafactor(trained, lr=1e-3, scale_parameter=False, relative_step=False)
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
def _as_on_cuda() -> Iterator[None]:
    """Let dropout keep a mask of one byte, and `gelu_new` take its power in float32, as CUDA does."""
    dropout, gelu_new = functional.dropout, NewGELUActivation.forward

    def masked_dropout(input, p=0.5, training=True, inplace=False):
        return torch.ops.aten.native_dropout(input, p, training)[0] if p and training else input

    def gelu_new_on_cuda(self, input):
        cube = torch.pow(input.float(), 3.0)
        return 0.5 * input * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * cube)))

    functional.dropout, NewGELUActivation.forward = masked_dropout, gelu_new_on_cuda
    try:
        yield
    finally:
        functional.dropout, NewGELUActivation.forward = dropout, gelu_new
        gc.collect()  # the tracker's weak references go with what they refer to
