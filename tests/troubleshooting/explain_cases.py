"""Inputs for `explain`: errors that the real libraries raise here, messages printed elsewhere, and healthy text.

Each entry of REAL and of ORDINARY causes one error; each text in WRITTEN is one that a CPU cannot cause.
"""

import io
import json
import logging
import math
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from importlib.metadata import version

from packaging.version import Version

from helpers.environment.torch_probe import read_torch_files
from helpers.paths import NOTEBOOKS, POCKET

HOME = "/opt/env/lib/python3.12/site-packages"


def traceback_of(error, *, code="trainer.train()", package="transformers/trainer.py"):
    """Return an error as a terminal shows it."""
    return (
        f'Traceback (most recent call last):\n  File "train.py", line 31, in <module>\n    {code}\n'
        f'  File "{HOME}/{package}", line 2101, in inner\n    return function(*args)\n{error}\n'
    )


def arguments(**values):
    from transformers import TrainingArguments

    return lambda folder: TrainingArguments(output_dir=str(folder), report_to="none", **values)


def pocket():
    from helpers.model import load_model, load_tokenizer

    return load_model("pocket"), load_tokenizer("pocket")


def trainer(folder, rows, **options):
    from datasets import Dataset
    from transformers import Trainer

    training_arguments = arguments(use_cpu=True, max_steps=1, disable_tqdm=True)(folder)
    return Trainer(model=pocket()[0], args=training_arguments, train_dataset=Dataset.from_dict(rows), **options)


def call(ids, **options):
    import torch

    return pocket()[0](input_ids=torch.tensor([ids]), **{k: torch.tensor([v]) for k, v in options.items()})


def child(source, *, limit="", timeout=60):
    """Return the output of Python in a child process, including its traceback."""
    result = subprocess.run([sys.executable, "-c", limit + source], capture_output=True, text=True, timeout=timeout)
    return result.stdout + result.stderr


# What needs a separate process, because it limits the process or starts workers; the limits come last.
_IN_ONE_CHILD = {
    "worker": (
        "from torch.utils.data import DataLoader\n"
        "class DS:\n    def __len__(self): return 4\n    def __getitem__(self, i): return i\n"
        "list(DataLoader(DS(), num_workers=1, multiprocessing_context='spawn'))"
    ),
    "memory": "resource.setrlimit(resource.RLIMIT_AS, (n, n)); torch.zeros(2**28)",
    "numpy": "import numpy; numpy.zeros(2**32)",
    "file": "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); torch.save(torch.zeros(10**6), folder + '/o.pt')",
    "safetensors": "from safetensors.torch import save_file; save_file({'a': torch.zeros(10**6)}, folder + '/m')",
    "text": "open(folder + '/a.txt', 'w').write('a' * 10**6)",
}


@cache
def _one_child():
    """Return the output of each of these, all run in one process because importing torch takes most of the time."""
    with tempfile.TemporaryDirectory() as folder:
        source = (
            "import psutil, resource, signal, sys, torch, traceback\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"folder, n = {folder!r}, psutil.Process().memory_info().vms + 2**28\n"
            f"for source in {list(_IN_ONE_CHILD.values())!r}:\n"
            "    try: exec(source, globals())\n    except BaseException: print(traceback.format_exc())\n"
            "    print('-' * 9, flush=True)\n"
        )
        return dict(zip(_IN_ONE_CHILD, child(source).split("-" * 9 + "\n"), strict=False))


def in_a_child(name):
    return lambda folder: _one_child()[name]


def printed(source):
    """Return a function that gives what the library logs and warns about."""

    def make(folder):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logger = logging.getLogger("transformers")
        logger.addHandler(handler)
        logger.warning_once.cache_clear()
        model, tok = pocket()
        names = {
            "model": model,
            "tok": tok,
            "ids": tok("The fox", return_tensors="pt").input_ids,
            "folder": str(folder),
        }
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                exec(source, names)
        finally:
            logger.removeHandler(handler)
        explained = [
            f"{one.category.__name__}: {one.message}" for one in seen if "checkpointing_enable" not in str(one.message)
        ]
        return "\n".join([stream.getvalue(), *explained])

    return make


def without_packages(source):
    start = "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
    return lambda folder: child(start + source)


def run_cell(source, **options):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, **options).execute()


NO_TOKENIZER = "from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(str(folder))"

