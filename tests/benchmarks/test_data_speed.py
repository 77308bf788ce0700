"""How fast text becomes blocks compared with the usual ways, and its memory: ratios and bounds from one run."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Tokenizer

from helpers.data.in_memory import load_documents
from helpers.data.quality_report import useful_share
from helpers.data.tokens import TokenStream
from helpers.settings import DataSettings

SHARED = Path(__file__).parents[3] / "shared" / "data"
NEEDS_GPT2 = pytest.mark.skipif(not (SHARED / "gpt2-tokenizer").exists(), reason="needs GPT-2's vocabulary")
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from /proc")
GIB_TEXT = os.environ.get("BENCH_GB")  # 1 measures the gigabyte too, which takes minutes


def corpus(folder, n_bytes):
    """Write about `n_bytes` of documents, all different: lines of Shakespeare drawn at random."""
    lines = [line for line in (SHARED / "tinyshakespeare.txt").read_text().split("\n") if line]
    draw, path, written = random.Random(0), folder / f"{n_bytes}.txt", 0
    with path.open("w") as file:
        while written < n_bytes:
            written += file.write("\n".join(draw.choices(lines, k=30)) + "\n\n")
    return path


def measure(way, file, folder):
    """Return the metrics of one way, measured in a separate process."""
    script = Path(__file__).with_name("data_speed.py")
    (folder / way).mkdir(exist_ok=True)
    environment = {**os.environ, "COURSE_RUNS": str(folder / way)}
    command = [sys.executable, str(script), way, str(file), str(folder / way)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@NEEDS_GPT2
@NEEDS_PROC
def test_making_blocks_is_faster_than_the_usual_ways_and_gives_the_same_ids(tmp_path):
    file = corpus(tmp_path, 4 * 10**6)
    result = {way: measure(way, file, tmp_path) for way in ("map", "loop", "ours", "prepare", "unlooked")}
    print(f"\n{'':10}{'MB/s':>10}{'ours is':>10}")
    for way, row in result.items():
        ratio = row["seconds"] / result["ours"]["seconds"]
        print(f"{way:10}{row['n_bytes'] / 1e6 / row['seconds']:10.1f}{ratio:9.1f}x")
    assert result["ours"]["ids"] == result["map"]["ids"] == result["loop"]["ids"]
    assert result["map"]["seconds"] >= 4 * result["ours"]["seconds"]
    assert result["loop"]["seconds"] >= 3 * result["ours"]["seconds"]


@NEEDS_GPT2
@NEEDS_PROC
def test_memory_stays_flat_and_time_is_linear_in_bytes(tmp_path):
    sizes = [10**7, 10**8, *([int(float(GIB_TEXT) * 10**9)] if GIB_TEXT else [])]
    rows = []
    print(f"\n{'MB':>6}{'seconds':>10}{'MB/s':>8}{'MB above the start':>20}")
    for n_bytes in sizes:
        (folder := tmp_path / str(n_bytes)).mkdir()
        rows.append(row := measure("prepare", corpus(folder, n_bytes), folder))
        megabytes = row["n_bytes"] / 1e6
        rate, above = megabytes / row["seconds"], row["above_start_bytes"] / 1e6
        print(f"{megabytes:6.0f}{row['seconds']:10.1f}{rate:8.1f}{above:20.0f}")
    assert all(row["above_start_bytes"] <= 500 * 10**6 for row in rows)
    rates = [row["n_bytes"] / row["seconds"] for row in rows]
    assert min(rates[1:]) > 0.5 * max(rates), "cost is linear in bytes"


@NEEDS_GPT2
def test_padding_holds_less_text_than_packing():
    tokens = TokenStream(GPT2Tokenizer.from_pretrained(SHARED / "gpt2-tokenizer"))
    fables = load_documents(DataSettings())["train"]["text"][:]
    speeches = [text for text in (SHARED / "tinyshakespeare.txt").read_text().split("\n\n") if text]
    sentences = [sentence for text in fables for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence]
    print(f"\n{'share of positions with text':30}{'padded to 512':>16}{'packed':>10}")
    for name, texts in (("fables", fables), ("tiny Shakespeare", speeches), ("one-sentence rows", sentences)):
        _, n_tokens = tokens.encode(texts)
        packed = n_tokens.sum() / (-(-n_tokens.sum() // 512) * 512)
        print(f"{name:30}{useful_share(n_tokens, 512):16.1%}{packed:10.1%}")
        assert useful_share(n_tokens, 512) < packed
