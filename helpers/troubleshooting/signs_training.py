"""The failures of training, notebook and runner, T1 to T26."""

from helpers.environment import fixes
from helpers.environment.facts import Machine
from helpers.environment.wheels import python_command
from helpers.troubleshooting import log_numbers as numbers
from helpers.troubleshooting.sign import Sign

_FREE_DISK = "Free space, keep fewer checkpoints (save_total_limit=2; GPT-2 Small takes 1.5 GB each)"


def _workers(machine: Machine) -> str:
    main = "put `if __name__ == '__main__':` around a script's own code"
    return f"dataloader_num_workers=0 (packed rows need none), or move the class into a .py file; {main}."


def _dead(machine: Machine) -> str:
    return f"{fixes.more_memory(machine)} Read and map the text in parts; the run resumes from its last checkpoint."


def _widgets(machine: Machine) -> str:
    return (
        f"{python_command(machine)} -m pip install -U ipywidgets jupyterlab_widgets ; restart the server and "
        "reload the page. What an earlier kernel drew stays dead: run the cell again."
    )


TRAINING = (
    Sign(
        "T1",
        "out of memory",
        "Most of it are the logits: batch x length x vocabulary x 4 bytes, in several copies.",
        "Halve per_device_train_batch_size and double gradient_accumulation_steps (the training stays the same); then "
        "bf16, gradient checkpointing, a shorter block_size.",
        error=(
            r"CUDA out of memory|HIP out of memory|MPS backend out of memory",
            r"can't allocate memory",
            r"CUBLAS_STATUS_ALLOC_FAILED",
            r"^(?:numpy\S*)?_?(?:Array)?MemoryError",
        ),
        log=(r"(?:CUDA|HIP) out of memory", r"DefaultCPUAllocator: can't allocate"),
        source="pytorch#27600",
    ),
    Sign(
        "T2",
        "out of memory although much is reserved: fragmentation",
        "PyTorch holds pieces that are each too small.",
        lambda machine: (
            f"{fixes.RESTART.capitalize()}; blocks of one length. "
            + (
                "PYTORCH_ALLOC_CONF=expandable_segments:True before Python starts."
                if machine.platform.kind == "Linux"
                else "expandable_segments does not work here."
            )
        ),
        numbers=numbers.fragmented,
        refines="T1",
        source="karpathy/autoresearch#588",
    ),
    Sign(
        "T3",
        "no batch size fits",
        "auto_find_batch_size shrinks the batch by a tenth a try, and what holds memory is not the batch.",
        "Free memory first (restart the kernel); set the batch yourself: 1, with accumulation.",
        error=(r"No executable batch size found",),
        log=(r"auto_find_batch_size|Decreasing batch size to",),
        refines="T1",
        source="accelerate's source",
    ),
    Sign(
        "T4",
        "a deleted model is still there",
        "IPython keeps what a cell displayed in Out, in _1 and in a hidden _.",
        "%xdel model; or end the cell that shows it with a semicolon.",
        code=(r"^\W*(?:\d+ )?\s*del (?:model|trainer)\b", r"keeps alive: Out\["),
        refines="T1",
        source="jupyter/notebook#2201",
    ),
    Sign(
        "T5",
        "after one out-of-memory every cell fails",
        "The traceback of the failed cell holds its variables.",
        "import sys; sys.last_traceback.tb_next = None ; else restart the kernel. In a cell: catch the error and keep "
        "str(error) alone.",
        numbers=numbers.more_than_once,
        refines="T1",
        source="ipython#11572; pytorch#36874",
    ),
    Sign(
        "T6",
        "the loss is not a number, or ran away",
        "The learning rate is too high, fp16 overflowed, the weights are in half precision, or a row has no label.",
        "learning_rate 5e-5, max_grad_norm 1.0, bf16 in place of fp16, float32 weights; logging_nan_inf_filter=False "
        "shows it at once.",
        error=(
            r"The loss is (?:nan|inf)",
            r"(?:loss|gradient|grad|logits?|probability tensor)\W.*(?:\bnan\b|\binf\b)",
            r"returned nan values in its",
        ),
        log=(r"\bloss(?: is|:| =)? *nan\b",),
        numbers=numbers.not_finite,
        source="trl#6702; nanoGPT#167",
    ),
    Sign(
        "T7",
        "the loss never moves",
        "The optimizer holds another model's weights, the learning rate is 0, or the weights are frozen.",
        "Build the optimizer after the model; look at learning_rate and requires_grad; overfit one batch first.",
        error=(r"does not require grad and does not have a grad_fn", r"optimizer got an empty parameter list"),
        numbers=numbers.flat,
        source="reproduced in notebook 05",
    ),
    Sign(
        "T8",
        "labels are shifted twice",
        "The model shifts the labels itself; shifted by hand too, it learns the token after the next.",
        "labels = input_ids",
        code=(
            r"labels *= *\w+(?:\[['\"]input_ids['\"]\])?\[(?:\.\.\.|:), *1:\]",
            r"labels *= *torch\.roll\(",
            r"['\"]labels['\"]\]? *[:=] *\w+\[1:\]",
        ),
        numbers=numbers.sees_no_next_token,
        source="reproduced in notebook 05",
    ),
    Sign(
        "T9",
        "the model learns its text by heart",
        "Held-out loss rises while training loss falls: too little text, too many epochs.",
        "Keep the checkpoint with the lowest eval_loss; fewer num_train_epochs; more text.",
        numbers=numbers.overfits,
        source="reproduced in notebook 05",
    ),
    Sign(
        "T10",
        "the text repeats itself",
        "Greedy decoding takes the likeliest token again and again.",
        "do_sample=True, top_p=0.95, repetition_penalty=1.1 or no_repeat_ngram_size=3",
        numbers=numbers.repeats,
        source="reproduced in notebook 05",
    ),
    Sign(
        "T11",
        "the model never stops",
        "The end-of-text was made the padding token, and the collator takes its label away.",
        "Packed blocks with an end-of-text after every document (helpers.data), or a padding token of its own.",
        code=(r"^\W*(?:\d+ )?\s*\w*tok\w*\.pad_token(?:_id)? *= *\w*tok\w*\.eos_token",),
        numbers=numbers.no_end_in_labels,
        source="transformers#23530",
    ),
    Sign(
        "T12",
        "a position or a token the model has no row for",
        "A row longer than the positions, or a token added without new rows. After a device-side assert the kernel is "
        "lost, and on a CPU the message is plain.",
        f"Cut to blocks of at most n_positions; model.resize_token_embeddings(len(tokenizer)); on a GPU "
        f"{fixes.RESTART}, and repeat it with use_cpu=True.",
        error=(
            r"^IndexError: index out of range in self",
            r"device-side assert triggered",
            r"srcIndex < srcSelectDimSize",
            r"tokens and the model \d+ rows for them",
            r"block_size = \d+ is longer than",
            r"together at most \d+, the model's positions",
        ),
        log=(r"srcIndex < srcSelectDimSize", r"longer than the specified maximum sequence length for this model"),
        source="FastChat#3233",
    ),
    Sign(
        "T13",
        "the tokenizer does not know how long a row may be",
        "model_max_length is a stand-in of 1e30, so no warning comes.",
        "tokenizer.model_max_length = 1024 (the model's n_positions)",
        error=(r"1000000000000000019884624838656",),
        log=(r"1000000000000000019884624838656", r"\benable_truncation\("),
        source="transformers",
    ),
    Sign(
        "T14",
        "a label is no token",
        "Each label must be -100 or a row of the vocabulary.",
        "print(labels.min(), labels.max()); write -100 where nothing is to be learnt.",
        error=(r"Target -?\d+ is out of bounds", r"Assertion `t >= 0 && t < n_classes` failed"),
        log=(r"Assertion `t >= 0 && t < n_classes` failed",),
        source="reproduced in tests",
    ),
    Sign(
        "T15",
        "the batch has no labels",
        "Without labels a model makes logits and no loss.",
        "data_collator=helpers.training.as_batch, or DataCollatorForLanguageModeling(tokenizer, mlm=False)",
        error=(r"did not return a loss from the inputs",),
        source="reproduced in tests",
    ),
    Sign(
        "T16",
        "the resumed run is not the run that stopped",
        "Other steps, another batch, or a checkpoint without scheduler change the learning rate.",
        "Resume with the same settings from a whole checkpoint; here: fine_tune(settings) again, which checks both.",
        error=(r"was started with .* choose another run name",),
        log=(r"arguments do not match the ones in the `trainer_state\.json`",),
        numbers=numbers.rate_jumps,
        source="transformers#34053",
    ),
    Sign(
        "T17",
        "a checkpoint is cut short, missing, or the disk is full",
        "The disk filled up or the power failed while it was written.",
        f"{_FREE_DISK}, and resume from the last complete one: helpers.training.last_complete_checkpoint(folder).",
        error=(
            r"SafetensorError",
            r"PytorchStreamReader failed|enforce fail at inline_container",
            r"No such file or directory: '[^']*trainer_state\.json'",
            r"No valid checkpoint found",
            r"\[Errno (?:28|27)\]|No space left on device|File too large",
        ),
        log=(r"No space left on device",),
        source="reproduced in notebook 05",
    ),
    Sign(
        "T18",
        "worker processes cannot import what a cell defines",
        "Where workers are spawned (Windows, newer Pythons) a notebook's classes do not exist for them.",
        _workers,
        error=(
            r"Can't get attribute '\w+' on <module '__(?:mp_)?main__'",
            r"DataLoader worker \(pid\S* [\d, ]+\) exited unexpectedly",
            r"Can't pickle local object|Can't get local object|Can't pickle <function",
            r"before the\s+current process has finished its\s+bootstrapping phase",
        ),
        log=(r"Can't get attribute '\w+' on <module '__(?:mp_)?main__'",),
        source="pytorch#169252",
    ),
    Sign(
        "T19",
        "the GPU waits for data",
        "Tokenising while training, padding and tiny batches leave the card idle.",
        "Tokenise first, pack into blocks (helpers.data.prepare), and take the largest batch that fits.",
        numbers=numbers.waits_for_data,
        source="reproduced in tests",
    ),
    Sign(
        "T20",
        "the kernel died",
        "The system took the process away, nearly always because main memory was gone.",
        _dead,
        error=(r"DeadKernelError|Kernel died",),
        log=(
            r"Kernel died|kernel appears to have died",
            r"^Killed$",
            r"out of memory: killed process",
            r"\boom-kill\b",
        ),
        source="WSL#8984",
    ),
    Sign(
        "T21",
        "no widget, no progress bar",
        "ipywidgets must be in the kernel's Python, jupyterlab_widgets in the server's.",
        _widgets,
        error=(r"IProgress not found", r"No module named 'ipywidgets'"),
        log=(r"IProgress not found", r"Error displaying widget|Loading widget\.\.\.$"),
        source="ipywidgets#3821; tqdm#1310",
    ),
    Sign(
        "T22",
        "GitHub does not show the notebook",
        "Its widget metadata lack the state.",
        "Take the outputs out before a commit (nbstripout), or delete metadata.widgets.",
        error=(r"'state' key is missing from 'metadata\.widgets'",),
        log=(r"'?state'? key is missing from '?metadata\.widgets'?",),
        source="github/codespaces-jupyter#610",
    ),
    Sign(
        "T23",
        "the notebook asks for a kernel there is none of",
        "It was saved on a machine that had one of that name.",
        "Run with -k python3 (papermill) or --nbmake-kernel=python3, and store the notebook with python3.",
        error=(r"No such kernel", r"No kernel name found"),
        log=(r"No such kernel named",),
        source="xarray-tutorial#78",
    ),
    Sign(
        "T24",
        "a parameter has no effect",
        "papermill only logs a name that the tagged cell does not have, and a notebook without such a cell.",
        "Tag one cell of plain literals `parameters`; derive in the next. Here: python -m helpers run refuses it.",
        error=(r"^(?:\S+\.)?SettingsError: There is no setting",),
        log=(r"does not contain a cell with tag 'parameters'", r"Passed unknown parameter"),
        source="papermill#245",
    ),
    Sign(
        "T25",
        "a cell took too long, or asked for input",
        "The limits of papermill and nbmake are for each cell; nobody answers input() there.",
        "A smaller preset, or --nbmake-timeout=600 (papermill: --execution-timeout); take input() out.",
        error=(r"CellTimeoutError|Cell execution timed out|A cell timed out", r"StdinNotImplementedError"),
        log=(r"A cell timed out while it was being executed",),
        source="reproduced in notebook 05",
    ),
    Sign(
        "T26",
        "outputs differ each time",
        "Times, addresses and dates are never the same twice.",
        "Compare facts with assert, and commit notebooks without outputs (nbstripout).",
        error=(r"NbCellError.*(?:outputs? differ|mismatch)|Cell outputs differ",),
        log=(r"Cell outputs differ", r"^[+-] +\"execution_count\": \d+"),
        is_harmless=True,
        source="reproduced in tests",
    ),
)
