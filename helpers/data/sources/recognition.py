r"""What `document_separator='auto'` means for a source: detected from its first rows, and explained in one line.

The forms, in the order in which they are checked: end-of-text markers, WikiText's headings, one file per document,
a play or a book (one continuous text), lines such as '***' between texts, blocks between blank lines (one text if most
begin mid-story), one sentence per row, turns of a conversation, wrapped lines (one text again); otherwise each row.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from helpers.data.sources.documents import END_OF_TEXT, HEADING, PASSAGE_CHARACTERS

SAMPLE_ROWS, SAMPLE_CHARACTERS = 1000, 2**17  # of a source, examined
_SPEAKER = re.compile(r"[^\W\d_][\w .,'-]{0,40}:")  # alone on a line, as in tiny Shakespeare
_BOOK = re.compile(
    r"\*\*\* ?START OF .*GUTENBERG.*|(chapter|act|scene|canto|book|letter|part) ([ivxlc]+|\d+)([.:].{0,60})?",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?。！？]*[.!?。！？]+[\s\"'”’»)\]`]*")  # noqa: RUF001 (also Chinese sentence ends)
# How a later sentence of a text often begins, and the only sentence of a document rarely does.
_LATER_SENTENCE = re.compile(r"[a-z\"“„«']|(He|She|It|They|We|I|You|His|Her|But|And|Then|So|That)\b")
# How a paragraph of a story often begins and a document rarely does; without "I", as letters and reviews begin with it.
_STORY_PARAGRAPH = re.compile(r"[\"'“„«]|(He|She|They|His|Her|But|And|Then|So|Yet|Now)\b")
# How a line of a conversation or of a log begins: a speaker, a date or a time, or ChatML's marker.
_TURN = re.compile(r"[^\W\d_a-z][\w .'-]{0,30}: |\[?\d{1,4}[./:-]\d\d?([./:-]\d{1,4})?\b|<\|im_start\|>")
_RULE = re.compile(r"\s*([*~#_-])(\s*\1){2,}\s*")  # a line between texts, such as '***'
_MIN_RULES = 3
_ENOUGH_ROWS, _VERY_MANY_ROWS = 30, 300  # fewer sentences may well be documents
_MOST, _SOME = 0.7, 0.15  # shares of the rows or blocks
_SENTENCE_CHARACTERS = 300  # anything longer is a paragraph
_PROSE_LINE = 40  # characters; a longer line may be wrapped prose, a shorter one a name or a verse


class Choice(NamedTuple):
    """What separates the documents of a source, and the reason, worded to follow 'because'."""

    separator: str
    reason: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.separator!r} ({f'auto, because {self.reason}' if self.reason else 'as set'})"


def recognise(rows: Sequence[str], *, is_table: bool = False, n_columns: int = 1, n_files: int = 1) -> Choice:
    """Return what separates the documents of a source, given its first rows: a text's lines, or a table's texts.

    In a table with several columns, such as texts with labels, each row is a document and not a line.
    """
    rows = [row.removesuffix("\n") for row in rows]
    n_rows = f"the first {len(rows):,} rows" if len(rows) > 1 else "the only row"
    n_marked = sum(END_OF_TEXT in row for row in rows)
    if n_marked >= 2 and not (is_table and n_marked > len(rows) / 2):  # in most rows of a table: it just ends each row
        return Choice(END_OF_TEXT, f"{n_marked:,} of {n_rows} hold this end-of-text marker")
    headings = sum(bool(HEADING.fullmatch(row)) and not before.strip() for before, row in pairwise(["", *rows]))
    if headings >= 2 or (headings and any(row.strip().startswith("= = ") for row in rows)):
        return Choice("heading", f"{headings} of {n_rows} are headings such as ' = Title ='")
    if not is_table and n_files > 1:
        return Choice("file", f"the source has {n_files:,} text files")
    filled = [row for row in rows if row.strip()]
    # The lines of a text include many empty rows; a few empty rows are just missing documents.
    n_empty = len(rows) - len(filled)
    is_lines = not is_table or (n_columns == 1 and n_empty > _SOME * len(rows) and not any("\n" in row for row in rows))
    if is_lines and (choice := _by_blocks(rows, n_rows)):
        return choice
    if n_columns == 1 and _are_sentences(filled):
        return Choice("file", f"nearly all of {n_rows} are single sentences, which are joined")
    return Choice("row", "the source is a table") if is_table and not is_lines else _by_lines(filled, n_rows)


def _by_blocks(rows: Sequence[str], n_rows: str) -> Choice | None:
    """Examine the blocks of rows between empty rows; None if there are hardly any."""
    firsts = [row.strip() for before, row in pairwise(["", *rows]) if row.strip() and not before.strip()]
    n_speakers = sum(bool(_SPEAKER.fullmatch(row)) for row in firsts)
    if n_speakers >= max(3, len(firsts) / 2):
        return Choice("file", f"{n_speakers:,} of {len(firsts):,} blocks begin with a speaker's line: it is a play")
    chapters = [row.strip() for row in rows if _BOOK.fullmatch(row.strip())]
    if len(chapters) >= 2 or any("GUTENBERG" in row.upper() for row in chapters):
        return Choice("file", f"lines such as {chapters[0][:40]!r} are those of one book")
    if len(firsts) < 2 or (len(firsts) == 2 and sum(map(len, rows)) > 4 * PASSAGE_CHARACTERS):
        return None
    if choice := _by_rules(rows):
        return choice
    n_continuing = sum(_is_continuation(row) for row in firsts)
    if len(firsts) >= _ENOUGH_ROWS and n_continuing > _SOME * len(firsts):
        return Choice("file", f"{n_continuing:,} of {len(firsts):,} blocks begin in mid-story, as with 'She' or \"")
    return Choice("blank line", f"there are {len(firsts):,} blocks between the blank lines of {n_rows}")


def _by_rules(rows: Sequence[str]) -> Choice | None:
    """Examine lines such as '***'; None if there are hardly any, or a story continues after them."""
    rules = Counter(row.strip() for row in rows if _RULE.fullmatch(row))
    rule, n_rules = max(rules.items(), key=lambda item: item[1], default=("", 0))
    filled = [row.strip() for row in rows if row.strip()]
    n_continuing = sum(before == rule and _is_continuation(row) for before, row in pairwise(filled))
    if n_rules < _MIN_RULES or n_continuing > _SOME * n_rules:
        return None
    return Choice(f"\n{rule}\n", f"{n_rules:,} lines are {rule!r}, and a new text begins after each")


def _is_continuation(row: str) -> bool:
    """Return whether a paragraph begins like one from the middle of a story."""
    return bool(row[0].islower() or _STORY_PARAGRAPH.match(row))


def _by_lines(filled: Sequence[str], n_rows: str) -> Choice:
    """Choose for rows without empty rows between them."""
    if not filled:
        return Choice("blank line", "there is no text")
    if len(filled) == 1:
        return Choice("file", "it is one line")
    turns = [turn.group() for turn in map(_TURN.match, filled) if turn]
    speakers = [turn for turn in turns if turn.endswith(": ")]
    if len(turns) >= max(3, len(filled) / 2) and (not speakers or 1 < len(set(speakers)) <= len(speakers) / 3):
        begin = f"{len(turns):,} of {n_rows} begin with a speaker, a time or a marker of chat"
        return Choice("file", f"{begin}: they are turns of one conversation")
    n_continuing = sum(len(row) > _PROSE_LINE and after.lstrip()[:1].islower() for row, after in pairwise(filled))
    if len(filled) < 3 or n_continuing > 2 * _SOME * len(filled):
        return Choice("file", f"{n_rows} are lines of one text that continues from line to line")
    return Choice("row", f"{n_rows} have no blank line between them and do not continue from line to line")


def _are_sentences(rows: Sequence[str]) -> bool:
    """Return whether each row is one sentence of a continuous text, as in BookCorpus."""
    sentences = [row for row in rows if len(row) <= _SENTENCE_CHARACTERS and _SENTENCE.fullmatch(row.strip())]
    n_continuing = sum(bool(_LATER_SENTENCE.match(row)) for row in sentences)
    is_one_text = n_continuing > _SOME * len(rows) or len(rows) >= _VERY_MANY_ROWS
    return is_one_text and len(rows) >= _ENOUGH_ROWS and len(sentences) >= _MOST * len(rows)
