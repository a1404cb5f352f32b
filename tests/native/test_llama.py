"""What llama.cpp logs reaches the call that caused it, and no other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from onevision.bundle import BACKBONE
from onevision.errors import BundleError
from onevision.native.gguf import GgufFile
from onevision.native.llama import LlamaModel, last_llama_error, llama_log

if TYPE_CHECKING:
    from pathlib import Path

DAMAGE = {
    "magic": (b"GGUF", b"GGML"),
    "version 99": (b"GGUF\x03", b"GGUF\x63"),
    "'qwenX'": (b"qwen2", b"qwenX"),
}


def test_each_thread_hears_of_its_own_file(toy_bundle: Path, tmp_path: Path) -> None:
    whole = (toy_bundle / BACKBONE).read_bytes()
    for number, (old, new) in enumerate(DAMAGE.values()):
        (tmp_path / f"{number}.gguf").write_bytes(whole.replace(old, new, 1))

    def load(turn: int) -> None:
        number = turn % len(DAMAGE)
        with pytest.raises(BundleError, match=tuple(DAMAGE)[number]):
            LlamaModel(tmp_path / f"{number}.gguf", vocab_only=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load, range(48)))


def test_an_error_stays_on_its_thread(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no GGUF at all")

    def fail() -> str | None:
        with pytest.raises(BundleError):
            LlamaModel(tmp_path / "bad.gguf")
        return last_llama_error()

    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool, llama_log(lines.append):
        assert pool.submit(fail).result()
        assert last_llama_error() is None
        assert lines == []
        with pytest.raises(BundleError):
            GgufFile(tmp_path / "bad.gguf")
        assert lines


def test_no_line_reaches_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no GGUF at all")
    with pytest.raises(BundleError, match="is damaged, or not a GGUF file"):
        GgufFile(tmp_path / "bad.gguf")
    assert capfd.readouterr().err == ""
