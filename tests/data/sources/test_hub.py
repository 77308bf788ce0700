"""The real clients against a server on this machine that answers as the Hub does, and as it does on bad days."""

import os
import subprocess
import sys
import threading
import time

import pytest
from datasets import Dataset, config

from helpers.data.sources import hub as hub_module
from helpers.paths import POCKET
from helpers.settings import DataSettings, SettingsError
from tests.loopback_hub import COMMIT, loopback_hub

MODEL, TEXTS, STREAMED, GATED, DROPPED, MANY = (
    "openai-community/gpt2", "course/stories", "course/streamed", "course/gated", "course/dropped", "course/many",
)  # fmt: skip
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Serve the pocket model under the name of GPT-2, and a few small data sets; return the address."""
    folder = tmp_path_factory.mktemp("hub")

    def parquet(split, n):
        rows = [f"The fox {i} of {split} went to well number {i * i} and found {i * 7} moons in it." for i in range(n)]
        Dataset.from_dict({"story": rows, "n": list(range(n))}).to_parquet(folder / f"{split}.parquet")
        return folder / f"{split}.parquet"

    def card(*names):
        lines = [f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in names]
        file = folder / f"card{len(names)}.md"
        file.write_text("---\nconfigs:\n{}\n---\n".format("\n".join(lines)) if names else "# Stories")
        return file

    stories = {
        "README.md": card(),
        "data/train-00000-of-00002.parquet": parquet("train", 40),
        "data/train-00001-of-00002.parquet": parquet("more", 20),
        "data/test-00000-of-00001.parquet": parquet("test", 9),
    }
    repositories = {
        f"models/{MODEL}": {path.name: path for path in POCKET.iterdir() if path.is_file()},
        f"datasets/{TEXTS}": stories,
        f"datasets/{STREAMED}": stories,
        f"datasets/{DROPPED}": stories,
        f"datasets/{MANY}": {
            "README.md": card("small", "large"),
            "small/a.parquet": parquet("a", 9),
            "large/b.parquet": parquet("b", 9),
        },
    }
    with loopback_hub(repositories, gated=[f"datasets/{GATED}"], dropped=[f"datasets/{DROPPED}"]) as address:
        yield address


LOAD_MODEL = "print(load_model({0!r}).config.vocab_size, len(load_tokenizer({0!r})))"
LOAD_TEXTS = "print({{name: len(part) for name, part in load_documents(DataSettings({0})).items()}})"
SOURCE = """
from helpers.data.in_memory import load_documents
from helpers.model import load_model, load_tokenizer
from helpers.settings import DataSettings, SettingsError
for line in {!r}:
    try:
        exec(line)
    except SettingsError as error:
        print(error)
    print({!r})
