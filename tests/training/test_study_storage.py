import pytest

from helpers.settings import SettingsError
from helpers.training.study_storage import JOURNAL, open_storage


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://me:secret@127.0.0.1:9/none",
        "postgresql+nodriver://me:secret@h/none",
        "postgresql+psycopg://me:p@secret@127.0.0.1:9/none",
        "postgresql+psycopg://127.0.0.1:9/none?user=me&password=secret",
        "postgresql//me:secret@127.0.0.1/none",
        "nonsense",
    ],
)
def test_the_error_for_an_unreachable_storage_is_one_sentence_without_the_password(address, tmp_path):
    with pytest.raises(SettingsError, match="does not answer") as error:
        open_storage(address, tmp_path)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_journal_that_is_a_link_to_a_private_file_is_refused(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine, without a line end")
    (tmp_path / "theirs").mkdir()
    try:
        (tmp_path / "theirs" / JOURNAL).symlink_to(mine)
    except OSError as error:
        pytest.skip(f"this system cannot create links: {error}")
    with pytest.raises(SettingsError, match=r"study\.log is a link to another file, .* replace it by a copy"):
        open_storage("", tmp_path / "theirs")
    assert mine.read_text() == "mine, without a line end"
