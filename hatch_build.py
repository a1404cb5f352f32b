"""Build hook: the tiny model's bundle is written before a wheel is packed or an editable install is made.

``onevision/models/tiny/`` (checkpoint, reference vectors) -> ``onevision/models/tiny-bundle/``, by the code
of this folder. It needs only what [build-system] of pyproject.toml names: neither torch nor llama.cpp.
"""

from __future__ import annotations

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TinyBundle(BuildHookInterface):  # type: ignore[type-arg]
    """Hook of hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Write the bundle."""
        sys.path.insert(0, self.root)
        try:
            from onevision.export.tiny import write_tiny_bundle
            from onevision.models import TINY_BUNDLE

            write_tiny_bundle(TINY_BUNDLE)
        finally:
            sys.path.remove(self.root)
