import json
import math
import os
import re
import shutil
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from transformers import GPT2LMHeadModel, TrainerCallback, pipeline

from helpers.data.preparation import prepare
from helpers.model import load_model, load_tokenizer
from helpers.settings import SettingsError, TrainingSettings, read_run_settings, run_folder
from helpers.training import callbacks, engine
from helpers.training import fine_tuning as training
from helpers.training.fine_tuning import as_batch, fine_tune, open_or_train
from helpers.training.finished_run import open_run
from helpers.training.guards import TrainingBrokenError
from helpers.training.run_files import last_complete_checkpoint
from helpers.training.stopping import TrainingStoppedError
from tests.forked import train_forked
from tests.training.saved_weights import same_weights, weights


def test_training_lowers_the_loss_and_leaves_a_complete_run_folder(tiny_run, runs):
    losses = [row["loss"] for row in tiny_run.history if "loss" in row]
    assert losses[-1] < losses[0] < math.log(4096) + 0.5
    names = {path.name for path in (runs / "tiny").iterdir() if not path.name.startswith(".")}
    assert names == {"settings.json", "data", "checkpoints", "model", "history.jsonl", "training.json"}


def test_the_settings_file_is_all_that_is_needed_to_repeat_the_run(tiny_run, tiny_settings):
    record = json.loads((tiny_run.folder / "settings.json").read_text())
    assert TrainingSettings(**record["settings"]) == tiny_settings
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    n_threads = torch.get_num_threads()
    assert record["machine"]["processor"].endswith(f", {n_threads} thread{'s' * (n_threads != 1)}")
    assert set(record["data_sha256"]) == {"train", "validation", "test"}


def test_the_same_settings_give_the_same_weights(tiny_run, tiny_settings):
    again = fine_tune(tiny_settings.model_copy(update={"run": "again"}))
    assert same_weights(weights(tiny_run.model_folder), weights(again.model_folder))


def test_an_interrupted_run_ends_with_the_weights_and_history_of_an_uninterrupted_one(
    tiny_run, tiny_settings, monkeypatch
):
    class PowerCutError(Exception):
        pass

    def cut_at_step_5(*arguments):
        callback = original(*arguments)

        def on_step_end(args, state, control, **_):
            if state.global_step == 5:
                raise PowerCutError

        callback.on_step_end = on_step_end
        return callback

    original = callbacks._History
    settings = tiny_settings.model_copy(update={"run": "cut"})
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "_History", cut_at_step_5)
        with pytest.raises(PowerCutError):
            fine_tune(settings)
    assert last_complete_checkpoint(run_folder("cut") / "checkpoints").name == "checkpoint-3"
    resumed = fine_tune(settings)
    assert same_weights(weights(tiny_run.model_folder), weights(resumed.model_folder))
    assert resumed.history == tiny_run.history


def test_a_run_whose_measurements_cannot_be_stored_is_still_complete(tiny_settings, runs):
    runs.mkdir()
    (runs / ".calibrations").touch()  # stands for a folder that belongs to another user
    with pytest.warns(UserWarning, match=r"The measurements of this run are not kept for later plans \("):
        fine_tune(tiny_settings)
    assert fine_tune(tiny_settings).facts["step_seconds"] > 0


