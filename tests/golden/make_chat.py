#!/usr/bin/env python3
"""Writes chat.json: what Jinja itself renders for the templates and probes below.

Usage: make_chat.py OUT.json [MODEL.gguf]   (needs jinja2 3.1, and the gguf package for the model)

The environment is the one Hugging Face's apply_chat_template uses: an immutable sandbox with
trim_blocks, lstrip_blocks, break and continue, a plain tojson, raise_exception and strftime_now
(here of a fixed time, in UTC) and `generation` blocks passed through. The templates are our own,
in the formats of well-known model families. An output of null means that Jinja raised."""
import datetime
import json
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

NOW = 1721988000  # 2024-07-26 10:00:00 UTC


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_pass")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _pass(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def strftime_now(form):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(form)


ENV = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception
ENV.globals["strftime_now"] = strftime_now


def render(source, variables):
    try:
        return ENV.from_string(source).render(**variables)
    except Exception:
        return None


TEMPLATES = {
    "chatml": """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "chatml_default_system": """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama3": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "llama31_tools": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system message comes first, on its own. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One tool call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "qwen25": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are helpful.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "qwen3_think": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "mistral": """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}{% endfor %}""",
    "mistral_v3_tools": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- ', "id": "none"' }}
            {%- else %}
                {{- ', "id": "' + tool_call.id + '"' }}
            {%- endif %}
            {{- "}" if loop.last else "}, " }}
        {%- endfor %}
        {{- "]" + eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {%- set content = message.content if message.content is string else message.content.content %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + "}[/TOOL_RESULTS]" }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "gemma3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
""",
    "phi3": """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "phi4": """{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>'}}{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}""",
    "deepseek_v2": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}""",
    "deepseek_r1": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{%- if message['content'] is none %}{{'<｜Assistant｜><｜tool▁calls▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments']|tojson + '\\n```'}}{%- else %}{{'<｜Assistant｜>' + message['content'] + '<｜tool▁calls▁begin｜>' + tool['function']['name']}}{%- endif %}{%- set ns.is_first = true -%}{%- else %}{{'\\n<｜tool▁call▁begin｜>' + tool['function']['name']}}{%- endif %}{%- endfor %}{{'<｜tool▁calls▁end｜>'}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{{'<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "command_r": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}{% set system_message = 'x' %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for message in loop_messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}""",
    "command_r_docs": """{%- macro document_turn(documents) -%}
{# documents in a tool result #}
<|START_OF_TURN|>[
{% for doc in documents %}
    {"doc": "{{ loop.index0 }}", "title": {{ doc.title|tojson }}}{{ "," if not loop.last }}
{% endfor %}
]<|END_OF_TURN|>
{%- endmacro %}
{%- if documents %}{{ document_turn(documents) }}{% endif %}
{%- for m in messages if m.role != 'tool' %}
<|{{ m.role|upper }}|>{{ m.content }}
{%- else %}none{%- endfor %}
""",
    "granite": """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge Cutoff Date: April 2024.\\nToday's Date: " + strftime_now('%B %d, %Y') + "." %}
    {%- if tools and documents %}
        {%- set system_message = system_message + " Both." %}
    {%- elif tools %}
        {%- set system_message = system_message + " Tools." %}
    {%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- if tools %}
    {{- '<|start_of_role|>tools<|end_of_role|>' }}
    {{- tools | tojson(indent=4) }}
    {{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + (message['content'] or '') + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
            {%- if controls %}
                {{- ' ' + controls | tojson()}}
            {%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}""",
    "hermes_types": """{%- macro json_to_python_type(json_spec) %}
{%- set basic_type_map = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if basic_type_map[json_spec.type] is defined %}
    {{- basic_type_map[json_spec.type] }}
{%- elif json_spec.type == "array" %}
    {{- "list[" +  json_to_python_type(json_spec|items|list|first|last|string and json_spec['items']) + "]"}}
{%- elif json_spec.type == "object" %}
    {%- if json_spec.additionalProperties is defined %}
        {{- "dict[str, " + json_to_python_type(json_spec.additionalProperties) + ']'}}
    {%- else %}
        {{- "dict" }}
    {%- endif %}
{%- elif json_spec.type is iterable %}
    {{- "Union[" }}
    {%- for t in json_spec.type %}
      {{- json_to_python_type({"type": t}) }}
      {%- if not loop.last %}{{- "," }}{%- endif %}
    {%- endfor %}
    {{- "]" }}
{%- else %}
    {{- "Any" }}
{%- endif %}
{%- endmacro %}
{%- for tool in tools or [] %}
{{ tool.function.name }}({% for name, spec in tool.function.parameters.properties|items %}{{ name }}: {{ json_to_python_type(spec) }}{{ ", " if not loop.last }}{% endfor %})
{%- endfor %}
{%- for m in messages %}{{ '\\n' ~ m.role ~ ': ' ~ (m.content|default('', true)) }}{% endfor %}""",
    "vicuna": """{%- set sep = ' ' -%}{%- for m in messages -%}{%- if m.role == 'system' -%}{{ m.content + sep }}{%- elif m.role == 'user' -%}{{ 'USER: ' + m.content + sep }}{%- else -%}{{ 'ASSISTANT: ' + (m.content or '') + '</s>' }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}""",
    "alpaca": """{% for m in messages %}
  {% if m.role == 'system' %}
{{ m.content }}

  {% elif m.role == 'user' %}
### Instruction:
{{ m.content }}

  {%- else %}


### Response:
{{ m.content }}

  {% endif %}
{% endfor %}
{% if add_generation_prompt %}### Response:
{% endif %}
""",
    "namespace_counter": """{% set ns = namespace(n=0, seen=[], text='') %}{% for m in messages %}{% if m.role in ['user', 'assistant'] %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + [m.role] %}{% set ns.text = ns.text ~ ns.n ~ ':' ~ m.role[0]|upper ~ ' ' %}{% endif %}{% endfor %}{{ ns.n }} {{ ns.seen }} {{ ns.text|trim }}|""",
    "previtem": """{% for m in messages %}{% if loop.previtem is defined and loop.previtem.role == m.role %}={% endif %}{{ m.role }}{% if loop.nextitem is defined %}->{{ loop.nextitem.role }}{% endif %}[{{ loop.revindex }}/{{ loop.length }}/{{ loop.revindex0 }}/{{ loop.cycle('a','b') }}]
{% endfor %}""",
    "break_continue": """{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }};{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}.""",
    "raw_and_signs": """  {% raw %}
 {{ not evaluated }} {% if %}
  {% endraw %}
    {%+ if true %}
    kept
    {% endif +%}
x {#- gone -#}  y
{{- ' z ' -}}   
  {# comment #}
end
""",
    "block_set": """{% set body %}{% for m in messages %}<{{ m.role }}>{% endfor %}{% endset %}{{ body|length }}:{{ body }}{% set up | upper | trim %}  {{ messages[0].role }} {% endset %}[{{ up }}]{% filter replace('u', 'U') %}{{ messages|map(attribute='role')|join(',') }}{% endfilter %}{% with a=1, b=2 %}{{ a+b }}{% endwith %}{{ a is defined }}""",
    "macro_call": """{% macro wrap(tag, close=true, extra='') %}<{{ tag }}{{ extra }}>{{ caller() if caller is defined else '' }}{% if close %}</{{ tag }}>{% endif %}{% endmacro %}{% for m in messages %}{% call wrap(m.role, extra=' n="' ~ loop.index ~ '"') %}{{ m.content|default('nothing', true)|string|length }}{% endcall %}{% endfor %}{% macro all() %}{{ varargs|length }}{{ kwargs|dictsort }}{% endmacro %}{{ all(1, 2, z=3, a=4) }}""",
}

