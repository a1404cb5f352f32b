"""The command line, for the tests of ``onevision quant``."""

from __future__ import annotations

from tests.test_cli import cli

__all__ = ["cli"]
