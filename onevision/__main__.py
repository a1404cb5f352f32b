"""``python -m onevision``, for where the ``onevision`` command is not on the path."""

from __future__ import annotations

from onevision.cli import main

main()
