from helpers.data.facts import find_notes
from helpers.settings import DataSettings, TrainingSettings

FACTS = {
    "encodings": {}, "leakage": {"share_in_train": 0.0, "ngram": 13}, "documents_read": 1000, "empty": 0,
    "tiny_documents": 0, "near_duplicates": 0, "tokens": 250, "characters": 1000,
}  # fmt: skip


def test_near_duplicates_are_noted_unless_they_are_removed():
    many = FACTS | {"near_duplicates": 20}
    (note,) = find_notes(many, DataSettings())
    assert note.startswith("20 of 1,000 documents are nearly the same as another: near_duplicates='remove' keeps")
    assert find_notes(many, DataSettings(near_duplicates="remove")) == []
    assert find_notes(FACTS, DataSettings()) == []


def test_a_setting_without_effect_is_noted():
    notes = find_notes(FACTS, TrainingSettings(vocab_size=8192, lora_alpha=64))
    assert notes == ["vocab_size = 8192 has no effect with tokenizer = 'pretrained'."], "adapters do not affect data"
    assert find_notes(FACTS, DataSettings(vocab_size=8192, tokenizer="train")) == []


def test_the_note_on_a_poor_tokenizer_fit_suggests_a_better_one():
    facts = FACTS | {"characters": 300}
    (note,) = find_notes(facts, DataSettings())
    assert note.endswith("or, from scratch, set tokenizer='train' with a large vocab_size.")