SYSTEM = {"role": "system", "content": "  You are terse.\n"}
USER = {"role": "user", "content": "What is 2 + 2?"}
BOT = {"role": "assistant", "content": " Four. "}
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather at a \"place\" <now> & later",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "name, e.g. Zürich"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "opt": {"type": ["string", "null"]},
        "map": {"type": "object", "additionalProperties": {"type": "number"}}},
        "required": ["city"]}, "return": {"type": "string"}}}]
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "abcdefghi", "type": "function",
     "function": {"name": "get_weather", "arguments": {"city": "東京", "days": 2, "x": 1.5, "ok": True}}}]}
RESULT = {"role": "tool", "content": "{\"t\": 21}", "tool_call_id": "abcdefghi"}
COMMON = {"bos_token": "<s>", "eos_token": "</s>"}
INPUTS = {
    "user": {"messages": [USER], "add_generation_prompt": True},
    "system": {"messages": [SYSTEM, USER], "add_generation_prompt": True},
    "turns": {"messages": [SYSTEM, USER, BOT, USER, BOT, USER], "add_generation_prompt": True},
    "no_prompt": {"messages": [USER, BOT], "add_generation_prompt": False},
    "unicode": {"messages": [{"role": "user", "content": "naïve Ünïcode ✓ 漢字 🙂 \u00a0\u2028x"},
                             {"role": "assistant", "content": "«¿é?»"}, USER],
                "add_generation_prompt": True},
    "empty_content": {"messages": [{"role": "user", "content": ""}], "add_generation_prompt": True},
    "no_messages": {"messages": [], "add_generation_prompt": True},
    "tools": {"messages": [SYSTEM, USER], "tools": TOOLS, "add_generation_prompt": True},
    "tool_turns": {"messages": [USER, CALL, RESULT, BOT, USER], "tools": TOOLS,
                   "add_generation_prompt": True},
    "two_results": {"messages": [USER, CALL, RESULT, RESULT], "add_generation_prompt": True},
    "think": {"messages": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour."},
                           USER], "add_generation_prompt": True, "enable_thinking": False},
    "parts": {"messages": [{"role": "user", "content": [
        {"type": "text", "text": " look "}, {"type": "image"}]}], "add_generation_prompt": True},
    "docs": {"messages": [USER], "documents": [{"title": "A \"b\"", "text": "t"},
                                               {"title": "Ü", "text": "u"}],
             "controls": {"length": "long"}, "add_generation_prompt": True},
    "bad_order": {"messages": [BOT, BOT], "add_generation_prompt": True},
}

