"""The forms of calls that are known."""

from __future__ import annotations

from arcweld.compiler.errors import UsageError
from arcweld.serving.tool_calls.form import CallForm
from arcweld.serving.tool_calls.json_forms import DeepSeek3, DeepSeek31, Hermes, Llama, Mistral
from arcweld.serving.tool_calls.xml_form import Qwen3Coder

FORMS: dict[str, CallForm] = {
    form.name: form for form in (Hermes(), Llama(), Mistral(), Qwen3Coder(), DeepSeek3(), DeepSeek31())
}  # fmt: skip


def form_named(name: str) -> CallForm:
    """The form with this name. Raises UsageError if there is none."""
    if name not in FORMS:
        raise UsageError(f"there is no form of tool calls {name!r}", hint=f"known are {', '.join(FORMS)}")
    return FORMS[name]


def form_of(template: str) -> CallForm | None:
    """The form that a chat template asks its model for; None if it is no known one, or shows the model no tools."""
    if "tools" not in template:
        return None
    return next((form for form in FORMS.values() if form.is_asked_for_by(template)), None)
