"""Failures of libraries that moved on, and of numbers out of range: the old line, its error, the line to write."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.troubleshooting.reproduced import Reproduced, Rows, tiny_model, train_briefly


def error_of(action: Callable[[], Any]) -> str:
    """Call something and return its error as `Type: first line`, or 'accepted'; warnings are kept quiet.

    >>> error_of(lambda: [][3])
    'IndexError: list index out of range'
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            action()
        except Exception as error:  # noqa: BLE001 (which error it is, is the question)
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return "accepted"


def out_of_range() -> Reproduced:
    """8. A row longer than the positions, a token without a row, a text generated past the end."""
    import torch

    from helpers.model import quiet

    model = tiny_model(positions=64).eval()
    end, rows = model.config.eos_token_id, model.config.vocab_size
    long, added = torch.ones(1, 65, dtype=torch.long), torch.tensor([[rows]])

    def generate(n_new_tokens: int) -> None:
        mask = torch.ones(1, 60, dtype=torch.long)
        prompt = long[:, :60]
        options = {"min_new_tokens": n_new_tokens, "max_new_tokens": n_new_tokens, "pad_token_id": end}
        model.generate(prompt, attention_mask=mask, do_sample=False, **options)

    def resized() -> None:
        larger = tiny_model(positions=64)
        larger.resize_token_embeddings(rows + 1, mean_resizing=False)
        larger(input_ids=added)

    with quiet():
        broken = {
            "65 positions": error_of(lambda: model(input_ids=long)),
            "an added token": error_of(lambda: model(input_ids=added)),
            "60 + 10 tokens": error_of(lambda: generate(10)),
        }
        mended = {
            "65 positions": error_of(lambda: [model(input_ids=part) for part in long.split(64, dim=1)]),
            "an added token": error_of(resized),
            "60 + 10 tokens": error_of(lambda: generate(4)),
        }
    return Reproduced("An index out of range", broken["65 positions"], broken, mended, "T12")


_OLD_ARGUMENTS = (
    ({"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}),
    ({"no_cuda": True}, {"use_cpu": True}),
    ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
    ({"overwrite_output_dir": True}, {}),
    ({"per_gpu_train_batch_size": 4}, {"per_device_train_batch_size": 4}),
    ({"optim": "adamw_hf"}, {"optim": "adamw_torch"}),
    ({"tf32": True}, {}),
    ({"load_best_model_at_end": True}, {"load_best_model_at_end": True, "eval_strategy": "steps"}),
)


def old_script() -> Rows:
    """9. Each line of the classic guide's script that changed: what it answers today, and the line to write.

    Returns:
        Rows of `line of 2023`, `today`, `write instead` and `then`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return Rows(
            {"line of 2023": old, "today": error_of(run_old), "write instead": new, "then": error_of(run_new)}
            for old, run_old, new, run_new in _lines(folder)
        )


def _lines(folder: str) -> "list[tuple[str, Callable[[], Any], str, Callable[[], Any]]]":
    """Return each old line with what runs it, and the line to write with what runs that."""
    from transformers import Trainer, TrainingArguments

    from helpers.model import load_tokenizer

    tokenizer = load_tokenizer("pocket")

    def arguments(**values: Any) -> TrainingArguments:
        return TrainingArguments(
            **{"output_dir": folder, "report_to": "none", "use_cpu": "no_cuda" not in values} | values
        )

    def trainer(**values: Any) -> Trainer:
        return Trainer(model=tiny_model(), args=arguments(), **values)

    def gone() -> Any:
        from transformers import TextDataset

        return TextDataset

    def padded() -> Any:
        return tokenizer(["A fox."], padding="max_length", max_length=8)

    of_arguments = [
        (
            _written(old),
            lambda old=old: arguments(**old),
            _written(new) or "delete it",
            lambda new=new: arguments(**new),
        )
        for old, new in _OLD_ARGUMENTS
    ]
    return [
        *of_arguments,
        ("Trainer(tokenizer=tok)", lambda: trainer(tokenizer=tokenizer), "Trainer(processing_class=tok)",
         lambda: trainer(processing_class=tokenizer)),
        ("from transformers import TextDataset", gone, "token_blocks(documents, tok, 8)", _blocks),
        ('tok(texts, padding="max_length")', padded, "blocks: no padding", _blocks),
    ]  # fmt: skip


def _written(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _blocks() -> Any:
    from datasets import Dataset

    from helpers.data.preparation import token_blocks
    from helpers.model import load_tokenizer

    return token_blocks(Dataset.from_dict({"text": ["A fox ran home."] * 8}), load_tokenizer("pocket"), 8)[0]


def migrated_script() -> list[float]:
    """Train with the modern lines, all together, and return the losses."""
    rows = list(_blocks())
    modern = {"eval_strategy": "no", "warmup_steps": 0.1, "optim": "adamw_torch", "learning_rate": 3e-3}
    return [row["loss"] for row in train_briefly(tiny_model(), rows, max_steps=8, **modern)]


def script_data_set() -> Reproduced:
    """10. A data set that is a script, and one asked for by its bare name; text and Parquet from the disk."""
    from datasets import load_dataset

    from helpers.data.preparation import load_documents
    from helpers.model import quiet
    from helpers.settings import DataSettings

    with tempfile.TemporaryDirectory() as folder, quiet():
        script = Path(folder) / "x" / "x.py"
        script.parent.mkdir()
        script.write_text("import datasets\n", encoding="utf-8")
        text, table = Path(folder) / "mine.txt", Path(folder) / "mine.parquet"
        text.write_text("A fox.\n\nAn owl.\n\nA hen.\n", encoding="utf-8")
        documents = load_documents(DataSettings(source=str(text)))["train"]
        documents.to_parquet(table)
        broken = {
            "load_dataset": error_of(lambda: load_dataset(str(script.parent))),
            "source='bookcorpus'": error_of(lambda: load_documents(DataSettings(source="bookcorpus"))),
        }
        mended = {
            "load_dataset": f"Parquet: {_count(table, folder)} documents",
            "source='bookcorpus'": f"source='mine.txt': {len(documents)} documents",
        }
    return Reproduced("A data set that is a script", broken["load_dataset"], broken, mended, "D2")


def _count(table: Path, cache: str) -> int:
    from datasets import load_dataset

    return len(load_dataset("parquet", data_files=str(table), split="train", cache_dir=cache))


def tied_weights() -> Reproduced:
    """11. A save of tied weights one by one, and a load of a whole model; the round trip that gives equal logits."""
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2LMHeadModel

    from helpers.model import quiet

    model = tiny_model().eval()
    ids = torch.arange(16)[None]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), quiet():
        whole = Path(folder) / "model.pt"
        torch.save(model, whole)
        broken = {
            "saving": error_of(lambda: save_file(model.state_dict(), f"{folder}/model.safetensors")),
            "loading": error_of(lambda: torch.load(whole)),
        }
        model.save_pretrained(folder)
        again = GPT2LMHeadModel.from_pretrained(folder).eval()
        same = torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    mended = {"saving": "save_pretrained: accepted", "loading": f"from_pretrained: equal logits {same}"}
    return Reproduced("Saving tied weights, loading a whole model", broken["saving"], broken, mended, "D16")
