"""Write folders of finished, pruned and failed runs, as training would."""

import json
import math

TEXT, OTHER_TEXT, VALIDATION = "a" * 64, "b" * 64, "c" * 64


def write_run(
    folder, *, perplexity=20.0, eval_loss=3.0, text=TEXT, validation=VALIDATION, settings=None, context=256, **trial
):
    """Write the folder of a finished run; with `perplexity=None` it was never evaluated."""
    folder.mkdir(parents=True)
    record = {"settings": {"run": folder.name, "learning_rate": 1e-3, "source": "fables", **(settings or {})}}
    hashes = {"data_sha256": {"test": text, "validation": validation}}
    (folder / "settings.json").write_text(json.dumps(record | hashes))
    (folder / "training.json").write_text(json.dumps({"tokens": 4096, "seconds": 75.0, "peak_bytes": 3 * 2**20}))
    rows = [{"step": 10, "eval_loss": eval_loss + 1}, {"step": 20, "eval_loss": eval_loss}, {"step": 20, "sample": "x"}]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if perplexity is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation(perplexity, text, context, folder.name)))
    if trial:
        (folder / "trial.json").write_text(json.dumps(trial))
    return folder


def evaluation(perplexity, text, context, run):
    score = {"perplexity": perplexity, "bits_per_byte": perplexity / 10, "word_perplexity": perplexity**2}
    score |= {
        "perplexity_interval": None if math.isnan(perplexity) else [perplexity - 1, perplexity + 2],
        "bits_per_byte_interval": [1.9, 2.2],
    }
    score |= {"context": context, "stride": 128, "text_sha256": text, "protocol": "documents"}
    difference = {"interval": [0.1, 0.2], "confidence": 0.95, "resamples": 2000}
    test = {"source": "fables", "verdict": "Better.", "text_sha256": text, "difference": difference, "documents": []}
    test |= {"base": score, "tuned": score}
    return {"version": 1, "run": run, "test": test, "forgetting": None, "copying": None, "speech": None}


def write_documents(folder, tuned_nats, *, text="d"):
    """Record the nats of a run's test documents, of 100 bytes and 25 tokens each."""
    content = json.loads((folder / "evaluation.json").read_text())
    content["test"]["documents"] = [
        {"sha256": f"{text}{number}", "bytes": 100, "tokens": 25, "base_nats": 90.0, "tuned_nats": nats}
        for number, nats in enumerate(tuned_nats)
    ]
    (folder / "evaluation.json").write_text(json.dumps(content))


def write_trials(runs):
    """Write the study `rates`: two finished trials, a pruned one and a failed one."""
    for number, (state, loss) in enumerate([("done", 3.0), ("done", 2.0), ("pruned", 1.0)]):
        record = {"optimise": "eval_loss", "parameters": {"learning_rate": 10.0**-number, "stride": 64}, "state": state}
        write_run(runs / f"rates/trial-{number:03d}", perplexity=20.0 + number, eval_loss=loss, **record)
    failed = runs / "rates/trial-003"
    failed.mkdir()
    failed.joinpath("trial.json").write_text(
        json.dumps(
            {"parameters": {"learning_rate": 0.1}, "state": "failed", "error": "<b>broken</b>", "optimise": "eval_loss"}
        )
    )