"""
NEXT = "--- next"


def in_a_child(address, home, *lines):
    """Run lines in a fresh process whose cache is in `home`; return what each prints, and the seconds of all."""
    places = {"HF_HOME": str(home), "COURSE_RUNS": str(home / "runs")}
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, **places}
    start = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-c", SOURCE.format(lines, NEXT)], env=environment, capture_output=True, text=True, timeout=300
    )
    seconds = time.monotonic() - start
    assert child.returncode == 0, child.stderr
    return child.stdout.split(f"{NEXT}\n")[:-1], seconds


def load_texts(source, **settings):
    return LOAD_TEXTS.format(", ".join(f"{name}={value!r}" for name, value in {"source": source, **settings}.items()))


REASONS = {
    "nobody/nothing": "is not on the Hub, or is private: check the name and its owner",
    GATED: "is gated: accept its terms on its page, log in with `hf auth login`",
    DROPPED: "could not be downloaded completely",
    MANY: "needs another configuration: set source_config",
}
STREAM = """
from helpers.data import open_training_blocks, prepare
settings = DataSettings(run='stream', source={!r}, streaming=True, max_tokens=800, block_size=16)
data = prepare(settings)
stream = open_training_blocks(data, settings)
print(len(stream), sum(bool(block['input_ids'].any()) for block in stream), data.facts['stream']['revision'])
"""
LINES = {
    "model": LOAD_MODEL.format(MODEL),
    "texts": load_texts(TEXTS),
    "no model": LOAD_MODEL.format("nobody/nothing"),
    "named": load_texts(TEXTS, source_split="test", text_column="story", source_revision=COMMIT),
    "small": load_texts(MANY, source_config="small"),
    "stream": STREAM.format(STREAMED),
    **{source: load_texts(source) for source in REASONS},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return the folder of a cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def answers(hub, home):
    """Return what one process with the Hub at hand answers to each line: every new one imports for seconds."""
    replies, seconds = in_a_child(hub, home, *LINES.values())
    return dict(zip(LINES, replies, strict=True)) | {"seconds": seconds}


def test_without_the_hub_cached_downloads_work_and_the_rest_fails_quickly(answers, home):
    first, missing = [answers["model"], answers["texts"]], "course/missing"
    assert first == ["4096 4096\n", "{'train': 60, 'test': 9}\n"]
    replies, seconds = in_a_child(NOBODY, home, LINES["model"], LINES["texts"], load_texts(missing))
    assert replies == [
        *first,
        f"The Hub's data set {missing!r} is not in the cache, and the Hub does not answer: connect to the network "
        "once, or use source='fables', which is shipped.\n",
    ]
    assert seconds < 5 * answers["seconds"], "the libraries alone would try for minutes"


def test_a_model_that_is_not_on_the_hub_gives_one_sentence(answers):
    assert "'nobody/nothing' could not be loaded" in answers["no model"]
    assert answers["no model"].count("\n") == 1


def test_a_split_a_column_a_revision_and_a_configuration_can_be_named(answers):
    assert answers["named"] == answers["small"] == "{'train': 9}\n"


@pytest.mark.parametrize(("source", "words"), REASONS.items())
def test_the_reason_why_a_data_set_cannot_be_loaded_is_given_in_one_sentence(answers, source, words):
    assert words in answers[source]
    assert answers[source].count("\n") == 1


def test_streaming_stores_nothing_of_a_data_set(answers, home):
    def stored_files(source):
        name = source.partition("/")[2]
        return [path for path in home.rglob("*") if path.suffix in (".arrow", ".parquet") and name in str(path)]

    assert answers["stream"] == f"50 50 {COMMIT}\n"
    assert stored_files(TEXTS)
    assert not stored_files(STREAMED)


@pytest.mark.parametrize(
    ("values", "is_online", "is_streaming"),
    [
        ({}, True, False),
        ({"max_tokens": 100}, True, True),  # to download only the beginning
        ({"max_tokens": 100}, False, False),  # the cache is at hand as a whole
        ({"max_tokens": 100, "streaming": True}, False, True),
    ],
)
def test_what_is_requested_follows_from_the_settings(monkeypatch, values, is_online, is_streaming):
    asked = {}
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: asked.update(options, names=names) or {})
    monkeypatch.setattr(hub_module, "hub_answers", lambda: is_online)
    named = DataSettings(source=TEXTS, source_config="small", source_revision="v2", **values)
    assert hub_module.open_from_hub(named, by_shard=False) == {}
    assert asked == {"names": (TEXTS, "small"), "revision": "v2", "streaming": is_streaming}


def test_only_the_requested_columns_are_read(monkeypatch):
    split = Dataset.from_dict({"story": ["a", "b"], "picture": [b"x", b"y"]})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": split})
    (open_table,) = hub_module.open_from_hub(DataSettings(source=TEXTS), by_shard=False)["train"]
    table = open_table()
    assert set(table.columns) == {"story", "picture"}
    assert list(table.rows(["story"])) == [("row 1", {"story": "a"}), ("row 2", {"story": "b"})]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Dataset scripts are no longer supported", "is a script, and scripts no longer load: look for a Parquet copy"),
        ("Config name is missing.\nUse one of: ['small']", "(Config name is missing. Use one of: ['small'])"),
        ("ReadTimeout", "could not be downloaded completely"),
        ("Something else", "could not be loaded (Something else): check source_config and the network, or use"),
    ],
)
def test_a_message_of_the_library_becomes_a_reason_with_advice(message, words):
    with (
        pytest.raises(SettingsError) as raised,
        hub_module._explain_errors(DataSettings(source=TEXTS), is_online=True),
    ):
        raise RuntimeError(message)
    assert words in str(raised.value)


def test_a_misspelled_folder_that_looks_like_a_hub_name_gets_a_suggestion(tmp_path, monkeypatch):
    (tmp_path / "data" / "my_texts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"; did you mean 'data/my_texts'\?$"):
        hub_module.open_from_hub(DataSettings(source="data/my_text"), by_shard=False)


def test_threads_that_read_offline_leave_the_library_online(monkeypatch):
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    has_entered, may_leave = threading.Event(), threading.Event()

    def read():
        with hub_module._force_offline():
            has_entered.set()
            may_leave.wait(10)

    other = threading.Thread(target=read)
    with hub_module._force_offline():
        other.start()
        has_entered.wait(0.1)  # without waiting for its turn, it would take this block's change for the usual state
    may_leave.set()
    other.join()
    assert config.HF_HUB_OFFLINE is False
