"""Tables as people have them: any delimiter, any form of JSON, and a column of text that is found or asked for."""

import json
import re
import tracemalloc

import pytest
from datasets import Dataset

from helpers.data.sources import Source
from helpers.data.sources.hub import open_saved
from helpers.data.sources.rows import json_rows
from helpers.data.sources.tables import Table, parquet_table, rows_of_one_part
from helpers.display import MIB
from helpers.settings import DataSettings, SettingsError

STORIES = [f"Story {number}. The fox, who was hungry; it went | to the well." for number in range(12)]


def read(path, **settings):
    """Return the texts of a source and the notes about it."""
    source = Source(DataSettings(source=str(path), **settings))
    texts = [text for _, documents in source.parts() for text in documents]
    return texts, source.notes


def table(delimiter, *, header=("n", "text"), before=""):
    """Return a table of the stories, quoted."""
    rows = [f'{number}{delimiter}"{story}"' for number, story in enumerate(STORIES)]
    return before + "\n".join([delimiter.join(header), *rows]) + "\n"


DELIMITED = {
    "commas": table(","), "tabs": table("\t"), "semicolons": table(";"), "pipes": table("|"),
    "a line for Excel": table(";", before="sep=;\n"), "the same with a comma": table(",", before="sep=,\n"),
    "the same with a tab": table("\t", before="sep=\t\n"), "an empty line first": table(",", before="\n"),
    "many empty lines first": table(";", before="\n" * 9),
    "a quoted header": table(";", header=('"id, number"', '"text"')), "spaces": table(",").replace(",", ", "),
    "a name with spaces around it": table(",", header=("n", " text ")), "an index": table(",", header=("", "text")),
    "a sheet that was wider": table(";", header=("n", "text", "", "")), "wide rows": table(";").replace('"\n', '";;\n'),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["saved", "Parquet"])
def test_only_a_few_rows_are_in_memory_at_once_as_each_can_be_a_book(tmp_path, kind):
    books = Dataset.from_dict({"text": [f"{number:04} " + "a" * 2**17 for number in range(256)]})
    if kind == "saved":
        books.save_to_disk(tmp_path / "saved")
        (open_table,) = open_saved(tmp_path / "saved", DataSettings())["train"]
        table = open_table()
    else:
        books.to_parquet(tmp_path / "a.parquet")
        table = parquet_table(tmp_path / "a.parquet")
    tracemalloc.start()
    numbers = [int(values["text"][:4]) for _, values in table.rows(["text"])]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers == list(range(256))
    assert peak_bytes < 20e6, "all of them are 34 MB"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("form", DELIMITED)