# (row of the reference, what causes it: Python source, or a function of an empty folder)
REAL = [
    ("E27" if read_torch_files().cuda else "E1", "torch.zeros(1).cuda()"),
    ("E20", without_packages("import papermill")), ("E22", without_packages("import triton")),
    ("D1", "from transformers import GPT2Tokenizer; from helpers.model import load_tokenizer\n"
           "GPT2Tokenizer.from_pretrained(str(folder)).save_pretrained(folder); load_tokenizer(str(folder))"),
    ("D1", NO_TOKENIZER),
    ("D2", "(folder / 'x').mkdir(); (folder / 'x/x.py').write_text('import datasets\\n')\n"
           "from datasets import load_dataset; load_dataset(str(folder / 'x'))"),
    ("D2", "from datasets import load_dataset; load_dataset('bookcorpus')"),
    ("D3", "from datasets import load_dataset; load_dataset('wikitext')"),
    ("D5", "from transformers import GPT2LMHeadModel; GPT2LMHeadModel.from_pretrained(POCKET, use_auth_token=True)"),
    ("D6", "pocket()[1](['a'], padding='max_length', max_length=4)"),
    ("D7", arguments(evaluation_strategy="steps")),
    *[("D8", arguments(**{name: 1})) for name in ("overwrite_output_dir", "no_cuda", "warmup_ratio", "logging_dir")],
    ("D9", arguments(bf16=True)), ("D10", arguments(tf32=True)), ("D11", arguments(load_best_model_at_end=True)),
    ("D12", arguments(optim="adamw_hf")), ("D12", "from transformers import AdamW"),
    ("D13", "from transformers import Trainer\n"
            "Trainer(model=pocket()[0], args=arguments(use_cpu=True)(folder), tokenizer=pocket()[1])"),
    ("D15", "torch.load(str(folder / 'pytorch_model.bin'))"),
    ("D16", "from safetensors.torch import save_file; save_file(pocket()[0].state_dict(), folder / 'm.safetensors')"),
    ("D17", "torch.save(pocket()[0], folder / 'm.pt'); torch.load(folder / 'm.pt')"),
    ("D18", "import transformers; transformers.TextDataset"), ("D18", "from datasets import load_metric"),
    ("D19", "from transformers import GPT2LMHeadModel; GPT2LMHeadModel.from_pretrained(POCKET, load_in_8bit=True)"),
    ("D20", printed("model.generate(ids)")), ("D20", printed("model.generate(ids, temperature=.5, max_new_tokens=2)")),
    ("D21", printed("tok.pad_token = tok.eos_token\n"
                    "rows = tok(['The fox was', 'a'], padding=True, return_tensors='pt')\n"
                    "model.generate(**rows, max_new_tokens=2)")),
    *([("D22", printed("from transformers import TrainingArguments\n"
                       "TrainingArguments(output_dir=folder, gradient_checkpointing=True)"))]
      if Version(version("transformers")) >= Version("5.22") else []),  # which renamed it
    ("D25", "from transformers import AutoModelForCausalLM as M; M.from_pretrained('openai-community/gpt2')"),
    ("D27", printed("model.train(); model.gradient_checkpointing_enable(); model(input_ids=ids, use_cache=True)")),
    ("D28", "model = pocket()[0].half()\n"
            "scaler, optimizer = torch.amp.GradScaler('cpu'), torch.optim.SGD(model.parameters(), 0.1)\n"
            "scaler.scale(sum(weight.sum() for weight in model.parameters())).backward(); scaler.unscale_(optimizer)"),
    ("D28", "torch.ones(2, 2).half() @ torch.ones(2, 2)"),
    ("T1", in_a_child("memory")), ("T1", in_a_child("numpy")),
    ("T3", "from accelerate.utils import find_executable_batch_size\n"
           "@find_executable_batch_size(starting_batch_size=2)\n"
           "def train(batch_size): raise RuntimeError('CUDA out of memory.')\ntrain()"),
    ("T6", "torch.multinomial(torch.tensor([torch.nan, 1.0]), 1)"),
    ("T7", "model, ids = pocket()[0].requires_grad_(False), torch.tensor([[1, 2]])\n"
           "model(input_ids=ids, labels=ids).loss.backward()"),
    ("T7", "torch.optim.AdamW([])"),
    ("T12", "call([1] * 257)"), ("T12", "call([4096])"),
    ("T12", "ids = torch.ones(1, 250, dtype=torch.long)\n"
            "pocket()[0].generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)"),
    ("T12", "from helpers.model import check_sound; check_sound(*pocket(), block_size=512)"),
    ("T12", printed("tok('a ' * 4000)")),
    ("T13", "tok = pocket()[1]; tok.model_max_length = int(1e30)\n"
            "tok('a', truncation=True, max_length=tok.model_max_length)"),
    ("T14", "call([1, 2], labels=[1, 9999])"), ("T15", "trainer(folder, {'input_ids': [[1, 2, 3]] * 8}).train()"),
    ("T17", "from safetensors.torch import load_file; data = (POCKET / 'model.safetensors').read_bytes()\n"
            "(folder / 'm').write_bytes(data[: len(data) // 2]); load_file(folder / 'm')"),
    ("T17", "file = folder / 'o.pt'; torch.save({'a': torch.zeros(1000)}, file)\n"
            "file.write_bytes(file.read_bytes()[:1500]); torch.load(file)"),
    ("T17", in_a_child("file")), ("T17", in_a_child("safetensors")), ("T17", in_a_child("text")),
    ("T17", "trainer(folder, {'input_ids': [[1, 2]], 'labels': [[1, 2]]}).train(resume_from_checkpoint=True)"),
    ("T18", in_a_child("worker")), ("T18", "import pickle\ndef make(): return lambda x: x\npickle.dumps(make())"),
    ("T21", lambda folder: child(
        "import sys; sys.modules['ipywidgets'] = None; sys.modules['IPython.html'] = None\n"
        "from tqdm.notebook import tqdm\nlist(tqdm([1]))")),
    ("T23", "run_cell('1', kernel_name='gpt2-course')"),
    ("T24", "from helpers.settings import TrainingSettings; TrainingSettings(learning_rat=1e-4)"),
    ("T25", "run_cell('import time; time.sleep(20)', kernel_name='python3', timeout=1)"),
    ("D40", "from transformers import AutoModelForVision2Seq"),
    ("D48", "(folder / 'a').write_bytes(b'caf\\xe9 \\x92'); (folder / 'a').read_text(encoding='utf-8')"),
    ("D52", "from datasets import load_dataset; load_dataset('json', data_files='none.json')"),
    ("D51", "pocket()[1]([1, None])"), ("T60", "call([0.5])"),
    ("T50", lambda folder: child(
        "import argparse, sys; sys.argv += ['--local-rank=0']; argparse.ArgumentParser('train.py').parse_args()")),
    ("T51", "torch.distributed.init_process_group('gloo', init_method='env://')"),
    ("T52", "from peft import LoraConfig, get_peft_model\n"
            "get_peft_model(pocket()[0], LoraConfig(target_modules=['q_proj']))"),
    ("T53", "x = torch.ones(1, requires_grad=True); y = (x * x).sum(); y.backward(); y.backward()"),
    ("T53", "x = torch.ones(2, requires_grad=True); y = x.exp(); y += 1; y.sum().backward()"),
    ("T55", "from transformers import Trainer\n"
            "Trainer(model=pocket()[0], args=arguments(use_cpu=True, eval_strategy='steps')(folder))"),
    ("T56", "import optuna; optuna.load_study(study_name='none', storage=f\"sqlite:///{folder / 'study.db'}\")"),
]  # fmt: skip


OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {tried} MiB. GPU 0 has a total capacity of {total} "
    "GiB of which 12.00 MiB is free. {other}Including non-PyTorch memory, this process has {own} GiB memory in use. "
    "Of the allocated memory {allocated} GiB is allocated by PyTorch, and {reserved} GiB is reserved by PyTorch but "
    "unallocated."
)


def oom(tried=786, total=11.99, other="", own=11.5, allocated=11.0, reserved=0.1):
    return traceback_of(
        OOM.format(tried=tried, total=total, other=other, own=own, allocated=allocated, reserved=reserved)
    )


def log(rows, form=str):
    """Return rows as a Trainer prints them."""
    return "\n".join(form(row) for row in rows)


def rows_of(losses, *, grad_norm=1.1, learning_rate=5e-5, **more):
    return [
        {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate, "epoch": round((n + 1) / 10, 2), **more}
        for n, loss in enumerate(losses)
    ]


FALLING = [3.9, 3.6, 3.41, 3.3, 3.22, 3.2, 3.14, 3.11, 3.1, 3.07]
OVERFITTING = [
    {"loss": train, "eval_loss": held_out, "epoch": n + 1.0}
    for n, (train, held_out) in enumerate([(3.46, 3.36), (2.6, 3.2), (2.0, 3.5), (1.7, 3.9), (1.45, 4.16)])
]
JUMPING = rows_of(FALLING[:6])
for row, rate in zip(JUMPING, (0.01, 0.009, 0.007, 0.005, 0.006875, 0.00625), strict=True):
    row["learning_rate"] = rate
BUSY = (
    "|   0  NVIDIA GeForce RTX 4070 Ti     Off |   00000000:01:00.0  On |                  N/A |\n"
    "|  0%   52C    P2             190W /  285W |   {used}MiB /  12282MiB |     {load}%      Default |\n"
    "|    0   N/A  N/A      4711      C   python                             {used}MiB |\n"
)
BARS = [f"  4%|4   | {n}/500 [00:{n:02d}<01:00,  4.10it/s]" for n in range(8)]
CRAWL = [f" 50%|5   | {n}/500 [09:00<99:00, 11.30s/it]" for n in range(250, 258)]