PROBE_VARS = {
    "s": "Hello, World", "e": "", "u": "straße Ünï 漢字 🙂", "w": " \t a b\n c  ", "n": None,
    "i": 7, "neg": -7, "f": 2.5, "t": True, "no": False, "l": [3, 1, 2], "ls": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": {"x": [1, 2, {"y": "z"}]}, "items": 5, "C": None},
    "objs": [{"n": "x", "v": 2, "o": {"k": 1}}, {"n": "Y", "v": 1, "o": {"k": 2}}, {"n": "a", "o": {}}],
    "q": "it's \"q\" \\ \x07 \x7f", "lines": "one\ntwo\n\nfour\n", "big": 9007199254740993,
    "fs": [0.1, 1e22, 1e16, 123456789.125, 1e-5, 0.0001, -0.0, 3.0, 1e15, 1.7976931348623157e308],
    "m": {"role": "user", "content": "hi"},
}

EXPRESSIONS = """
1+2*3 | 2**3**2 | -2**2 | 7//2 | -7//2 | 7%3 | -7%3 | 7%-3 | 7/2 | 6/3 | 7.5//2 | -7.5%2 | 2**-1 | 2**0.5 | 1_000+0x1f+0b101+0o17
1.5e3 | 5e-324 | 2.2250738585072014e-308 | 1e100 | 1.0 | 0.1+0.2 | 1/3 | 100000000000000000.0 | 123456789012345678 | 1e16 | 1e15 | 0.0001 | 0.00001 | 1.0e-7 | 3.14159
1 == 1.0 | 1 == true | 'a' == 'a' | 1 < 2 < 3 | 1 < 3 < 2 | 3 > 2 >= 2 | 'a' < 'b' | [1,2] < [1,3] | (1,) == (1,) | [1] == (1,) | {'a':1} == {'a':1.0} | none == none | n is none | 1 != 2
not true | not not 1 | true and 3 | 0 and 3 | 0 or 'x' | '' or none | 1 or 2 and 0 | not 1 == 2
'a' in 'abc' | 'z' not in 'abc' | 2 in l | 'b' in d | 'x' in d | none in l | 1 in [1.0] | '' in '' | 3 not in l
'a' if true else 'b' | 'a' if false else 'b' | 'a' if false | ('a' if no else 'b' if no else 'c') | (1 if t) + 1
'a' ~ 1 ~ none ~ true ~ 2.5 | 'a' + 'b' * 3 | [1] + [2] | [0] * 3 | (1,2) + (3,) | 'x' * 0 | 'x' * -1 | 3 * 'ab'
'a' 'b' "c" | "q\\"x" | '\\x41\\u00e9\\U0001F642' | '\\101' | 'tab\\tnl\\n' | '\\q' | "it's" | 'a\\\\b' | '\\'' | "\\a"|length
l[0] | l[-1] | l[5] | l[1:] | l[:-1] | l[::-1] | l[::2] | l[5:] | l[-2:] | l[0:0] | s[0] | s[-1] | s[1:4] | s[::-1] | u[0:8] | u[::-1] | u[-1] | s[100] | s[2:100] | s[-3:] | l[1:3:2] | (1,2,3)[1:] | range(5)[1] | range(10)[2:8:3]|list
d.b | d['b'] | d.a.x[2].y | d.items|string|length > 3 | d['items'] | d.missing | d['missing'] | d.missing.x | d.get('b') | d.get('q') | d.get('q', 3) | d.a['x'][0] | missing | missing.x | missing['x'] | n.x | n['x'] | i.x | s.x | l.x | l['x']
d.keys() | d.values() | d.items() | d|items|list | d.items()|list | d.keys()|list|first | d|list | d|length | d.items()|length | d
s.upper() | s.lower() | s.title() | s.capitalize() | s.split(',') | s.split() | w.split() | w.split(none, 1) | s.split('l', 1) | s.strip('Hd') | w.strip() | w.lstrip() | w.rstrip() | s.startswith('He') | s.endswith(('x','ld')) | s.find('W') | s.find('zz') | u.find('漢') | s.replace('l','L') | s.replace('l','L',1) | ','.join(ls) | s.rsplit('l',1) | s.splitlines() | lines.splitlines() | s.count('l') | 'abc'.isdigit() | '12'.isdigit() | s.isalpha() | s.removeprefix('Hello') | s.removesuffix('World') | 'a,b,,c'.split(',') | w.rsplit() | w.rsplit(none,1) | s.rfind('l') | u.upper() | u.title() | 'ß'.upper() | u.capitalize() | 'aXbX'.replace('X','') | 'ab'.replace('','-') | ''.replace('','-') | ''.join([]) | ','.join(['a',1])
s|upper | s|lower | u|title | 'foo bar-baz (qux) it\\'s'|title | s|capitalize | w|trim | s|trim('Hd') | s|length | u|length | l|length | missing|length | n|length | i|length | s|first | s|last | l|first | l|last | []|first | []|last | e|first
l|join | l|join(', ') | ls|join('-') | objs|join(',', attribute='n') | s|join('.') | []|join | n|join | missing|join
missing|default('x') | n|default('x') | e|default('x', true) | missing|d | n|default('x', true) | d.q|default([]) | 0|default(5, boolean=true)
s|replace('l','L') | s|replace('l','L',1) | i|replace('7','8') | s|replace('o', 0)
d|tojson | d|tojson(indent=2) | l|tojson(indent=1) | u|tojson | u|tojson(ensure_ascii=true) | q|tojson | f|tojson | fs|tojson | n|tojson | t|tojson | (1,2)|tojson | []|tojson(indent=2) | {}|tojson(indent=2) | {1:2,none:3,true:4,1.5:5}|tojson | missing|tojson | d|tojson(sort_keys=true) | d|tojson(separators=(',',':')) | '</script>&\\''|tojson | {'a':[]}|tojson(indent=4) | [[],[1,[2]]]|tojson(indent=2) | big|tojson | range(3)|tojson
l|list | s|list | d|list | range(3)|list | missing|list | i|list | l|string | i|string | n|string | missing|string | t|string
'42'|int | ' 42 '|int | '4.7'|int | 'x'|int | 'x'|int(9) | 4.7|int | -4.7|int | true|int | none|int | '0x1f'|int(base=16) | 'ff'|int(0,16) | '1_0'|int | ''|int | '1e3'|int | [1]|int(3)
'4.5'|float | 'x'|float | 'x'|float(1.5) | 3|float | '1e3'|float | none|float | ' 2 '|float | 'inf'|float
ls|map('upper')|list | objs|map(attribute='n')|list | objs|map(attribute='o.k')|list | objs|map(attribute='v', default=0)|list | l|map('string')|join('+') | objs|map(attribute='v')|select('defined')|list | ls|map('replace','a','Z')|join | [[1,2],[3]]|map('length')|list | [[1,2],[3,4]]|map(attribute=1)|list | ls|map('default', 'x')|list | objs|map(attribute='o')|map('tojson')|join(';')
l|select('odd')|list | l|reject('odd')|list | [0,1,'',none,2]|select|list | [0,1]|reject|list | objs|selectattr('v')|map(attribute='n')|join | objs|selectattr('v','equalto',2)|list|length | objs|rejectattr('v','defined')|map(attribute='n')|list | objs|selectattr('n','in',['x','a'])|map(attribute='n')|join | l|select('gt',1)|list | l|select('in',[1,2])|list | l|select('divisibleby',3)|list | ls|select('equalto','b')|list | objs|selectattr('o.k','eq',1)|list|length | objs|selectattr('v','>',1)|list|length
l|sort | l|sort(reverse=true) | ls|sort | ls|sort(case_sensitive=true) | objs|sort(attribute='n')|map(attribute='n')|list | d|dictsort|list|length | {'b':1,'A':2,'c':0}|dictsort | {'b':1,'A':2}|dictsort(true) | {'b':1,'A':2}|dictsort(by='value') | {'b':1,'A':2}|dictsort(reverse=true) | ['b','B','a']|unique|list | [1,1.0,true,2]|unique|list | ['b','B']|unique(true)|list | [[2,1],[1,2]]|sort | ['a',1]|sort
lines|indent | lines|indent(2) | lines|indent(2,true) | lines|indent(2,true,true) | lines|indent('> ', first=true) | ''|indent | 'x'|indent(first=true)
'<a href="x">\\'&'|escape | '<b>'|e|length | '<i>'|safe | l|reverse|list | s|reverse | range(3)|reverse|list
2.5|round | 3.5|round | 2.675|round(2) | 2.1234|round(2) | 2.1|round(0,'ceil') | 2.9|round(method='floor') | 7|round | 1234|round(-2) | 2.345|round(1,'ceil') | -2.5|round | 1e300|round(2)
-3|abs | -3.5|abs | true|abs | l|sum | objs|selectattr('v','defined')|sum(attribute='v') | l|sum(start=10) | []|sum | [1.5,2]|sum | l|min | l|max | ls|min | ls|max | []|min | []|max | objs|min(attribute='n') | ['a']|sum
missing is defined | i is defined | missing is undefined | n is none | s is string | i is string | i is number | f is number | t is number | i is integer | t is integer | f is float | d is mapping | l is mapping | l is iterable | s is iterable | i is iterable | l is sequence | d is sequence | i is sequence | t is boolean | i is boolean | t is true | no is false | 1 is true | 2 is odd | 2 is even | 9 is divisibleby 3 | 9 is divisibleby(2) | 1 is in [1,2] | 3 is not in [1,2] | 1 is eq 1 | 1 is equalto 2 | 1 is ne 2 | 1 is lt 2 | 2 is gt 1 | 1 is le 1 | 1 is ge 2 | missing is not defined | d.q is defined | d.b is defined and d.b is number | not missing is defined | s is lower | 'a' is lower | range is callable | i is callable | n is sameas none | i is sameas 7 | missing is iterable
range(3) | range(1,4)|list | range(5,0,-2)|list | range(0)|list | range(3)|length | range(2,10,3) | range(100001)|length | range(1,2,0) | range('a')
[1,2.0,'x',none,true,(1,),(),{},[],{'k':'v'}] | (1,2) | (1,) | [u] | [q] | ["it's"] | ['"'] | ['\\'"'] | fs | [missing] | ['\\n\\t\\x00\\x7f\\xa0\\u200b\\U0001F642'] | {'a': {'b': [1]}} | [1e400, -1e400]
dict(a=1, b='x') | dict([('k',1)]) | dict({'a':1}, b=2) | namespace(a=1).a | namespace().b | namespace(a=1)
i + 1 if i > 5 else 0 | (i, f) | i // 2 ~ 'x' | (l|length - 1) | l|length - 1 | -i|abs | (-i)|abs | i|string + '!' | s[i] | s[i:] | s[:i]|length | not s | s and l | 'x' if s is string and s|length > 3 else 'y' | 10 - 3 - 2 | 2 * 3 % 4 | 100 // 7 // 2 | 1 + 1 ~ 1 + 1 | 5 is divisibleby 5 and true | 'a' 'b' ~ 'c'
raise_exception('no') | 1/0 | 1//0 | 1%0 | 'a' + 1 | 1 + 'a' | 'a' < 1 | none + 1 | missing + 1 | missing() | s() | nope(1) | s|nope | s is nope | [1] + (1,) | {} + {} | {[]: 1} | 1 in 5 | -'a' | l[1:2:0] | s.nope() | l.nope() | d.nope() | 'a' in 1 | [1,2]|join|int + 1 | 'x'.join(1) | 9223372036854775807 | -9223372036854775807 - 1 | 1.0 // 0 | 2 ** 62
strftime_now('%d %b %Y') | strftime_now('%Y-%m-%d %H:%M:%S %A %j') | ''.join(['a', 'b'])|upper|lower|title | l|first + l|last | (l|first) ~ (l|last) | objs[0].o.k | objs[-1].o.k|default('none') | objs[0]['o']['k'] + 1 | m.content | m['con' ~ 'tent'] | m.get('role')|upper
[1,2,3,] | {'a':1,} | (1,2,) | () | [] | {} | [[1,[2,[3]]]] | ((1)) | (((1,2))) | {'a': {'b': 1}}['a']['b'] | {'a':1}.a | [{'x':1}][0].x | 'abc'[1] | 'abc'|list|last | 1.5.x | 1|string|length
true == True | none == None | false == False | true and not false | 'a' < 'B' | 'é' > 'z' | [1,2] == [1,2] | {1:2}[1] | {true:1}[1] | {1.0:'x'}[1] | 1 is number and 'x' or 'y' | 3 > 2 > 1 | 1 < 2 == true | 1 == 1 in [1]
"""

