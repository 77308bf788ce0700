import errno
import json
import re
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from safetensors.torch import load_file

from helpers.data.sources.chat import Dialogue
from helpers.evaluation import record
from helpers.model import load_model, load_tokenizer
from helpers.settings import EvaluationSettings, SettingsError
from helpers.sharing import export as exporting
from helpers.sharing.export import TYPES, export_model, sampling_of


@pytest.fixture
def evaluated(run):
    """Return a finished run whose samples were drawn with their own settings."""
    settings = EvaluationSettings(run=run, temperature=0.75, top_k=40, max_new_tokens=20)
    record.write_section(run, "speech", {"settings": settings.model_dump(), "decodings": []})
    return run


def test_a_gguf_export_contains_what_ollama_and_llama_cpp_need(evaluated, runs):
    from gguf import GGUFReader

    export = export_model(evaluated)
    assert GGUFReader(export.weights_file).fields["general.sampling.temp"].contents() == 0.75
    assert export.folder == runs / "tiny/export/gguf-f16"
    assert sorted(path.name for path in export.folder.iterdir()) == ["Modelfile", "README.md", "tiny-f16.gguf"]
    modelfile = (export.folder / "Modelfile").read_text(encoding="utf-8")
    parameters = dict(re.findall(r"^PARAMETER (\S+) (.+)$", modelfile, re.MULTILINE))
    assert "FROM ./tiny-f16.gguf\n" in modelfile
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile
    assert parameters == {
        "temperature": "0.75", "top_k": "40", "top_p": "0.9", "min_p": "0.0", "repeat_penalty": "1.1",
        "repeat_last_n": "-1", "num_predict": "20", "num_ctx": "64", "stop": '"<|endoftext|>"',
    }  # fmt: skip
    readme = (export.folder / "README.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    assert len(commands.splitlines()) == 3
    assert "-m tiny-f16.gguf" in commands
    assert "--temp 0.75 --top-k 40" in commands
    assert "fox" not in commands, "a prompt about fables does not suit other text"
    assert "does not answer questions" in readme


def test_the_export_of_a_chat_model_writes_messages_as_in_its_data(run, runs, chat_tokenizer):
    (runs / run / "model/chat_template.jinja").write_text(chat_tokenizer.chat_template)
    folder = export_model(run).folder
    modelfile, readme = ((folder / name).read_text(encoding="utf-8") for name in ("Modelfile", "README.md"))
    template = (
        '{{ range $index, $message := .Messages }}{{ if $index }}\n\n{{ end }}{{ if eq .Role "system" }}System:'
        '{{ else if eq .Role "user" }}User:{{ else }}Assistant:{{ end }} {{ .Content }}{{ end }}\n\nAssistant:'
    )
    assert f'TEMPLATE """{template}"""\n' in modelfile
    assert 'PARAMETER stop "User:"' in modelfile
    assert 'ollama run tiny "Why?"\nllama-cli -m tiny-f16.gguf --jinja -n 160' in readme
    assert "was trained on conversations" in readme
    snippet = (export_model(run, to="safetensors-fp16").folder / "README.md").read_text(encoding="utf-8")
    assert '[{"role": "user", "content": "Why?"}], max_new_tokens=50' in snippet


def test_the_loss_is_measured_on_the_weights_in_the_file(run):
    exports = {kind: export_model(run, gguf_type=kind) for kind in TYPES}
    exports["fp16"] = export_model(run, to="safetensors-fp16")
    assert len({export.perplexity_before for export in exports.values()}) == 1
    assert exports["f16"].perplexity == pytest.approx(exports["f16"].perplexity_before, rel=1e-3)
    assert exports["f16"].perplexity != exports["f16"].perplexity_before, "the weights are rounded"
    assert exports["q8_0"].weights_file.stat().st_size < 0.9 * exports["f16"].weights_file.stat().st_size
    assert exports["q8_0"].perplexity == pytest.approx(exports["q8_0"].perplexity_before, rel=1e-2)
    for export in exports.values():
        text = (export.folder / "README.md").read_text(encoding="utf-8")
        assert f"{export.perplexity:.4f} ({export.loss_in_quality:+.3%})" in text
        assert export.protocol in text
        assert export.protocol in str(export)


@pytest.mark.parametrize(
    ("columns", "protocol", "texts"),
    [
        ({"text": ["a" * 9000, "b"]}, "documents", ["a" * 8000]),
        ({"text": ["a" * 5000, "b" * 5000], "continues": [True] * 2}, "passages", ["a" * 5000, "b" * 3000]),
        ({"text": ["User: a", "b"], "borders": [[5], []]}, "documents", [Dialogue("User: a", [5]), Dialogue("b", [])]),
    ],
)
def test_the_loss_uses_the_evaluation_protocol_on_the_first_characters(tmp_path, monkeypatch, columns, protocol, texts):
    def record_score(model, tokenizer, texts, **options):
        scored.append((texts, options["protocol"]))
        return SimpleNamespace(perplexity=2.0, n_documents=1, n_tokens=1, protocol_name=options["protocol"])

    scored = []
    documents = SimpleNamespace(documents={"test": Dataset.from_dict(columns)})
    monkeypatch.setattr(exporting, "score", record_score)
    monkeypatch.setattr(exporting, "open_prepared", lambda run: documents)
    monkeypatch.setattr(exporting, "read_run_settings", lambda run: SimpleNamespace(block_size=32))
    monkeypatch.setattr(exporting, "load_model", lambda name: None)
    model = SimpleNamespace(config=SimpleNamespace(n_positions=64))
    export = exporting._measure("tiny", tmp_path, "safetensors-fp16", "model.safetensors", (model, None))
    assert scored == [(texts, protocol)] * 2
    assert [getattr(text, "borders", None) for text in scored[0][0]] == [
        getattr(text, "borders", None) for text in texts
    ]
    assert f"test {protocol} of" in export.protocol


def test_fp16_weights_take_half_the_bytes_and_load_like_the_run_without_gguf(run, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    export = export_model(run, to="safetensors-fp16")
    before = runs / "tiny/model/model.safetensors"
    assert export.weights_file.stat().st_size < 0.52 * before.stat().st_size
    weights, exact = load_file(export.weights_file), load_file(before)
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float16"}
    assert all((weights[name].float() - exact[name]).abs().max() < 1e-3 for name in weights)
    assert load_model(str(export.folder)).dtype.itemsize == 4
    assert load_tokenizer(str(export.folder)).get_vocab() == load_tokenizer(str(runs / "tiny/model")).get_vocab()


def test_sampling_settings_before_the_evaluation_are_the_defaults(run):
    assert sampling_of(run) == EvaluationSettings(run=run)


def test_an_unknown_format_is_refused(run):
    with pytest.raises(SettingsError, match="to = 'ggml' is not a format: use 'gguf' or 'safetensors-fp16'"):
        export_model(run, to="ggml")
    with pytest.raises(SettingsError, match="type = 'q4' is not a format: use 'f16' or 'q8_0'"):
        export_model(run, gguf_type="q4")


def test_a_missing_or_unfinished_run_is_refused(run, runs):
    with pytest.raises(SettingsError, match=r"no run 'tin'.*did you mean 'tiny'"):
        export_model("tin")
    (runs / "tiny/model").rename(runs / "tiny/gone")
    with pytest.raises(SettingsError, match="no final model yet: train it in notebook 3"):
        export_model(run)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"model_type": "llama"}, "is a llama model: this course trains GPT-2"),
        ("config.json", {"eos_token_id": 5}, "ends a text with token 5 and the tokenizer with 4095"),
    ],
)
def test_an_unsupported_model_is_refused_and_leaves_nothing(run, runs, file, change, words):
    path = runs / "tiny/model" / file
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    with pytest.raises(SettingsError, match=words):
        export_model(run)
    assert not (runs / "tiny/export").exists()