# (row of the reference, text as printed)
WRITTEN = [
    ("E71", traceback_of("RuntimeError: The detected CUDA version (12.1) mismatches the version that was used to "
                        "compile\nPyTorch (13.0).")),
    ("E5", traceback_of("RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. "
                        "changing env variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices "
                        "to be zero.")),
    ("E27", traceback_of("OSError: libcuda.so.1: cannot open shared object file: No such file or directory")),
    ("E11", "\n".join(BARS + CRAWL)),
    ("E12", oom(total=11.99, own=6.2)),
    ("E13", oom(other="Process 4711 has 4.20 GiB memory in use. ", own=7.1)),
    ("E24", traceback_of(f"FileNotFoundError: [Errno 2] No such file or directory: 'C:\\\\{'long' * 63}\\\\file'")),
    ("E76", "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('Failed to establish a "
            "new connection: [Errno -3] Temporary failure in name resolution')': /whl/cpu/torch/\n"
            "ERROR: No matching distribution found for torch==2.13.0+cpu"),
    ("D31", "WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(SSLCertVerificationError(1, "
            "'[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed'))': /whl/cpu/torch/\n"
            "ERROR: No matching distribution found for torch==2.13.0+cpu"),
    ("E69", "The virtual environment was not created successfully because ensurepip is not\navailable."),
    ("E67", traceback_of("PermissionError: [Errno 13] Permission denied: '/srv/course/runs'", code="check()")),
    ("T27", "slurmstepd: error: Detected 1 oom_kill event in StepId=1. Some of the step tasks have been OOM Killed."),
    ("D1", log(rows_of([0.0] * 5, grad_norm=0.0))),
    ("D25", "'(MaxRetryError(\"HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded\"))' thrown "
            "while requesting HEAD https://huggingface.co/openai-community/gpt2\nRetrying in 8s [Retry 5/5]."),
    ("T1", oom()),
    ("T2", oom(tried=512, own=11.9, allocated=7.2, reserved=4.1)),
    ("T5", oom() + "\n" + oom()),
    ("T6", log(rows_of([0.0] * 4, grad_norm=math.nan))),
    ("T6", log([{k: str(v) for k, v in row.items()} for row in rows_of([math.nan] * 4, grad_norm=math.nan)])),
    ("T6", log(rows_of([4.1, 7.5, 31.0, 55.0]))),
    ("T6", log(rows_of([3.2, 3.1, math.inf]), json.dumps)),
    ("T7", log(rows_of([10.83, 10.82, 10.83, 10.82, 10.83]))),
    ("T7", log(rows_of([4.63, 4.6, 4.62], grad_norm=0.0))),
    ("T7", log(rows_of([4.63, 4.6, 4.62, 4.61], learning_rate=0.0))),
    ("T8", log([row | {"next_token_accuracy": 0.0} for row in rows_of([8.1, 5.0, 2.2, 1.1])])),
    ("T9", log(OVERFITTING)),
    ("T9", json.dumps({"log_history": OVERFITTING, "global_step": 5})),
    ("T10", "The fox ran to the hill and saw the owl. " * 8),
    ("T11", log([row | {"eos_share": 0.0} for row in rows_of(FALLING)])),
    ("T12", "Assertion `srcIndex < srcSelectDimSize` failed."),
    ("T16", log(JUMPING)),
    ("T17", "[rank0]: Traceback (most recent call last):\n[rank0]: safetensors_rust.SafetensorError: Error while "
            "deserializing header: MetadataIncompleteBuffer"),
    ("T19", log([row | {"data_wait_share": 0.71} for row in rows_of(FALLING)])),
    ("T19", BUSY.format(used=4120, load=23)),
    ("T20", traceback_of("nbclient.exceptions.DeadKernelError: Kernel died", package="nbclient/client.py")),
    ("T24", "Input notebook does not contain a cell with tag 'parameters'\nPassed unknown parameter: epochs"),
    ("T24", "Error: There is no setting 'learning_rat'; did you mean 'learning_rate'?"),
    ("T1", "RuntimeError: CUDA error: out of memory"),
    ("T1", "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ("T1", "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 512.00 MiB."),
    ("T1", "RuntimeError: MPS backend out of memory (MPS allocated: 8.1 GB, other allocations: 1.2 GB, max allowed: 9 "
           "GB)"),
    ("T1", "RuntimeError: Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    ("T1", "RuntimeError: [enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried "
           "to allocate 9663676416 bytes."),
    ("T27", "RuntimeError: DataLoader worker (pid 77) is killed by signal: Killed."),
    ("T27", "subprocess.CalledProcessError: Command died with <Signals.SIGKILL: 9>."),
    ("E14", "UserWarning: Found GPU0 NVIDIA GB10 which is of cuda capability 12.1."),
    ("E25", "RuntimeError: CUDA error: invalid device function"),
    ("E25", "UserWarning: Found GPU0 NVIDIA GeForce GTX 1080 which is of compute capability (CC) 6.1.\nThe following "
            "list shows the CCs this version of PyTorch was built for and the hardware CCs it supports:"),
    ("E25", "NVIDIA GeForce RTX 5070 with CUDA capability sm_120 is not compatible with the current PyTorch "
            "installation."),
    ("E25", "Found GPU0 GeForce GT 730 which is of cuda capability 3.5.\nPyTorch no longer supports this GPU because "
            "it is too old."),
    ("E26", "hipErrorNoBinaryForGpu: Unable to find code object for all current devices!"),
    ("E27", "bash: nvidia-smi: command not found"),
    ("E28", "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service"),
    ("E29", "NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:2d04) installed in this system requires use of the NVIDIA "
            "open kernel modules."),
    ("E30", "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display "
            "driver / cuda driver combination"),
    ("E31", "UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). Error 804: forward "
            "compatibility was attempted on non supported HW"),
    ("E33", "NVRM: Xid (PCI:0000:01:00): 31, pid=900, name=python, Ch 00000008, MMU Fault"),
    ("E33", "RuntimeError: CUDA error: unspecified launch failure"),
    ("E34", "ImportError: libcudnn.so.9: cannot open shared object file: No such file or directory"),
    ("E35", "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1"),
    ("E38", "OSError: The paging file is too small for this operation to complete. (os error 1455)"),
    ("E39", "RuntimeError: unable to write to file </torch_12_345_0>"),
    ("E40", "OSError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found"),
    ("E18", "ImportError: DLL load failed while importing _multiarray_umath: The specified module could not be "
            "found."),
    ("E44", "UnicodeEncodeError: 'charmap' codec can't encode character '\\u2192' in position 3"),
    ("E44", "UnicodeDecodeError: 'gbk' codec can't decode byte 0x80 in position 2: illegal multibyte sequence"),
    ("E45", "fatal error: Python.h: No such file or directory"),
    ("E45", "torch._inductor.exc.InductorError: RuntimeError: Compiler: cl is not found."),
    ("E47", "AttributeError: 'NoneType' object has no attribute 'cquantize_blockwise_fp32'"),
    ("E48", "ImportError: FlashAttention2 has been toggled on, but it cannot be used due to the following error"),
    ("E49", "AttributeError: partially initialized module 'torchvision' has no attribute 'extension'"),
    ("E49", traceback_of("RuntimeError: operator torchvision::nms does not exist", package="torchvision/ops.py") + "\n"
            + traceback_of("ModuleNotFoundError: Could not import module 'GPT2Model'. Are this object's requirements "
                           "defined correctly?")),
    ("E2", "torch.AcceleratorError: CUDA error: the provided PTX was compiled with an unsupported toolchain."),
    ("E50", "AttributeError: module 'numpy' has no attribute 'bool'."),
    ("D31", "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get "
            "local issuer certificate"),
    ("D32", "httpx.ProxyError: 407 Proxy Authentication Required"),
    ("D33", "datasets.exceptions.DatasetNotFoundError: Dataset 'mine/none' doesn't exist on the Hub or cannot be "
            "accessed."),
    ("D34", "huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url: "
            "https://huggingface.co/api/whoami"),
    ("D36", traceback_of("httpx.ReadTimeout: The read operation timed out", package="huggingface_hub/download.py")),
    ("D38", "_pickle.UnpicklingError: invalid load key, 'v'."),
    ("D39", "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in directory ./gpt2."),
    ("D39", "huggingface_hub.errors.RemoteEntryNotFoundError: 404 Client Error. (Request ID: Root=1-6)\n\nEntry Not "
            "Found for url: https://huggingface.co/openai-community/gpt2/resolve/main/none.json."),
    ("D40", "ImportError: tokenizers>=0.22,<0.23 is required for a normal functioning of this module, but found "
            "tokenizers==0.20.3."),
    ("D40", "ModuleNotFoundError: Could not import module 'GPT2Model'. Are this object's requirements defined "
            "correctly?"),
    ("T29", "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:275, unhandled system error"),
    ("T29", "NotImplementedError: Using RTX 4000 series doesn't support faster communication broadband via P2P or "
            "IB."),
    ("T32", "RuntimeError: Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the "
            "same"),
    ("T32", "RuntimeError: Placeholder storage has not been allocated on MPS device!"),
    ("D28", "RuntimeError: expected scalar type Half but found Float"),
    ("D30", "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0."),
    ("D9", "RuntimeError: \"LayerNormKernelImpl\" not implemented for 'Half'"),
    ("T12", "RuntimeError: The size of tensor a (1025) must match the size of tensor b (1024) at non-singleton "
            "dimension 1"),
    ("T34", "RuntimeError: Error(s) in loading state_dict for GPT2LMHeadModel:\n\tsize mismatch for lm_head.weight: "
            "copying a param with shape torch.Size([50258, 768])"),
    ("T35", "IndexError: Invalid key: 5 is out of bounds for size 0"),
    ("T45", 'sqlalchemy.exc.OperationalError: (psycopg2.OperationalError) FATAL:  password authentication failed for '
            'user "x"'),
    ("T9", "Epoch\tTraining Loss\tValidation Loss\n1\t3.4\t3.3\n2\t2.4\t3.2\n3\t1.4\t3.9"),
    ("T9", "step 0: train loss 4.2, val loss 4.2\nstep 100: train loss 2.1, val loss 2.5\nstep 200: train loss 1.0, "
           "val loss 3.1"),
    ("T6", "epoch 3 | step 40/90 | train loss nan | lr 3e-4 | norm 0.9"),
    ("T6", "step,train_loss,lr\n1,3.2,1e-4\n2,nan,1e-4"),
    ("T6", "{'train/loss': nan, 'train/epoch': 0.2}"),
    ("T9", "Step  Training Loss  Validation Loss\n100  3.4  3.3\n200  2.4  3.2\n300  1.4  3.9"),
    ("D25", "We couldn't connect to 'https://huggingface.co' to load this file"),
    ("E65", "Process finished with exit code -1073741819 (0xC0000005)"),
    ("E3", "UserWarning: The detected CUDA version (12.4) has a minor version mismatch with the version that was used "
           "to compile PyTorch (12.6). Most likely this shouldn't be a problem."),
    ("E71", "deepspeed.ops.op_builder.builder.CUDAMismatchException: Installed CUDA version 12.0 does not match"),
    ("E71", "  error: subprocess-exited-with-error\n      RuntimeError:\n      The detected CUDA version (12.4) "
            "mismatches the version that was used to compile\n      PyTorch (13.0).\nERROR: Failed building wheel for "
            "flash-attn"),
    ("E17", "Because torch==2.13.0 has no wheels with a matching Python ABI tag (e.g., `cp315`)"),
    ("E73", "Because there is no version of torch==2.13.0+cu128 and you require torch==2.13.0+cu128"),
    ("E73", "PackagesNotFoundError: The following packages are not available from current channels:\n\n  - "
            "pytorch-cuda=13.0*"),
    ("E23", "RuntimeError: Unrecognized key 'expandable_segment' in Accelerator allocator config."),
    ("E56", "ImportError: \nGPT2LMHeadModel requires the PyTorch library but it was not found in your environment."),
    ("E78", "ImportError: \nT5Tokenizer requires the SentencePiece library but it was not found in your environment.\n"
            "Please check. Please note that you may need to restart your runtime after installation."),
    ("E24", "ERROR: Could not install packages due to an OSError: [Errno 2] No such file or directory: 'C:\\\\a'\n"
            "HINT: This error might have occurred since this system does not have Windows Long Path support enabled."),
    ("E25", "RuntimeError: nvrtc: error: invalid value for --gpu-architecture (-arch)"),
    ("E27", "Failed to initialize NVML: GPU access blocked by the operating system"),
    ("E43", "safetensors_rust.SafetensorError: Error while serializing: I/O error: The requested operation cannot be "
            "performed on a file with a user-mapped section open. (os error 1224)"),
    ("D45", "ValueError: Feature type 'List' not found. Available feature types: ['Value', 'ClassLabel', 'Sequence']"),
    ("T20", "AsyncIOLoopKernelRestarter: restarting kernel (1/5), keep random ports"),
    ("T57", "AsyncIOLoopKernelRestarter: restarting kernel (1/5), new random ports"),
    ("T58", "ImportError: cannot import name 'contextfilter' from 'jinja2' (/opt/env/lib/python3.11/jinja2.py)"),
    ("E27", "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system."),
    ("E34", "ImportError: /env/lib/python3.12/site-packages/torch/lib/libtorch_cpu.so: undefined symbol: "
            "iJIT_NotifyEvent"),
    ("E43", "ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: "
            "'C:\\\\course\\\\.venv\\\\Lib\\\\site-packages\\\\~orch\\\\lib\\\\asmjit.dll'"),
    ("E67", "ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\\\Program "
            "Files\\\\Python312\\\\Lib\\\\site-packages\\\\torch'"),
    ("E60", "Error code: Wsl/Service/E_UNEXPECTED"),
    ("T17", "OSError: [WinError 112] Es steht nicht genug Speicherplatz auf dem Datenträger zur Verfügung: 'C:\\\\x'"),
    ("E68", "Python was not found; run without arguments to install from the Microsoft Store, or disable this"),
    ("E68", "'C:\\Program' is not recognized as an internal or external command,\noperable program or batch file."),
    ("E77", "error during connect: this error may indicate that the docker daemon is not running"),
    ("D36", traceback_of("httpx2.HTTPStatusError: Server error '503 Service Unavailable' for url "
                         "'https://huggingface.co/api/models'", package="huggingface_hub/utils/_http.py")),
    ("T34", "RuntimeError: You set `ignore_mismatched_sizes` to `False`, thus raising an error. For details look at "
            "the above report!"),
    ("E32", "Unable to determine the device handle for GPU0: 0000:01:00.0: Unknown Error\nNo devices were found"),
    ("E68", "CondaError: Run 'conda init' before 'conda activate'"),
    ("D14", "RuntimeError: TensorBoardCallback requires tensorboard to be installed."),
    ("D25", traceback_of("httpx2.ConnectError: [Errno -2] Name or service not known", package="huggingface_hub/a.py")),
    ("D36", traceback_of("httpx2.ReadTimeout: The read operation timed out", package="huggingface_hub/download.py")),
    ("D37", "huggingface_hub.errors.HfHubHTTPError: Client error '416 Requested Range Not Satisfiable' for url "
            "'https://huggingface.co/openai-community/gpt2/resolve/main/model.safetensors'"),
    ("D38", "pyarrow.lib.ArrowInvalid: Parquet magic bytes not found in footer. Either the file is corrupted or this "
            "is not a parquet file."),
    ("D40", "google.protobuf.runtime_version.VersionError: Detected incompatible Protobuf Gencode/Runtime versions "
            "when loading tensorboard/compat/proto/tensor_shape.proto: gencode 6.31.1 runtime 5.29.5."),
    ("D45", "AttributeError: module 'pyarrow' has no attribute 'PyExtensionType'"),
    ("D46", "pyarrow.lib.ArrowInvalid: Schema at index 1 was different: \ntext: large_string\nvs\nlabel: int64"),
    ("E47", "ImportError: You need to install `bitsandbytes` in order to use bitsandbytes optimizers"),
    ("D50", "Exception: data did not match any variant of untagged enum ModelWrapper at line 250306 column 3"),
    ("D53", "RuntimeError: cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph."),
    ("T21", "Error: Module @jupyter-widgets/controls, version ^1.5.0 is not registered, however, 2.0.0 is"),
    ("T34", "UserWarning: Found missing adapter keys while loading the checkpoint: ['model.h.2.attn.lora_A']."),
    ("T65", "OSError: [Errno 98] error while attempting to bind on address ('::1', 8888): address already in use"),
    ("T66", "OSError: xelatex not found on PATH, if you have not installed xelatex you may need to do so."),
    ("T1", oom() + "\npapermill.exceptions.PapermillExecutionError:\nException encountered at \"In [3]\":\n" + oom()),
    ("E67", "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/usr/lib/python3'"),
    ("E68", "zsh: no matches found: .[test,gpu]"),
    ("E68", "'python' is not recognized as an internal or external command, operable program or batch file."),
    ("E57", "torchvision 0.18.0 requires torch==2.3.0, but you have torch 2.2.1 which is incompatible."),
    ("E57", "LibMambaUnsatisfiableError: Encountered problems while solving:"),
    ("E58", "error: can't find Rust compiler"),
    ("E59", "Program 'jupyter.exe' failed to run: An Application Control policy has blocked this file"),
    ("E60", "Error code: Wsl/Service/CreateInstance/CreateVm/HCS/HCS_E_HYPERV_NOT_INSTALLED"),
    ("E61", "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:"),
    ("E24", "torch._inductor.exc.InductorError: FileNotFoundError: [Errno 2] No such file or directory: "
            "'C:\\\\Users\\\\x\\\\AppData\\\\Local\\\\Temp\\\\torchinductor_x\\\\triton\\\\1\\\\STSS3QSB\\\\tmp.pid_28392_95f9\\\\triton_red_fused_view_4.source'"),
    ("E62", "E: Sub-process /usr/bin/dpkg returned an error code (1)\nnvidia-dkms-570"),
    ("E6", "failed call to cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"),
    ("E5", "RuntimeError: cuda runtime error (30) : unknown error at THCGeneral.c:66"),
    ("E25", "RuntimeError: Triton Error [CUDA]: device kernel image is invalid"),
    ("E33", "NVRM: Xid (PCI:0000:07:00): 109, pid=326, name=python, CTX SWITCH TIMEOUT"),
    ("E55", "MPSNDArray.mm:782: failed assertion `buffer is not large enough"),
    ("D34", "remote: DENIED update refs/heads/main: forbidden"),
    ("D40", "AttributeError: 'DynamicCache' object has no attribute 'seen_tokens'"),
    ("D40", "ModuleNotFoundError: No module named 'transformers.generation_utils'"),
    ("D42", "TypeError: MyTrainer._save_checkpoint() got an unexpected keyword argument 'metrics'"),
    ("T17", "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database or disk is full"),
    ("T18", "TypeError: cannot pickle 'builtins.CoreBPE' object"),
    ("T29", "NCCL WARN Your program may be hanging, this may be caused by a collective mismatch around rank 2."),
    ("T31", "RuntimeError: Expected to have finished reduction in the prior iteration before starting a new one."),
    ("T6", "\n".join(f" iteration {n}/ 9 | lm loss: 2.5E+00 | grad norm: nan |" for n in (7, 8))),
]  # fmt: skip


def raised(make, folder):
    """Return the exception or the text that causing a failure gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not isinstance(make, str):
                return make(folder)
            import torch

            exec(make, globals() | {"torch": torch, "POCKET": POCKET, "folder": folder})
        except BaseException as error:  # noqa: BLE001 (whatever a library raises is of interest)
            return error


# Python source of common errors; none of them is in the table
ORDINARY = [
    "1 / 0", "[][3]", "{}['text']", "int('x')", "None.shape", "undefined_name", "assert 1 == 2", "'a' + 1",
    "def f(): f()\nf()", "open(folder / 'my.txt')", "open(folder)", "import pandas_of_my_own",
    "raise KeyboardInterrupt",
    "def f(x): pass\nf(x=1, tokenizer=2)", "def f(): pass\nf(learning_rat=1)", "(1 << 100).to_bytes(2, 'big')",
    "int(float('nan'))", "import json; json.loads('{')", "next(iter([]))",
    "import yaml; yaml.safe_load('a: [')", "raise NotImplementedError", "compile('x = (', 'a', 'exec')",
    "import subprocess, sys; subprocess.run([sys.executable, '-c', 'exit(3)'], check=True)",
    "import sqlite3; sqlite3.connect(':memory:').execute('select * from t')",
    "import numpy; numpy.ones(2) + numpy.ones(3)", "raise ValueError('the loss must be above 0')",
    "raise RuntimeError('memory of the last step is not kept')", "raise TimeoutError('the server is slow')",
    "import pyarrow; pyarrow.array(['a', 1])", "from transformers import Foo",
    "from transformers import TrainingArguments; TrainingArguments(learning_rat=1)",
    "from click import BadParameter; raise BadParameter('x')",
    "torch.foo", "torch.ones(2, 3) @ torch.ones(2, 3)", "torch.ones(2) + torch.ones(3)", "torch.ones(3)[5]",
    "torch.ones(4).view(3)", "torch.ones(2).item()", "torch.load(folder / 'missing.pt')",
    "torch.nn.Linear(2, 3).load_state_dict({'weight': torch.ones(1)})",
    "torch.stack([torch.ones(1), torch.ones(2)])", "torch.tensor([1, 2]).softmax(0)",
    "torch.utils.data.DataLoader([], batch_size=0)",
    "from pydantic import BaseModel; BaseModel.model_validate('no')",
    "from datasets import Dataset; Dataset.from_dict({'a': [1]})['text']",
    "from transformers import AutoConfig; AutoConfig.from_pretrained(str(folder / 'nothing'), local_files_only=True)",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')",
    "run_cell(\"answer = {}['key']\", kernel_name='python3')",
]  # fmt: skip


def _schedule():
    """A warm-up and a cosine, as a real run logs them."""
    rows = rows_of([5.0 - 0.1 * n + 0.05 * (-1) ** n for n in range(30)])
    for n, row in enumerate(rows):
        row["learning_rate"] = 1e-3 * min((n + 1) / 5, 0.5 * (1 + math.cos(math.pi * max(0, n - 4) / 26)))
    return rows


def _validated():
    rows = []
    for n, train in enumerate(FALLING):
        rows.append({"loss": train, "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": n + 1.0})
        rows.append({"eval_loss": train + 0.1 + 0.02 * (n % 2), "epoch": n + 1.0})
    return rows


HEALTHY = [
    log(rows_of([3.9, 3.6, 3.4, 3.3])).replace("1.1", "nan", 1),  # fp16's GradScaler searches its scale
    "Epoch\tTraining Loss\tValidation Loss\n1\t3.4\t3.3\n2\t3.1\t3.1\n3\t2.9\t3.0",
    "step 0: train loss 4.28, val loss 4.28\nstep 250: train loss 1.95, val loss 2.06\nstep 500: train loss 1.52, "
    "val loss "
    "1.72",
    " iteration 7/ 9 | learning rate: 1.0E-04 | lm loss: 2.5E+00 | grad norm: 0.9 |\n iteration 8/ 9 | lm loss: "
    "2.4E+00 |",
    "The course runs in WSL2, in a container (docker run --gpus all --ipc=host) and on Windows, with or without a "
    "card.",
    "Install the NVIDIA driver, restart, and check it with nvidia-smi. You need no CUDA toolkit and no compiler.",
    # errors with the same words and another cause
    "httpx.ReadTimeout: timed out",
    "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: https://example.org/x",
    "requests.exceptions.HTTPError: 404 Client Error: Not Found for url: https://example.org/x",
    "PermissionError: [Errno 13] Permission denied: 'out'",
    "ImportError: cannot import name 'a' from partially initialized module 'b' (most likely due to a circular import)",
    "The port 8888 is already in use, trying another port.",
    "libcuda.so.1 (libc6,x86-64) => /usr/lib/wsl/lib/libcuda.so.1",
    "ii  libcudnn9-cuda-13 version 9.13.0",
    "ERROR: No matching distribution found for torch-scatter",
    # text about failures is not a log of one
    "# Notes\n\nIf the loss is nan, lower the rate. `CUDA out of memory` means that the batch is too large.",
    "I get CUDA out of memory sometimes.\nWe use docker, and my loss is nan after a while. Did anybody see this?",
    "NCCL INFO NET/Plugin : dlerror=libnccl-net.so: cannot open shared object file: No such file or directory",
    "NCCL version 2.27.5+cuda13.0\n[rank0] using port 29500\nProcess group initialized",
    log(rows_of(FALLING)),
    log(rows_of(FALLING), json.dumps),
    log([{k: str(v) for k, v in row.items()} for row in rows_of(FALLING)]),
    json.dumps({"log_history": rows_of(FALLING), "vocab_size": 50257}),
    log(_schedule()),
    log(_validated()),
    log(rows_of([10.83, 9.6, 8.4, 7.6, 7.1, 6.8])),  # from scratch: starts at a guess and improves
    log(rows_of([8.31, 8.2, 7.7, 7.1])),
    log(rows_of([3.12, 3.1, 3.12, 3.11, 3.1, 3.11])),  # slow, not stuck: it has a gradient
    log(rows_of([0.02, 0.004, 0.0011])),  # memorised on purpose: small, and not 0
    log(rows_of(FALLING) + rows_of(FALLING)),  # two runs in one file
    log([*_validated()[:4], {"eval_loss": 3.71, "epoch": 3.0}]),
    log(rows_of([3.0, 9.9, 3.2, 3.1])),  # one bad batch
    log([{"train_runtime": 33.9, "train_loss": 3.4, "epoch": 3.0}]),
    "\n".join(BARS),
    "\n".join(f"{n}/9 [00:0{n}<00:09,  {1.0 + n / 10:.2f}s/it]" for n in range(10)),
    BUSY.format(used=11020, load=98),
    BUSY.format(used=700, load=0).replace("python", "Xorg  "),
    BUSY.format(used=400, load=3).replace("P2", "P8"),  # a kernel that holds the GPU and does nothing
    "run pocket: 100 steps, 204,800 tokens in 34 s (bf16 on cpu), validation loss 3.412 nats a token (perplexity 30.3)",
    "CPU course mode: everything runs, on the CPU with the pocket model.",
    "Successfully installed torch-2.13.0 transformers-5.23.0 numpy-2.4.6",
    "============ 212 passed, 3 skipped in 81.20s ============",
    "All checks passed!\n11 files left unchanged",
    (NOTEBOOKS.parent / "LICENSE").read_text(encoding="utf-8"),
    (NOTEBOOKS.parent / "helpers" / "assets" / "fables" / "woods.md").read_text(encoding="utf-8"),
    "torch 2.13.0+cu130, torch.version.cuda = 13.0, is_available True",
    "Executing:  10%|#         | 5/50 [00:12<01:50,  2.45s/cell]\nEnding Cell 5\nReport: runs/pocket/report.html",
    "[transformers] ***** Running training *****\n[transformers]   Num examples = 812\n[transformers]   Num Epochs = 3",
    "Generating train split: 812 examples [00:00, 15800.12 examples/s]\nMap: 100%|###| 812/812",
    "{'learning_rate': 5e-05, 'per_device_train_batch_size': 4, 'max_grad_norm': 1.0, 'seed': 42}",
    "",
]