STATEMENTS = [
    "{% for x in l %}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for x in [] %}a{% else %}b{% endfor %}", "{% for x in missing %}a{% else %}b{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for (a, b), c in [((1,2),3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [(1,2,3)] %}{% endfor %}", "{% for a, b in ['xy'] %}{{ b }}{{ a }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}",
    "{% for x in range(3) %}{% for y in range(x) %}{{ loop.index0 }}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% if no %}{% set y = 2 %}{% endif %}{{ y is defined }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [3, 4] %}{{ b }}{{ a }}", "{% set a, b = 1 %}",
    "{% set t = 1, 2 %}{{ t }}", "{% set ns = namespace(x=1) %}{% set ns.x = 5 %}{{ ns.x }}{{ ns['x'] }}",
    "{% set m.role = 1 %}", "{% set d2 = {'a': 1} %}{% set d2.a = 2 %}",
    "{% set ns = namespace() %}{% for c in 'abc' %}{% set ns.s = (ns.s or '') ~ c %}{% endfor %}{{ ns.s }}",
    "{% macro f(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, 3) }}|{{ f(a=9, c=8) }}|{{ f() }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}", "{% macro f(a, b=a) %}{{ b }}{% endmacro %}{{ f(4) }}",
    "{% macro r(n) %}{{ n }}{% if n > 0 %}{{ r(n - 1) }}{% endif %}{% endmacro %}{{ r(5) }}",
    "{% macro f() %}  x  {% endmacro %}[{{ f()|trim }}]{{ f() is string }}{{ f()|length }}",
    "{% set g = 1 %}{% macro f() %}{{ g }}{% set g = 5 %}{{ g }}{% endmacro %}{{ f() }}{{ g }}",
    "{% set g = 1 %}{% macro f() %}{{ g }}{% endmacro %}{% set g = 2 %}{{ f() }}",
    "{% for x in l %}{% macro f() %}{{ x }}{% endmacro %}{{ f() }}{% endfor %}",
    "{% macro f() %}{{ loop is defined }}{% endmacro %}{% for x in l %}{{ f() }}{% endfor %}",
    "{% macro w() %}<{{ caller(3) }}>{% endmacro %}{% call(x) w() %}{{ x * 2 }}{% endcall %}",
    "{% macro w(a) %}{{ a }}{% endmacro %}{% call w(1) %}b{% endcall %}",
    "{% if 0 %}a{% elif '' %}b{% elif [] %}c{% elif {} %}d{% elif none %}e{% elif missing %}f{% else %}g{% endif %}",
    "{% if l|select %}x{% endif %}{% if range(0) %}y{% endif %}{% if (0,) %}z{% endif %}{% if 0.0 %}w{% endif %}",
    "{% set it = l|map('string') %}{{ it|list }}{{ it|list }}", "{% set it = l|select %}{{ it|length }}",
    "{% set it = l|select %}{{ it|first }}{{ it|first }}{{ it|list }}", "{{ (l|select)[0] }}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}z{% endfor %}",
    "{% for x in l %}{{ loop.changed(x > 1) }}{% endfor %}", "{% for x in l %}{{ loop.index }}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for x in 'ab' %}{{ x }}{{ loop.first }}{{ loop.last }}{% endfor %}", "{{ loop is defined }}", "{% break %}",
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% set x %}a{{ i }}{% endset %}{{ x }}{{ x is string }}",
    "{% set x | trim | upper %}  b {% endset %}[{{ x }}]", "{% with %}{% set q1 = 1 %}{{ q1 }}{% endwith %}{{ q1 is defined }}",
    "{% with i = 1, j = i %}{{ i }}{{ j }}{% endwith %}", "{% generation %}{% set z = 1 %}x{% endgeneration %}{{ z is defined }}",
    "a\n{% if true %}\nb\n{% endif %}\nc\n", "a\n  {% if true %}  \n  b\n  {% endif %}  \nc", "  {{ i }}\n  {{ f }}\n",
    "x  {%- if true -%}  y  {%- endif -%}  z", "x {{- i -}} y", "x\n\n{%- if true %}\n\ny\n{%- endif %}\n\nz\n\n",
    "{% if true %}a{% endif %}\n\n{% if true %}b{% endif %}\n", "{# c #}\nx{#- c -#} y {# d #} z\n{#\nmulti\n#}\nw",
    "  {%+ if true %}a{% endif +%}\nb", "{%- raw -%} {{ x }} {%- endraw -%} z", "{% raw %}\n{% x %}\n{% endraw %}\ny", "  {% raw %}a{% endraw %}\n  b",
    "{{ '{{' }}{{ '%}' }}{{ \"}}\" }}", "{{ {'a': {'b': 1}} }}", "{{ {'a':1}['a'] }}", "{{ '}}' ~ {'x': '%}'}.x }}", "{ { } } {x} % # {", "a\r\nb\rc\r\n", "", "\n", "\n\n", "x\n\n",
    "{%if true%}a{%endif%}", "{%\nif true\n%}a{%\nendif\n%}b", "{{\ni\n}}", "{{ i }}\n{{ i }}", "{{i}}{{f}}", "{{ -i }}{{- i }}{{ i -}} x", "{{-5}}", "{{+5}}", "{{ - 5 }}",
    "{% if %}{% endif %}", "{% for %}", "{% endif %}", "{% if true %}", "{{", "{{ }}", "{% %}", "{#", "{{ 'a }}", "{{ i i }}", "{{ i + }}", "{{ (1 }}", "{{ 1) }}", "{{ [1 }}", "{{ {1 }}", "{% nope %}", "{% for x l %}{% endfor %}", "{% set %}", "{% set 1 = 2 %}", "{% set true = 2 %}", "{% macro %}", "{% raw %}x", "{{ i | }}", "{{ i is }}", "{{ . }}", "{{ a.b. }}", "{{ 'a' if }}", "{% else %}", "{{ $ }}", "{{ i? }}", "{% if true %}{% else %}{% else %}{% endif %}", "{% set x = %}", "{{ f(a=1, 2) }}", "{{ 01 }}", "{{ 1__0 }}", "{{ 1_ }}", "{{ 1.e5 }}", "{{ .5 }}", "{{ '\\x4' }}", "{% endfor %}x", "{{ i }", "{% if true }a{% endif %}", "{% call f %}{% endcall %}", "{{ i is not }}", "{{ i not }}", "{{ i not in }}",
    "{{ m.content if m.content is string else m.content|map(attribute='text')|join('') }}",
    "{%- for x in l -%} {{ x }} {%- endfor -%}", "{%- for x in l %}\n  {{- x }}\n{% endfor -%}\n end",
    "{{ missing.x.y }}", "{{ d.zzz.y }}", "{{ (missing or d).b }}", "{{ missing and missing.x }}", "{{ 'yes' if missing is not defined or missing.x else 'no' }}",
    "{% set x = ['a'] %}{% set x = x + ['b'] %}{{ x|join }}", "{% for x in l|sort %}{{ x }}{% endfor %}", "{% for x in l|reverse %}{{ x }}{% endfor %}", "{% for x in d|dictsort %}{{ x[0] }}{% endfor %}", "{% for i, c in [('a', 1), ('b', 2)] %}{{ i }}{{ c }}{% endfor %}",
    "{% for row in [[1,2],[3,4]] %}{% for c in row %}{{ c }}{% endfor %}{{ loop.index }}|{% endfor %}", "{{ [1,2,3]|select('greaterthan', 1)|map('string')|join('-') }}", "{% set f = 'x' %}{{ f|upper }}{% set upper = 1 %}{{ f|upper }}{{ upper }}",
    "{% for x in l %}{{ x if loop.first else '-' ~ x }}{% endfor %}", "{% for x in range(1, 4) %}{{ '%s' if false else x }}{% endfor %}", "{{ 'a'\n'b' }}", "{% if i == 7 and (s or l) and not n %}ok{% endif %}", "{% if not (i == 7) %}a{% else %}b{% endif %}", "{% if i in (1, 7) %}in{% endif %}", "{% if 'role' in m and m['role'] != 'x' %}r{% endif %}",
]


