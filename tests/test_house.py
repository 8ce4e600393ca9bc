"""
Who imports whom: the rules of CONTRIBUTING.rst, held against the imports that stand in the files.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PACKAGE = "txserviceregistry"
ROOT = Path(__file__).parents[1]
# A line of names, and an indented one behind it.
FLOOR = re.compile(r"^((?:``\w+/?`` ?)+)\n    \S", re.MULTILINE)
# The package itself names what most users need, and so is above all.
ROOF = ""
# Beside the first floor, what the registry uses of the rest.
SPEAKS_HTTP = {"connecting", "resolving", "jsontransport", "agents", "failover", "tls"}
KNOWS_BOTH = {"testing", "commands"}


class House:
    """
    The modules of a tree, and their imports of each other.

    :param root: the folder with the package in it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[tuple[str, bool], set[str]] = {}

    @cached_property
    def modules(self) -> Mapping[str, Path]:
        """The file of each module, by its name without the package's."""
        files = sorted((self._root / PACKAGE).rglob("*.py"))
        return {self._name(file.relative_to(self._root / PACKAGE)): file for file in files}

    def imports(self, name: str, *, annotations: bool = False) -> set[str]:
        """
        What a module imports of the others, wherever in it.

        :param annotations: also what it imports for type checkers only.
        """
        if (name, annotations) not in self._known:
            file = self.modules[name]
            package = (PACKAGE, *file.relative_to(self._root / PACKAGE).parent.parts)
            self._known[name, annotations] = set(self._imported(file, package, annotations)) - {ROOF}
        return self._known[name, annotations]

    def reached(self, name: str) -> set[str]:
        """What importing a module brings, in any number of steps."""
        found: set[str] = set()
        ahead = [name]
        while ahead:
            new = self.imports(ahead.pop()) - found
            found |= new
            ahead += new
        return found

    @staticmethod
    def _name(file: Path) -> str:
        return ".".join(part for part in file.with_suffix("").parts if part != "__init__")

    def _imported(self, file: Path, package: tuple[str, ...], annotations: bool) -> Iterator[str]:
        for node in walk(ast.parse(file.read_text("utf-8")), annotations):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._ours(alias.name)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else ()
                origin = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    # What is named may be a module, or something in one.
                    yield from list(self._ours(f"{origin}.{alias.name}")) or self._ours(origin)

    def _ours(self, name: str) -> Iterator[str]:
        package, _, rest = name.partition(".")
        if package == PACKAGE and rest in self.modules:
            yield rest