def test_the_delimiter_and_the_header_are_found_under_any_file_name(tmp_path, form, name):
    path = tmp_path / name
    path.write_text(DELIMITED[form], encoding="utf-16" if "Excel" in form else "utf-8", newline="")
    assert [text.replace(",  ", ", ") for text in read(path)[0]] == STORIES


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_commas_in_the_text_are_not_delimiters_if_the_header_has_another(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    path.write_text(f"n{delimiter}text\n" + "".join(f"{n}{delimiter}A fox{' well' * n}. Yes\n" for n in range(3)))
    assert read(path)[0][1] == "A fox well. Yes"
    (tmp_path / "a.tsv").write_text("text\nA fox, a hen.\n")
    assert read(tmp_path / "a.tsv")[0] == ["A fox, a hen."], "nor in a .tsv of one column"


REFUSED = {
    "twice.csv": ("text,score,text\na,1,b\n", "2 columns called 'text': rename all but one"),
    "twice.tsv": ("n\ttext\ttext\n1\ta\tb\n", "2 columns called 'text'"),
    "empty.jsonl": ("\n", "holds no row: delete it, or name another source"),
    "unnamed.csv": (",,\nOne fox,0,b\n", "no column names in its first line"),
    "more.csv": ("n,text\n1,a, b, c\n", "line 2: 4 values, and the header in line 1 names 2:"),
    "a title.csv": ("Export\n\nn,text\n1,a\n", "line 3: .* or delete the lines above the header"),
    "title.csv": ("Export\nn,text\n1,a\n", "line 2: 2 values, and the header in line 1 names 1:"),
    "wide title.csv": ("Export;;;\n;;;\nn;text;a;b\n1;One fox;2;3\n", "line 3: 4 values, and the header in line 1"),
    "open.tsv": ('n\ttext\n1\ta\n2\t"b\n3\tc\n', r"line 4 is broken \(.*; its row begins in line 3\)"),
    "digits.jsonl": ('{"text": "a"}\n{"text": "b", "n": ' + "9" * 5000 + "}\n", "line 2 holds a number of more than"),
    "digits.json": ('[{"text": "a"},\n{"n": ' + "9" * 5000 + "}]", "line 2 holds a number of more than 4,300 digits"),
    "deep.jsonl": ('{"text": ' + "[" * 200_000, "line 1 is nested too deeply"),
    "deep.json": ('[{"text": "a"},\n{"n": ' + "[" * 200_000, "line 2 is nested too deeply"),
    "squad.json": (
        json.dumps({"version": "1", "data": [{"title": "A fox", "paragraphs": [{"context": "It ran."}]}]}),
        r"Lists and objects, as in \['paragraphs'\], are not read",
    ),
    "meta.json": (json.dumps({"a": [{"x": 1}], "b": [{"y": 2}]}), r"set text_column to one of \['a', 'b'\]"),
    "close.jsonl": (
        '{"title": "One fox", "body": "It ran."}\n',
        r"set text_column to one of \['title', 'body'\]\. To learn answers to questions, name two columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_can_be_misread_is_refused_with_the_location(tmp_path, name):
    content, words = REFUSED[name]
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SettingsError, match=words):
        read(path)


def test_a_table_may_have_very_many_columns(tmp_path):
    columns = [f"c{number}" for number in range(100_000)]  # comparing each name with all others would take minutes
    (tmp_path / "wide.csv").write_text(f"{','.join(columns)},text\n{'1,' * len(columns)}A fox.\n")
    assert read(tmp_path / "wide.csv")[0] == ["A fox."]


def test_a_parquet_file_with_a_duplicate_column_name_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match="2 columns called 'text'"):
        read(tmp_path / "a.parquet")


ROWS = [{"text": story} for story in STORIES]
JSON = {
    "rows.json": ROWS,
    "texts.json": STORIES,
    "wrapped.json": {"data": ROWS},
    "version.json": {"version": "2", "data": ROWS},
    "about.json": {"meta": {"made": 2026}, "tags": ["a"], "links": [], "data": ROWS},
    "columns.json": {"text": dict(enumerate(STORIES)), "n": dict(enumerate(range(12)))},
    "lists.json": {"text": STORIES, "n": list(range(12))},
    "by name.json": {f"story-{number}": row for number, row in enumerate(ROWS)},
    "list.jsonl": ROWS,
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", JSON)
def test_the_rows_are_found_in_every_common_form_of_json(tmp_path, name, indent):
    (tmp_path / name).write_text(json.dumps(JSON[name], indent=indent))
    assert read(tmp_path / name)[0] == STORIES


def test_objects_over_several_lines_are_read_under_any_name(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert read(tmp_path / "a.jsonl")[0] == STORIES


@pytest.mark.parametrize("n_rows", [1, 12])
def test_a_list_of_objects_about_a_text_is_not_taken_for_the_rows(tmp_path, n_rows):
    rows = [{"text": story, "authors": [{"name": "Ann"}]} for story in STORIES[:n_rows]]
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "a.json")[0] == STORIES[:n_rows]


def test_json_lines_in_a_json_file_are_all_rows_even_if_the_first_contains_a_list(tmp_path):
    rows = [{"body": story, "authors": [{"name": "Ann"}]} for story in STORIES]
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "a.json", text_column="body")[0] == STORIES


def test_json_in_one_long_line_is_read_incrementally():
    chunks = iter(["[", *['{"text": "a fox"}, '] * 100, '{"text": "a crow"}]'])
    assert next(json_rows("a.jsonl", chunks)) == ("line 1", {"text": "a fox"})
    assert len(list(chunks)) > 80


COLUMNS = {
    "null in the first row": [{"title": "A", "body": None}, {"title": "B", "body": STORIES[1]}],
    "missing in the first row": [{"title": "A"}, {"title": "B", "body": STORIES[1]}],
    "a number in the first row": [{"title": "A", "body": "1984"}, {"title": "B", "body": STORIES[1]}],
    "null in many rows": [{"title": "A", "body": None}] * 500 + [{"title": "B", "body": STORIES[1]}],
}


@pytest.mark.parametrize("case", COLUMNS)
def test_the_text_column_is_chosen_from_many_rows_and_named(tmp_path, case):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, COLUMNS[case])))
    texts, notes = read(path)
    assert texts[-1] == STORIES[1]
    assert "the text is column 'body' of ['title', 'body']" in notes[0]
    assert read(path, text_column="title")[0][-1] == "B", "the setting decides"


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])  # as Polars and others write them
def test_the_longest_column_of_a_parquet_file_is_the_text(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"title": ["A fox"] * 12, "body": STORIES}
    typed = {name: pa.array(texts, getattr(pa, kind)()) for name, texts in columns.items()}
    pq.write_table(pa.table(typed), tmp_path / "a.parquet")
    texts, notes = read(tmp_path / "a.parquet")
    assert texts == STORIES
    assert "column 'body'" in notes[0]


