"""What a document is: each value of the setting, what `auto` recognises, and documents that come back as they were."""

import json
import random
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset

from helpers.data.sources import Source
from helpers.data.sources.documents import PASSAGE_CHARACTERS, passages, row_documents, text_documents
from helpers.data.sources.recognition import recognise
from helpers.settings import DataSettings, SettingsError

ROWS = [
    "", " = First = ", "", " text of one file . ", "", " = = Section = = ", "", " more .", "", " = Second one = ",
    "", " two .",
]  # fmt: skip
END, START = "<|endoftext|>", "<|startoftext|>"

SEPARATORS = {
    "row": [row for row in ROWS if row],
    "line": [row for row in ROWS if row],
    "blank line": [row for row in ROWS if row],
    "heading": ["\n".join(ROWS[1:9]).strip("\n"), "\n".join(ROWS[9:])],
    "pattern:^ = [^=]": ["\n".join(ROWS[1:9]).strip("\n"), "\n".join(ROWS[9:])],
    "pattern:Section": ["\n".join(ROWS[1:5]).strip("\n"), "\n".join(ROWS[5:])],
    "6 rows": ["\n".join(ROWS[1:6]), "\n".join(ROWS[7:])],
    "12 rows": ["\n".join(ROWS[1:])],
    "file": ["\n".join(ROWS[1:])],
    " = = Section = = ": ["\n".join(ROWS[1:5]), "\n".join(ROWS[7:])],
}


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_separator_works_the_same_for_lines_of_a_text_and_rows_of_a_table(separator):
    expected = [text.strip() for text in SEPARATORS[separator]]
    text = list(text_documents(["\n".join(ROWS)], separator, name="x"))
    rows = [text for text in row_documents((f"{row}\n" for row in ROWS), separator, name="x") if text.strip()]
    assert [document.strip() for document in text] == [document.strip() for document in rows] == expected


@pytest.mark.parametrize("separator", SEPARATORS)
def test_documents_do_not_depend_on_the_chunks_a_text_is_read_in(separator):
    text = "\n".join([*ROWS, " \t", "", f" three {END} ", " ", "four "])
    assert list(text_documents(list(text), separator, name="x")) == list(text_documents([text], separator, name="x"))


def test_the_rows_of_a_document_keep_their_order_and_their_own_white_space():
    assert next(iter(row_documents(ROWS, "heading", name="x"))) == "\n".join(ROWS[1:9]).strip("\n")


def test_only_a_top_level_markdown_heading_starts_a_document():
    first, second = "# One\n\nA fox.\n# no heading\n\n## Section\n\nA crow.", "# Two\n\n#no heading\n\nA hen."
    assert list(text_documents([f"{first}\n \n{second}\n"], "heading", name="x")) == [f"{first}\n ", second]


@pytest.mark.parametrize("separator", ["row", "blank line", "file", END, "3 rows", "pattern:^b"])
@pytest.mark.parametrize(
    "text",
    [f"a{END}b", f"a\n{END}\nb", f"{START}a{END}{START}b{END}", f"a{END}{END}b{END}", f"{END}a\n\n{END}\n\nb\n"],
)
def test_end_of_text_markers_are_never_inside_a_document_or_make_an_empty_one(separator, text):
    assert list(text_documents([text], separator, name="x")) == ["a", "b"]
    assert list(filter(None, row_documents([text], separator, name="x"))) == ["a", "b"]


BAD = {
    "rows": "is not a value", "Line": "is not a value", "blank-line": "is not a value", "blank lines": "is not a value",
    "headings": "is not a value", "0 rows": "is not a value", "100rows": "is not a value", "5 lines": "is not a value",
    "FILE": "is not a value", "pattern:": "needs a regular expression", "pattern:(": "broken regular expression",
}  # fmt: skip


@pytest.mark.parametrize("separator", BAD)
def test_a_misspelled_separator_is_refused_instead_of_taken_as_text(separator):
    with pytest.raises(SettingsError, match=BAD[separator]):
        DataSettings(document_separator=separator)