def walk(tree: ast.AST, annotations: bool) -> Iterator[ast.AST]:
    """All nodes of a tree, or those that are not for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if not annotations and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for branch in node.orelse:
                yield branch
                yield from walk(branch, annotations)
            continue
        yield node
        yield from walk(node, annotations)


def floors() -> list[set[str]]:
    """What CONTRIBUTING.rst lists, from the ground up."""
    text = (ROOT / "CONTRIBUTING.rst").read_text("utf-8")
    return [set(re.findall(r"``(\w+)/?``", names)) for names in FLOOR.findall(text)]


def room(name: str) -> str:
    """What a module goes by in that list: itself, or the package that it is in."""
    return name.partition(".")[0]


HOUSE = House(ROOT)
FLOORS = floors()
GROUND = FLOORS[0]


def within(packages: Iterable[str]) -> list[str]:
    """The modules in some of the rooms."""
    return [name for name in HOUSE.modules if room(name) in packages]


class HouseTests(SynchronousTestCase):
    """The rules."""

    def test_everyModuleHasItsFloor(self) -> None:
        """CONTRIBUTING.rst lists all that there is, once, and nothing else."""
        listed = [name for floor in FLOORS for name in sorted(floor)]
        there = {room(name) for name in HOUSE.modules} - {ROOF}
        self.assertEqual(sorted(listed), sorted(there))

    def test_nobodyReachesUp(self) -> None:
        """A module imports what is on a lower floor, or on its own."""
        level = {name: number for number, floor in enumerate(FLOORS) for name in floor}
        wrong = [
            f"{name} imports {other}"
            for name in HOUSE.modules
            for other in HOUSE.imports(name)
            if name != ROOF and level[room(other)] > level[room(name)]
        ]
        self.assertEqual(wrong, [])

    def test_thereAreNoCircles(self) -> None:
        """No module imports itself by way of others."""
        self.assertEqual([name for name in HOUSE.modules if name in HOUSE.reached(name)], [])

    def test_theRegistryKnowsNoClient(self) -> None:
        """What the registry uses of the rest is the ground floor and how HTTP is spoken; and that brings no more."""
        allowed = GROUND | SPEAKS_HTTP | {"registry"}
        named = {room(other) for name in within({"registry"}) for other in HOUSE.imports(name, annotations=True)}
        brought = {room(other) for name in within({"registry"}) for other in HOUSE.reached(name)}
        self.assertEqual(((named | brought) - allowed), set())

    def test_theClientKnowsNoRegistry(self) -> None:
        """Only what is on top imports anything of the registry."""
        outside = {room(name) for name in HOUSE.modules} - KNOWS_BOTH - {"registry"}
        wrong = [
            f"{name} imports {other}"
            for name in within(outside)
            for other in HOUSE.imports(name, annotations=True)
            if room(other) == "registry"
        ]
        self.assertEqual(wrong, [])

    def test_theRulesKnowNeitherHttpNorAnyStore(self) -> None:
        """``registry.core`` needs the interfaces of the stores, and that is all of both."""
        reached = HOUSE.reached("registry.core")
        stores = {name for name in reached if name.startswith("registry.stores.")}
        self.assertEqual(stores, {"registry.stores.interfaces"})
        self.assertEqual(reached & {"registry.http", "registry.site", "registry.web", "registry.routes"}, set())

    def test_theStoresKnowNeitherRulesNorHttp(self) -> None:
        """A store can be used without the rest of the registry."""
        stores = [name for name in HOUSE.modules if name.startswith("registry.stores.")]
        above = {"registry.core", "registry.http", "registry.site", "registry.web", "registry.service"}
        self.assertEqual({name: HOUSE.reached(name) & above for name in stores if HOUSE.reached(name) & above}, {})

    def test_everyLogEscapesWhatComesFromOutside(self) -> None:
        """Nothing logs but with the logger of ``logs``."""
        wrong = [
            name
            for name, file in HOUSE.modules.items()
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module == "twisted.logger" and name != "logs"
            if "Logger" in [alias.name for alias in node.names]
        ]
        self.assertEqual(wrong, [])

    def test_thePluginsImportNothing(self) -> None:
        """Every twistd on a machine reads them, so what they need is imported when they are asked."""
        for file in (ROOT / "twisted" / "plugins").glob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
            self.assertNotIn(PACKAGE, ast.unparse(ast.Module(imports, [])))


class ReaderTests(SynchronousTestCase):
    """What reads the imports finds them all."""

    def house(self, **files: str) -> House:
        root = Path(self.mktemp())
        for name, text in {"__init__": "", **files}.items():
            file = (root / PACKAGE).joinpath(*name.split("__")) if name != "__init__" else root / PACKAGE / name
            file = file.with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return House(root)

    def test_allWaysToImport(self) -> None:
        """Relative ones and absolute ones, of modules and of names in them, at the top and within functions."""
        house = self.house(
            a="",
            b="",
            c="",
            d="",
            e="from . import a\nfrom .b import B\nimport txserviceregistry.c as x\n"
            "def f():\n    from txserviceregistry.d import D\nimport os\nfrom twisted import web\n",
            inner__f="from ..a import A\nfrom .. import b\nfrom .g import G\n",
            inner__g="",
        )
        self.assertEqual(house.imports("e"), {"a", "b", "c", "d"})
        self.assertEqual(house.imports("inner.f"), {"a", "b", "inner.g"})

    def test_annotations(self) -> None:
        """What is imported for type checkers is told only if it is asked for."""
        house = self.house(a="", b="", c="if TYPE_CHECKING:\n    from .a import A\nelse:\n    from .b import B\n")
        self.assertEqual(house.imports("c"), {"b"})
        self.assertEqual(house.imports("c", annotations=True), {"a", "b"})

    def test_whatIsReached(self) -> None:
        """An import brings what that module imports, and a circle is one."""
        house = self.house(a="from . import b", b="from . import c", c="from . import a", d="from . import c")
        self.assertEqual(house.reached("d"), {"a", "b", "c"})
        self.assertIn("a", house.reached("a"))
