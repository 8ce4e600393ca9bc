"""
How the documentation is built: ``sphinx-build -W -n docs site``.

Nothing is fetched while it is built, so that it can be built anywhere. A name that is public and not in the reference
is a warning, and so are a link that leads nowhere and a page that no table of contents has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from types import FunctionType
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles
from zope.interface.interface import InterfaceClass, Method

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.publicnames import publicModules, publicNames  # noqa: E402  # found by the line above
from txserviceregistry import __version__  # noqa: E402  # as above

project = "txserviceregistry"
author = "The txserviceregistry developers"
version = release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.graphviz"]
exclude_patterns = ["*-figures.rst"]
highlight_language = "python"
default_role = None
nitpicky = True

html_theme = "furo"
html_title = f"txserviceregistry {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
maximum_signature_line_length = 88
html_show_copyright = False
html_copy_source = False
graphviz_output_format = "svg"

autoclass_content = "both"
# What Twisted says of its own methods is Epytext.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# What others have made.
FOREIGN = re.compile(
    r"<InterfaceClass |^_|^I[A-Z]\w+$"
    r"|^(asyncio|collections|contextlib|datetime|enum|ipaddress|logging|os|pathlib|socket|sqlite3|ssl|threading|types|typing)\."
    r"|^(OpenSSL|attr|cryptography|hyperlink|prometheus_client|treq|twisted|zope)\."
)

# The modules that programs use, by the page of the reference that has them. All others are the registry's own, or the
# inside of the client.
USED = {
    "client": "client heartbeats.services api.services api.configuration api.events api.account registration"
    " heartbeats.heartbeater errors types settings api.auth clock",
    "discovery": "discovery.directory discovery.feed discovery.watcher discovery.endpoints discovery.agent"
    " discovery.strategies discovery.instances discovery.shared",
    "testing": "testing",
}


def modulesOf(page: str) -> list[str]:
    """The modules that a page has: ``client``, ``discovery``, ``testing``, ``registry`` or ``inside``."""
    used = {name: [f"txserviceregistry.{module}" for module in modules.split()] for name, modules in USED.items()}
    if page in used:
        return used[page]
    placed = {
        "txserviceregistry",
        "txserviceregistry.discovery",
        *(module for names in used.values() for module in names),
    }
    rest = [module for module in publicModules() if module not in placed]
    return [module for module in rest if module.startswith("txserviceregistry.registry.") == (page == "registry")]


def described(module: str, name: str) -> Iterator[str]:
    """The lines that describe a name."""
    value = getattr(import_module(module), name)
    full = f"{module}.{name}"
    if isinstance(value, InterfaceClass):
        # Autodoc knows nothing of interfaces.
        yield from [f".. py:class:: {name}", "", *indented(value.__doc__), ""]
        for member, described in value.namesAndDescriptions():
            if isinstance(described, Method):
                yield from [f"   .. py:method:: {member}{described.getSignatureString()}", ""]
            else:
                yield from [f"   .. py:attribute:: {member}", ""]
            yield from [*indented(described.__doc__, 6), ""]
    elif isinstance(value, type):
        yield f".. auto{'exception' if issubclass(value, BaseException) else 'class'}:: {full}"
        yield "   :members:"
        if value.__bases__ != (object,):
            yield "   :show-inheritance:"
    elif isinstance(value, FunctionType):
        yield f".. autofunction:: {full}"
    elif ("", name) in ModuleAnalyzer.for_module(module).find_attr_docs():
        yield f".. autodata:: {full}"
    else:
        # Autodoc would tell what its type is for.
        yield f".. py:data:: {name}"
    yield ""


def indented(docstring: str | None, width: int = 3) -> list[str]:
    """The lines of a docstring, indented."""
    return [" " * width + line for line in cleandoc(docstring or "").splitlines()]


class Modules(SphinxDirective):
    """``.. modules:: PAGE``: a section for each module of a page of the reference."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """See docutils."""
        lines: list[str] = []
        for module in modulesOf(self.arguments[0]):
            lines += ["", module, "-" * len(module), "", f".. automodule:: {module}", "   :no-members:", ""]
            names = getattr(import_module(module), "__all__", ())
            for name in sorted(names, key=list(vars(import_module(module))).index):
                lines += described(module, name)
        parent = nodes.section()
        parent.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, self.get_source_info()[0]), parent)
        return list(parent.children)


class Help(SphinxDirective):
    """
    ``.. help:: PROGRAM [SUBCOMMAND …]``: what it says to ``--help``, asked now. With the option ``each``, a section for
    each command that the help lists.
    """

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"each": directives.flag}

    def run(self) -> list[nodes.Node]:
        """See docutils."""
        text = helpOf(self.arguments[0])
        if "each" not in self.options:
            return [nodes.literal_block(text, text, language="none")]
        sections: list[nodes.Node] = []
        for command in re.findall(r"^  (\w+(?: [\w-]+)?)   ", text.partition("\ncommands:\n")[2], re.MULTILINE):
            title = f"{self.arguments[0]} {command}"
            section = nodes.section("", nodes.title(title, title), ids=[nodes.make_id(title)])
            told = helpOf(title)
            section += nodes.literal_block(told, told, language="none")
            sections.append(section)
        if not sections:
            raise self.error(f"{self.arguments[0]} lists no commands")
        return sections


def helpOf(command: str) -> str:
    """The help of one of our programs."""
    program, *arguments = command.split()
    run = [str(Path(sys.executable).with_name(program)), *arguments, "--help"]
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "88"}
    text = subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout
    return re.sub(r" +$", "", text, flags=re.MULTILINE).strip()


def find(path: str) -> Any:
    """The object with a dotted name, or ``None``."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


