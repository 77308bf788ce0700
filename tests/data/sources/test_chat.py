"""Conversations as documents: which tables are chat data, how a template writes them, and what is a prompt."""

import json

import numpy as np
import pytest
from datasets import Dataset

from helpers.data.in_memory import load_documents, token_blocks
from helpers.data.preparation import prepare
from helpers.data.run_data import load_run_tokenizer
from helpers.data.sources import Source
from helpers.data.sources.chat import TEMPLATES, Dialogue, as_question, question_frame, render_chat
from helpers.data.tokens import TokenStream
from helpers.evaluation.scoring import score
from helpers.model import load_tokenizer
from helpers.settings import DataSettings, SettingsError

ASK, ANSWER = "Who went to the well?", "The fox."
CHAT = [
    {"role": "system", "content": "Be short."}, {"role": "user", "content": ASK},
    {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "It drank."},
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_assistant_messages_are_completions_and_everything_else_is_a_prompt(template):
    chat = render_chat(CHAT, template)
    completions = [text.strip().removesuffix("<|im_end|>") for text, is_prompt in chat.segments if not is_prompt]
    assert completions == [ANSWER, "It drank."]
    assert "".join(text for text, _ in chat.segments) == chat
    assert ASK in chat


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_dialogue_has_the_tokens_of_its_text_and_the_end_of_each_answer_is_learned(template):
    tokenizer = load_tokenizer("pocket")
    chat = render_chat(CHAT, template)
    ids, n_tokens, is_prompt = TokenStream(tokenizer).encode_dialogues([chat, chat])
    once = [
        token
        for text, is_prompt in chat.segments
        for token in tokenizer.encode(text) + [tokenizer.eos_token_id] * (not is_prompt)
    ]
    assert ids.tolist() == once * 2
    assert n_tokens.tolist() == [len(once)] * 2
    assert (~is_prompt[ids == tokenizer.eos_token_id]).sum() == 4
    learned = tokenizer.decode(ids[: len(once)][~is_prompt[: len(once)]])
    assert ANSWER in learned
    assert ASK not in learned


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_tokenizers_chat_template_writes_what_the_model_learned(template, tmp_path):
    tokenizer = load_tokenizer("pocket")
    tokenizer.chat_template = TEMPLATES[template].jinja
    tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    for messages in (CHAT[:1], CHAT[:3], CHAT):
        assert tokenizer.apply_chat_template(messages, tokenize=False) == render_chat(messages, template)
    with_ends = load_tokenizer("pocket")
    with_ends.chat_template = TEMPLATES[template]._replace(ends_answers=True).jinja
    ids, _, _ = TokenStream(tokenizer).encode_dialogues([render_chat(CHAT, template)])
    assert with_ends.apply_chat_template(CHAT)["input_ids"] == ids.tolist()
    assert question_frame(with_ends) == question_frame(tokenizer)
    asked = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert asked == render_chat(CHAT[:3], template).segments[0][0]
    question = tokenizer.apply_chat_template(CHAT[1:2], tokenize=False, add_generation_prompt=True)
    before, after = question_frame(tokenizer)
    assert question == before + ASK + after
    assert as_question(f" {ASK}<|endoftext|>\n", tokenizer) == question
    assert as_question(question, tokenizer) == question
    assert as_question("", tokenizer) == ""


def test_a_prompt_for_any_other_tokenizer_is_unchanged():
    tokenizer = load_tokenizer("pocket")  # its own, because it is changed
    assert as_question(f" {ASK}", tokenizer) == f" {ASK}"
    tokenizer.chat_template = "{{ messages[0]['content'] }}"  # somebody else's
    assert (question_frame(tokenizer), as_question(ASK, tokenizer)) == (("", ""), ASK)


def test_a_dialogue_without_an_answer_ends_in_a_prompt_and_one_without_a_prompt_has_none():
    tokens = TokenStream(load_tokenizer("pocket"))
    assert tokens.encode_dialogues([render_chat(CHAT[:2])])[2].all()
    assert render_chat(CHAT[2:3], "plain").segments == [(ANSWER, False)]


def test_a_first_row_without_messages_does_not_hide_chat_data(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in ([], CHAT[1:3])))
    ((_, texts),) = Source(DataSettings(source=str(path))).parts()
    assert list(texts) == ["", render_chat(CHAT[1:3])]