def test_a_finished_run_is_opened_instead_of_trained_again(tiny_run, tiny_settings, monkeypatch):
    monkeypatch.setattr("helpers.training.processes.run_lock", None)  # the lock may belong to another user
    before = (tiny_run.model_folder / "model.safetensors").stat().st_mtime_ns
    assert fine_tune(tiny_settings) == tiny_run
    assert (tiny_run.model_folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has another kind of permissions")
def test_weights_have_the_permissions_of_the_other_files(tiny_run):
    for folder in (tiny_run.model_folder, last_complete_checkpoint(tiny_run.folder / "checkpoints")):
        assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


@pytest.mark.parametrize("has_clock", [True, False])  # the first version's checkpoints store no clock
def test_a_truncated_model_is_rebuilt_from_the_last_checkpoint(tiny_run, tiny_settings, has_clock):
    before = weights(tiny_run.model_folder)
    path = last_complete_checkpoint(tiny_run.folder / "checkpoints") / "trainer_state.json"
    state = json.loads(path.read_text())
    if not has_clock:
        del state["stateful_callbacks"]["Clock"]
    path.write_text(json.dumps(state))
    (tiny_run.model_folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.warns(UserWarning, match="The model of run 'tiny' is missing or damaged: made again"):
        again = fine_tune(tiny_settings)
    assert same_weights(before, weights(again.model_folder))
    assert (again.facts, again.history) == (tiny_run.facts, tiny_run.history), "the measurements are unchanged"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot move a folder with an open file")
def test_a_run_renamed_during_training_stops_and_resumes_under_its_new_name(tiny_settings, tiny_run, runs):
    def rename(history, progress):
        if (runs / "moving").exists() and last_complete_checkpoint(runs / "moving/checkpoints"):
            (runs / "moving").rename(runs / "moved")

    settings = tiny_settings.model_copy(update={"run": "moving", "save_steps": 2})
    with pytest.raises(TrainingBrokenError, match=r"was deleted or renamed (.|\n)*continues from its last checkpoint"):
        fine_tune(settings, watch=rename)
    moved = fine_tune(settings.model_copy(update={"run": "moved"}))
    assert same_weights(weights(moved.model_folder), weights(tiny_run.model_folder))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot delete a folder with an open file")
@pytest.mark.parametrize("is_locked", [True, False])
def test_a_run_whose_folder_is_deleted_writes_nothing_into_a_new_folder_with_its_name(tiny_settings, runs, is_locked):
    def start_another(history, progress):
        if (runs / "tiny/another").exists():
            return
        shutil.rmtree(runs / "tiny")
        (runs / "tiny/another").mkdir(parents=True)
        if is_locked:
            (runs / "tiny/.train.lock").touch()

    with pytest.raises(TrainingBrokenError, match="was deleted or renamed during training"):
        fine_tune(tiny_settings, watch=start_another)
    assert [path.name for path in (runs / "tiny").glob("[!.]*")] == ["another"]


def test_other_settings_are_refused_before_waiting_for_the_run_lock(tiny_run, tiny_settings, monkeypatch):
    monkeypatch.setattr(training.processes, "run_lock", lambda folder: pytest.fail("it waits"))
    before = weights(tiny_run.model_folder)
    with pytest.raises(SettingsError, match=r"learning_rate = 0\.001, not 0\.002.*another run name"):
        fine_tune(tiny_settings.model_copy(update={"learning_rate": 2e-3}))
    assert same_weights(before, weights(tiny_run.model_folder))


def test_accumulated_passes_have_the_first_loss_of_one_batch(tiny_run, tiny_settings):
    halves = {"run": "halves", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    first_loss = fine_tune(tiny_settings.model_copy(update=halves)).history[0]["loss"]
    assert first_loss == pytest.approx(tiny_run.history[0]["loss"], abs=0.05), "only the dropout differs"


def test_gradient_checkpointing_trains_the_same_model(tiny_run, tiny_settings):
    other = fine_tune(tiny_settings.model_copy(update={"run": "checkpointed", "gradient_checkpointing": True}))
    for name, value in weights(tiny_run.model_folder).items():
        torch.testing.assert_close(weights(other.model_folder)[name], value, atol=1e-5, rtol=1e-4)


def test_the_saved_model_is_stock_and_loads_without_this_package(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "helpers", None)  # it cannot be imported
    speak = pipeline("text-generation", model=str(tiny_run.model_folder))
    assert type(speak.model) is GPT2LMHeadModel
    assert speak("The fox", max_new_tokens=5, do_sample=False)[0]["generated_text"].startswith("The fox")


def test_the_saved_configuration_is_unchanged(tiny_run, tiny_model):
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (tiny_model, tiny_run.model_folder))
    assert after == before


def test_a_setting_without_effect_gives_a_warning_when_training_starts(tiny_settings):
    with pytest.warns(UserWarning, match="lora_alpha = 64 has no effect with lora_r = 0"):
        fine_tune(tiny_settings.model_copy(update={"run": "idle", "lora_alpha": 64}))


def test_open_or_train_trains_a_missing_run_with_the_defaults_and_suggests_a_name(tiny_run, monkeypatch):
    monkeypatch.setattr(training, "fine_tune", lambda settings: settings)
    with pytest.warns(UserWarning, match=r"no run 'tny' in .*; did you mean 'tiny'\? It is trained now"):
        assert open_or_train("tny") == TrainingSettings(run="tny")
    assert open_or_train("pocket") == TrainingSettings()


def test_labels_are_the_input_tokens_including_end_of_text(tiny_settings):
    blocks = prepare(tiny_settings).blocks["train"]
    batch = as_batch([blocks[0], blocks[1]])
    assert batch["input_ids"].shape == (2, 32)
    assert batch["labels"] is batch["input_ids"]
    assert 4095 in batch["labels"]


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        (1e30, TrainingBrokenError, r"The loss is (nan|inf) .* at step 1"),
        (math.nan, SettingsError, "The model is broken: its weights transformer.wte.weight hold values"),
    ],
)
def test_a_model_without_a_finite_loss_is_refused_or_stops_the_run(
    tiny_model, tiny_settings, tmp_path, weight, error, words
):
    broken = load_model(str(tiny_model))
    with torch.no_grad():
        broken.transformer.wte.weight[:] = weight
    folder = tmp_path / "spoilt"
    broken.save_pretrained(folder)
    load_tokenizer("pocket").save_pretrained(folder)
    with pytest.raises(error, match=words):
        fine_tune(tiny_settings.model_copy(update={"model_name_or_path": str(folder), "run": "spoilt"}))