SENTENCES = [f"he took the {thing} and went home ." for thing in "axe bow cup die egg fan gun hat ink jar".split() * 4]
TALES = [sentence.replace("he took", "A fox took") for sentence in SENTENCES]
FORMS = {  # what is read -> the separator, and a word of the reason
    "WikiText": (ROWS * 2, {"is_table": True}, "heading", "headings"),
    "WikiText in a file": (ROWS, {}, "heading", "headings"),
    "an end-of-text after each": ([f"a{END}", "", f"b{END}"], {}, END, "end-of-text"),
    "an end-of-text on lines of its own": (["a", END, "b", END, "c"], {}, END, "end-of-text"),
    "an end-of-text on rows of their own": (["a", "b", END, "c", "d", END], {"is_table": True}, END, "end-of-text"),
    "an end-of-text in each row of a table": ([f"{START}a{END}", f"{START}b{END}"], {"is_table": True}, "row", "table"),
    "many files": (["One text.", "", "It goes on."], {"n_files": 9}, "file", "9 text files"),
    "a play": (["Fox:", "Who is it?", "", "Owl:", "I.", "", "Fox:", "Come in.", ""] * 3, {}, "file", "play"),
    "a play as a table": (["Fox:", "Who?", "", "Owl:", "I.", "", "Fox:", "In."], {"is_table": True}, "file", "play"),
    "a book": (["CHAPTER I", "", "One.", "", "Two.", "", "CHAPTER II", "", "Three."], {}, "file", "book"),
    "a book of Project Gutenberg": (["*** START OF THE PROJECT GUTENBERG EBOOK X ***", "", "a"], {}, "file", "book"),
    "one chapter": (["Chapter 1", "", "Part 2 was long.", "", "Act 1 was not."], {}, "blank line", "3 blocks"),
    "a long text of two parts": (["A fox. " * 2000, "", "An owl. " * 2000], {}, "file", "one text"),
    "a story with speech": (['"Go," said he.', "", "She went.", ""] * 20, {}, "file", "story"),
    "a plain novel": (["It was dark.", "", "She went on.", "", "No one came.", "", "Then it rained.", ""] * 20, {},
                      "file", "story"),
    "letters": (["I have a fox.", "", "We like the owl.", "", "My hen is ill.", ""] * 20, {}, "blank line", "blocks"),
    "blocks": (["One fox.", "It ran.", " ", "Two owls.", "", "Three hens."], {}, "blank line", "3 blocks"),
    "names": (["emma", "olivia", "ava", "isabella"] * 20, {}, "row", "no blank line"),
    "long lines": (["The fox went all the way home to its old well."] * 9, {}, "row", "no blank line"),
    "wrapped prose": (["A fox that lived at the foot of a mountain went", "every day to the well in the village, where",
                       "nobody knew it at all, because it came at night"] * 5, {}, "file", "continues"),
    "one line": (["A fox lived at a well."], {}, "file", "one line"),
    "tales between stars": (["A fox.", "", "She ran.", "", "***", ""] * 4 + ["---", "An ox."], {},
                            "\n***\n", "4 lines are '***'"),
    "poems between dashes": (["A fox", "An owl", "---", "A hen", "", "A ram"] * 4, {}, "\n---\n", "'---'"),
    "a novel with breaks": (["The fox.", "", "* * *", "", "She ran.", "", "He saw.", ""] * 9, {}, "file", "story"),
    "a dialogue": (["Anna: Who is it?", "Ben: I.", "Anna: Come in."] * 4, {}, "file", "one conversation"),
    "an exported chat": ([f"12/05/24, 10:{n} - Anna: Hi" for n in range(10, 20)], {}, "file", "one conversation"),
    "ChatML": (["<|im_start|>user", "Hi<|im_end|>"] * 8, {}, "file", "marker of chat"),
    "headlines": ([f"Fox number {n}: it ran" for n in range(40)], {}, "row", "no blank line"),
    "a list with labels": (["Tale: A fox ran", "Tale: An owl flew"] * 9, {}, "row", "no blank line"),
    "BookCorpus": (SENTENCES, {"is_table": True}, "file", "single sentences"),
    "sentences in a file": (SENTENCES, {}, "file", "single sentences"),
    "sentences of one text": ([s.replace("he", "He", 1) for s in SENTENCES], {"is_table": True}, "file", "sentence"),
    "very many sentences": (TALES * 10, {"is_table": True}, "file", "single sentences"),
    "tales of one sentence": (TALES, {"is_table": True}, "row", "table"),
    "nothing": (["", " ", ""], {}, "blank line", "no text"),
    "paragraphs of one sentence": (["he " * 101 + "ran."] * 40, {"is_table": True}, "row", "table"),
    "labelled sentences": (SENTENCES, {"is_table": True, "n_columns": 2}, "row", "table"),
    "few sentences": (SENTENCES[:8], {"is_table": True}, "row", "table"),
    "a table of texts": (["One. Two. Three."] * 50, {"is_table": True}, "row", "table"),
    "a table with some nulls": (["One. Two.", "", *["One. Two."] * 8] * 9, {"is_table": True}, "row", "table"),
    "a table of texts and nulls": (["One.\n\nTwo.", ""] * 9, {"is_table": True}, "row", "table"),
    "a table of lines": (["One fox.", "It ran.", "", "Two owls.", "", "Three."], {"is_table": True}, "blank line", "3"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_common_forms_are_recognised_and_the_reason_is_given(form):
    rows, about, separator, reason = FORMS[form]
    choice = recognise(rows, **about)
    assert choice.separator == separator
    assert reason in choice.reason


def test_passages_are_the_text_and_end_at_line_ends():
    text = "\n\n".join(f"Speaker {number}:\n" + "word " * 30 + "end." for number in range(100))
    pieces = list(passages([text]))
    assert "".join(pieces) == text == "".join(passages(list(text)))
    assert len(pieces) > len(text) / PASSAGE_CHARACTERS / 1.5
    assert all(piece.startswith("\n") for piece in pieces[1:])


def test_passages_leave_out_only_white_space_and_markers():
    text = "a" * 1200 + "\n" + " " * 9000 + "b\n<|endoftext|>\nc\n\n"
    assert "".join(passages([text])) == "a" * 1200 + " " * 1001 + "b\nc"


@pytest.mark.parametrize("text", ["word " * 5000, "字" * 20_000, "a" * 20_000])
def test_passages_of_a_text_without_line_ends_stay_short(text):
    pieces = list(passages([text[:7000], text[7000:]]))
    assert "".join(pieces) == text.strip()
    assert max(map(len, pieces)) <= 4 * PASSAGE_CHARACTERS
    assert " " not in text or {piece[0] for piece in pieces[1:]} == {" "}, "as a token begins"


def random_documents(rng):
    """Return documents without blank lines, headings or markers in them, each with a different first word."""
    words = ["fox", "owl", "well,", "ran", "it's", "“Go!”", "字", "a", "12", "Émile"]
    documents = [
        "\n".join(" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 4)))
        for _ in range(rng.randint(3, 8))
    ]
    return [f"Tale {number}: {document}" for number, document in enumerate(documents)]


def as_wikitext(documents):
    """Return rows as WikiText has them, and the documents as they come back."""
    rows = [row for number, text in enumerate(documents) for row in ["", f" = No {number} = ", "", *text.split("\n")]]
    return rows, [f" = No {number} = \n\n{text}" for number, text in enumerate(documents)]


utf8 = partial(Path.write_text, encoding="utf-8")
WRITERS = {
    "blank line.txt": (lambda path, texts: utf8(path, "\n\n".join(texts)), "blank line"),
    "marker.txt": (lambda path, texts: utf8(path, END.join(texts)), "auto"),
    "both markers.txt": (lambda path, texts: utf8(path, "".join(f"{START}{t}{END}\n" for t in texts)), "auto"),
    "stars.txt": (lambda path, texts: utf8(path, "\n***\n".join(texts)), "***"),
    "pattern.txt": (lambda path, texts: utf8(path, "\n".join(texts)), "pattern:^Tale"),
    "a.jsonl": (lambda path, texts: path.write_text("\n".join(json.dumps({"text": t}) for t in texts)), "auto"),
    "a.json": (lambda path, texts: path.write_text(json.dumps({"v": 1, "data": [{"text": t} for t in texts]})), "auto"),
    "columns.json": (lambda path, texts: path.write_text(json.dumps({"text": dict(enumerate(texts))})), "auto"),
    "a.csv": (lambda path, texts: utf8(path, "n,text\n" + "".join(f'1,"{t}"\n' for t in texts)), "auto"),
    "tabs.csv": (lambda path, texts: utf8(path, "n\ttext\n" + "".join(f'1\t"{t}"\n' for t in texts)), "auto"),
    "pipes.tsv": (lambda path, texts: utf8(path, "n|text\n" + "".join(f'1|"{t}"\n' for t in texts)), "auto"),
    "excel.csv": (
        lambda path, texts: path.write_text("sep=;\nn;text\n" + "".join(f'1;"{t}"\n' for t in texts), "utf-16"), "auto",
    ),
    "a.parquet": (lambda path, texts: Dataset.from_dict({"text": texts}).to_parquet(path), "auto"),
    "marked.parquet": (
        lambda path, texts: Dataset.from_dict({"text": [f"{t}{END}" for t in texts]}).to_parquet(path), "auto",
    ),
    "lines.parquet": (
        lambda path, texts: Dataset.from_dict({"text": "\n\n".join(texts).split("\n")}).to_parquet(path), "blank line",
    ),
    "wiki.txt": (lambda path, texts: utf8(path, "\n".join(as_wikitext(texts)[0])), "auto"),
    "wiki.jsonl": (
        lambda path, texts: path.write_text("\n".join(json.dumps({"text": f"{r}\n"}) for r in as_wikitext(texts)[0])),
        "auto",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_documents_round_trip_through_every_form(tmp_path, name):
    write, separator = WRITERS[name]
    for seed in range(5):
        texts = random_documents(random.Random(seed))
        write(path := tmp_path / name, texts)
        ((_, read),) = Source(DataSettings(source=str(path), document_separator=separator)).parts()
        assert list(read) == (as_wikitext(texts)[1] if "wiki" in name else texts)


def test_the_shards_of_a_table_are_one_table(tmp_path):
    halves = ROWS * 3 + ROWS[:4], ROWS[4:]
    for number, rows in enumerate(halves):
        Dataset.from_dict({"text": [f"{row}\n" for row in rows]}).to_parquet(
            tmp_path / f"a-0000{number}-of-00002.parquet"
        )
    source = Source(DataSettings(source=str(tmp_path)))
    ((_, texts),) = source.parts()
    assert list(texts)[-2] == "\n".join(ROWS[1:9]).strip("\n"), "an article goes on in the next shard"
    assert source.choice.separator == "heading"


def test_all_tables_of_a_folder_are_cut_as_the_first(tmp_path):
    for name, rows in (("a", ROWS), ("b", ["One tale.", "Another."])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    ((_, texts),) = Source(DataSettings(source=str(tmp_path))).parts()
    assert list(texts)[-1] == "One tale.\nAnother."


@pytest.mark.parametrize("streaming", [False, True])
def test_the_shards_of_a_text_are_one_text(tmp_path, streaming):
    for number in range(3):
        text = "".join(f"Document {number}.{n}\nand more.\n\n" for n in range(9))
        (tmp_path / f"part-0000{number}-of-00003.txt").write_text(text)
    settings = DataSettings(source=str(tmp_path), streaming=streaming, max_tokens=1000)
    ((_, texts),) = Source(settings).parts()
    assert list(texts) == [f"Document {number}.{n}\nand more." for number in range(3) for n in range(9)]


def test_one_continuous_text_is_read_in_passages_and_a_folder_is_not(tmp_path):
    (tmp_path / "a.txt").write_text("Fox:\nWho?\n\nOwl:\nI.\n\n" * 500)
    source = Source(DataSettings(source=str(tmp_path / "a.txt")))
    ((_, texts),) = source.parts()
    assert len(list(texts)) > 5
    assert source.is_continuous
    (tmp_path / "b.txt").write_text("Another text.")
    source = Source(DataSettings(source=str(tmp_path)))
    ((_, texts),) = source.parts()
    assert len(list(texts)) == 2
    assert not source.is_continuous
