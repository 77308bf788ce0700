"""The demo page: a prompt, the sampling sliders, the answers and the model card, in one HTML file.

The page comes in two kinds. The server of `helpers.sharing.demo` sends one that gets the answers from the server, for
models of any size. `write_static_page` writes one that contains a small model and llama.cpp in WebAssembly: it needs no
server and no network, and can be mailed, opened with a double click, or put on any static web host.
"""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.data.sources.chat import question_frame
from helpers.display import Html
from helpers.evaluation import load_tuned
from helpers.files import fill_template, write_atomically
from helpers.paths import ASSETS
from helpers.schema import bounds
from helpers.settings import EvaluationSettings, SettingsError, read_run_settings, run_folder
from helpers.sharing.export import BYTES_PER_WEIGHT, export_model, sampling_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
_SLIDER_MAXIMA = {"temperature": 2, "top_k": 200, "repetition_penalty": 2}  # of a slider; the settings allow more
_LARGEST_MODEL_BYTES = 64 * 2**20  # a browser loads the whole page, and base64 adds a third
_SERVER_CSP = "default-src 'none'; connect-src 'self'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
_STATIC_CSP = (
    "default-src 'none'; connect-src blob: data:; style-src 'nonce-{nonce}'; worker-src blob:; "
    "script-src 'nonce-{nonce}' blob: 'wasm-unsafe-eval'"
)


def served_page(
    run: str, models: Sequence[str], *, note: str, n_positions: int, tokenizer: "PreTrainedTokenizerBase"
) -> str:
    """Return the page that gets the answers of some models from its server and shows them side by side.

    The note is shown under the title; `n_positions` is the maximum number of tokens of prompt and answer.
    """
    return _page(
        run, models, note=note, n_positions=n_positions, frame=question_frame(tokenizer), names=SAMPLING,
        policy=_SERVER_CSP, engine="server_engine.js", data={},
    )  # fmt: skip


def write_static_page(run: str, folder: Path) -> Path:
    """Write one HTML file that runs a small model in the visitor's browser; return its path.

    The model is the run's `q8_0` export, made here. Other files in the folder are left alone.

    Raises:
        SettingsError: the run has no model, the model is too large for a page, or another index.html is there.
        OSError: the page cannot be written.
    """
    read_run_settings(run)  # reports an unknown name as such
    path = folder / "index.html"
    if path.exists() and b'id="wasm"' not in path.read_bytes():
        raise SettingsError(f"{path} already exists and is not a page of this command: name another folder.")
    tuned, tokenizer = load_tuned(run)
    n_bytes = tuned.num_parameters() * BYTES_PER_WEIGHT["gguf-q8_0"]
    if n_bytes > _LARGEST_MODEL_BYTES:
        raise SettingsError(
            f"The model of run {run!r} has {n_bytes / 2**20:.0f} MiB in q8_0, and a page holds at most "
            f"{_LARGEST_MODEL_BYTES // 2**20}: use `demo` without --static, or `export` it for llama.cpp."
        )
    model = export_model(run, to="gguf", gguf_type="q8_0").weights_file.read_bytes()
    n_positions, frame = tuned.config.n_positions, question_frame(tokenizer)
    facts = {"model": "tuned", "n_positions": n_positions, "frame": frame}
    wllama = ASSETS / "wllama"
    page = _page(
        run,
        ["tuned"],
        note=f"This page holds the model ({len(model) / 1e6:.1f} MB) and runs it in your browser. "
        "Nothing you type leaves it.",
        n_positions=n_positions,
        frame=frame,
        names=[name for name in SAMPLING if name != "seed"],  # wllama uses its own seed
        policy=_STATIC_CSP,
        engine="browser_engine.js",
        data={
            "facts": json.dumps(facts),
            "library": _base64((wllama / "wllama.js.gz").read_bytes()),
            "wasm": _base64((wllama / "wllama.wasm.gz").read_bytes()),
            "model": _base64(model),
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def controls(sampling: EvaluationSettings, names: Sequence[str], *, n_positions: int) -> list[dict[str, Any]]:
    """Return what each control of the page needs: name, type, min, max, step, value and help."""
    rows = []
    for name in names:
        field, value = EvaluationSettings.model_fields[name], getattr(sampling, name)
        limits = bounds(field)
        step = (field.json_schema_extra or {}).get("step", 1 if isinstance(value, int) else 0.05)
        maximum = n_positions - 1 if name == "max_new_tokens" else max(_SLIDER_MAXIMA.get(name, limits["le"]), value)
        rows.append(
            {
                "name": name,
                "type": "number" if name == "seed" else "range",
                "min": limits.get("ge", step),  # a bound "above 0" becomes the first step
                "max": maximum,
                "step": step,
                "value": min(value, 3 * n_positions // 4) if name == "max_new_tokens" else value,
                "help": field.description,
            }
        )
    return rows


def card_html(text: str) -> str:
    """Return a model card as HTML without its metadata; HTML in the card is escaped."""
    import mistune

    body = text.split("\n---\n", 1)[-1] if text.startswith("---\n") else text
    return str(mistune.create_markdown(escape=True, plugins=["table"])(body))


def _page(
    run: str, models: Sequence[str], *, note: str, n_positions: int, frame: tuple[str, str], names: Sequence[str],
    policy: str, engine: str, data: Mapping[str, str],
) -> str:  # fmt: skip
    card, sampling = run_folder(run) / "model" / "README.md", sampling_of(run)
    nonce = secrets.token_urlsafe()  # the browser runs only scripts with this nonce

    def asset(name: str) -> Html:
        return Html((ASSETS / "demo" / name).read_text(encoding="utf-8"))

    return fill_template(
        "demo/page.html",
        title=run,
        note=note,
        label="Question" if frame[1] else "Text to continue",
        prompt=sampling.prompt.removesuffix(frame[1]).removeprefix(frame[0]) or "The",
        models=models,
        controls=controls(sampling, names, n_positions=n_positions),
        card=Html(card_html(card.read_text(encoding="utf-8")) if card.exists() else ""),
        data={name: Html(text.replace("<", "\\u003c")) for name, text in data.items()},  # base64, JSON
        policy=Html(policy.format(nonce=nonce)),  # not escaped: the quotes are ours
        nonce=nonce,
        style=asset("page.css"),
        engine=asset(engine),
        script=asset("page.js"),
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
