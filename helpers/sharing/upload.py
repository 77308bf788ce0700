"""Publish a run on the Hugging Face Hub: first show everything that would be uploaded, then upload it.

    from helpers.sharing import plan_upload, publish
    upload = plan_upload("my-run", "my-name/my-model")
    print(upload)
    publish(upload)

Log in once with `hf auth login`. The upload has the files of the folder `model` with the model card, whose metadata
contain the evaluation results in the Hub's format (`model-index`), and the GGUF file with its Modelfile in `gguf`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.data.sources import public_name
from helpers.display import PlainTextMixin, first_line
from helpers.evaluation.record import read_section
from helpers.model import shown_name
from helpers.paths import is_hidden
from helpers.settings import SettingsError, read_run_settings, run_folder
from helpers.sharing.export import export_model
from helpers.training import write_model_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Licences of what this course ships; `python-reference` and the pocket model are made from the text of many packages.
_LICENCES = {"fables": "cc0-1.0", "pocket": "mit", "python-reference": "those of Python and of the installed packages"}
_UNKNOWN_LICENCE = "not known to this course: make sure that you may publish what was made from it"


@dataclass(frozen=True)
class Upload(PlainTextMixin):
    """What would be published: path in the repository -> the file or its content, and notes to read before.

    `private` says whether the repository will be hidden from others; an existing one stays as it is.
    """

    run: str
    repo_id: str
    private: bool
    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(map(_n_bytes, self.files.values()))

    def __str__(self) -> str:
        width = max(map(len, self.files))
        rows = [f"  {name:{width}}  {_n_bytes(content):>13,} bytes" for name, content in self.files.items()]
        seen_by = "private" if self.private else "public: everybody can read and copy it"
        head, total = f"Run {self.run} to {self.repo_id} ({seen_by})", f"  {len(rows)} files, {self.n_bytes:,} bytes"
        return "\n".join([head, *rows, total, *self.notes])


def plan_upload(
    run: str, repo_id: str, *, private: bool = False, licence: str | None = None, api: "HfApi | None" = None
) -> Upload:
    """Gather what would be published; nothing is sent, but the Hub is asked about the account and the repository.

    Args:
        run: a finished run.
        repo_id: 'owner/name'.
        private: whether the repository must be hidden from others; an existing one stays as it is.
        licence: the licence of your model, an identifier such as 'mit' or 'cc0-1.0', for its card.
        api: the Hub's client; by default with the account that is logged in.

    Raises:
        SettingsError: the run has no model, the name or licence is not allowed, nobody is logged in, the Hub does not
            answer, a file is a link, or the repository exists and is public although `private` is set.
    """
    from huggingface_hub import HfApi

    check_repo_id(repo_id)
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise SettingsError(
            f"licence = {licence!r} is not a licence of the Hub's list: use its identifier, such as 'cc-by-4.0'."
        )
    settings = read_run_settings(run)
    folder = run_folder(run) / "model"
    if write_model_card(run) is None:
        raise SettingsError(f"Run {run!r} has no final model yet: train it in notebook 3 first.")
    api = api or HfApi()
    with _explain_refusals(repo_id):
        account = api.whoami()["name"]
        repository = _describe_repository(api, repo_id)
    if private and not repository.get("private", True):
        raise SettingsError(
            f"{repo_id!r} exists and is public, so everybody could read what is sent there: choose another name, make "
            "it private in its settings on the Hub, or leave --private out."
        )
    files: dict[str, Path | bytes] = {path.name: path for path in _visible_files(folder)}
    if licence is not None:
        files["README.md"] = _with_licence(folder / "README.md", licence)
    gguf_files, gguf_note = _gguf_files(run)
    base, source = settings.model_name_or_path, settings.source
    notes = (
        f"Account: {account}. {repository['note']}",
        f"Copying: {copying_verdict(run)}",
        f"Text: {public_name(source)}; licence: {_licence(api, 'dataset', source)}.",
        f"Base model: {'random weights' if settings.from_scratch else shown_name(base)}; "
        f"licence: {'your own' if settings.from_scratch else _licence(api, 'model', base)}.",
        f"Licence of this model: {licence or 'none named; --license puts one into the card'}.",
        *gguf_note,
    )
    return Upload(run, repo_id, repository.get("private", private), files | gguf_files, notes)


def publish(upload: Upload, *, api: "HfApi | None" = None) -> str:
    """Send everything in one commit; return the address.

    After a lost connection, repeat the call: files that have arrived completely are not sent again.

    Raises:
        SettingsError: the Hub refuses, or the connection broke.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = api or HfApi()
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in upload.files.items()
    ]
    with _explain_refusals(upload.repo_id):
        address = api.create_repo(upload.repo_id, private=upload.private, exist_ok=True)
        api.create_commit(upload.repo_id, operations, commit_message=f"Run {upload.run}")
    return str(address)


