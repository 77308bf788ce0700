"""What the course relies on in the JSON files of a run, which may hold more: names and types.

An earlier version, or your own notebook, may have recorded less.
"""

from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from helpers.display import quoted


def _form(required: Mapping[str, Any], **optional: Any) -> type[BaseModel]:
    """Return the form of a JSON object: the types of its required and of its optional values."""
    fields = {name: (kind, ...) for name, kind in required.items()}
    fields |= {name: (kind, None) for name, kind in optional.items()}
    return create_model("Form", __config__=ConfigDict(strict=True, defer_build=True), **fields)


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Positive = Annotated[int, Field(gt=0, lt=2**63)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Range = Annotated[list[_Number], Field(min_length=2, max_length=2)] | None  # lowest, highest
_Values = dict[str, Hashable]  # no lists and objects
_PART = _form({"documents": _Count, "bytes": _Count, "sha256": str}, tokens=_Count | None, blocks=_Count, labels=_Count)
_ROW = _form(  # a run that diverged has losses that are not finite
    {"step": _Count}, epoch=_Number, loss=float, eval_loss=float, learning_rate=float, grad_norm=float, sample=str,
    warning=str,
)  # fmt: skip
_SCORE = _form(
    {"perplexity": _Number | None, "bits_per_byte": _Number, "word_perplexity": _Number | None, "context": _Count,
     "stride": _Count, "text_sha256": str, "protocol": str, "perplexity_interval": _Range,
     "bits_per_byte_interval": _Range},
)  # fmt: skip
_DIFFERENCE = _form({"interval": _Range, "confidence": _Number, "resamples": _Count})
_DOCUMENT = _form({"sha256": str, "bytes": _Count, "tokens": _Count, "tuned_nats": _Number})
_COMPARISON = _form(
    {"source": str, "verdict": str, "text_sha256": str, "base": _SCORE, "tuned": _SCORE, "difference": _DIFFERENCE},
    documents=list[_DOCUMENT],
)  # fmt: skip
_COPIED = _form({"text": str, "longest_tokens": _Count})
_SPEECH = _form({"settings": _Values, "decodings": list[_form({"decoding": str, "sample": str})]}, before=str)
_OBJECT = _form({})
_FORMS = {
    "settings.json": _form({"settings": _Values}, processes=_Positive, data_sha256=dict[str, str]),
    "data.json": _form(
        {"settings": _Values, "source_sha256": str | None,
         "splits": _form({"train": _PART, "validation": _PART, "test": _PART})},
        model_sha256=str | None, documents=_form({}, is_chat=bool, train_on=str),
    ),
    "history.jsonl": _ROW,
    "training.json": _form(
        {}, steps=_Positive, planned_steps=_Positive, tokens=_Count, trained_tokens=_Count, seconds=_Number,
        step_seconds=_Number, precision=str, device=str, peak_bytes=_Count,
        predicted=_form({}, seconds=_Range, peak_bytes=_Count | None) | None,
    ),
    "evaluation.json": _form(
        {"version": Literal[1]}, test=_COMPARISON | None, forgetting=_COMPARISON | None,
        copying=_form({"rows": Annotated[list[_COPIED], Field(min_length=1)]}) | None, speech=_SPEECH | None,
    ),
    "trainer_state.json": _form(
        {"global_step": _Count, "max_steps": _Count, "log_history": list[_ROW]},
        stateful_callbacks=_form(
            {}, Clock=_form({"args": _form({"seconds": _Number})}),
            EarlyStoppingCallback=_form({"attributes": _form({}, early_stopping_patience_counter=_Count)}),
        ),
    ),
    "trial.json": _form({}, state=str, error=str, parameters=_Values, optimise=str),
}  # fmt: skip


def find_fault(content: Any, file_name: str) -> str:
    """Return what is wrong with the content of a run's JSON file, as part of a sentence; '' if nothing is.

    >>> find_fault({"steps": 0}, "training.json"), find_fault([], "any.json")
    ('steps is 0: input should be greater than 0', 'it is not a JSON object')
    """
    try:
        _FORMS.get(file_name, _OBJECT).model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
    else:
        return ""
    if not fault["loc"]:
        return "it is not a JSON object"
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"{name} is missing"
    return f"{name} is {quoted(fault['input'])}: {fault['msg'].lower().removesuffix(' or instance of form')}"
