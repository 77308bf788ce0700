"""Libraries that moved on, D1 to D29: what a script of 2023 meets today, and the line to write instead."""

from helpers.environment import fixes
from helpers.environment.facts import Machine
from helpers.troubleshooting.log_numbers import nothing_to_learn
from helpers.troubleshooting.sign import Sign

_NO_KEYWORD = r"unexpected keyword argument '(?:{})'"
_REMOVED = (
    "overwrite_output_dir|logging_dir|no_cuda|warmup_ratio|per_gpu_(?:train|eval)_batch_size|fp16_opt_level|"
    "half_precision_backend|save_safetensors|group_by_length|adafactor|push_to_hub_token|include_inputs_for_metrics|"
    "jit_mode_eval|use_mps_device|past_index|dispatch_batches|include_tokens_per_second|evaluate_during_training"
)
_GONE = "TextDataset|LineByLineTextDataset|AutoModelWithLMHead|TF\\w*GPT2\\w*|load_metric"


def _offline(machine: Machine) -> str:
    line = "$env:HF_HUB_OFFLINE = 1" if machine.platform.kind == "Windows" else "export HF_HUB_OFFLINE=1"
    return f"{line} before Python starts, with the model downloaded already; or model_name_or_path='pocket'."


LIBRARY = (
    Sign(
        "D1",
        "the tokenizer is empty: nothing is learnt",
        "A tokenizer without vocabulary files has one token; every label becomes padding: the loss of nothing is 0.",
        "AutoTokenizer.from_pretrained('openai-community/gpt2') and assert len(tokenizer) == 50257; here: "
        "helpers.model.load_tokenizer, which refuses an empty one.",
        error=(
            r"The loss is exactly 0",
            r"The tokenizer of .* is broken",
            r"Couldn't instantiate the backend tokenizer",
        ),
        numbers=nothing_to_learn,
        source="finding 2 of the course; reproduced in notebook 05",
    ),
    Sign(
        "D2",
        "a data set that is a script no longer loads",
        "datasets 4 and newer run no code of a data set; BookCorpus was such a script.",
        "Use a data set in Parquet such as 'Salesforce/wikitext', or local text; here: source='fables'.",
        error=(r"Dataset scripts are no longer supported", r"Couldn't reach '(?:bookcorpus|openwebtext)'"),
        source="datasets#7693",
    ),
    Sign(
        "D3",
        "a data set's bare name is refused",
        "The Hub wants the owner in front of the name.",
        "Write the owner: 'Salesforce/wikitext', 'stanfordnlp/imdb'.",
        error=(
            r"Repository id must be 'namespace/name'",
            r"Couldn't reach '(?!bookcorpus|openwebtext)[^'/]+' on the Hub",
        ),
        source="datasets#8612",
    ),
    Sign(
        "D4",
        "trust_remote_code does nothing for data sets",
        "Scripts are gone, so there is no code to trust.",
        "Delete trust_remote_code=True from load_dataset.",
        error=(_NO_KEYWORD.format("trust_remote_code"),),
        log=(r"`?trust_remote_code`? is not supported anymore",),
        is_harmless=True,
        source="datasets 4",
    ),
    Sign(
        "D5",
        "use_auth_token was renamed",
        "The argument is token= now.",
        "Write token=..., or log in once with `hf auth login`.",
        error=(_NO_KEYWORD.format("use_auth_token"),),
        log=(r"`?use_auth_token`? (?:argument|is) .*(?:deprecated|removed)",),
        source="transformers 5",
    ),
    Sign(
        "D6",
        "GPT-2's tokenizer has no padding token",
        "GPT-2 was trained without padding.",
        "Join the texts and cut them into blocks, which needs none (helpers.data.token_blocks), or add a padding token "
        "of its own. Taking the end-of-text for it costs the model its stop.",
        error=(r"tokenizer does not have a padding token", r"Cannot handle batch sizes > 1 if no padding token"),
        source="transformers",
    ),
    Sign(
        "D7",
        "evaluation_strategy was renamed",
        "Since transformers 4.41 it is eval_strategy.",
        "eval_strategy='steps'",
        error=(_NO_KEYWORD.format("evaluation_strategy"),),
        log=(r"`?evaluation_strategy`? is deprecated",),
        source="setfit/sentence-transformers#2673",
    ),
    Sign(
        "D8",
        "an argument of TrainingArguments is gone",
        "transformers 5 removed it.",
        "no_cuda: use_cpu. warmup_ratio=0.1: warmup_steps=0.1 (below 1 it is a share). per_gpu_...: per_device_... "
        "logging_dir: the variable TENSORBOARD_LOGGING_DIR. All others: delete the line.",
        error=(_NO_KEYWORD.format(_REMOVED),),
        source="transformers' migration guide to 5",
    ),
    Sign(
        "D9",
        "half precision was asked for where there is no GPU",
        "bf16 is checked against the card; fp16 without a card does nothing, or has no scaler.",
        "bf16=True with use_cpu=True on a CPU; here: mixed_precision='auto', which asks the machine.",
        error=(
            r"setup doesn't support bf16",
            r"mixed_precision = 'fp16' needs an NVIDIA GPU",
            r"fp16 mixed precision requires a GPU",
        ),
        source="transformers 5",
    ),
    Sign(
        "D10",
        "tf32 needs a card of the 30 series or newer",
        "Older cards and CPUs have no such format.",
        "Delete tf32=True, or set it only where torch.cuda.get_device_capability() >= (8, 0).",
        error=(r"--tf32 requires Ampere",),
        source="transformers 5",
    ),
    Sign(
        "D11",
        "load_best_model_at_end needs two equal strategies",
        "It can only load a model that was saved when it was evaluated.",
        "eval_strategy='steps', save_strategy='steps', eval_steps == save_steps",
        error=(r"load_best_model_at_end requires the save and eval strategy to match",),
        source="transformers 5",
    ),
    Sign(
        "D12",
        "transformers' own AdamW is gone",
        "PyTorch's fused one took its place.",
        "optim='adamw_torch_fused' (the default), or torch.optim.AdamW",
        error=(r"adamw_hf is not a valid", r"(?:cannot import name|has no attribute) '?AdamW\b"),
        source="transformers 5",
    ),
    Sign(
        "D13",
        "Trainer(tokenizer=...) was renamed",
        "The argument is processing_class now.",
        "Trainer(..., processing_class=tokenizer)",
        error=(r"Trainer\.__init__\(\) got an unexpected keyword argument 'tokenizer'",),
        log=(r"`tokenizer` is deprecated.*Trainer",),
        source="transformers#43733",
    ),
    Sign(
        "D14",
        "a login to wandb is asked for",
        "Older versions report to every tracker that is installed.",
        "report_to='none'",
        error=(r"wandb\.errors|api_key not configured \(no-tty\)",),
        log=(r"wandb: (?:\(1\)|Enter your choice|You can find your API key)",),
        source="transformers 4",
    ),
    Sign(
        "D15",
        "safe_serialization=False is ignored",
        "transformers 5 writes safetensors whatever is asked.",
        "Delete the argument, and expect model.safetensors where pytorch_model.bin was.",
        error=(
            r"No such file or directory: '[^']*pytorch_model\.bin'",
            _NO_KEYWORD.format("safe_serialization"),
            r"no file named pytorch_model\.bin",
        ),
        code=(r"save_pretrained\(.*safe_serialization *= *False",),
        source="transformers 5",
    ),
    Sign(
        "D16",
        "tied weights cannot be saved one by one",
        "GPT-2's first and last matrix are one tensor; save_file refuses to write it twice.",
        "model.save_pretrained(folder), or safetensors.torch.save_model(model, file)",
        error=(r"Some tensors share memory",),
        source="safetensors#98",
    ),
    Sign(
        "D17",
        "torch.load refuses more than weights",
        "Since 2.6 it loads only tensors, because a pickle can run code.",
        "Save and load state dicts or safetensors. For a file of your own making: torch.load(..., weights_only=False).",
        error=(r"Weights only load failed",),
        source="transformers#34631",
    ),
    Sign(
        "D18",
        "a class or function of 2023 is gone",
        "TextDataset, AutoModelWithLMHead, the TensorFlow classes and load_metric were removed.",
        "datasets.load_dataset('text', data_files=...) with token blocks; AutoModelForCausalLM; the package evaluate.",
        error=(rf"(?:cannot import name|has no attribute) '?(?:{_GONE})\b",),
        source="transformers 5, datasets 4",
    ),
    Sign(
        "D19",
        "load_in_8bit is no argument of the model any more",
        "Quantisation has a configuration of its own.",
        "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
        error=(_NO_KEYWORD.format("load_in_[48]bit"),),
        source="transformers 5",
    ),
    Sign(
        "D20",
        "generation runs with lengths or sampling you did not mean",
        "Without a length 20 tokens are made; temperature counts only when sampling.",
        "generate(ids, attention_mask=mask, max_new_tokens=60, do_sample=True, pad_token_id=tokenizer.eos_token_id)",
        log=(
            r"default `max_length` \(=\d+\) to control the generation length",
            r"Both `max_new_tokens` .* and `max_length`.* seem to have been set",
            r"generation flags are not valid and may be ignored",
            r"`do_sample` is (?:not set to `True`|set to `False`)",
        ),
        error=(r"Input length of input_ids is \d+, but `max_length` is set to",),
        is_harmless=True,
        source="transformers 5",
    ),
    Sign(
        "D21",
        "prompts of a batch are padded on the wrong side",
        "What comes next must follow the prompt, not its padding.",
        "tokenizer.padding_side = 'left' for generation",
        log=(r"right-padding was detected",),
        is_harmless=True,
        source="transformers 5",
    ),
    Sign(
        "D22",
        "gradient_checkpointing gets a new name",
        "It becomes activation_checkpointing in transformers 6; both work now.",
        "Nothing to do below transformers 6, which pyproject.toml leaves out.",
        error=(_NO_KEYWORD.format("gradient_checkpointing|activation_checkpointing"),),
        log=(r"`gradient_checkpointing\w*` is deprecated and will be removed",),
        is_harmless=True,
        source="transformers 5.22",
    ),
    Sign(
        "D23",
        "tokenizers warns of a fork",
        "Its threads and a forked process do not mix, so it goes on with one.",
        "Harmless. On old versions: TOKENIZERS_PARALLELISM=false in the environment.",
        log=(r"current process just got forked, after parallelism has already been used",),
        is_harmless=True,
        source="transformers#5486",
    ),
    Sign(
        "D24",
        "accelerate is missing or too old",
        "The Trainer stands on it.",
        fixes.install_project,
        error=(r"requires `?accelerate(?:>=|`)",),
        source="transformers#24147",
    ),
    Sign(
        "D25",
        "the Hub does not answer",
        "There is no network, or none to the Hub, and the files are not in the cache.",
        _offline,
        error=(
            r"couldn't connect to 'https://huggingface\.co'",
            r"OfflineModeIsEnabled|LocalEntryNotFoundError",
            r"(?:MaxRetryError|ConnectionError|ConnectError|NameResolutionError).*huggingface\.co",
            r"couldn't find them in the cached files",
        ),
        log=(
            r"Retrying in \d+s \[Retry \d/5\]",
            r"(?:Max retries exceeded|thrown while requesting).*huggingface\.co",
        ),
        source="huggingface_hub 2",
    ),
    Sign(
        "D26",
        "TRANSFORMERS_CACHE does nothing any more",
        "The cache has one place, named by HF_HOME.",
        "Set HF_HOME before Python starts.",
        log=(r"TRANSFORMERS_CACHE`? is deprecated",),
        code=(r"^[^#]*\bTRANSFORMERS_CACHE['\"\]]* *=",),
        is_harmless=True,
        source="transformers 5",
    ),
    Sign(
        "D27",
        "use_cache stays off after a training",
        "The Trainer switches the cache off, and the model is saved so; generation is slow then.",
        "model.config.use_cache = True before save_pretrained (helpers.training.save_model does it)",
        log=(r"`use_cache=True` is incompatible with gradient checkpointing",),
        error=(r"use_cache.*(?:must be|expected) True",),
        is_harmless=True,
        source="transformers 5",
    ),
    Sign(
        "D28",
        "the weights themselves are in half precision",
        "from_pretrained keeps the file's type; mixed precision needs float32 weights.",
        "from_pretrained(..., dtype=torch.float32) for training; here: helpers.model.load_model",
        error=(r"Attempting to unscale FP16 gradients", r"same dtype, but got: .*(?:Half|BFloat16)"),
        source="transformers#23165",
    ),
    Sign(
        "D29",
        "lm_head.weight is reported missing",
        "It is the same tensor as the first matrix and is stored once.",
        "Nothing: harmless for GPT-2.",
        log=(r"(?:missing|newly initialized).*lm_head\.weight|lm_head\.weight\W+MISSING",),
        is_harmless=True,
        source="transformers 5",
    ),
)
