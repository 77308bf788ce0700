"""The flagship path at its true size: the five notebooks, with preset `rtx-4070-ti`, on GPT-2 and WikiText's rows.

True: the 124 million weights, the vocabulary of 50,257 tokens, the 1,024 positions, the preset but for the values in
`CUT`, the shape of the data set's rows, the clients that download both. Cut: the length of the text, the steps and
the samples. The weights are random, but for one column that knows how frequent a token is, so that a model that was
trained before is better than one that was not.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset

from helpers.settings import NOTEBOOKS
from tests.loopback_hub import loopback_hub

SHARED = NOTEBOOKS.parent.parent / "shared" / "data"
MODEL, WIKITEXT, CONFIG = "openai-community/gpt2", "Salesforce/wikitext", "wikitext-2-raw-v1"
CUT = {
    "block_size": 256,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 0.04,
    "logging_steps": 1,
    "max_new_tokens": 16,
    "num_return_sequences": 1,
    "copy_samples": 2,
    "general_documents": 1,
}
N_ARTICLES = {"train": 12, "validation": 2, "test": 2}

pytestmark = [
    pytest.mark.true_size,
    pytest.mark.skipif(not SHARED.exists(), reason="needs GPT-2's tokenizer and a text next to the project"),
]


def wikitext_rows(speeches, name):
    """Return an article as WikiText has it: one line a row, each followed by an empty row; a title, then sections."""
    lines = [f"= {name} =", *speeches[:3]]
    for number, heading in enumerate(("History", "Reception")):  # headings that many articles share
        lines += [f"= = {heading} = =", *speeches[3 + 3 * number : 6 + 3 * number]]
    return [row for line in lines for row in ("", f" {' '.join(line.split())} \n")]


def write_wikitext(folder):
    """Write the three splits as Parquet, with a card that names the configuration; return file names and files."""
    text = (SHARED / "tinyshakespeare.txt").read_text(encoding="utf-8")
    speeches = [speech for speech in text.split("\n\n") if len(speech) > 150]
    files = {"README.md": folder / "README.md"}
    files["README.md"].write_text(
        f"---\nconfigs:\n- config_name: {CONFIG}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {CONFIG}/{split}-*\n" for split in N_ARTICLES)
        + "---\n"
    )
    for split, n_articles in N_ARTICLES.items():
        rows = []
        for number in range(n_articles):
            rows += wikitext_rows(speeches[:9], f"Play {split} {number}")
            speeches = speeches[9:]
        name = f"{CONFIG}/{split}-00000-of-00001.parquet"
        files[name] = folder / f"{split}.parquet"
        Dataset.from_dict({"text": rows}).to_parquet(files[name])
    return files


def write_gpt2(folder):
    """Write a GPT-2 of 124 million weights with its tokenizer; return file names and files."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    vocabulary = SHARED / "gpt2-tokenizer"
    tokenizer = GPT2TokenizerFast(
        vocab=str(vocabulary / "vocab.json"), merges=str(vocabulary / "merges.txt"), model_max_length=1024
    )
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config())
    text = (SHARED / "tinyshakespeare.txt").read_text(encoding="utf-8")[-200_000:]
    counts = np.bincount(tokenizer.encode(text, verbose=False), minlength=len(tokenizer)) + 0.1
    with torch.no_grad():  # the last norm puts out a constant here, and the head's products become log frequencies
        model.transformer.wte.weight[:, 0] = torch.from_numpy(np.log(counts / counts.sum())) / 10
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0, 10
    model.save_pretrained(folder)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def hub(tmp_path):
    """Serve GPT-2 and WikiText; return the address."""
    folders = [tmp_path / name for name in ("gpt2", "wikitext")]
    for folder in folders:
        folder.mkdir()
    repositories = {f"models/{MODEL}": write_gpt2(folders[0]), f"datasets/{WIKITEXT}": write_wikitext(folders[1])}
    with loopback_hub(repositories) as address:
        yield address
    shutil.rmtree(tmp_path)  # pytest keeps the folders of three sessions, and these files are gigabytes


def test_the_notebooks_run_on_gpt2_and_wikitext_from_the_hub(hub, runs, tmp_path):
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home")}
    parameters = [part for name, value in CUT.items() for part in ("-p", name, str(value))]
    child = subprocess.run(
        [sys.executable, "-m", "helpers", "run", "--preset", "rtx-4070-ti", *parameters],
        env=os.environ | online,
        cwd=NOTEBOOKS.parent,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    run = runs / "rtx-4070-ti"
    facts = json.loads((run / "data/data.json").read_text())
    assert {name: split["documents"] for name, split in facts["splits"].items()} == N_ARTICLES, "an article, not a row"
    config = json.loads((run / "model/config.json").read_text())
    assert (config["vocab_size"], config["n_positions"], config["n_embd"], config["n_layer"]) == (50257, 1024, 768, 12)
    full, half = json.loads((run / "evaluation.json").read_text())["published_protocol"]
    assert (full["stride"], full["published"], half["stride"], half["published"]) == (1024, 29.94, 512, 25.19)