FORMS = {
    "messages": {"messages": CHAT[1:3], "id": 7},
    "ShareGPT": {"id": "0", "conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": ANSWER}]},
    "prompt and completion": {"prompt": ASK, "completion": f" {ANSWER}"},
    "messages in both": {"prompt": CHAT[1:2], "completion": CHAT[2:3]},
    "Alpaca": {"instruction": ASK, "input": "", "output": ANSWER},
    "question and answer": {"question": ASK, "answer": ANSWER},
    "instruction and response": {"instruction": ASK, "response": ANSWER, "category": "a"},
    "query and response": {"query": ASK, "response": ANSWER},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_chat_data_in_every_common_form_become_documents(tmp_path, form, name):
    rows = [FORMS[form]] * 3
    if name.endswith("parquet"):
        Dataset.from_list(rows).to_parquet(tmp_path / name)
    else:
        text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
        (tmp_path / name).write_text(text)
    source = Source(DataSettings(source=str(tmp_path / name)))
    ((_, texts),) = source.parts()
    assert list(texts) == [f"User: {ASK}\n\nAssistant: {ANSWER}"] * 3
    assert "conversation" in source.notes[0]
    if "messages" not in form and form != "ShareGPT":
        column = next(reversed({name: 0 for name in FORMS[form] if name not in ("category",)}))
        ((_, texts),) = Source(DataSettings(source=str(tmp_path / name), text_column=column)).parts()
        assert next(iter(texts)).strip() == ANSWER, "text_column takes that column alone"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [({"instruction": ASK, "input": "A fox.", "output": ANSWER}, f"User: {ASK}\n\nA fox.\n\nAssistant:"),
     ({"instruction": ASK, "context": "A fox.", "response": ANSWER}, f"User: {ASK}\n\nA fox.\n\nAssistant:"),
     ({"answer": ANSWER, "context": "A fox.", "question": ASK}, f"User: {ASK}\n\nA fox.\n\nAssistant:"),
     ({"system_prompt": "Be brief.", "question": ASK, "response": ANSWER},
      f"System: Be brief.\n\nUser: {ASK}\n\nAssistant:"),
     ({"system_prompt": " ", "question": ASK, "response": ANSWER}, f"User: {ASK}\n\nAssistant:")],
    ids=["input", "context", "context first", "system prompt", "empty system prompt"],
)  # fmt: skip
def test_what_a_question_refers_to_and_what_precedes_it_are_part_of_the_prompt(tmp_path, row, prompt):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    ((_, texts),) = Source(DataSettings(source=str(tmp_path / "a.jsonl"))).parts()
    assert next(iter(texts)).segments == [(prompt, True), (f" {ANSWER}", False)]


def test_messages_come_before_a_pair_of_columns_and_a_solution_before_its_last_line(tmp_path):
    row = {"problem": "2 + 2?", "answer": "4", "solution": "2 + 2 = 4"}
    for further, document in (({}, "User: 2 + 2?\n\nAssistant: 2 + 2 = 4"), ({"messages": CHAT[1:]}, f"User: {ASK}")):
        (tmp_path / "a.jsonl").write_text(json.dumps(row | further))
        ((_, texts),) = Source(DataSettings(source=str(tmp_path / "a.jsonl"))).parts()
        assert next(iter(texts)).startswith(document)


