"""What is public: the modules that have an ``__all__``, and the names in it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages

import txserviceregistry


def publicModules() -> Iterator[str]:
    """The modules whose names others may import: all but the commands, which are programs."""
    names = [module.name for module in walk_packages(txserviceregistry.__path__, "txserviceregistry.")]
    for name in ["txserviceregistry", *names]:
        if not name.startswith("txserviceregistry.commands") and hasattr(import_module(name), "__all__"):
            yield name


def publicNames() -> Iterator[tuple[str, str]]:
    """Each public name, with the module that has it in its ``__all__``."""
    for module in publicModules():
        for name in import_module(module).__all__:
            yield module, name