def isInternal(node: Any, target: str) -> bool:
    """Whether a docstring names something that is there, but is not public."""
    module, classes = str(node.get("py:module")), str(node.get("py:class"))
    owner = find(f"{module}.{classes.split('.')[0]}")
    documented = re.search(rf":ivar {re.escape(target)}:", getattr(owner, "__doc__", None) or "")
    places = (target, f"{module}.{target}", f"{module}.{classes}.{target}")
    return bool(documented) or any(find(place) is not None for place in places)


def resolveName(app: Sphinx, env: BuildEnvironment, node: Any, text: nodes.Element) -> nodes.Element | None:
    """
    Where a name leads that Python's domain has not found: a short name, or one without its module, leads to the one
    object that it can mean; what others have made, and what is not public, has no page here.
    """
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    domain = env.domains["py"]
    assert isinstance(domain, PythonDomain)
    real = find(target)
    home = f"{getattr(real, '__module__', '')}.{getattr(real, '__qualname__', getattr(real, '__name__', ''))}"
    ending = "." + target.removeprefix("txserviceregistry.")
    found = [home] if home in domain.objects else [name for name in domain.objects if name.endswith(ending)]
    if len(found) == 1:
        return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], found[0], node, text)
    if FOREIGN.search(target) or target.rpartition(".")[2].startswith("_") or isInternal(node, target):
        return text
    return None


def readableSignature(
    app: Sphinx, what: str, name: str, value: object, options: object, arguments: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Interfaces by their names."""

    def readable(text: str | None) -> str | None:
        return text and re.sub(r"<InterfaceClass (?:\w+\.)*(\w+)>", r"\1", text)

    return readable(arguments), readable(result)


def checkPublicNames(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name that the reference does not have."""
    domain = env.domains["py"]
    assert isinstance(domain, PythonDomain)
    for module, name in publicNames():
        # A name that is handed on is described where it was made.
        home = getattr(getattr(import_module(module), name), "__module__", module)
        if not {f"{module}.{name}", f"{home}.{name}"} & domain.objects.keys():
            logging.getLogger(__name__).warning("%s.%s is public, and not in the reference", module, name)


def setup(app: Sphinx) -> None:
    """See Sphinx."""
    app.add_directive("modules", Modules)
    app.add_directive("help", Help)
    app.connect("autodoc-process-signature", readableSignature)
    app.connect("missing-reference", resolveName)
    app.connect("env-check-consistency", checkPublicNames)