def test_too_little_space_is_refused_before_anything_is_written(run, runs, monkeypatch):
    monkeypatch.setattr(exporting, "free_bytes", lambda folder: 1000)
    with pytest.raises(SettingsError, match=r"needs 8 MiB and the disk of .* has 0 MiB free: delete old checkpoints"):
        export_model(run)
    assert not (runs / "tiny/export").exists()


def test_a_disk_that_fills_up_keeps_the_previous_export(run, runs, monkeypatch):
    before = export_model(run).weights_file.read_bytes()

    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "write_gguf", fill)
    with pytest.raises(OSError, match="No space left on device"):  # the command line turns it into a sentence
        export_model(run)
    assert (runs / "tiny/export/gguf-f16/tiny-f16.gguf").read_bytes() == before
    assert [path.name for path in (runs / "tiny/export").glob("[!.]*")] == ["gguf-f16"]


def test_without_the_gguf_package_the_error_names_the_install_command(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SettingsError, match=r'pip install "\.\[export\]"'):
        export_model(run)


def test_a_weight_too_large_for_fp16_is_refused(run, runs):
    model = load_model(str(runs / "tiny/model"))
    model.transformer.wpe.weight.data[0, 0] = 1e5
    model.save_pretrained(runs / "tiny/model")
    with pytest.raises(SettingsError, match=r"weights transformer\.wpe\.weight hold values that are not finite"):
        export_model(run, to="safetensors-fp16")
    assert list((runs / "tiny/export").glob("[!.]*")) == []