def check_repo_id(repo_id: str) -> None:
    """Raise `SettingsError` for a name that the Hub does not allow.

    >>> check_repo_id("fables")
    Traceback (most recent call last):
    helpers.schema.SettingsError: 'fables' is not a name of the Hub (the owner is missing): use 'owner/name' with \
letters, digits, '-', '_' and '.', at most 96 characters, as in 'you/my-model'.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    reason = "" if repo_id.count("/") == 1 else "the owner is missing" if "/" not in repo_id else "it has two slashes"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = reason or first_line(error)
    if reason:
        raise SettingsError(
            f"{repo_id!r} is not a name of the Hub ({reason}): use 'owner/name' with letters, digits, '-', '_' and "
            "'.', at most 96 characters, as in 'you/my-model'."
        )


def copying_verdict(run: str) -> str:
    """Return what notebook 04 measured about copied text, in one or two sentences."""
    copying = read_section(run, "copying")
    if not copying:
        return "not measured. Run notebook 4 for this run first, and read its report."
    longest = {row["text"]: row["longest_tokens"] for row in copying["rows"]}
    values = " and ".join(f"{tokens} in {text}" for text, tokens in longest.items())
    sentence = f"the longest run shared with the training text, in tokens, is {values}"
    if "held-out text" not in longest:
        return f"{sentence}."
    longer = longest["samples"] > longest["held-out text"]
    return f"{sentence}: {'longer than' if longer else 'no longer than'} what real text of this kind shares by chance."


def _describe_repository(api: "HfApi", repo_id: str) -> dict[str, Any]:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return {"note": f"The repository {repo_id} is new."}
    names = {sibling.rfilename for sibling in info.siblings or []}
    state = "private" if info.private else "public"
    return {
        "private": bool(info.private),
        "note": f"The repository {repo_id} exists and stays {state}: a commit is added, files of the same name get a "
        f"new version, and its other files ({len(names)} in all) stay.",
    }


def _visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder without hidden ones: a .env with a token must not be published.

    Raises:
        SettingsError: one, or the folder, is a link, as a run made by somebody else may contain: its target would be
            published.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not is_hidden(path))
    for path in (folder, *files):
        if path.is_symlink():
            raise SettingsError(
                f"{path} is a link to {path.resolve()}, whose content would be published: put the file or folder "
                "itself there, or delete the link."
            )
    return files


def _gguf_files(run: str) -> tuple[dict[str, Path | bytes], tuple[str, ...]]:
    """Return the files of the GGUF exports, made now if there are none newer than the model; a note if that fails."""
    folder = run_folder(run) / "export"
    trained_at = (run_folder(run) / "model" / "model.safetensors").stat().st_mtime
    exports = [path.parent for path in folder.glob("gguf-*/*.gguf") if path.stat().st_mtime >= trained_at]
    try:
        exports = exports or [export_model(run, to="gguf").folder]
    except SettingsError as error:
        return {}, (f"Without a GGUF file: {error}",)
    # Several types share a folder on the Hub, as programs that look for GGUF files expect; the README is the first's.
    files: dict[str, Path | bytes] = {}
    for export in sorted(exports):
        for path in _visible_files(export):
            files.setdefault(f"gguf/{path.name}", path)
    return files, ()


def _licence(api: "HfApi", kind: str, name: str) -> str:
    """Return the licence of a text or model, if this course or the Hub knows it."""
    if name in _LICENCES:
        return _LICENCES[name]
    shown = public_name(name) if kind == "dataset" else shown_name(name)
    if "/" not in shown:
        return _UNKNOWN_LICENCE
    try:
        card = (api.dataset_info if kind == "dataset" else api.model_info)(name).card_data
    except Exception:  # noqa: BLE001 (whatever the client raises, the licence is unknown)
        return _UNKNOWN_LICENCE
    licence = card.get("license") if card else None
    return str(licence) if licence else _UNKNOWN_LICENCE


def _with_licence(card: Path, licence: str) -> bytes:
    from huggingface_hub import ModelCard

    model_card = ModelCard(card.read_text(encoding="utf-8"))
    model_card.data.license = licence
    return str(model_card).encode()


@contextmanager
def _explain_refusals(repo_id: str) -> Iterator[None]:
    """Turn an error of the Hub's client into one sentence that says what to do."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except SettingsError:
        raise
    except Exception as error:  # noqa: BLE001 (the client raises its own errors, its HTTP library's, and OSError)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, LocalTokenNotFoundError) or status == 401:
            advice = "log in with `hf auth login`, with a token that has write access"
        elif status == 403:
            advice = "use a name of your own account or organisation, and a token that has write access"
        elif isinstance(error, OfflineModeIsEnabled):
            advice = "HF_HUB_OFFLINE is set; remove it to publish"
        elif status is not None:
            advice = "the Hub refused it; change what it names"
        else:
            advice = "check the network, and repeat the command; files that have arrived completely are not sent again"
        reason = first_line(error.__cause__ or error)  # the cause, where the client's own error only names the file
        raise SettingsError(f"The Hub did not accept {repo_id!r} ({reason}): {advice}.") from None


def _n_bytes(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