def test_a_block_longer_than_the_models_positions_is_refused_before_training(tiny_settings):
    with pytest.raises(SettingsError, match="use at most 64"):
        fine_tune(tiny_settings.model_copy(update={"block_size": 65}))


@pytest.mark.parametrize(
    "changes",
    [{"source": "nowhere.txt"}, {"model_name_or_path": "./no"}, {"streaming": True}, {"mixed_precision": "fp16"}],
)
def test_a_refused_run_leaves_no_folder(tiny_settings, runs, monkeypatch, changes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError):
        fine_tune(tiny_settings.model_copy(update=changes))
    assert not list(runs.iterdir())


def test_a_history_row_at_each_checkpoint_keeps_all_losses_across_a_resume(tiny_settings):
    changes = {"logging_steps": 5, "save_steps": 3, "eval_steps": 100}
    unbroken = fine_tune(tiny_settings.model_copy(update=changes | {"run": "unbroken"}))
    steps = [row["step"] for row in unbroken.history if "loss" in row]
    assert set(range(3, unbroken.facts["steps"] + 1, 3)) | {5, 10} <= set(steps)
    cut = tiny_settings.model_copy(update=changes | {"run": "cut"})
    stop_after(cut, 5)  # saves at step 6
    assert fine_tune(cut).history == unbroken.history


def test_non_finite_weights_are_not_saved_even_if_no_log_row_is_due(tiny_settings, monkeypatch):
    settings = tiny_settings.model_copy(update={"logging_steps": 1000, "save_steps": 4, "eval_steps": 1000})

    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            if state.global_step == 8:  # after the loss of this step was computed
                model.transformer.wte.weight.data[5] = math.nan

    original = training.training_callbacks
    monkeypatch.setattr(training, "training_callbacks", lambda *args, **how: [Spoil(), *original(*args, **how)])
    with pytest.raises(TrainingBrokenError, match=r"A weight is not finite at step 8: the weights are broken"):
        fine_tune(settings)
    assert last_complete_checkpoint(run_folder("tiny") / "checkpoints").name == "checkpoint-4"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 1.4},
        {"num_train_epochs": 0.1, "warmup_steps": 0},
        {"num_train_epochs": 30.0, "learning_rate": 0.1, "early_stopping_patience": 2, "eval_steps": 2},
    ],
)
def test_a_run_killed_after_its_last_checkpoint_is_finished_without_another_step(tiny_settings, changes):
    settings = tiny_settings.model_copy(update=changes)
    unbroken = fine_tune(settings)
    expected = weights(unbroken.model_folder)
    (unbroken.folder / "training.json").unlink()
    shutil.rmtree(unbroken.model_folder)
    again = fine_tune(settings)
    assert again.history == unbroken.history
    assert same_weights(weights(again.model_folder), expected)
    assert [again.facts[name] for name in ("steps", "tokens")] == [unbroken.facts[name] for name in ("steps", "tokens")]
    assert again.facts["seconds"] == pytest.approx(unbroken.facts["seconds"], abs=1)


