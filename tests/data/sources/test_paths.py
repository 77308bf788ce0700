"""What others read of a source's name."""

import pytest

from helpers.data.sources import public_name


def test_only_a_path_is_shortened(tmp_path):
    for name in ("fables", "python-reference", "Salesforce/wikitext", "wikitext"):
        assert public_name(name) == name
    assert public_name(str(tmp_path)) == tmp_path.name


@pytest.mark.parametrize(
    "source",
    ["letters/mine.txt", "letters\\mine.txt", "C:/letters/mine.txt", "C:\\letters\\mine.txt", "/gone/mine.txt"],
)
def test_a_path_is_shortened_even_if_missing_or_from_another_system(source):
    assert public_name(source) == "mine.txt"
