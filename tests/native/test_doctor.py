"""Advice of ``onevision doctor``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from onevision.native.doctor import examine

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_two_builds_of_onnx_runtime_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not any("onnxruntime-gpu" in advice for advice in examine().advice)
    installed = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert any("both installed" in advice for advice in examine().advice)
