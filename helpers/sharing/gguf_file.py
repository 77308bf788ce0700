"""A GPT-2 and its tokenizer as one GGUF file, the format of llama.cpp and of programs built on it, such as Ollama.

The names, keys and types are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of the `gguf`
package. The tests check in llama.cpp itself what goes wrong in other exporters: `Conv1D` weights that are not
transposed, a tied head that is missing, a pre-tokenizer that splits text differently, an end-of-text token that is
printed as text.
"""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from helpers.data.tokens import is_gpt2_like
from helpers.model import check_sound
from helpers.settings import EvaluationSettings, SettingsError

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

GgufType = Literal["f16", "q8_0"]
_BLOCK = 32  # weights that share a scale in q8_0; a matrix whose rows are no multiple of it stays in f16
# What llama.cpp computes for a GPT-2; other values of these `GPT2Config` settings would need other arithmetic.
_ARITHMETIC = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def write_gguf(
    path: Path,
    model: "GPT2LMHeadModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    name: str,
    gguf_type: GgufType = "f16",
    sampling: EvaluationSettings | None = None,
) -> None:
    """Write a GPT-2 and its tokenizer into one GGUF file.

    Args:
        path: the file.
        model: a GPT-2 in float32.
        tokenizer: its byte-level tokenizer.
        name: name of the model in the file.
        gguf_type: number format of the matrices. Vectors stay in float32; position embeddings, and matrices whose rows
            q8_0 cannot divide into blocks of 32, are in float16.
        sampling: settings that llama.cpp uses as its defaults for this file; None: its own.

    Raises:
        SettingsError: llama.cpp would compute something else for such a model or tokenizer, the two do not match, or
            the `gguf` package is not installed.
    """
    import_gguf()
    from gguf import GGUFWriter, LlamaFileType

    check_sound(model, tokenizer)
    config = model.config
    _check_arithmetic(config)
    writer = GGUFWriter(path, "gpt2")
    writer.add_name(name)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if gguf_type == "f16" else LlamaFileType.MOSTLY_Q8_0)
    if gguf_type == "q8_0":
        writer.add_quantization_version(2)
    if sampling is not None:
        writer.add_sampling_temp(sampling.temperature)
        writer.add_sampling_top_k(sampling.top_k)
        writer.add_sampling_top_p(sampling.top_p)
        writer.add_sampling_min_p(0.0)  # llama.cpp's default drops tokens that transformers keeps
        writer.add_sampling_penalty_repeat(sampling.repetition_penalty)
        writer.add_sampling_penalty_last_n(config.n_positions)  # the whole context, as in transformers
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    names = _gguf_names(model)
    for weight, tensor in model.state_dict().items():
        if weight == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp then uses the token embeddings
        array, kind = _convert(names[weight], _transpose(weight, tensor.detach().float().cpu().numpy()), gguf_type)
        writer.add_tensor(names[weight], array, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_gguf(path: Path, model: "GPT2LMHeadModel") -> "GPT2LMHeadModel":
    """Return a copy of a model with the weights of its GGUF file, in float32."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}
    loaded, names = copy.deepcopy(model), _gguf_names(model)
    with torch.no_grad():
        for name, weights in loaded.named_parameters():  # a tied head is not listed separately
            weights.copy_(torch.from_numpy(_transpose(name, stored[names[name]]).copy()))
    return loaded


def import_gguf() -> None:
    """Raise `SettingsError` with the command that installs the `gguf` package, if it is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise SettingsError(
            'Writing GGUF needs the package gguf, which is not installed: run `pip install ".[export]"` in the '
            "project's folder, or `pip install gguf`."
        ) from None


def _transpose(name: str, array: np.ndarray) -> np.ndarray:
    """Transpose the weight of a `Conv1D`, which GPT-2 stores as (inputs, outputs); leave vectors and embeddings."""
    return array.T.copy() if name.startswith("transformer.h.") else array


def _gguf_names(model: "GPT2LMHeadModel") -> dict[str, str]:
    """Return weight name -> its name in GGUF."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    name_map = get_tensor_name_map(MODEL_ARCH.GPT2, model.config.n_layer)
    return {name: name_map.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}


def _check_arithmetic(config: "GPT2Config") -> None:
    for name, values in _ARITHMETIC.items():
        if getattr(config, name) not in values:
            raise SettingsError(
                f"The model has {name} = {getattr(config, name)!r}, but llama.cpp computes a GPT-2 only with "
                f"{' or '.join(map(repr, values))}: its answers would differ. Use the folder `model` with "
                "transformers instead."
            )


def _convert(name: str, array: np.ndarray, gguf_type: GgufType) -> tuple[np.ndarray, int]:
    """Return a tensor in the number format of the file, and that format.

    As in llama.cpp's own files, vectors stay in float32, and position embeddings in float16.
    """
    from gguf import GGMLQuantizationType as Type
    from gguf.quants import quantize

    if array.ndim == 1:
        return array, Type.F32
    if gguf_type == "q8_0" and name != "position_embd.weight" and array.shape[-1] % _BLOCK == 0:
        return quantize(array, Type.Q8_0), Type.Q8_0
    return array.astype(np.float16), Type.F16


def _add_tokenizer(writer: "object", tokenizer: "PreTrainedTokenizerBase", n_embeddings: int) -> None:
    """Add vocabulary, merges and end-of-text; refuse a tokenizer that llama.cpp's GPT-2 would not reproduce."""
    from gguf import TokenType

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if not is_gpt2_like(parts):
        raise SettingsError(
            "The tokenizer is not of GPT-2's kind (byte-level BPE without a normalizer and without a space put before "
            "the text), so llama.cpp would split the same text into other tokens: use the folder `model` with "
            "transformers instead."
        )
    # A vocabulary size that was rounded up has rows without a token; the file needs a token for each row.
    tokens = [f"[UNUSED{row}]" for row in range(n_embeddings)]
    kinds = [TokenType.UNUSED] * n_embeddings
    for token, row in tokenizer.get_vocab().items():
        tokens[row], kinds[row] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in parts["model"]["merges"]])
    # Without these, llama.cpp uses id 11 for each of them, which is a comma or any other token.
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_eot_token_id):
        add(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)  # transformers adds none to a prompt, either
    writer.add_add_eos_token(False)
