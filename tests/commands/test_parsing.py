"""Tags and metadata as they are written on a command line."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.parsing import parseMetadata, parseTags


class ParsingTests(SynchronousTestCase):
    """What a person may write, and what comes of it."""

    def test_tags(self) -> None:
        """Commas separate, blanks around don't count, and a tag given twice is one."""
        for text, tags in {
            "": [],
            "api": ["api"],
            "api,www": ["api", "www"],
            " api , www,,api,": ["api", "www"],
            r"a\,b,c": ["a,b", "c"],
            r"a\\,b": ["a\\", "b"],
            r"a\b": [r"a\b"],
        }.items():
            self.assertEqual(parseTags(text), tags, text)

    def test_metadata(self) -> None:
        """A value is taken as it stands, with blanks and equals signs; it may be empty."""
        for text, metadata in {
            "": {},
            "port=8000,host=localhost,is_public=true": {"port": "8000", "host": "localhost", "is_public": "true"},
            "url=http://h/?a=b=c,e=": {"url": "http://h/?a=b=c", "e": ""},
            r"a=1\,2\,3, b= x ": {"a": "1,2,3", "b": " x "},
            r"path=C:\temp\\,ü=ß": {"path": "C:\\temp\\", "ü": "ß"},
        }.items():
            self.assertEqual(parseMetadata(text), metadata, text)

    def test_whatIsNoMetadata(self) -> None:
        """A part without a key or without a value is named, and so is a key with two values."""
        for text, named in {"port": "'port'", "a=b,=c": "'=c'", "a=b, =c": "' =c'", "a=1,a=2": "'a'"}.items():
            self.assertIn(named, str(self.assertRaises(ValueError, parseMetadata, text)))
