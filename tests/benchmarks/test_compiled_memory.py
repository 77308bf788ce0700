"""The formula for the memory of a compiled model against the schedule that PyTorch's compiler makes for it.

No GPU is needed: the compiler is asked for its kernels, in their order, and for what each allocates and frees. What it
would write for a processor differs from Triton's kernels, but buffers are chosen before. The loss is not compiled; that
part of the formula is tested in `test_memory_trace.py`.
"""

import multiprocessing
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._functorch import partitioners

from helpers.display import MIB
from helpers.training.memory import _Step, predict
from tests.training.memory_trace import DTYPES, fake_models
from tests.training.test_memory import SHALLOW, WIDE, config_of, settings

TRACED = [
    (SHALLOW, {"batch": 4, "block": 1024}),
    (SHALLOW._replace(n_layer=4), {"batch": 3, "block": 500}),
    (SHALLOW, {"batch": 8, "precision": "no"}),
    (SHALLOW, {"batch": 1, "block": 128, "accumulation": 2}),
    (WIDE, {"batch": 4, "block": 1024}),
    (SHALLOW, {"batch": 4, "lora_r": 8}),
    (SHALLOW, {"batch": 8, "lora_r": 8, "precision": "no"}),
    (SHALLOW, {"batch": 16, "block": 1024, "checkpointing": True}),
    (WIDE, {"batch": 4, "block": 1024, "checkpointing": True}),
    (SHALLOW._replace(n_layer=4), {"batch": 8, "precision": "no", "checkpointing": True, "accumulation": 4}),
]


@pytest.fixture(scope="module")
def compiler():
    """Return another process: after a compilation `test_memory_trace.py` would trace other temporary tensors."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield process


@pytest.mark.parametrize(("shape", "values"), TRACED, ids=[f"{s.n_layer}x{s.n_embd}-{v}" for s, v in TRACED])
def test_the_prediction_of_a_compiled_step_is_within_3_percent_of_its_schedule(shape, values, compiler):
    run_settings = settings(**values)
    (_, kept), (in_backward, _) = compiler.submit(scheduled_bytes, shape, run_settings).result()
    step = _Step(shape, run_settings, run_settings.mixed_precision != "no", False, 1, False, True)
    loss = step.at_loss()
    kept_by_formula = loss.activations + loss.autocast_copies - step.is_half * step.embedding // 2
    states = step.weights + step.states
    at_loss = loss.tensor_bytes - kept_by_formula + kept
    traced = max(at_loss, states + step.old_gradients + step.head_gradient + in_backward)
    predicted = predict(shape, run_settings, compiled=True).tensor_bytes
    for what, formula, trace in (("peak", predicted, traced), ("kept", kept_by_formula, kept)):
        print(f"{what} {formula / MIB:10,.1f} MiB predicted, {trace / MIB:10,.1f} traced, {formula / trace - 1:+.2%}")
    assert predicted == pytest.approx(traced, rel=0.03)
    if not run_settings.gradient_checkpointing:
        assert kept_by_formula == pytest.approx(kept, rel=0.01)


def scheduled_bytes(shape, run_settings):
    """Return for the forward and the backward graph: bytes at the peak and at the end; nothing is run."""
    from torch._inductor import compile_fx

    schedules, half = [], DTYPES.get(run_settings.mixed_precision)
    partition = compile_fx.min_cut_rematerialization_partition

    def lower_both(*arguments, **how):
        forward, backward = partition(*arguments, **how)
        schedules.extend((_walk(forward, is_backward=False), _walk(backward, is_backward=True)))
        raise NotImplementedError("nothing is run")

    stopped = pytest.raises(BackendCompilerFailed, match="nothing is run")
    with (
        warnings.catch_warnings(action="ignore"),  # the compiler's own warnings
        pytest.MonkeyPatch.context() as patch,
        fake_models(config_of(shape), run_settings) as (_, model),
        stopped,
    ):
        patch.setattr(compile_fx, "min_cut_rematerialization_partition", lower_both)
        # With checkpointing, attention would keep the RNG state, some bytes that no fake tensor has.
        patch.setattr(partitioners, "functionalize_rng_ops", lambda joint, forward, backward, n: (forward, backward))
        ids = torch.empty(run_settings.per_device_train_batch_size, run_settings.block_size, dtype=torch.int64)
        with torch.autocast("cpu", half, enabled=half is not None):
            torch.compile(model)(input_ids=ids, labels=ids, use_cache=False)
    torch.compiler.reset()
    return schedules


def _walk(graph, *, is_backward):
    from torch._inductor import compile_fx, memory
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    fake_mode = torch._guards.detect_fake_mode(inputs)
    with V.set_fake_mode(fake_mode):
        compile_fx.view_to_reshape(graph)
        compile_fx._recursive_post_grad_passes(graph, is_inference=False)
        lowering = GraphLowering(graph, inputs, shape_env=fake_mode.shape_env, is_backward=is_backward)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            lowering._update_scheduler()
            nodes, names = lowering.scheduler.nodes, set(lowering.get_output_names())
            free = memory.get_freeable_input_buf(nodes, set(lowering.graph_inputs))
            buffers = memory.compute_memory_timeline(nodes, free, names)[0]
    own = [each for each in buffers if not isinstance(each.buffer, memory.FreeableInputBuffer)]
    now = peak = sum(each.size_alloc for each in buffers) - sum(each.size_alloc for each in own)
    for time, node in enumerate(nodes):
        new = [each.size_alloc for each in own if each.start_step == time]
        freed = [each.size_free for each in buffers if each.end_step == time]
        in_place = 0 if node.is_extern() else sum((Counter(new) & Counter(freed)).elements())
        peak = max(peak, now + sum(new) - in_place)
        now += sum(new) - sum(freed)
    return peak, now
