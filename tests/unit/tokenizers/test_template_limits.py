"""Templates end: whatever they repeat or make grow, they are refused within seconds and little memory."""

import time
import tracemalloc

import pytest
from kit.tiny_tokenizers import write_json

from llmctl import tokenizers
from llmctl.errors import TokenizerError
from llmctl.tokenizers import sandbox
from llmctl.tokenizers.conversation import Conversation

ASKED = Conversation((("hello", None),))
LOOP = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
GROW = "{{% set ns = namespace(x='a') %}}{{% for i in range(60) %}}{{% set ns.x = {0} %}}{{% endfor %}}{{{{ ns.x }}}}"
BOMBS = {
    "loops": LOOP,
    "loops in a macro": "{% macro f() %}" + LOOP + "{% endmacro %}{{ f() }}",
    "loops in a call": "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}" + LOOP + "{% endcall %}",
    "a recursive macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "an endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a power": "{{ 2**(2**40) }}",
    "powers of powers": GROW.replace("'a'", "3").format("ns.x ** 9"),
    "joined texts": GROW.format("ns.x ~ ns.x"),
    "added texts": GROW.format("ns.x + ns.x"),
    "added lists": GROW.format("[ns.x] + [ns.x]"),
    "lists of one list": GROW.format("[ns.x, ns.x]"),
    "dicts of one dict": GROW.format("{'a': ns.x, 'b': ns.x}"),
    "tuples as keys": GROW.format("(ns.x, ns.x)").replace("{{ ns.x }}", "{{ {ns.x: 1} }}"),
    "repeated text": "{{ 'a' * 1000000000 }}",
    "a repeated list": "{{ [1] * 1000000000 }}",
    "multiplied numbers": GROW.replace("'a'", "3").format("ns.x * ns.x"),
    "replacing": GROW.format("ns.x.replace('a', 'aaaaaaaaaaaaaaaa')"),
    "the filter replace": GROW.format("ns.x | replace('a', 'aaaaaaaaaaaaaaaa')"),
    "joining": GROW.format("ns.x.join([ns.x, ns.x, ns.x])"),
    "the filter join": GROW.format("[ns.x, ns.x] | join(ns.x)"),
    "justifying": "{{ 'a'.ljust(1000000000) }}",
    "centring": "{{ 'a' | center(1000000000) }}",
    "indenting": "{{ ('a\n' * 100000) | indent(100000) }}",
    "formatting": "{{ '%1000000000d' % 1 }}",
    "formatting by a value": "{{ '%*d' % (1000000000, 1) }}",
    "the filter format": "{{ '%1000000000d' | format(1) }}",
    "the method format": "{{ '{:>1000000000}'.format(1) }}",
    "a nested format": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "a sum of lists": "{{ ([range(100000) | list] * 100000) | sum(start=[]) | length }}",
    "translating": "{{ ('a' * 100000).translate({97: 'b' * 100000}) | length }}",
    "bytes of a number": "{{ (1).to_bytes(1000000000, 'big') | length }}",
    "wide json": "{{ [[[1]]] | tojson(indent=1000000000) }}",
    "a set block": "{% set x = 'a' %}{% for i in range(100) %}{% set x %}{{ x }}{{ x }}{% endset %}{% endfor %}"
    + GROW.format("ns.x ~ ns.x"),
    "lorem ipsum": "{{ lipsum(1000000) }}",
    "a long output": "{% for i in range(100000) %}{{ 'aaaaaaaaaa' * 1000 }}{% endfor %}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_within_bounds(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(sandbox, "TEMPLATE_SECONDS", 2.0)
    (write_json(tmp_path) / "chat_template.jinja").write_text(BOMBS[bomb])
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError, match="chat_template.jinja: the chat template (is refused|cannot render)"):
            tokenizers.load(tmp_path).chat_template.prompt(ASKED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 15 and peak < 500 << 20


def test_a_template_of_the_usual_kind_is_not_touched(tmp_path):
    source = (
        "{% macro line(role, text) %}<{{ role }}>{{ text | trim | replace('x', 'y') }}{% endmacro %}"
        "{% set ns = namespace(count=0, found=[]) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}"
        "{% set ns.found = ns.found + [m.role] %}{{ line(m.role, m.content) }}{% if not loop.last %}, {% endif %}{% endfor %}"
        "{{ ns.count * 2 }}{{ 'ab' * 2 }}{{ ns.found | join('-') }}{{ {'a': [1, (2, 3)]} }}{{ '%s|%d' % ('x', 3) }}"
        "{{ 'a{}b'.format(1) }}{{ none }}{{ true }}{{ 1.5 }}{{ undefined_name }}{{ [1, 2] | sum }}{{ 7 % 4 }}{{ 2 ** 3 }}"
    )
    (write_json(tmp_path) / "chat_template.jinja").write_text(source)
    assert tokenizers.load(tmp_path).chat_template.text(Conversation((("x ", "b"), ("c", None)))) == (
        "<user>y, <assistant>b, <user>c6ababuser-assistant-user{'a': [1, (2, 3)]}x|3a1bNoneTrue1.5338"
    )


def test_a_template_that_takes_too_long_costs_a_file_of_conversations_no_more_than_a_few_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "TEMPLATE_SECONDS", 0.4)
    monkeypatch.setattr(sandbox, "TEMPLATE_SECONDS_AGAIN", 0.2)
    (write_json(tmp_path) / "chat_template.jinja").write_text(LOOP)
    template = tokenizers.load(tmp_path).chat_template
    begun, computed = time.monotonic(), time.process_time()
    for _ in range(200):
        with pytest.raises(TokenizerError, match="it takes longer than 0.4 seconds"):
            template.prompt(ASKED)
    # Limits are of time that passes; on a busy machine the process computes for less of it.
    assert time.monotonic() - begun > 1.0 and time.process_time() - computed < 10
