"""Chat templates with `{% generation %}` blocks: what is supervised is what a block encloses.

A message's content is text, or a list of `{"type": "image"}` and `{"type": "text", "text": ...}`,
shown one after the other with nothing between. None of the templates starts with BOS;
`tinyalign.data.chat.choose_template` adds it where the tokenizer does. Texts are shown as they
are, neither stripped nor escaped.
"""

from __future__ import annotations

from tinyalign.errors import DataError
from tinyalign.registry import Registry

SHOW = r"""
{%- macro show(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' -%}
        {{- image_token | default('<image>', true) -}}
      {%- else -%}
        {{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""

FLATTEN = (
    SHOW
    + r"""
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set flat.messages = flat.messages + [dict(message, content=show(message.content))] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
)
"""Put before a template that takes only text, this turns lists of parts into text."""

BOS = "{{- bos_token -}}\n"

# LLaVA's stage 1: the image, then its caption; what the user says is left out.
PLAIN = (
    SHOW
    + r"""
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {%- generation -%}
    {{- show(message.content) ~ eos_token -}}
    {%- endgeneration -%}
  {%- elif message.role == 'user' and message.content is not string -%}
    {{- show(message.content | rejectattr('type', 'equalto', 'text')) -}}
  {%- endif -%}
{%- endfor -%}
"""
)

# Qwen2, SmolLM2 and many more. `default_system` is what some of them say unasked.
CHATML = (
    SHOW
    + r"""
{%- if default_system is defined and messages[0].role != 'system' -%}
  {{- '<|im_start|>system\n' ~ default_system ~ '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {{- '<|im_start|>' ~ message.role ~ '\n' -}}
  {%- if message.role == 'assistant' -%}
    {%- generation -%}
    {{- show(message.content) ~ '<|im_end|>' -}}
    {%- endgeneration -%}
  {%- else -%}
    {{- show(message.content) ~ '<|im_end|>' -}}
  {%- endif -%}
  {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""
)

# Vicuna's format, which LLaVA-1.5 and TinyLLaVA train with.
LLAVA_V1 = (
    SHOW
    + r"""
{%- if messages[0].role != 'system' -%}
  {{- "A chat between a curious user and an artificial intelligence assistant. " -}}
  {{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- 'ASSISTANT:' -}}
    {%- generation -%}
    {{- ' ' ~ show(message.content) ~ eos_token -}}
    {%- endgeneration -%}
  {%- elif message.role == 'user' -%}
    {{- 'USER: ' ~ show(message.content) ~ ' ' -}}
  {%- else -%}
    {{- show(message.content) ~ ' ' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- 'ASSISTANT:' -}}
{%- endif -%}
"""
)

# Phi-2's question-and-answer format.
PHI = (
    SHOW
    + r"""
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- 'Output:' -}}
    {%- generation -%}
    {{- ' ' ~ show(message.content) ~ eos_token -}}
    {%- endgeneration -%}
  {%- elif message.role == 'user' -%}
    {{- 'Instruct: ' ~ show(message.content) ~ '\n' -}}
  {%- else -%}
    {{- show(message.content) ~ '\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- 'Output:' -}}
{%- endif -%}
"""
)

# Gemma knows no system turn; what one says goes before the first question.
GEMMA = (
    SHOW
    + r"""
{%- set said = namespace(first='') -%}
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<start_of_turn>model\n' -}}
    {%- generation -%}
    {{- show(message.content) ~ '<end_of_turn>' -}}
    {%- endgeneration -%}
    {{- '\n' -}}
  {%- elif message.role == 'user' -%}
    {{- '<start_of_turn>user\n' ~ said.first ~ show(message.content) ~ '<end_of_turn>\n' -}}
    {%- set said.first = '' -%}
  {%- else -%}
    {%- set said.first = show(message.content) ~ '\n\n' -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<start_of_turn>model\n' -}}
{%- endif -%}
"""
)

LLAMA2 = (
    SHOW
    + r"""
{%- set said = namespace(first='', turns=0) -%}
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {%- generation -%}
    {{- ' ' ~ show(message.content) ~ ' ' ~ eos_token -}}
    {%- endgeneration -%}
  {%- elif message.role == 'user' -%}
    {{- bos_token if said.turns else '' -}}
    {{- '[INST] ' ~ said.first ~ show(message.content) ~ ' [/INST]' -}}
    {%- set said.first = '' -%}
    {%- set said.turns = said.turns + 1 -%}
  {%- else -%}
    {%- set said.first = '<<SYS>>\n' ~ show(message.content) ~ '\n<</SYS>>\n\n' -%}
  {%- endif -%}
{%- endfor -%}
"""
)

LLAMA3 = (
    SHOW
    + r"""
{%- for message in messages -%}
  {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' -}}
  {%- if message.role == 'assistant' -%}
    {%- generation -%}
    {{- show(message.content) ~ '<|eot_id|>' -}}
    {%- endgeneration -%}
  {%- else -%}
    {{- show(message.content) ~ '<|eot_id|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""
)

# TinyLlama-Chat.
ZEPHYR = (
    SHOW
    + r"""
{%- for message in messages -%}
  {{- '<|' ~ message.role ~ '|>\n' -}}
  {%- if message.role == 'assistant' -%}
    {%- generation -%}
    {{- show(message.content) ~ eos_token -}}
    {%- endgeneration -%}
  {%- else -%}
    {{- show(message.content) ~ eos_token -}}
  {%- endif -%}
  {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>\n' -}}
{%- endif -%}
"""
)

_OWN = {
    "plain": PLAIN,
    "chatml": CHATML,
    "llava_v1": LLAVA_V1,
    "phi": PHI,
    "gemma": GEMMA,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "zephyr": ZEPHYR,
}

CHAT_TEMPLATES: Registry[str] = Registry(
    "chat template", "tinyalign.chat_templates", _OWN, DataError
)
"""Name to Jinja template."""


def register_template(name: str, template: str) -> None:
    """Let `model.template` name a Jinja template of your own, with `{% generation %}` blocks."""
    CHAT_TEMPLATES.register(name, template)