def test_a_column_called_text_comes_before_a_pair_of_prompt_and_completion(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": ASK, "completion": ANSWER, "text": "A fable."}))
    ((_, texts),) = Source(DataSettings(source=str(tmp_path / "a.jsonl"))).parts()
    assert list(texts) == ["A fable."]


def test_an_end_of_text_marker_inside_a_message_is_removed():
    chat = render_chat([CHAT[1], {"role": "assistant", "content": "The<|endoftext|>fox."}])
    assert chat.segments[-1] == (" The fox.", False)


def test_a_row_without_a_completion_is_empty_and_one_without_a_prompt_is_the_completion(tmp_path):
    rows = [(None, None), ("a", ""), ("a", "b"), (" ", "b")]
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    ((_, texts),) = Source(DataSettings(source=str(tmp_path / "a.jsonl"))).parts()
    assert [str(text) for text in texts] == ["", "", "User: a\n\nAssistant: b", "Assistant: b"]


def test_a_lone_surrogate_in_a_message_becomes_the_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a\ud83d b", "completion": "c\ude00"}))
    ((_, texts),) = Source(DataSettings(source=str(tmp_path / "a.jsonl"))).parts()
    assert [text.segments for text in texts] == [[("User: a\ufffd b\n\nAssistant:", True), (" c\ufffd", False)]]


@pytest.mark.parametrize(
    ("row", "words"),
    [({"messages": [{"role": "wizard", "content": "a"}]}, "line 1: a message needs a role"),
     ({"messages": [{"role": ["user"], "content": "a"}]}, "line 1: a message needs a role"),
     ({"messages": [{"role": "user", "content": None}]}, "line 1: a message needs a role"),
     ({"messages": [CHAT[1], "A fox."]}, "line 1: a message needs .* text, not A fox"),
     ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "call_1"}]}]},
      "…; tool calls and images are not read. Fix the row"),
     ({"instruction": "Add one.", "input": 5, "output": "six"}, "line 1: a message needs .* 'content': 5"),
     ({"instruction": "Sum.", "input": [1, 2], "output": "3"}, "line 1: a message needs .* text, not 1;")],
)  # fmt: skip
def test_an_unreadable_message_is_named_with_its_line(tmp_path, row, words):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(SettingsError, match=words):
        load_documents(DataSettings(source=str(tmp_path / "a.jsonl")))


def test_training_on_completions_needs_chat_data_whose_rows_stay_rows(text_file, tmp_path):
    for source in (str(text_file), "python-reference"):
        with pytest.raises(SettingsError, match="train_on = 'completion' needs chat data"):
            load_documents(DataSettings(source=source, train_on="completion"))
    (tmp_path / "a.jsonl").write_text(json.dumps(FORMS["messages"]))
    with pytest.raises(SettingsError, match="leave document_separator at 'auto'"):
        load_documents(DataSettings(source=str(tmp_path / "a.jsonl"), document_separator="file"))


def test_conversations_beside_other_text_are_refused_unless_all_is_learned(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(FORMS["messages"]))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "A fox."}))
    with pytest.raises(SettingsError, match=r"holds conversations and other text .*or train_on to 'all'"):
        load_documents(DataSettings(source=str(tmp_path)))
    documents = load_documents(DataSettings(source=str(tmp_path), train_on="all"))["train"]
    assert documents.column_names == ["text"]
    assert len(documents) == 2


def test_in_chat_data_only_completions_are_learned_unless_all_is_asked_for(tmp_path, text_file):
    (tmp_path / "a.jsonl").write_text(json.dumps(FORMS["messages"]))
    values = {"source": str(tmp_path / "a.jsonl"), "max_tokens": 100}
    for changes, learned in (
        ({}, "only what the assistant says"), ({"train_on": "all"}, "all of it"), ({"streaming": True}, "all of it"),
    ):  # fmt: skip
        source = Source(DataSettings(**values, **changes))
        assert [list(texts) for _, texts in source.parts()]
        assert source.has_prompts is (learned != "all of it")
        assert source.notes[0].endswith(f"{learned} is learned.")
    assert "borders" in load_documents(DataSettings(**values))["train"].column_names
    assert "borders" not in load_documents(DataSettings(source=str(text_file)))["train"].column_names