def main(out, model=None):
    templates = dict(TEMPLATES)
    if model:
        import gguf
        field = gguf.GGUFReader(model).fields["tokenizer.chat_template"]
        templates["model_file"] = bytes(field.parts[field.data[0]]).decode()
    renders = []
    for name, source in templates.items():
        for key, variables in INPUTS.items():
            renders.append({"template": name, "input": key,
                            "out": render(source, COMMON | variables)})
    sources = ["{{ " + x.strip() + " }}" for line in EXPRESSIONS.strip().split("\n")
               for x in line.replace("||", "\0").split(" | ")] + STATEMENTS
    probes = [{"source": s, "out": render(s, PROBE_VARS)} for s in sources]
    with open(out, "w") as f:
        json.dump({"jinja2": jinja2.__version__, "templates": templates,
                   "inputs": {k: COMMON | v | {"__now": NOW} for k, v in INPUTS.items()}, "renders": renders,
                   "probe_vars": PROBE_VARS | {"__now": NOW}, "probes": probes}, f, ensure_ascii=True, indent=0)
        f.write("\n")
    print(len(templates), "templates,", len(renders), "renders,", len(probes), "probes;",
          sum(r["out"] is None for r in renders), "and", sum(p["out"] is None for p in probes), "errors")


if __name__ == "__main__":
    main(*sys.argv[1:])
