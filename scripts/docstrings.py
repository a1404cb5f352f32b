"""Griffe extension for the site.

Roles such as ``:func:`name``` in docstrings become plain code. A function of the package that has the name of
a subpackage (``onevision.export``) is the function, as in Python.
"""

from __future__ import annotations

import re

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")


class Site(griffe.Extension):
    """Objects as the site shows them."""

    def __init__(self) -> None:
        self._functions: dict[str, griffe.Function] = {}

    def on_function_instance(self, *, func: griffe.Function, **_: object) -> None:
        """Remember a function, before a subpackage of its name replaces it."""
        self._functions[func.path] = func

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Put back what subpackages have replaced."""
        for name, member in list(pkg.members.items()):
            if isinstance(member, griffe.Module) and (function := self._functions.get(f"{pkg.path}.{name}")):
                pkg.set_member(name, function)

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Replace the roles in a docstring."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
