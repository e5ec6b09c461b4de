"""Records what transformers makes of conversations: small tokenizers with every flag, templates with every variable.

``python tools/goldens/make_chat_golden.py`` writes folders of a tokenizer each, with ``expected.json``, into tests/goldens.
Those of the repository were made with transformers 5.24.0 and tokenizers 0.23.3; no test needs them.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "chat"
TEXT = ["the quick brown fox jumps over the lazy dog", "hello world, hello token", "naïve café", "你好 世界"] * 8
USER = AddedToken("<|user|>", special=True)
PLAIN = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VARIABLES = (
    "{% if tools is not none %}TOOLS{% endif %}{% if documents is not none %}DOCUMENTS{% endif %}"
    "{{ bos_token }}{{ pad_token }}{{ unk_token }}{{ mask_token }}|{{ sep_token is defined }}|"
    "{{ {'b': 'é', 'a': [1, 2]} | tojson(indent=2) }}{{ messages | tojson }}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}<|user|>{{ m.content | trim }}{% endif %}{% if loop.last %}.{% break %}{% endif %}{% endfor %}"
)
THINKING = (
    "{% set last = messages | length - 1 %}{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and "
    "loop.index0 == last %}<think></think>{% endif %}{{ m.content.split('</think>')[-1] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALKS = (
    [{"role": "user", "content": "hello  world"}],
    [{"role": "system", "content": "be brief "}, {"role": "user", "content": " the fox\n"}],
    [
        {"role": "user", "content": "hello"}, {"role": "assistant", "content": " the dog"},
        {"role": "user", "content": "café, 你好!"},
    ],
)  # fmt: skip
ANSWERED = [*TALKS[2], {"role": "assistant", "content": "jumps"}]


def byte_level(**options):
    """Byte-level BPE; options of its pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace(scheme, split=True):
    """BPE over pieces that begin with a visible space."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


def normalised():
    """The pieces' space by normalizers, and lower case, as older conversions of sentencepiece have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    return tokenizer


def flagged(**flags):
    """Role tokens with flags."""
    return [AddedToken(f"<|{role}|>", special=True, **flags) for role in ("system", "user", "assistant")]


CASES = {
    "rstrip": (byte_level(), flagged(rstrip=True), PLAIN, False),
    "lstrip": (byte_level(), flagged(lstrip=True), PLAIN, False),
    "both_normalized": (byte_level(), flagged(lstrip=True, rstrip=True, normalized=True), PLAIN, False),
    "single_word": (byte_level(), flagged(single_word=True), PLAIN, False),
    "not_special": (byte_level(), [AddedToken("<|user|>", special=False), *flagged()[::2]], PLAIN, False),
    "prefix_space": (byte_level(add_prefix_space=True), flagged(), PLAIN, False),
    "first": (metaspace("first"), flagged(), PLAIN, True),
    "always": (metaspace("always"), flagged(), PLAIN, True),
    "never": (metaspace("never", split=False), flagged(), PLAIN, False),
    "normalized": (normalised(), flagged(normalized=True), PLAIN, True),
    "variables": (byte_level(), flagged(), VARIABLES, True),
    "thinking": (byte_level(), flagged(), THINKING, False),
}


def write(name, tokenizer, added, template, bos):
    """The folder of a case."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(tokenizer.decoder, decoders.ByteLevel) else []
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<unk>", "<s>", "</s>", "<pad>", "<mask>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens(added)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "mask_token": "<mask>", "chat_template": template,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def record(folder, template):
    """Ids of every conversation, of an answered one with the mask of its answers where the template has it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for talk in TALKS:
        text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        rows.append({"messages": talk, "text": text, "ids": ids})
    mask = "{% generation %}" in template
    found = tokenizer.apply_chat_template(ANSWERED, return_dict=True, return_assistant_tokens_mask=mask)
    answered = {"messages": ANSWERED, "ids": found["input_ids"], "mask": found.get("assistant_masks")}
    plain = {"text": "hello world", "ids": tokenizer("hello world")["input_ids"]}
    content = {"prompts": rows, "answered": answered, "plain": plain}
    (folder / "expected.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def main():
    """Writes all cases."""
    for name, (tokenizer, added, template, bos) in CASES.items():
        record(write(name, tokenizer, added, template, bos), template)
        print(name)


if __name__ == "__main__":
    main()