def test_the_progress_bar_shows_loss_speed_and_memory(tiny_settings, capsys):
    fine_tune(tiny_settings, progress=True)
    assert re.search(r"12/12 .*loss \d\.\d{3}, [\d,]+ tokens/s, [\d,]+ MiB", capsys.readouterr().err)


def test_an_error_starts_on_a_new_line_below_the_progress_bar(tiny_settings, monkeypatch, capsys):
    left = [10**12, 1000]  # enough space to start, too little for a checkpoint
    monkeypatch.setattr("helpers.training.guards.free_bytes", lambda folder: left.pop(0))
    with pytest.raises(TrainingBrokenError) as kept:  # keeping the error keeps the bar alive
        fine_tune(tiny_settings, progress=True)
    assert re.search(r"\d/12 [^\n]*\n$", capsys.readouterr().err), kept


def run_out_of_memory_above(largest, monkeypatch, *, message="CUDA out of memory. Tried to allocate 2.00 GiB."):
    """Make every training step of more than `largest` rows run out of memory, by default with CUDA's message."""
    original = engine.chunked_loss

    def chunked_loss(hidden_states, *args, **kwargs):
        if hidden_states.requires_grad and len(hidden_states) > largest:
            raise RuntimeError(message)
        return original(hidden_states, *args, **kwargs)

    monkeypatch.setattr(engine, "chunked_loss", chunked_loss)


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_trains_the_same_model(tiny_settings, monkeypatch):
    by_hand = {"run": "by-hand", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    expected = fine_tune(tiny_settings.model_copy(update=by_hand))
    run_out_of_memory_above(1, monkeypatch)
    with pytest.warns(UserWarning, match="Out of memory with per_device_train_batch_size"):
        halved = fine_tune(tiny_settings)
    assert (halved.facts["per_device_train_batch_size"], halved.facts["gradient_accumulation_steps"]) == (1, 4)
    assert same_weights(weights(halved.model_folder), weights(expected.model_folder))
    assert halved.history == expected.history
    assert read_run_settings("tiny").per_device_train_batch_size == 4, "the settings keep the requested batch size"


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:120] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes",
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
    ids=["CPU on Windows", "CUDA driver", "cuBLAS"],
)
def test_a_model_that_does_not_fit_at_all_is_reported(tiny_settings, monkeypatch, message):
    run_out_of_memory_above(0, monkeypatch, message=message)
    with (
        pytest.warns(UserWarning, match="Out of memory"),
        pytest.raises(TrainingBrokenError, match="not even one block of 32 tokens fits"),
    ):
        fine_tune(tiny_settings)


def test_a_full_disk_stops_before_the_checkpoint_and_keeps_the_last_one(tiny_settings, monkeypatch):
    real, left = shutil.disk_usage, [10**12, 10**12, 1000]  # space to start and for one checkpoint only

    def disk_usage(path):
        return real(path)._replace(free=left.pop(0)) if path == run_folder("tiny") else real(path)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(TrainingBrokenError, match=r"0 MiB left .* It continues from its last checkpoint"):
        fine_tune(tiny_settings)
    assert last_complete_checkpoint(run_folder("tiny") / "checkpoints").name == "checkpoint-3"