NOTED = {
    "a text as header": ('"The fox went home, and slept."\n"The owl sat there."\n', "looks like a row"),
    "a number as header": ("0,The fox went home\n1,The owl sat\n", "line 1: this header looks like a row"),
    "an empty line, a text": ("\n0,The fox went home\n1,The owl sat\n", "line 2: this header looks like a row"),
    "rows in one": ('n,text\n1,a\n2,"b\n3,c\n4,d\n5,e"\n6,f\n', "line 3: a quotation mark opens here and merges "),
    "rows in one, tabs": ('n\ttext\n1\t"a\n2\tb\n3\tc\n4\td"\n', "line 2: a quotation mark opens here"),
}


@pytest.mark.parametrize("case", NOTED)
def test_possible_misreadings_are_noted_with_their_line(tmp_path, case):
    content, words = NOTED[case]
    path = tmp_path / "a.csv"
    path.write_text(content)
    _, notes = read(path)
    assert any(re.search(words, note) for note in notes)


def test_a_value_of_several_lines_or_as_long_as_a_book_gives_no_note(tmp_path):
    path, texts = tmp_path / "a.csv", ["A fox.\n\nIt ran.\nIt was red.\nIt came home.", "word " * 30_000 + "end"]
    path.write_text("n,text\n" + "".join(f'1,"{text}"\n' for text in texts))
    assert read(path) == (texts, [])


@pytest.mark.parametrize(("column", "values"), [("split", ("train", "test")), ("Set", ("TRAIN", "dev"))])
def test_rows_of_several_splits_are_refused_because_a_test_must_not_be_trained_on(tmp_path, column, values):
    rows = Dataset.from_dict({"text": STORIES, column: [values[n >= 9] for n in range(len(STORIES))]})
    rows.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match=f"row 10: column '{column}' divides the rows into parts"):
        read(tmp_path / "a.parquet")


def test_a_possible_split_column_with_a_value_per_row_is_not_kept_in_memory():
    rows = ((f"row {number}", {"text": "", "set": f"{number} " + "x" * 500}) for number in range(20_000))
    generated = Table("made", {"text": "words", "set": "words"}, lambda _: rows)
    tracemalloc.start()
    assert sum(1 for _ in rows_of_one_part(generated, ["text"])) == 20_000
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2 * MIB, "of 10 MiB"


def test_a_folder_of_many_tables_has_one_note_on_its_column_and_one_on_its_headers(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.csv").write_text("n,body\n1,The fox ran.\n")
    assert read(tmp_path)[1] == [f"{tmp_path / '00.csv'} and 19 more: the text is column 'body' of ['n', 'body']."]
    for number in range(20):
        (tmp_path / f"{number:02}.csv").write_text(f"Story {number} of the fox.\nThe fox ran.\n")
    assert len(read(tmp_path)[1]) == 1


def test_each_possible_split_column_is_checked_separately(tmp_path):
    rows = {"text": STORIES, "subset": ["dev-blog"] * 12, "split": ["train"] * 12}
    Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0] == STORIES
    Dataset.from_dict(rows | {"split": ["a", "train", "test", *"bcdefghij"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match=r"row 3: column 'split' divides .* \['train', 'test'\]"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("values", [["train"] * 12, ["news", "blog"] * 6, [None] * 12])
def test_a_column_called_split_without_split_names_is_ignored(tmp_path, values):
    Dataset.from_dict({"text": STORIES, "split": values}).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0] == STORIES
