"""The flagship path at its true size: preset `rtx-4070-ti` on GPT-2 and WikiText's rows, from a Hub on this machine.

Every test run calls what the notebooks call; `-m true_size` runs the notebooks too: seven minutes on two cores.

Real: the 124 million weights, the vocabulary of 50,257 tokens, the 1,024 positions, the preset except the values in
`CUT`, the shape of the data set's rows, the clients that download both. Cut: the length of the text, the steps and
the samples. The weights are random except for one column of token frequencies, so that a pretrained model is better
than an untrained one.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from functools import cache

import numpy as np
import pytest
from datasets import Dataset

from helpers.paths import NOTEBOOKS
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

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs GPT-2's tokenizer and a text next to the project")


def wikitext_rows(speeches, name):
    """Return an article in the form of WikiText: one line per row after an empty row; a title, then sections."""
    lines = [f"= {name} =", *speeches[:3]]
    for number, heading in enumerate(("History", "Reception")):  # headings that many articles share
        lines += [f"= = {heading} = =", *speeches[3 + 3 * number : 6 + 3 * number]]
    return [row for line in lines for row in ("", f" {' '.join(line.split())} \n")]


def write_wikitext(folder, *, n_speeches):
    """Write the three splits as Parquet, with a card that names the configuration; return file names and files.

    `n_speeches` is the number of speeches per article in each split, at most nine.
    """
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
            rows += wikitext_rows(speeches[: n_speeches[split]], f"Play {split} {number}")
            speeches = speeches[n_speeches[split] :]
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
    with torch.no_grad():  # the last norm outputs a constant here, so the head computes log frequencies
        model.transformer.wte.weight[:, 0] = torch.from_numpy(np.log(counts / counts.sum())) / 10
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0, 10
    model.save_pretrained(folder)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def hub(tmp_path, request):
    """Serve GPT-2 and WikiText; return the address."""
    folders = [tmp_path / name for name in ("gpt2", "wikitext")]
    for folder in folders:
        folder.mkdir()
    # each window of 1,024 tokens takes seconds: make the test split just longer than one, except for the notebooks
    short = {} if request.node.get_closest_marker("true_size") else {"validation": 4, "test": 7}
    wikitext = write_wikitext(folders[1], n_speeches=dict.fromkeys(N_ARTICLES, 9) | short)
    repositories = {f"models/{MODEL}": write_gpt2(folders[0]), f"datasets/{WIKITEXT}": wikitext}
    with loopback_hub(repositories) as address:
        yield address
    shutil.rmtree(tmp_path)  # pytest keeps the folders of three sessions, and these files are gigabytes


def run_child(hub, tmp_path, *arguments):
    """Run Python with this Hub and an empty cache; return its output."""
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home")}
    child = subprocess.run(
        [sys.executable, *arguments], env=os.environ | online, cwd=NOTEBOOKS.parent, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def follow_main_path():
    """Plan, train, stop, resume, evaluate and generate; print the results."""
    from datasets import load_dataset

    from helpers.data import open_prepared
    from helpers.evaluation import fill_prompt, generate, load_base, load_tuned, measure_published_protocol
    from helpers.settings import EvaluationSettings, TrainingSettings
    from helpers.training import TrainingStoppedError, find_card, fine_tune, plan_run

    names = TrainingSettings.model_fields
    settings = TrainingSettings.from_preset("rtx-4070-ti", **{name: CUT[name] for name in CUT if name in names})
    stop = threading.Event()
    stop.set()
    with pytest.raises(TrainingStoppedError, match="Stopped after step 1 of 2"):
        fine_tune(settings, stop=stop)
    trained = fine_tune(settings)
    sampling = fill_prompt(EvaluationSettings(run=settings.run, max_new_tokens=4, num_return_sequences=1))
    base, tokenizer = load_base(settings.run)
    text = "\n\n".join(load_dataset(WIKITEXT, CONFIG)["test"]["text"])
    result = {
        "plan": plan_run(TrainingSettings.from_preset("rtx-4070-ti"), card=find_card("RTX 4070 Ti")).verdict,
        "steps with a loss": [row["step"] for row in trained.history if "loss" in row],
        "documents": {name: len(part) for name, part in open_prepared(settings.run).documents.items()},
        "published_protocol": measure_published_protocol(sampling),
        "plain loop": perplexities_of_a_plain_loop(base, tokenizer, text),
        "sample": generate(load_tuned(settings.run)[0], tokenizer, [sampling.prompt], sampling)[0][0].text,
        "prompt": sampling.prompt,
    }
    print(json.dumps(result))


def perplexities_of_a_plain_loop(model, tokenizer, text):
    """Return the perplexity per stride over windows of 1,024 tokens; a token counts in its first window."""
    import torch

    @cache
    def token_nats(start, end):  # of each token but the first
        with torch.no_grad():
            logits = model(ids[None, start:end]).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, ids[start + 1 : end], reduction="none").tolist()

    ids, perplexities = torch.tensor(tokenizer.encode(text, verbose=False)), {}
    assert len(ids) > 1024, "one window is not enough"
    for stride in (1024, 512):
        nats, end_before = [], 0
        for start in range(0, len(ids), stride):
            end = min(start + 1024, len(ids))
            nats += token_nats(start, end)[max(0, end_before - start - 1) :]
            end_before = end
            if end == len(ids):
                break
        perplexities[stride] = math.exp(sum(nats) / len(nats))
    return perplexities


def test_gpt2_is_planned_trained_resumed_evaluated_and_sampled(hub, runs, tmp_path):
    output = run_child(hub, tmp_path, "-c", "from tests.test_true_size import follow_main_path as f; f()")
    result = json.loads(output.splitlines()[-1])
    assert result["plan"].startswith("fits: ")
    assert result["documents"] == N_ARTICLES, "a document is an article, not a row"
    assert result["steps with a loss"] == [1, 2], "it resumed where it had stopped"
    for row in result["published_protocol"]:
        plain = result["plain loop"][str(row["stride"])]
        assert math.log(row["base"]) == pytest.approx(math.log(plain), abs=1e-4)
    assert [row["published"] for row in result["published_protocol"]] == [29.94, 25.19]
    assert result["sample"].startswith(result["prompt"])
    config = json.loads((runs / "rtx-4070-ti/model/config.json").read_text())
    assert (config["vocab_size"], config["n_positions"], config["n_embd"], config["n_layer"]) == (50257, 1024, 768, 12)


@pytest.mark.true_size
def test_the_notebooks_run_on_gpt2_and_wikitext_from_the_hub(hub, runs, tmp_path):
    parameters = [part for name, value in CUT.items() for part in ("-p", name, str(value))]
    run_child(hub, tmp_path, "-m", "helpers", "run", "--preset", "rtx-4070-ti", *parameters)
    full, half = json.loads((runs / "rtx-4070-ti/evaluation.json").read_text())["published_protocol"]
    assert (full["stride"], half["stride"]) == (1024, 512)
