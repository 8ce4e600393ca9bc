"""The representations that attrs makes: they must not show a secret, for they get into logs and tracebacks."""

from __future__ import annotations

import inspect
from importlib import import_module
from pkgutil import walk_packages

import attrs
from twisted.trial.unittest import SynchronousTestCase

import txserviceregistry

#: Names of attributes whose values may hold a key, a token, a header, a body, or a Deferred with one of them.
_MAY_BE_SECRET = ("apiKey", "password", "secret", "headers", "body", "deferred", "result", "raw")
#: Classes whose headers and bodies are descriptions, not those of a request or response.
_DESCRIPTIONS = ("Operation",)


class ReprTests(SynchronousTestCase):
    """Every class of the package that attrs gives a representation."""

    def test_noSecrets(self) -> None:
        """None shows an attribute that may hold a secret."""
        shown = []
        for module in walk_packages(txserviceregistry.__path__, "txserviceregistry."):
            for name, made in inspect.getmembers(import_module(module.name), inspect.isclass):
                code = getattr(vars(made).get("__repr__"), "__code__", None)
                if not attrs.has(made) or code is None or "attrs generated" not in code.co_filename:
                    continue
                for field in attrs.fields(made):
                    if field.repr and field.name.lstrip("_") in _MAY_BE_SECRET and name not in _DESCRIPTIONS:
                        shown.append(f"{made.__module__}.{name}.{field.name}")
        self.assertEqual(sorted(set(shown)), [])
