"""Chat and instruction data: a conversation becomes one document that records which parts are a prompt.

Supported: a column of messages with `role` and `content` (or `from` and `value`), and columns such as `prompt` and
`completion`, `instruction`, `input` and `output`, or `system_prompt`, `question` and `response`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain, groupby, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from helpers.data.sources.documents import remove_markers, replace_lone_surrogates
from helpers.display import cut
from helpers.settings import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
# The usual names of columns that make one conversation, and who says their text. A table needs the second and the last;
# of each line, the first name that it has is used.
_COLUMN_ROLES = (
    (("system", "system_prompt"), "system"),
    (("prompt", "instruction", "question", "query", "problem", "inputs"), "user"),
    (("input", "context"), "user"),  # what the question is about
    (("completion", "response", "output", "solution", "answer", "targets"), "assistant"),
)
_ROLE_ALIASES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}


class Template(NamedTuple):
    """How a message is written: its role's header, what precedes and follows its content, and what separates messages.

    With `ends_answers`, each answer is followed by an end-of-text token. A document always ends in one, and
    `TokenStream.encode_dialogues` adds the others, so only `jinja` and `go` write it.

    The content begins, or its header ends, with white space. GPT-2's tokenizer starts a new token there anyway, so a
    prompt on its own has the same tokens as at the beginning of a conversation.
    """

    headers: Mapping[str, str]
    before: str
    after: str
    between: str
    ends_answers: bool = False

    @property
    def frame(self) -> tuple[str, str]:
        """What precedes and follows the content of a question."""
        return self.headers["user"] + self.before, self.after + self.between + self.headers["assistant"]

    @property
    def jinja(self) -> str:
        """The same form as a tokenizer's `chat_template`."""
        headers, before, after, between = map(json.dumps, self[:4])
        end = "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}" if self.ends_answers else ""
        return (
            f"{{% set headers = {headers} %}}{{% for message in messages %}}"
            f"{{% if not loop.first %}}{{{{ {between} }}}}{{% endif %}}"
            f"{{{{ headers[message['role']] + {before} + message['content'].strip() + {after} }}}}{end}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {between} + headers['assistant'] }}}}{{% endif %}}"
        )

    @property
    def go(self) -> str:
        """The same form as the template of Ollama's Modelfile, up to the next answer."""
        system, user, assistant = (self.headers[role] for role in ("system", "user", "assistant"))
        end = '{{ if eq .Role "assistant" }}<|endoftext|>{{ end }}' if self.ends_answers else ""
        return (
            f"{{{{ range $index, $message := .Messages }}}}{{{{ if $index }}}}{self.between}{{{{ end }}}}"
            f'{{{{ if eq .Role "system" }}}}{system}{{{{ else if eq .Role "user" }}}}{user}{{{{ else }}}}{assistant}'
            f"{{{{ end }}}}{self.before}{{{{ .Content }}}}{self.after}{end}{{{{ end }}}}{self.between}{assistant}"
        )


TEMPLATES = {
    "roles": Template({"system": "System:", "user": "User:", "assistant": "Assistant:"}, " ", "", "\n\n"),
    # The headings of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca).
    "alpaca": Template(
        {"system": "### System:", "user": "### Instruction:", "assistant": "### Response:"}, "\n", "", "\n\n"
    ),
    # OpenAI's ChatML; its markers are not special tokens of GPT-2 and take several tokens each.
    "chatml": Template(
        {role: f"<|im_start|>{role}" for role in ("system", "user", "assistant")}, "\n", "<|im_end|>", "\n"
    ),
    "plain": Template(dict.fromkeys(("system", "user", "assistant"), ""), "", "", "\n"),
}


class Dialogue(str):
    """A document some parts of which are a prompt.

    Attributes:
        borders: character positions where prompt and completion alternate, starting with a prompt.
    """

    borders: tuple[int, ...]

    def __new__(cls, text: str, borders: Iterable[int]) -> "Dialogue":
        """Return the text with its borders."""
        dialogue = super().__new__(cls, text)
        dialogue.borders = tuple(borders)
        return dialogue

    @property
    def segments(self) -> list[tuple[str, bool]]:
        """The pieces of the text in order, each with whether it is a prompt; no piece is empty."""
        boundaries = [0, *self.borders, len(self)]
        pieces = [self[start:stop] for start, stop in pairwise(boundaries)]
        return [(piece, number % 2 == 0) for number, piece in enumerate(pieces) if piece]


