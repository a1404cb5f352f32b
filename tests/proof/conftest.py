"""The command line, for the tests of the proof."""

from __future__ import annotations

from tests.test_cli import cli

__all__ = ["cli"]
