"""Every kind of source people have, and every way in which one can be bad."""

import gzip
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
import zstandard
from datasets import Dataset, DatasetDict

from helpers.data.sources import Source, source_hash, source_path
from helpers.data.sources.encodings import find_encoding
from helpers.data.sources.paths import in_order
from helpers.settings import DataSettings, SettingsError

WORDS = ["one fox", "two owls", "three hens"]


def texts(source, **settings):
    parts = dict(Source(DataSettings(source=str(source), **settings)).parts())
    read = {part: list(documents) for part, documents in parts.items()}
    return read[""] if list(read) == [""] else read


PACKED = {
    "a.txt": "one fox\n\ntwo owls\n \n\nthree hens\n",
    "a.jsonl": '{"text": "one fox"}\n\n{"text": "two owls", "n": 2}\n{"text": "three hens"}',
    "a.json": '[{"text": "one fox"},\n {"text": "two owls"}, {"text": "three hens"}]',
    "a.csv": "text,n\none fox,1\ntwo owls,2\nthree hens,3\n",
}


@pytest.mark.parametrize("packing", [".GZ", ".zst"])
@pytest.mark.parametrize("name", PACKED)
def test_a_compressed_file_is_read_according_to_its_name(tmp_path, name, packing):
    pack = {".GZ": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
    (tmp_path / f"{name}{packing}").write_bytes(pack(PACKED[name].encode()))
    assert texts(tmp_path / f"{name}{packing}") == WORDS


def test_a_parquet_file_is_read_but_not_if_it_is_compressed_again(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_dict({"text": WORDS, "n": [1, 2, 3]}).to_parquet(path)
    assert texts(path) == WORDS
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(SettingsError, match=r"is a Parquet table, not text: .*unpack it first"):
        texts(packed)


def test_a_folder_gives_a_document_per_file_and_reads_folders_in_it(tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "b.md").write_text("two owls\n\nand more")
    (tmp_path / "a.txt").write_text("one fox")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    (tmp_path / "more" / "deep" / "d.txt").write_text("three hens")
    assert texts(tmp_path) == ["one fox", "two owls\n\nand more", "three hens"]


def test_a_split_in_one_text_file_is_cut_at_blank_lines_like_a_file(tmp_path):
    (tmp_path / "train.txt").write_text("one\n\ntwo")
    assert texts(tmp_path) == ["one", "two"], "a folder with one file is that file"
    (tmp_path / "test.txt").write_text("three\n\nfour")
    assert texts(tmp_path) == {"test": ["three", "four"], "train": ["one", "two"]}


@pytest.mark.parametrize("names", ["a.txt b.jsonl", "train.txt test.jsonl"])
def test_texts_and_tables_are_not_read_together(tmp_path, names):
    for name in names.split():
        (tmp_path / name).write_text('{"text": "one fox"}')
    with pytest.raises(SettingsError, match="holds texts and tables, which cannot share one document_separator"):
        list(Source(DataSettings(source=str(tmp_path))).parts())


def test_a_saved_data_set_is_read_with_its_own_splits(tmp_path):
    rows = Dataset.from_dict({"body": WORDS, "n": [1, 2, 3]})
    rows.with_format("torch", columns=["n"]).save_to_disk(tmp_path / "one")  # as for a training
    DatasetDict(train=rows, test=rows, unsupervised=rows).save_to_disk(tmp_path / "many")
    assert texts(tmp_path / "one") == WORDS
    assert texts(tmp_path / "many") == {"train": WORDS, "test": WORDS}
    source = Source(DataSettings(source=str(tmp_path / "many")))
    assert dict(source.parts()).keys() == {"train", "test"}
    assert "Left out (in no part of the split): unsupervised." in source.notes
    assert texts(tmp_path / "many", source_split="unsupervised") == WORDS
    assert texts(tmp_path / "many", source_split="eval") == WORDS, "another word for test"


def test_a_saved_data_set_that_is_nested_or_incomplete_is_refused(tmp_path):
    rows = Dataset.from_dict({"text": WORDS})
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(SettingsError, match=r"saved with `save_to_disk` \(saved\): set source to"):
        texts(tmp_path)
    (tmp_path / "saved" / "dataset_dict.json").unlink()
    with pytest.raises(SettingsError, match=r"\(test, train\): set source to the folder .* copy it again"):
        texts(tmp_path / "saved")
    (tmp_path / "saved" / "train" / "state.json").unlink()
    with pytest.raises(SettingsError, match=r"or state\.json is missing"):
        texts(tmp_path / "saved" / "train")


@pytest.mark.parametrize(
    ("name", "source"),
    [("wikitext", "Salesforce/wikitext"), ("imdb", "stanfordnlp/imdb"), ("bookcorpus", "was a script"),
     ("https://huggingface.co/datasets/a/b", "is an address: download the file"),
     ("anything", "needs its owner in front")],
)  # fmt: skip
def test_the_error_for_a_bare_name_of_the_hub_says_what_to_write_instead(name, source):
    with pytest.raises(SettingsError, match=source):
        source_path(name)


ACCENTS = "Le café était fermé; il mangea une crêpe à côté de la fenêtre. “C’est l’été” – déjà.\n"
ENCODED = {
    "utf-8": (ACCENTS, "utf-8"),
    "utf-8-sig": (ACCENTS, "utf-8-sig"),
    "utf-16": (ACCENTS, "utf-16"),
    "utf-32": (ACCENTS, "utf-32"),
    "cp1252": (ACCENTS, "cp1252"),
    "one word in cp1252": ("café", "cp1252"),
    "quotes in cp1252": ("The fox said “hello” – it’s late.", "cp1252"),
    "German in cp1252": ("Die Füchse gingen über die Straße, müde und größer als früher.", "cp1252"),
    "Polish in cp1250": ("Zażółć gęślą jaźń. Lis poszedł do źródła i wrócił późno w nocy.", "cp1250"),
    "Russian in cp1251": ("Лиса пошла к колодцу и вернулась домой поздно ночью.", "cp1251"),
    "Russian in koi8-r": ("Лиса пошла к колодцу и вернулась домой поздно ночью.", "koi8_r"),
    "Chinese in gbk": ("狐狸走到井边，看见了自己的影子。" * 3, "gb18030"),
}


@pytest.mark.parametrize("case", ENCODED)
def test_an_encoding_is_detected_and_reported_and_nothing_is_lost(tmp_path, case):
    text, encoding = ENCODED[case]
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    source = Source(DataSettings(source=str(path), document_separator="file"))
    read = [document for _, documents in source.parts() for document in documents]
    assert read == [text.strip()]
    assert dict(source.encodings) == {encoding: 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_byte_order_mark_is_not_part_of_the_text_when_the_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufefftext,label\none fox,1\n".encode(encoding))
    assert texts(path, encoding=encoding) == ["one fox"]


def test_a_character_split_across_chunks_does_not_change_the_encoding(tmp_path):
    assert find_encoding(tmp_path, [b"caf\xc3", b"\xa9"]) == "utf-8"
    assert find_encoding(tmp_path, [b"caf", b"\xe9"]) == "cp1252"
    with pytest.raises(SettingsError, match=r"mixes encodings: .* byte 48 is not"):
        find_encoding(tmp_path, ["Le café. ".encode() * 4 + b"caf\xc3", b"\xa9, d\xe9j\xe0"])


@pytest.mark.parametrize("case", ["Polish in cp1250", "Russian in cp1251", "Russian in koi8-r", "Chinese in gbk"])
def test_an_encoding_is_detected_after_a_long_part_in_ascii(tmp_path, case):
    text, encoding = ENCODED[case]
    assert find_encoding(tmp_path, [b"The fox went home. " * 5000 + text.encode(encoding)]) == encoding


@pytest.mark.parametrize("n_before", [10, 20, 30])
def test_a_western_text_in_which_no_code_page_is_found_is_read_as_that_of_windows(tmp_path, n_before):
    text = "The fox went home and ate."[:n_before] + "Le café était fermé; il mangea une crêpe à côté. " * 60
    assert find_encoding(tmp_path, [text.encode("cp1252")]) == "cp1252"


def test_mixed_encodings_are_found_in_a_long_text(tmp_path):
    with pytest.raises(SettingsError, match=r"mixes encodings: .* byte 262151 is not"):
        find_encoding(tmp_path, [("a" + "é" * 2**17).encode() + "Le café. ".encode("cp1252") * 2**14])


# Of each, Windows-1252 lacks two to eight letters, and reads all the others right.
NOT_WESTERN = {
    "Czech": (
        "Byl jednou jeden mlynář, který měl tři syny. Nejstarší chtěl být kovářem, prostřední tkalcem a nejmladší, "
        "nejchytřejší ze všech, si přál vidět celý svět. Když otec zestárl, zavolal si je k sobě a řekl jim, že mlýn "
        "dostane ten, kdo mu do roka přinese nejvzácnější věc na světě. Šli tedy každý svou cestou přes hory, řeky a "
        "hluboké lesy. Žádný z nich netušil, co ho čeká. Příští den ráno potkal nejmladší starou ženu s těžkým košem.",
        ("cp1250", "iso8859_2"),
    ),
    "Hungarian": (
        "Egyszer volt, hol nem volt, volt egyszer egy molnár, akinek három fia volt. A legidősebb kovács akart lenni, "
        "a középső takács, a legkisebb pedig, aki a legokosabb volt mind közül, látni akarta az egész világot. Amikor "
        "az apjuk megöregedett, magához hívta őket, és azt mondta, hogy a malmot az kapja, aki egy éven belül elhozza "
        "neki a világ legértékesebb dolgát. Elindultak hát, mindegyikük a maga útján, hegyeken és erdőkön át.",
        ("cp1250", "iso8859_2"),
    ),
    "Turkish": (
        "Bir zamanlar üç oğlu olan bir değirmenci varmış. En büyüğü demirci, ortancası dokumacı olmak istiyormuş; en "
        "küçüğü ve hepsinin en akıllısı ise bütün dünyayı görmeyi arzuluyormuş. Babaları yaşlanınca onları yanına "
        "çağırmış ve değirmenin, bir yıl içinde kendisine dünyanın en değerli şeyini getirene kalacağını söylemiş. "
        "Böylece her biri kendi yolunda dağları, ırmakları ve derin ormanları aşarak yola çıkmış. Ertesi gün sabah.",
        ("cp1254", "iso8859_9"),
    ),
}


@pytest.mark.parametrize("language", NOT_WESTERN)
def test_letters_that_windows_1252_lacks_are_read(tmp_path, language):
    text, encodings = NOT_WESTERN[language]
    for encoding in encodings:
        content = text.encode(encoding)
        assert content.decode(find_encoding(tmp_path, [content])) == text


WESTERN = (
    "Der Fuchs hörte schöne Lieder über dem großen Hügel.", "Le renard répète ses idées près de la forêt.",
    "El niño comió más allá del río.", "A raposa não viu ações nem pães.",
    "I don’t know what the fox’s den was—he’d left.",
)  # fmt: skip


@pytest.mark.parametrize("text", WESTERN)
@pytest.mark.parametrize("encoding", ["mac_roman", "cp850", "cp1252"])
def test_western_text_of_a_mac_of_dos_and_of_windows_is_told_apart(tmp_path, text, encoding):
    if "’" in text and encoding == "cp850":
        return  # DOS had no such quotation marks
    assert find_encoding(tmp_path, [text.encode(encoding)]) == encoding


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Łódź leży, źródło płynie, śpi też kot.", "cp1250"),
        ("キツネはカタカナでアメリカのテレビをミタ。狐は丘を越えた。", "cp932"),
    ],
)
def test_other_code_pages_are_not_taken_for_one_of_a_mac_or_of_dos(tmp_path, text, encoding):
    assert find_encoding(tmp_path, [text.encode(encoding)]) == encoding


def test_another_code_page_of_dos_is_refused_rather_than_guessed(tmp_path):
    with pytest.raises(SettingsError, match="not text in any known encoding"):
        find_encoding(
            tmp_path, ["Łódź leży w środkowej Polsce, a święta są dziś dłuższe niż wcześniej.".encode("cp852")]
        )


@pytest.mark.parametrize("text", [WESTERN[0], WESTERN[-1], "Bäume, Öfen, Übel"])
def test_a_text_that_was_encoded_twice_is_refused_unless_its_encoding_is_named(tmp_path, text):
    twice = text.encode().decode("cp1252").encode()
    path = tmp_path / "twice.txt"
    path.write_bytes(twice)
    with pytest.raises(SettingsError, match=r"twice\.txt was encoded in UTF-8 twice: it holds '[Ãâ].*set encoding"):
        texts(path)
    assert texts(path, encoding="utf-8") == [twice.decode()]


def test_a_text_that_only_quotes_such_characters_is_read(tmp_path):
    assert find_encoding(tmp_path, ["Broken: 'Ã¤', 'Ã¶', 'Ã¼'. Schön wäre: 'ä', 'ö', 'ü', »Spaß«.".encode()]) == "utf-8"


def test_windows_line_endings_are_recognised(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one fox\r\n\r\ntwo owls\r\n\r\nthree hens\r\n")
    assert texts(path) == WORDS


def test_a_lone_surrogate_in_json_becomes_the_replacement_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83d b"}')
    assert texts(path) == ["a\ufffd b"]


def test_an_encoding_can_be_named_and_must_be_known(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("na łące".encode("iso8859_2"))
    assert texts(path, encoding="latin2") == ["na łące"]
    with pytest.raises(SettingsError, match=r"a\.txt is not utf-8 throughout \(near byte 3: invalid start byte\)"):
        texts(path, encoding="utf-8")
    for name in ("martian", "base64", "undefined", "utf-8\0"):
        with pytest.raises(SettingsError, match="is not an encoding that Python knows"):
            DataSettings(encoding=name)
    with pytest.raises(SettingsError, match=r"a\.txt is not utf-16 throughout .*set another encoding"):
        texts(path, encoding="utf-16")


def bad_sources(folder):
    """Return sources that cannot be read: a name, what is written, and words of the message."""
    cut = gzip.compress(os.urandom(5000))[:-20]
    return {
        "null.txt": (b"a" * 5000 + b"\0" + b"b" * 5000, r"holds a NUL byte \(byte 5000\)"),
        "nulls.txt": (b"\0" * 5000, r"holds a NUL byte \(byte 0\)"),
        "unmarked.txt": ("one fox".encode("utf-16-le"), r"holds a NUL byte \(byte 1\): .*set encoding to 'utf-16-le'"),
        "random.txt": (bytes(range(1, 256)) * 40, "is a binary file"),
        "mixed.txt": ("Le café. ".encode() * 30 + "Le café.".encode("cp1252"), "mixes encodings: .* byte 306 is not"),
        "end.txt": (("Le café. " * 30).encode() + b"caf\xc3", "mixes encodings: .* byte 303 is not"),
        "first.txt": ("Le café. ".encode("cp1252") + "Le café. ".encode() * 30, "mixes encodings: .* byte 6 is not"),
        "most.txt": ("Le café. ".encode() * 3 + "Le café. ".encode("cp1252") * 30, "mixes encodings: .* byte 36 is"),
        "cut.txt.gz": (cut, "cannot be read .*: download or compress it again"),
        "no.txt.gz": (b"words", "cannot be read"),
        "no.txt.zst": (b"words", "cannot be read"),
        "gz.txt": (gzip.compress(b"words"), "is a compressed file"),
        "bomb.txt.gz": (gzip.compress(b" " * 40_000_000), "expands to more than 200 times"),
        "bomb.txt.zst": (zstandard.ZstdCompressor().compress(b"a\n\n" * 20_000_000), "expands to more than 200 times"),
        "line.jsonl": (b'{"text": "one"}\n{"text": "two"}\n{"text": \n{"text": "four"}\n', "line 5 .*begins in line 3"),
        "end.jsonl": (b'{"text": "one"}\n{"text": "tw', "line 2 is broken JSON"),
        "early.json": (b'[{"text": "one"} {"text": oops}' + b" " * 99, "line 1 is broken JSON"),
        "number.jsonl": (b'{"text": "one"}\n{"text": 2}\n', "line 2: column 'text' holds 2, not text"),
        "list.jsonl": (b'["one", 1]\n["two", 2]\n', "line 1: a row must be an object .*, not 1"),
        "none.csv": (b"n,m\n1,2\n", r"set text_column to one of \['n', 'm'\]"),
        "no.parquet": (b"PAR1 and no more", "cannot be read as Parquet"),
    }


@pytest.mark.parametrize("name", bad_sources(None))
def test_a_bad_file_is_refused_with_its_name_and_what_to_do(tmp_path, name):
    content, words = bad_sources(tmp_path)[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=words) as refused:
        texts(path)
    assert name in str(refused.value)
    assert path.read_bytes() == content


def test_a_row_without_text_is_an_empty_document_and_not_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one fox"}\n{"text": null}\n{"other": 1}\n{"text": ""}\n')
    assert texts(path) == ["one fox", "", "", ""]


def test_the_only_text_column_is_found_and_a_wrong_name_lists_the_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("body,n\none fox,1\n")
    assert texts(path) == texts(path, text_column="body") == ["one fox"]
    with pytest.raises(SettingsError, match=r"no column 'text'.*\['body', 'n'\]"):
        texts(path, text_column="text")


@pytest.mark.parametrize("first", [None, "1984"])
def test_the_only_column_of_text_is_found_when_its_first_row_has_no_words(tmp_path, first):
    rows = Dataset.from_dict({"body": [first, "one fox"], "n": [1, 2]})
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "a.parquet") == texts(tmp_path / "saved") == [first or "", "one fox"]


@pytest.mark.parametrize(("name", "separator"), [("a.jsonl", "auto"), ("a.txt", "line")])
def test_a_row_of_200_mb_is_refused_before_it_is_read_completely(tmp_path, name, separator):
    path = tmp_path / name
    with path.open("w") as file:
        file.write('{"text": "')
        for _ in range(200):
            file.write("word " * 200_000)
        file.write('"}\n')
    with pytest.raises(SettingsError, match="of more than 64 million characters: split it"):
        texts(path, document_separator=separator)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders, and names in UTF-16")
def test_a_pipe_and_a_name_in_another_encoding_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SettingsError, match="is neither a file nor a folder"):
        texts(tmp_path / "pipe.txt")
    (tmp_path / "a.txt").write_text("one fox\n\ntwo owls")
    assert source_hash(str(tmp_path)) and texts(tmp_path) == WORDS[:2], "the pipe is left out"
    (tmp_path / os.fsdecode(b"f\xfcchse.txt")).write_text("three hens")
    with pytest.raises(SettingsError, match=r"f\\udcfcchse.txt' has a name that is not UTF-8: rename it"):
        source_hash(str(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="Windows lets only some users make a link")
def test_a_circular_link_is_an_error_and_a_link_to_its_own_folder_is_not(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(SettingsError, match=r"a\.txt is a symbolic link that leads nowhere or in a circle"):
        source_path(str(tmp_path / "a.txt"))
    with pytest.raises(SettingsError, match="is a symbolic link that leads nowhere or in a circle"):
        texts(tmp_path)
    folder = tmp_path / "good"
    folder.mkdir()
    (folder / "a.txt").write_text("one fox")
    (folder / "self").symlink_to(folder)
    assert texts(folder) == ["one fox"]


def test_a_file_on_a_drive_that_cannot_resolve_paths_is_read(tmp_path, monkeypatch):
    def realpath(path, *, strict=False):  # as Windows does for a drive in memory
        if strict:
            raise OSError(None, "Incorrect function", str(path), 1)
        return os.path.abspath(path)  # noqa: PTH100 - what realpath gives back is text

    monkeypatch.setattr("os.path.realpath", realpath)
    (tmp_path / "a.txt").write_text("one fox")
    assert source_path(str(tmp_path / "a.txt")) == tmp_path / "a.txt"
    assert texts(tmp_path) == ["one fox"]


def test_a_source_without_splits_has_none_to_choose(tmp_path):
    (tmp_path / "a.txt").write_text("one fox")
    for source in ("fables", "python-reference", str(tmp_path / "a.txt")):
        with pytest.raises(SettingsError, match=r"has no split 'test': set source_split to one of \['all'\]"):
            next(Source(DataSettings(source=source, source_split="test")).parts())


def test_a_folder_with_nothing_to_read_lists_what_it_looked_for(tmp_path):
    with pytest.raises(SettingsError, match=r"holds no file of \.txt, .* other files in it: 0"):
        texts(tmp_path)


def test_a_source_without_permission_to_read_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one fox")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(SettingsError, match="cannot be read"):
        source_hash(str(path))


def test_a_hidden_folder_that_cannot_be_listed_is_skipped(tmp_path, monkeypatch):
    iterdir = Path.iterdir

    def listed(path):  # as Windows does for `My Music` in `Documents`, a link to another place
        if path.name == "My Music":
            raise PermissionError(13, "Access is denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", listed)
    (tmp_path / "a.txt").write_text("one fox")
    (tmp_path / "My Music").mkdir()
    with pytest.raises(SettingsError, match="My Music cannot be read"):
        texts(tmp_path)
    monkeypatch.setattr("helpers.data.sources.paths.is_hidden", lambda path: path.name == "My Music")
    assert texts(tmp_path) == ["one fox"]


def test_names_with_spaces_and_non_latin_letters_are_read(tmp_path):
    folder = tmp_path / "Märchen und 寓言"
    folder.mkdir()
    (folder / "der Fuchs.txt").write_text("one fox", encoding="utf-8")
    assert texts(folder) == texts(folder / "der Fuchs.txt") == ["one fox"]


@pytest.mark.parametrize("kind", [PureWindowsPath, PurePosixPath])
def test_files_are_in_the_same_order_on_windows(kind):
    names = ["c/a.txt", "B.txt", "a-b.txt", "a/b.txt", "Z/a.txt"]
    ordered = ["B.txt", "Z/a.txt", "a/b.txt", "a-b.txt", "c/a.txt"]
    assert [path.as_posix() for path in in_order(map(kind, names))] == ordered


def test_the_hash_depends_on_names_and_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    before = source_hash(str(tmp_path))
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    renamed = source_hash(str(tmp_path))
    (tmp_path / "c.txt").write_text("twp")
    assert len({before, renamed, source_hash(str(tmp_path))}) == 3