def render_chat(messages: Sequence[Mapping[str, Any]], template: str = "roles") -> Dialogue:
    r"""Write messages as one document; the assistant's messages are completions, everything else is a prompt.

    Args:
        messages: each with `role` and `content`, or `from` and `value`.
        template: a key of `TEMPLATES`.

    Raises:
        SettingsError: a message has no text, or an unknown role.

    >>> chat = render_chat([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A fox."}])
    >>> chat.segments
    [('User: Who?\n\nAssistant:', True), (' A fox.', False)]
    """
    form, pieces = TEMPLATES[template], [""]  # prompts and completions alternate
    for number, message in enumerate(messages):
        role, content = _read_message(message)
        body = f"{form.before}{content}{form.after}"
        if len(pieces) % 2 == 0:
            pieces.append("")
        pieces[-1] += (form.between if number else "") + form.headers[role]
        if role == "assistant":
            pieces.append(body)
        else:
            pieces[-1] += body
    return Dialogue("".join(pieces), accumulate(map(len, pieces[:-1])))


def find_template(tokenizer: "PreTrainedTokenizerBase") -> Template | None:
    """Return the template that a tokenizer has, if it is one of `TEMPLATES`."""
    known = (each for form in TEMPLATES.values() for each in (form, form._replace(ends_answers=True)))
    return next((each for each in known if each.jinja == tokenizer.chat_template), None)


def question_frame(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """Return what precedes and follows a question to a chat model; ('', '') for any other model."""
    template = find_template(tokenizer)
    return template.frame if template else ("", "")


def as_question(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a prompt as a chat model reads it: as the user's message, up to where the answer begins.

    Unchanged are an empty prompt, a prompt that already ends there, and any prompt of another tokenizer.
    """
    before, after = question_frame(tokenizer)
    if not prompt or not after:
        return prompt
    text = remove_markers(prompt).strip()
    return text if text.endswith(after) else before + text + after


def _read_message(message: Any) -> tuple[str, str]:
    values = message if isinstance(message, Mapping) else {}
    role, content = values.get("role", values.get("from")), values.get("content", values.get("value"))
    role = _ROLE_ALIASES.get(str(role), role)
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise SettingsError(
            "a message needs a role (system, user or assistant) and content that is text, not "
            f"{cut(str(message), 60)}; tool calls and images are not read"
        )
    return role, remove_markers(replace_lone_surrogates(content)).strip()


def chat_columns(columns: Mapping[str, str], wanted: str) -> tuple[str, ...]:
    """Return the columns that hold conversations, or () if the table is not chat data.

    `columns` maps each column to its kind, as in `Table`; `wanted` is the setting `text_column`.
    """
    if wanted:
        return (wanted,) if columns.get(wanted) == "messages" else ()
    if "text" in columns:
        return ()
    chats = [name for name, kind in columns.items() if kind == "messages"]
    if named := [name for name in MESSAGE_COLUMNS if name in chats]:
        return (named[0],)
    found = [next((name for name in names if name in columns), "") for names, _ in _COLUMN_ROLES]
    if all(columns.get(name) in ("words", "messages", "other") for name in (found[1], found[-1])):
        return tuple(filter(None, found))
    return tuple(chats[:1])


def render_row(values: Mapping[str, Any], columns: Sequence[str], template: str) -> Dialogue | str:
    """Return a chat row as a document; empty if it has no messages or no completion for its prompt.

    Errors as in `render_chat`.
    """
    if len(columns) == 1:
        messages = values.get(columns[0]) or []
    else:
        roles = {name: role for names, role in _COLUMN_ROLES for name in names}
        said = [
            _as_messages([values.get(name) for name in names], role) for role, names in groupby(columns, key=roles.get)
        ]
        messages = [*chain.from_iterable(said)] if said[-1] else []
    return render_chat(messages, template) if messages else ""


def _as_messages(values: Iterable[Any], role: str) -> list[Any]:
    """Return values of one role as messages: texts are joined, and a list already consists of messages."""
    filled = [value for value in values if value and not (isinstance(value, str) and value.isspace())]
    if filled and all(isinstance(value, str) for value in filled):
        return [{"role": role, "content": "\n\n".join(filled)}]
    lists = (value if isinstance(value, list) else [{"role": role, "content": value}] for value in filled)
    return [*chain.from_iterable(lists)]