def test_a_full_disk_is_refused_before_the_first_step(tiny_settings, monkeypatch):
    monkeypatch.setattr("helpers.training.guards.free_bytes", lambda folder: 1000)
    with pytest.raises(TrainingBrokenError, match=r"are needed: free some space .* start the same run again\.$"):
        fine_tune(tiny_settings)
    assert not (run_folder("tiny") / "history.jsonl").exists()


def half_written(checkpoints):
    """Return whether a checkpoint still lacks its state, which the Trainer writes last."""
    return any(not (folder / "trainer_state.json").exists() for folder in checkpoints.glob("checkpoint-*"))


def test_a_run_killed_at_any_moment_ends_with_the_same_weights_and_history(tiny_settings, runs):
    settings = tiny_settings.model_copy(update={"num_train_epochs": 12.0, "save_steps": 4})
    expected = fine_tune(settings.model_copy(update={"run": "unbroken"}))
    settings = settings.model_copy(update={"run": "killed"})
    checkpoints, history = runs / "killed/checkpoints", runs / "killed/history.jsonl"
    kill_conditions = [
        lambda: half_written(checkpoints),
        lambda: history.exists() and len(history.read_text().splitlines()) > 9,
        lambda: (runs / "killed/model.new").exists() or (runs / "killed/model").exists(),
    ]
    n_kills = 0
    for is_reached in kill_conditions:
        child = train_forked(settings, runs)
        while child.is_alive() and not is_reached():
            time.sleep(0.0005)
        n_kills += child.is_alive()
        child.kill()
        child.join()
    assert n_kills >= 2, "training ended before it could be killed"
    finished = fine_tune(settings)
    assert same_weights(weights(expected.model_folder), weights(finished.model_folder))
    assert finished.history == expected.history