@pytest.fixture
def chat_settings(tmp_path, tiny_model):
    """Return settings with 60 conversations whose prompts are much longer than their answers."""
    rows = [
        {
            "prompt": f"Question {number}: " + f"who went to the well on day {number}? " * 4,
            "completion": f"Fox {number}.",
        }
        for number in range(60)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return DataSettings(
        run="chat", source=str(tmp_path / "chat.jsonl"), block_size=32,
        model_name_or_path=str(tiny_model),
    )  # fmt: skip


def test_only_completions_and_their_ends_have_labels(chat_settings):
    data, tokenizer = prepare(chat_settings), load_tokenizer("pocket")
    blocks, facts = data.blocks["train"].with_format("numpy"), data.facts["splits"]["train"]
    ids, labels = blocks["input_ids"][:], blocks["labels"][:]
    learned = labels != -100
    assert (labels[learned] == ids[learned]).all()
    assert learned.any(axis=1).all(), "a block without a label teaches nothing"
    assert not learned[:, 0].any(), "nothing predicts the first token of a block"
    assert learned.sum() == facts["labels"] < facts["tokens"] / 3
    assert "well" not in tokenizer.decode(labels[learned])
    assert (labels == tokenizer.eos_token_id).sum() > facts["documents"] / 2
    by_hand, _ = token_blocks(data.documents["train"], tokenizer, 32)
    assert (by_hand.with_format("numpy")["labels"][:] == labels).all()


def test_the_tokenizer_of_a_run_has_its_chat_datas_template(chat_settings, text_file):
    settings = chat_settings.model_copy(update={"chat_template": "alpaca", "train_on": "all"})
    prepare(settings)
    assert question_frame(load_run_tokenizer(settings)) == ("### Instruction:\n", "\n\n### Response:")
    plain = settings.model_copy(update={"run": "plain", "source": str(text_file)})
    prepare(plain)
    assert load_run_tokenizer(plain).chat_template is None


def test_a_trained_chat_model_takes_messages(chat_settings):
    from transformers import pipeline

    from helpers.settings import TrainingSettings
    from helpers.training.fine_tuning import fine_tune

    run = fine_tune(TrainingSettings(**chat_settings.model_dump(), num_train_epochs=0.1, sample_prompt=ASK))
    sample = next(row["sample"] for row in run.history if "sample" in row)
    assert sample.startswith(f"User: {ASK}\n\nAssistant:")
    speak = pipeline("text-generation", model=str(run.folder / "model"))
    question, answer = speak(CHAT[1:2], max_new_tokens=3)[0]["generated_text"]
    assert (question, answer["role"]) == (CHAT[1], "assistant")
    assert '[{"role": "user"' in (run.folder / "model/README.md").read_text(encoding="utf-8")


def test_a_score_counts_only_completions(tiny):
    model, tokenizer = tiny
    chats = [render_chat(CHAT), render_chat(CHAT[1:3])]
    result = score(model, tokenizer, chats, stride=8, context=16)
    ids, _, is_prompt = TokenStream(tokenizer).encode_dialogues(chats)
    assert result.n_tokens == (~is_prompt).sum()
    assert result.n_bytes == sum(len(text.encode()) for chat in chats for text, prompt in chat.segments if not prompt)
    alone = score(model, tokenizer, list(map(str, chats)), stride=8, context=16)
    assert alone.n_tokens == len(ids) - 1, "the end of the first answer"
    assert result.nats < alone.nats
    unmarked = [Dialogue(str(chat), []) for chat in chats]
    with pytest.raises(SettingsError, match="contain only white space"):
        score(model, tokenizer, unmarked, stride=8, context=16)


def test_the_validation_loss_is_the_mean_over_labels_and_not_over_batches(chat_settings, tiny):
    import torch

    from helpers.settings import TrainingSettings
    from helpers.training.fine_tuning import fine_tune

    settings = TrainingSettings(
        **chat_settings.model_dump(), per_device_train_batch_size=3, num_train_epochs=0.05, learning_rate=1e-9,
        warmup_steps=0, mixed_precision="no",
    )  # fmt: skip
    run = fine_tune(settings)
    model, _ = tiny
    blocks = prepare(chat_settings).blocks["validation"]
    nats, n_labels = 0.0, 0
    for row in blocks:
        with torch.no_grad():
            logits = model(row["input_ids"][None]).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, row["labels"][1:], reduction="sum").item()
        n_labels += int((row["labels"][1:] != -100).sum())
    assert run.eval_loss == pytest.approx(nats / n_labels, rel=1e-4)
    assert np.isclose(run.facts["trained_tokens"] / run.facts["tokens"], 0.2, atol=0.15)
    assert "of them learned" in str(run)
