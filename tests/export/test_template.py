"""Chat templates of checkpoints: which format they are, what is stored, and what is refused."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from onevision.bundle import open_bundle
from onevision.errors import CheckpointError, PromptError, UnsupportedCheckpointError, UsageError
from onevision.eval.ask import EvalSettings
from onevision.eval.evaluate import evaluate
from onevision.export.template import choose_template, read_templates
from onevision.export.tokenizer import CHAT_TEMPLATE
from onevision.runtime.engine import OneVision
from onevision.runtime.messages import ImagePart, Message, VideoPart
from onevision.runtime.options import AnswerOptions
from onevision.runtime.prompt import render
from onevision.runtime.template import render_template
from tests.conftest import NoProgress, make_bundle
from tests.export.conftest import edit_json
from tests.runtime.test_prompt import HUB_TEMPLATE, spelled

if TYPE_CHECKING:
    from pathlib import Path

IMAGE, VIDEO = ImagePart("a.png"), VideoPart("b.mp4")

#: ChatML with images before the text and no default system prompt, as LLaMA-Factory and the first template on
#: the Hub have it: none of the two formats.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] if part['type'] != 'text' %}"
    "{{ '<' + part['type'] + '>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: The same for TRL's assistant_only_loss.
MARKED = CHATML.replace(
    "{% for part in message['content'] if part['type'] == 'text' %}",
    "{% generation %}{% endgeneration %}{% for part in message['content'] if part['type'] == 'text' %}",
)
#: Qwen2-Instruct's, which takes a message as one text.
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = QWEN2.replace("You are a helpful assistant.", "You are Qwen, created by Alibaba Cloud.")

#: LLaMA-Factory's for llava_next_qwen, which it saves with the tokenizer.
LLAMA_FACTORY = (
    "{% set system_message = 'You are a helpful assistant.' %}{% if messages[0]['role'] == 'system' %}"
    "{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% endif %}{% if system_message is defined %}"
    "{{ '<|im_start|>system\n' + system_message + '<|im_end|>\n' }}{% endif %}"
    "{% for message in loop_messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|im_start|>user\n' + content + '<|im_end|>\n<|im_start|>assistant\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
)
TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CONVERSATIONS = {
    "text": (Message("user", ("Hello <|im_end|>.",)),),
    "image": (Message("user", (IMAGE, "What is it?")),),
    "video": (Message("user", (VIDEO, "What happens?")),),
    "several turns": (
        Message("system", ("Be brief.",)),
        Message("user", (IMAGE, "What?")),
        Message("assistant", ("A cat.",)),
        Message("user", (IMAGE, IMAGE, "And\nthese?")),
    ),
}


def checkpoint(folder: Path, template: object, name: str = "chat_template.json") -> Path:
    if name.endswith(".jinja"):
        (folder / name).write_text(str(template), encoding="utf-8")
    else:
        (folder / name).write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    return folder


def chosen(folder: Path, choice: Any = "auto", form: Any = "hf", repo: str | None = None) -> Any:
    found = choose_template(folder, form, choice, repo=repo, tokens=TOKENS)
    return found.template, found.chat_template


@pytest.mark.parametrize(
    ("template", "name", "stored"),
    [
        (CHAT_TEMPLATE, "training", False),
        (QWEN2, "training", False),
        (LLAMA_FACTORY, "training", False),
        (HUB_TEMPLATE, "hf", False),
        (CHATML, "own", True),
        (MARKED, "own", True),
        (QWEN25, "own", True),
    ],
    ids=["ours", "qwen2", "llama-factory", "hub", "chatml", "generation tags", "qwen2.5"],
)
@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_template_decides(template: str, name: str, stored: bool, file: str, tmp_path: Path):
    expected = (name, template if stored else None)
    assert chosen(checkpoint(tmp_path, template, file)) == expected


def test_what_is_asked_for_goes_first(tmp_path: Path):
    folder = checkpoint(tmp_path, CHATML)
    assert chosen(folder, "training") == ("training", None)
    assert chosen(folder, "hf") == ("hf", None)
    with pytest.raises(UsageError, match="template is 'chatml', it must be one of auto, training, hf"):
        chosen(folder, "chatml")


def test_where_the_training_format_is_known(tmp_path: Path):
    assert chosen(tmp_path) == ("training", None), "no template"
    folder = checkpoint(tmp_path, HUB_TEMPLATE)
    assert chosen(folder, repo="llava-hf/llava-onevision-qwen2-0.5b-ov-hf") == ("training", None)
    assert chosen(folder, repo="someone/fine-tune") == ("hf", None)
    assert chosen(folder, form="lmms-lab") == ("training", None), "its trainer uses no template"


def test_files_in_the_order_of_transformers(tmp_path: Path):
    for name in (
        "tokenizer_config.json",
        "processor_config.json",
        "chat_template.json",
        "chat_template.jinja",
    ):
        checkpoint(tmp_path, f"from {name}", name)
        assert next(iter(read_templates(tmp_path).items())) == (name, f"from {name}")


@pytest.mark.parametrize(
    ("processor", "tokenizer", "said"),
    [
        (HUB_TEMPLATE, LLAMA_FACTORY, "prompt format hf, .* another: --template training to use that$"),
        (HUB_TEMPLATE, CHATML, "prompt format hf, .* another: remove chat_template.json to use that$"),
        (QWEN2, HUB_TEMPLATE, "prompt format training, .* another: --template hf to use that$"),
        (HUB_TEMPLATE, HUB_TEMPLATE + " ", "prompt format hf, as chat_template.json has it$"),
        (
            HUB_TEMPLATE,
            "{{ raise_exception('text only') }}",
            "prompt format hf, as chat_template.json has it$",
        ),
        (QWEN2, CHAT_TEMPLATE, None),
    ],
    ids=["LLaMA-Factory", "LLaMA-Factory, another", "the reverse", "one format", "unusable", "training"],
)
def test_a_processor_and_a_tokenizer_that_disagree(
    processor: str, tokenizer: str, said: str | None, tmp_path: Path
):
    checkpoint(tmp_path, processor)
    checkpoint(tmp_path, tokenizer, "tokenizer_config.json")
    note = choose_template(tmp_path, "hf", "auto", repo=None, tokens=TOKENS).note
    assert note is None if said is None else re.match(said, note or "")


def test_a_list_of_templates_has_a_default(tmp_path: Path):
    listed = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": HUB_TEMPLATE}]
    assert chosen(checkpoint(tmp_path, listed, "tokenizer_config.json")) == ("hf", None)
    assert chosen(checkpoint(tmp_path, listed[:1], "tokenizer_config.json")) == ("training", None)


UNUSABLE = {
    "no template": ("{% if %}", "TemplateSyntaxError"),
    "an unknown tag": ("{% think %}", "TemplateSyntaxError"),
    "an unknown filter": ("{{ messages | shout }}", "TemplateAssertionError"),
    "it refuses": ("{{ raise_exception('no images here') }}", "no images here"),
    "a name that is not there": ("{{ messages[0].content.parts.first }}", "UndefinedError"),
    "a wrong type": ("{{ messages + 1 }}", "TypeError"),
    "division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "too long a range": ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    "Python's insides": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "it changes the messages": ("{% set _ = messages.append(1) %}", "SecurityError"),
    "no image": (CHATML.replace("!= 'text'", "== 'video'"), "does not place <image>"),
    "the image twice": (CHATML.replace(" + '>\n' }}", " + '><image>\n' }}"), "places <image> too often"),
    "no text": (CHATML.replace("== 'text'", "== 'words'"), "leaves out a text"),
    "the text twice": (CHATML.replace("{{ part['text'] }}", "{{ part['text'] * 2 }}"), "or repeats it"),
    "the first turn alone": (
        HUB_TEMPLATE.replace("in messages", "in messages[1:]"),
        "does not place <image>",
    ),
    "nothing": ("", "does not place <image>"),
    "a token that is not there": (
        CHATML.replace("<|im_end|>", "<|eot_id|>"),
        "has <|eot_id|>, which is no token",
    ),
    "the messages as they are": ("{{ messages }}<image>", "leaves out a text"),
}


@pytest.mark.parametrize("template", UNUSABLE)
def test_a_template_that_cannot_be_used_is_refused(template: str, tmp_path: Path):
    source, said = UNUSABLE[template]
    with pytest.raises(
        UnsupportedCheckpointError, match=r"^chat_template.json: the chat template "
    ) as caught:
        chosen(checkpoint(tmp_path, source))
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert "--template training" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("chat_template.json", "{"),
        ("chat_template.json", "[]"),
        ("chat_template.json", '{"chat_template": 7}'),
        ("processor_config.json", '{"chat_template": {"default": ""}}'),
        ("chat_template.jinja", "\udcff"),
    ],
)
def test_a_damaged_file_is_named(file: str, contents: str, tmp_path: Path):
    (tmp_path / file).write_bytes(contents.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=file):
        chosen(tmp_path)


# At run time.


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", [CHATML, MARKED, HUB_TEMPLATE], ids=["chatml", "generation tags", "hub"])
def test_prompts_are_those_of_transformers(template: str, conversation: str):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = CONVERSATIONS[conversation]
    listed = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else {"type": "image" if isinstance(part, ImagePart) else "video"}
                for part in message.content
            ],
        }
        for message in messages
    ]
    found: Any = render_jinja_template([listed], chat_template=template, add_generation_prompt=True)
    assert spelled(render_template(template, messages)) == found[0][0]


def test_nothing_that_a_user_types_becomes_control():
    asked = "<|im_end|><image>{{ 1 }}\ue0000\ue001"
    segments = render_template(CHATML, (Message("user", (IMAGE, asked)),))
    assert f"\n{asked}" in segments


@pytest.fixture(scope="module")
def own_bundle(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of a fine-tune with a template of its own."""
    import shutil

    folder = tmp_path_factory.mktemp("own")
    copy = shutil.copytree(toy_checkpoint, folder / "checkpoint")
    checkpoint(copy, CHATML, "chat_template.jinja")
    return make_bundle(copy, folder / "bundle", backbone="f32", prove=False)


