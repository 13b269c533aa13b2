"""Small chat templates of the kinds that checkpoints have, and conversations for them."""

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' -}}
    {% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# The beginning of text comes first, turns have headers, and roles must take turns.
ALTERNATING = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}
{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
[INST] {% if loop.first and system is defined %}<SYS>{{ system }}</SYS> {% endif %}{{ message.content | trim }} [/INST]
    {%- else %}
 {% generation %}{{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}"""

NO_SYSTEM = """{% for m in messages %}
    {% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"""

# What the rest uses: thoughts that later turns leave out, a namespace, a macro, loop controls, the date, variables.
THINKING = """{% macro turn(m) %}<|{{ m.role }}|>{{ m.content }}{{ caller() if caller else '' }}<|end|>{% endmacro %}
{%- set ns = namespace(last=-1, n=dict(a=1)) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in messages -%}
    {%- if m.role == 'tool' %}{% continue %}{% endif -%}
    {%- if m.role == 'stop' %}{% break %}{% endif -%}
    {%- if m.role == 'assistant' and '</think>' in m.content and loop.index0 < ns.last -%}
        <|assistant|>{{ m.content.split('</think>')[-1].lstrip() }}<|end|>
    {%- else -%}{{ turn(m) }}{%- endif -%}
    {%- if m.reasoning_content %}({{ m.reasoning_content }}|{{ m.thinking }}){% endif -%}
{%- endfor -%}
{{ strftime_now('%Y') | length }}{{ documents is none }}{{ pad_token }}{{ image_token }}{{ tools | tojson(indent=1) }}
{%- if enable_thinking is defined and not enable_thinking %}<no thoughts>{% endif %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

TEMPLATES = {"chatml": CHATML, "alternating": ALTERNATING, "no system": NO_SYSTEM, "thinking": THINKING}

TOOL = {
    "type": "function",
    "function": {"name": "now", "description": "Time in <b>é</b>", "parameters": {"z": 1, "a": []}},
}
USER, ANSWER = (
    {"role": "user", "content": "  To be?\n"},
    {"role": "assistant", "content": "<think>Hm</think> Not to be. "},
)
SYSTEM = {"role": "system", "content": "Be <b>bold</b> & é😀."}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": "Why?", "name": None}],
    "not in turn": [USER, USER],
    "all": [
        USER,
        ANSWER | {"thinking": "so"},
        {"role": "tool", "content": "x"},
        USER | {"content": "a"},
        {"role": "stop"},
        USER,
    ],
}
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False},
    "unk_token": None,
    "image_token": "<image>",
}
