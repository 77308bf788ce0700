import pytest

from helpers.settings import SettingsError
from helpers.training.study_storage import open_storage


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