@pytest.mark.filterwarnings("ignore:.*is skipped")  # a checkpoint truncated by the kill
def test_a_killed_streamed_run_ends_with_bit_identical_weights(tiny_settings, runs, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(3):
        texts = [f"On day {number} of year {shard} the fox went to well {number * number}." for number in range(140)]
        Dataset.from_dict({"text": texts}).to_parquet(shards / f"{shard}.parquet")
    stream = {"source": str(shards), "streaming": True, "max_tokens": 5000, "num_train_epochs": 2.5}
    stream |= {"save_steps": 5, "eval_steps": 50, "sample_prompt": ""}
    finished = []
    for run in ("unbroken", "killed"):
        settings = tiny_settings.model_copy(update=stream | {"run": run})
        facts = prepare(settings).facts
        facts["stream"]["buffer_blocks"] = 40  # four buffers per epoch
        (runs / run / "data/data.json").write_text(json.dumps(facts))
        if run == "killed":
            child, checkpoints = train_forked(settings, runs), runs / "killed/checkpoints"
            while child.is_alive() and not (checkpoints / "checkpoint-55/trainer_state.json").exists():
                time.sleep(0.0005)
            assert child.is_alive(), "training ended before it could be killed"
            child.kill()
            child.join()
        finished.append(fine_tune(settings))
    one, other = finished
    assert one.facts["steps"] == other.facts["steps"] == math.ceil(2.5 * math.ceil(5000 // 32 / 4))
    assert same_weights(weights(one.model_folder), weights(other.model_folder))
    assert one.history == other.history


def test_a_moved_model_is_recognised_by_its_files(tiny_run, tiny_settings, tiny_model, tmp_path):
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    settings = tiny_settings.model_copy(update={"model_name_or_path": str(moved)})
    assert fine_tune(settings).history == tiny_run.history
    with (moved / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(SettingsError, match="was started with model_name_or_path"):
        fine_tune(settings)


def stop_after(settings, step):
    """Train up to a step and stop with a checkpoint."""
    stop = threading.Event()
    with pytest.raises(TrainingStoppedError):
        fine_tune(settings, stop=stop, watch=lambda _, progress: stop.set() if progress.step >= step else None)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_holds_code_is_refused(tiny_settings, runs, tmp_path, name):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    settings = tiny_settings.model_copy(update={"run": "theirs"})
    stop_after(settings, 2)
    checkpoint = last_complete_checkpoint(runs / "theirs/checkpoints")
    torch.save({"state": Code()}, checkpoint / name)
    with pytest.raises(SettingsError, match=rf"{checkpoint.name} is refused: a file in it holds .* Delete this folder"):
        fine_tune(settings)
    assert not (tmp_path / "ran").exists()


def test_early_stopping_keeps_the_best_model_and_its_patience_survives_a_resume(tiny_settings):
    rising = {"learning_rate": 0.1, "num_train_epochs": 30.0, "early_stopping_patience": 2, "eval_steps": 2}
    unbroken = fine_tune(tiny_settings.model_copy(update=rising | {"run": "unbroken"}))
    val_loss = [row["eval_loss"] for row in unbroken.history if "eval_loss" in row]
    assert unbroken.facts["steps"] < 30 * 6
    best = min(range(len(val_loss)), key=val_loss.__getitem__)
    assert len(val_loss) == best + 3, "two validations without improvement"
    model, data = load_model(str(unbroken.model_folder)).eval(), prepare(tiny_settings).blocks["validation"]
    ids = torch.stack([row["input_ids"] for row in data])
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(val_loss[best], rel=1e-3)
    cut = tiny_settings.model_copy(update=rising | {"run": "cut"})
    stop_after(cut, unbroken.facts["steps"] - 2)
    assert fine_tune(cut).history == unbroken.history
    assert str(unbroken.facts["steps"]) in str(unbroken)
    assert f"validation loss {val_loss[best]:.3f}" in str(unbroken)


def test_the_seconds_of_a_run_include_those_before_a_resume(tiny_settings, monkeypatch):
    stop_after(tiny_settings, 6)
    checkpoint = last_complete_checkpoint(run_folder("tiny") / "checkpoints")
    before = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["Clock"]["args"]
    now = time.perf_counter
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now() / 1000)  # the rest takes almost no time
    assert fine_tune(tiny_settings).facts["seconds"] == pytest.approx(before["seconds"], abs=0.05)
    assert before["seconds"] > 0.1


def test_adafactor_lowers_the_loss_with_small_states_and_resumes_to_the_same_weights(tiny_settings):
    settings = tiny_settings.model_copy(update={"optim": "adafactor", "num_train_epochs": 1})
    unbroken, cut = fine_tune(settings), settings.model_copy(update={"run": "cut"})
    losses = [row["loss"] for row in unbroken.history if "loss" in row]
    assert losses[-1] < losses[0]
    states, kept = (
        last_complete_checkpoint(unbroken.folder / "checkpoints") / name
        for name in ("optimizer.pt", "model.safetensors")
    )
    assert states.stat().st_size < kept.stat().st_size / 4, "AdamW's states would be twice the weights"
    stop_after(cut, 4)
    resumed = fine_tune(cut)
    assert same_weights(weights(resumed.model_folder), weights(unbroken.model_folder))
    assert resumed.history == unbroken.history


def test_a_watcher_gets_each_row_and_the_progress(tiny_settings):
    seen = []
    fine_tune(tiny_settings, watch=lambda history, progress: seen.append((len(history), progress)))
    _, last = seen[-1]
    assert [rows for rows, _ in seen] == sorted(rows for rows, _ in seen)
    assert (last.step, last.seconds_left) == (last.max_steps, 0)
    assert last.tokens_per_second > 0
    assert str(last).startswith(f"step {last.max_steps} of {last.max_steps}, ")


def test_the_prompt_is_continued_after_each_validation(tiny_settings):
    history = fine_tune(tiny_settings.model_copy(update={"sample_prompt": "The fox"})).history
    samples = {row["step"]: row["sample"] for row in history if "sample" in row}
    assert list(samples) == [row["step"] for row in history if "eval_loss" in row]
    assert all(text.startswith("The fox") for text in samples.values())
    longest = "The fox went home. " * 50  # 950 characters, and more tokens than the model has positions
    cut = fine_tune(tiny_settings.model_copy(update={"sample_prompt": longest, "run": "cut"})).history
    assert all(row["sample"].startswith(longest) for row in cut if "sample" in row)
    silent = fine_tune(tiny_settings.model_copy(update={"sample_prompt": "", "run": "silent"})).history
    assert silent == [row for row in history if "sample" not in row], "sampling does not affect training"


@pytest.mark.skipif(sys.platform == "win32", reason="starts processes as POSIX systems do")
def test_two_processes_give_the_loss_of_one_at_the_same_effective_batch(tiny_model, tiny_settings, runs, tmp_path):
    without_dropout = load_model(str(tiny_model))  # no dropout, because each process would draw its own masks
    without_dropout.config.resid_pdrop = without_dropout.config.embd_pdrop = without_dropout.config.attn_pdrop = 0.0
    without_dropout.save_pretrained(tmp_path / "still")
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "still")
    full = tiny_settings.model_copy(update={"model_name_or_path": str(tmp_path / "still"), "run": "full"})
    stops = {"early_stopping_patience": 1, "eval_steps": 2, "learning_rate": 0.1, "num_train_epochs": 30.0}
    trainings = [full, full.model_copy(update={"run": "lora", "lora_r": 4} | stops)]
    alone = [fine_tune(settings) for settings in trainings]
    assert alone[1].facts["steps"] < 30 * 6, "it stops early"
    halved = [s.model_copy(update={"run": f"{s.run}-2", "per_device_train_batch_size": 2}) for s in trainings]
    for settings in halved:
        with two_processes(settings, runs):
            pass
    for one, settings in zip(alone, halved, strict=True):
        two = open_run(settings.run)
        for name in ("loss", "eval_loss"):
            losses = [[row[name] for row in run.history if name in row] for run in (one, two)]
            assert losses[0] == pytest.approx(losses[1], abs=1e-5), (settings.run, name)
        assert one.facts["steps"] == two.facts["steps"]
        for name, value in weights(one.model_folder).items():
            torch.testing.assert_close(weights(two.model_folder)[name], value, atol=1e-4, rtol=1e-3)
    assert (open_run("lora-2").folder / "adapter/adapter_model.safetensors").exists()
    assert fine_tune(read_run_settings("full-2")).run == "full-2", "a finished run is only opened"
    (runs / "full-2" / "training.json").unlink()
    with pytest.raises(SettingsError, match="was started with processes = 2, not 1"):
        fine_tune(read_run_settings("full-2"))


@contextmanager
def two_processes(settings, runs):
    """Train to the end in two processes, with the environment variables of torchrun and `accelerate launch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    try:
        for rank in "01":
            children.append(train_forked(settings, runs, RANK=rank, LOCAL_RANK=rank, **address))
        yield children
        for child, rank in zip(children, "01", strict=True):
            child.join(100)
            assert child.exitcode == 0, runs.with_name(f"train-{rank}.txt").read_text()
    finally:
        for child in children:
            child.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="starts processes as POSIX systems do")
def test_two_processes_wait_while_another_trains_the_run_and_then_open_it(tiny_run, runs):
    settings_file, printed = tiny_run.folder / "settings.json", runs.with_name("train-0.txt")
    settings_file.write_text(settings_file.read_text().replace('"processes": 1', '"processes": 2'))
    (tiny_run.folder / "training.json").rename(runs / "kept.json")
    lock = FileLock(tiny_run.folder / ".train.lock")
    lock.acquire()
    with two_processes(read_run_settings("tiny"), runs) as children:
        deadline = time.monotonic() + 100
        while not (printed.exists() and "Another process is working on run 'tiny'" in printed.read_text()):
            assert children[0].is_alive() and time.monotonic() < deadline, "the first process did not wait"
            time.sleep(0.05)
        (runs / "kept.json").rename(tiny_run.folder / "training.json")
        lock.release()


def test_logged_values_are_sent_to_tensorboard(tiny_settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finished = fine_tune(tiny_settings.model_copy(update={"report_to": "tensorboard"}))
    events = EventAccumulator(str(finished.folder / "tensorboard")).Reload()
    losses = [row["loss"] for row in finished.history if "loss" in row]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-5)
    assert events.Scalars("eval/loss")
