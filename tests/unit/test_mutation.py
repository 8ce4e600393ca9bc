"""The script that breaks lines of the program."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.mutation import breaksOf, draw

MODULE = '''
"""A module."""

LIMIT = 3


def count(items):
    """How many items there are."""
    total: int
    total = 0
    for item in items:
        if (item.isValid
                and item.isKnown):
            total += 1
        elif not item: continue
    return min(
        total,
        LIMIT,
    )
'''


class BreaksTests(SynchronousTestCase):
    """breaksOf() and draw()."""

    def test_whatIsBroken(self) -> None:
        """Statements of functions are deleted, and conditions inverted; the rest of the module stays as it is."""
        breaks = sorted(breaksOf(Path("module.py"), MODULE), key=lambda each: each.line)
        self.assertEqual(
            [str(each) for each in breaks],
            [
                "module.py:10: deleted: total = 0",
                "module.py:12: inverted: item.isValid and item.isKnown",
                "module.py:14: deleted: total += 1",
                "module.py:15: inverted: not item",
                "module.py:15: deleted: continue",
                "module.py:16: deleted: return min( total, LIMIT, )",
            ],
        )
        self.assertEqual([*breaks[1].lines], [12, 13])
        for each in breaks:
            compile(each.source, "module.py", "exec")
        self.assertEqual(breaks[0].source, MODULE.replace("total = 0", "pass"))
        self.assertIn("if ((not (item.isValid\n                and item.isKnown))):", breaks[1].source)
        self.assertTrue(breaks[-1].source.endswith("continue\n    pass\n"))

    def test_theSameSeed(self) -> None:
        """A seed always draws the same lines, each of them once."""
        first, again, other = draw(1, 30), draw(1, 30), draw(2, 30)
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertEqual(len({(each.path, each.line, each.what) for each in first}), 30)
