"""One way of turning text into token blocks, in a separate process to measure its own peak memory.

    python data_speed.py WAY FILE FOLDER

WAY is `map` (datasets.map and group_texts, as in run_clm.py), `loop` (one document at a time into a memmap, as in
nanoGPT's prepare.py), `ours` (only tokenise and pack), `prepare` (everything, with near-duplicates) or `unlooked` (the
same with near_duplicates='keep'). Prints JSON: seconds, bytes, peak memory above the start, and a hash of the token
ids. The first three run for ROUNDS rounds after one warm-up round, and the best one counts.
"""

import gc
import hashlib
import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value, disable_progress_bars
from transformers import GPT2Config, GPT2Tokenizer

from helpers.data.preparation import prepare
from helpers.data.tokens import TokenStream
from helpers.data.writing import BlockWriter
from helpers.settings import DataSettings

SHARED = Path(__file__).parents[3] / "shared" / "data"
BLOCK, ROUNDS = 1024, 3


def tokenizer():
    """Return GPT-2's tokenizer."""
    files = SHARED / "gpt2-tokenizer"
    return GPT2Tokenizer(vocab=str(files / "vocab.json"), merges=str(files / "merges.txt"), model_max_length=10**9)


def by_map(documents, folder):
    """Tokenise with `datasets.map`, then `group_texts`; an end-of-text is added, which run_clm.py leaves out."""
    tok = tokenizer()

    def tokenize(rows):
        return {"input_ids": [[*ids, tok.eos_token_id] for ids in tok(rows["text"])["input_ids"]]}

    def group_texts(rows):
        joined = list(itertools.chain(*rows["input_ids"]))
        total = len(joined) // BLOCK * BLOCK
        grouped = [joined[i : i + BLOCK] for i in range(0, total, BLOCK)]
        return {"input_ids": grouped, "labels": [list(row) for row in grouped]}

    start = time.perf_counter()
    rows = documents.map(tokenize, batched=True, remove_columns=["text"], cache_file_name=f"{folder}/a.arrow")
    rows.map(group_texts, batched=True, cache_file_name=f"{folder}/b.arrow")
    seconds = time.perf_counter() - start
    return seconds, np.concatenate([np.asarray(ids, np.uint16) for ids in rows["input_ids"]])


def by_loop(documents, folder):
    """Tokenise one document after the other, then copy all into a memmap."""
    tok = tokenizer()

    def tokenize(row):
        ids = [*tok.encode(row["text"]), tok.eos_token_id]
        return {"ids": ids, "len": len(ids)}

    start = time.perf_counter()
    rows = documents.map(tokenize, remove_columns=["text"], cache_file_name=f"{folder}/a.arrow")
    stream = np.memmap(f"{folder}/train.bin", np.uint16, "w+", shape=(sum(rows["len"]),))
    at = 0
    for batch in rows.with_format("numpy").iter(1024):
        ids = np.concatenate(batch["ids"])
        stream[at : at + len(ids)] = ids
        at += len(ids)
    stream.flush()
    return time.perf_counter() - start, np.array(stream)


def by_ours(documents, folder):
    """Tokenise and pack as `prepare` does."""
    tokens, n_tokens = TokenStream(tokenizer()), 0
    tokens.encode(documents[:20]["text"])  # loads it, as the other ways' tokenizer is loaded
    start = time.perf_counter()
    with BlockWriter(Path(folder) / "blocks", BLOCK) as blocks:
        for batch in documents.iter(4096):
            ids, _ = tokens.encode(batch["text"])
            blocks.add(ids)
            n_tokens += len(ids)
        blocks.finish("benchmark")
    seconds = time.perf_counter() - start
    return seconds, np.concatenate([tokens.encode(batch["text"])[0] for batch in documents.iter(4096)])


def by_prepare(file, folder, near_duplicates="report"):
    """Call `prepare` on a text file."""
    tokenizer().save_pretrained(f"{folder}/gpt2")
    GPT2Config().save_pretrained(f"{folder}/gpt2")  # `prepare` refuses a folder that is not a model's
    settings = DataSettings(
        source=file, model_name_or_path=f"{folder}/gpt2", block_size=BLOCK, near_duplicates=near_duplicates
    )
    start = time.perf_counter()
    splits = prepare(settings).facts["splits"]
    return time.perf_counter() - start, np.array([part["tokens"] for part in splits.values()])


def best(way, file, folder):
    """Return the best time of some rounds of one way, and the ids it gives."""
    texts = [text.strip() for text in Path(file).read_text(encoding="utf-8").split("\n\n")]
    documents = Dataset.from_dict({"text": [text for text in texts if text]}, Features({"text": Value("string")}))
    rounds = []
    for turn in range(ROUNDS + 1):
        (own := Path(folder) / str(turn)).mkdir()
        rounds.append(way(documents, own))
    return min(seconds for seconds, _ in rounds[1:]), rounds[-1][1]


def resident():
    """Return the bytes this process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def peak():
    """Return the most bytes this process has held since the peak was reset."""
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def main(way, file, folder):
    """Measure one way and print its metrics."""
    disable_progress_bars()
    os.environ["COURSE_RUNS"] = folder
    if is_whole := way in ("prepare", "unlooked"):
        prepare(DataSettings(source="fables", run="warm-up"))  # memory that libraries take once does not count
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is counted from here
    before = resident()
    if is_whole:
        seconds, ids = by_prepare(file, folder, {"prepare": "report", "unlooked": "keep"}[way])
    else:
        seconds, ids = best({"map": by_map, "loop": by_loop, "ours": by_ours}[way], file, folder)
    figures = {"seconds": seconds, "n_bytes": Path(file).stat().st_size, "above_start_bytes": peak() - before}
    print(json.dumps(figures | {"ids": hashlib.sha256(ids.tobytes()).hexdigest()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
