"""
How the documentation is built: ``sphinx-build -W -n docs site``.

Nothing is fetched while it is built, so that it can be built anywhere. A link that leads nowhere is a warning,
and so is a page that no table of contents has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from txserviceregistry import __version__

project = "txserviceregistry"
author = "The txserviceregistry developers"
version = release = __version__
sys.path.append(str(Path(__file__).parent))
extensions = ["sphinx.ext.autodoc", "sphinx.ext.graphviz", "charts"]
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
# Twisted's docstrings of its own methods are Epytext.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
add_module_names = False
nitpick_ignore_regex = [
    # Names of other packages: nothing is fetched while the site is built, so where they are documented is not known.
    (
        "py:.*",
        r"(asyncio|collections|contextlib|datetime|enum|ipaddress|logging|os|pathlib|socket|sqlite3|ssl|threading|types|typing"
        r"|OpenSSL|attr|cryptography|hyperlink|prometheus_client|treq|twisted|zope)\..*",
    ),
    # attrs does not say where the annotations of the methods that it makes come from.
    ("py:class", "Path"),
    # Internal modules, which signatures may name: they are not in the reference.
    ("py:.*", r"txserviceregistry\.(api|discovery|heartbeats|http|registry|util)\.\w+\..*"),
]


class Help(SphinxDirective):
    """
    ``.. help:: PROGRAM``: the output of its ``--help``. With the option ``each``, a section for each command that the
    help lists follows.
    """

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"each": directives.flag}

    def run(self) -> list[nodes.Node]:
        """See docutils."""
        text = helpOf(self.arguments[0])
        found: list[nodes.Node] = [nodes.literal_block(text, text, language="none")]
        if "each" not in self.options:
            return found
        listed = re.split(r"\n(?:commands|actions):\n", text)[-1]
        for command in re.findall(r"^ {2,4}(\w+(?: [\w-]+)?)  +", listed, re.MULTILINE):
            title = f"{self.arguments[0]} {command}"
            section = nodes.section("", nodes.title(title, title), ids=[nodes.make_id(title)])
            text = helpOf(title)
            section += nodes.literal_block(text, text, language="none")
            found.append(section)
        if len(found) == 1:
            raise self.error(f"{self.arguments[0]} lists no commands")
        return found


def helpOf(command: str) -> str:
    """The help of one of our programs."""
    program, *arguments = command.split()
    run = [str(Path(sys.executable).with_name(program)), *arguments, "--help"]
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "88"}
    text = subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout
    return re.sub(r" +$", "", text, flags=re.MULTILINE).strip()


def readableSignature(
    app: Sphinx, what: str, name: str, value: object, options: object, arguments: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Interfaces by their names, and the defaults of attrs as dots: autodoc has neither."""

    def readable(text: str | None) -> str | None:
        text = text and re.sub(r"<InterfaceClass ([\w.]+)>", r"~\1", text)
        return text and re.sub(r"attr_dict\['\w+'\]\.default|\bNOTHING\b", "...", text)

    return readable(arguments), readable(result)


def setup(app: Sphinx) -> None:
    """See Sphinx."""
    app.add_directive("help", Help)
    app.connect("autodoc-process-signature", readableSignature)
