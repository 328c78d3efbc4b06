"""What published chat templates do with one question, in short: their turns, and what they add by themselves."""

_VISION = (
    "{% macro said(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)
_TURN = "<|im_start|>{{ message.role }}\n{{ said(message.content) }}<|im_end|>\n"
_OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

QWEN2_5_VL = (
    _VISION + "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + _TURN + "{% endfor %}" + _OPENS
)
"""Qwen2-VL's and Qwen2.5-VL's, which begin with a system turn of their own where none is given."""
QWEN3_VL = _VISION + "{% for message in messages %}" + _TURN + "{% endfor %}" + _OPENS
"""Qwen3-VL's, of the instruct models."""

_WITHOUT_EARLIER_THOUGHTS = (
    "{% set ns = namespace(last=0) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}"
    "{% set text = said(message.content) %}{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in text else '' %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ text }}<|im_end|>\n"
    "{% else %}" + _TURN + "{% endif %}{% endfor %}"
)
QWEN3_VL_THINKING = _VISION + _WITHOUT_EARLIER_THOUGHTS + _OPENS.replace("assistant\n", "assistant\n<think>\n")
"""Qwen3-VL's, of the thinking models: it opens the thought, and leaves out those of earlier turns."""
QWEN3_5 = (
    _VISION + _WITHOUT_EARLIER_THOUGHTS + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is true %}<think>\n"
    "{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3.5's, of the small models: it opens the thought if asked to, and otherwise writes an empty one."""
INTERNVL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<IMG_CONTEXT>\n"
    "{% elif part.type == 'video' %}<video>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}" + _OPENS
)
"""InternVL3's, in Hugging Face format."""
GLM_4V = (
    _VISION + "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ said(message.content) }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""GLM-4V's, where a turn ends with the beginning of the next. (Its names of media tokens are others.)"""
GEMMA_3 = (
    _VISION + "<bos>{% set first = '' %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
    "{% set first = said(messages[0].content) + '\n\n' %}{% set turns = messages[1:] %}{% endif %}"
    "{% for message in turns %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ first if loop.first else '' }}{{ said(message.content) | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""Gemma 3's, which puts the system's words into the first user turn."""
