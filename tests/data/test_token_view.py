from helpers.data.token_view import view_tokens


def test_the_joined_pieces_are_the_text(tokenizer):
    text = "The clever badger dug\na second door.<|endoftext|>"
    view = view_tokens(tokenizer, text)
    assert "".join(view.pieces) == text
    assert view.ids == tokenizer.encode(text)


def test_a_lone_surrogate_is_replaced(tokenizer):
    assert view_tokens(tokenizer, "A fox \ud83d.") == view_tokens(tokenizer, "A fox \ufffd.")


def test_text_is_escaped_in_html(tokenizer):
    shown = view_tokens(tokenizer, "<script>alert('x')</script> & <b>")._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown


def test_a_partial_character_is_shown_as_bytes(tokenizer):
    pieces = view_tokens(tokenizer, "狐").pieces
    raw = bytes(int(byte, 16) for piece in pieces for byte in piece.strip("<>").split())
    assert raw.decode() == "狐"


def test_plain_text_has_bars_between_the_pieces_and_no_control_characters(tokenizer):
    assert "\x1b" not in str(view_tokens(tokenizer, "the \x1b[31mfox"))
    assert str(view_tokens(tokenizer, " the.\n")) == " the|.|\n"