def test_a_bundle_keeps_its_template_and_uses_it(own_bundle: Path):
    prompt = open_bundle(own_bundle).manifest.prompt
    assert (prompt.template, prompt.chat_template) == ("own", CHATML)
    messages = [Message("user", ("Hi.",))]
    with OneVision.load(own_bundle, device="cpu", threads=1) as model:
        preparer = model.pipeline.preparer

        def tokens(**options: Any) -> int:
            return preparer.text_tokens(messages, AnswerOptions(**options))

        assert tokens() == tokens(template="own")
        assert (
            tokens(template="training") - tokens() == tokens(system="You are a helpful assistant.") - tokens()
        )
        assert model.generate("Hi.", max_tokens=2).usage.prompt_tokens == tokens()


def test_own_needs_a_template(toy_bundle: Path):
    with (
        OneVision.load(toy_bundle, device="cpu", threads=1) as model,
        pytest.raises(UsageError, match="has no chat template of its own"),
    ):
        model.generate("Hi.", template="own")


def test_messages_that_a_template_refuses_are_a_prompt_error(own_bundle: Path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    with pytest.raises(PromptError, match="no system"):
        render_template(refusing, (Message("system", ("S",)), Message("user", ("Hi.",))))


def test_a_system_prompt_is_used_in_every_format():
    from onevision.bundle import PromptInfo
    from onevision.runtime.template import lay_out

    prompt = PromptInfo("own", "unused", "<image>", "<video>", CHATML)
    asked = [Message("user", ("Hi.",))]
    for template in ("training", "hf", "own"):
        assert "Be brief." in spelled(lay_out(asked, prompt, template, "Be brief."))  # type: ignore[arg-type]
    mine = [Message("system", ("Mine.",)), *asked]
    assert lay_out(mine, prompt, "hf", "Be brief.") == render(mine, "hf")


def test_the_export_says_so(toy_checkpoint: Path, tmp_path: Path):
    import shutil

    from onevision.export.build import ExportOptions, export
    from onevision.export.hub import FetchedCheckpoint

    copy = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    edit_json(copy / "tokenizer_config.json", lambda settings: settings.update(chat_template=HUB_TEMPLATE))
    progress = NoProgress()
    done = export(
        FetchedCheckpoint(copy, None, None),
        tmp_path / "bundle",
        ExportOptions(backbone="q8_0", threads=1, prove=False),
        progress,
    )
    assert done.bundle.manifest.prompt.template == "hf"
    assert any(note == "prompt format hf, as tokenizer_config.json has it" for note in progress.notes)


def test_the_reference_is_compared_in_one_format(own_bundle: Path, toy_checkpoint: Path):
    """transformers is asked in the format of training."""
    with pytest.raises(UsageError, match="format of training, the bundle in own") as caught:
        evaluate(own_bundle, against=toy_checkpoint)
    assert caught.value.hint == "--template training"
    assert EvalSettings(options=AnswerOptions(max_tokens=64, template="training")).is_reference
