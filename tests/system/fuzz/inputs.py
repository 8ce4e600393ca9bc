"""
The inputs of random programs: small pools of ids, keys, tags and bad values.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

TENANTS = ("1", "2")
#: The users of each tenant: the prefixes of the services and keys that they may change.
ROLES = {"": ("", ""), "limited": ("we", "/abc"), "read": None}
#: When programs begin: a moment that is no whole number of milliseconds, and that a float can hold exactly.
BEGINNING = 1_767_225_600 + 2.0**-12
IDS = ["web", "web1", "Web", "we-b", "api.1"]
BAD_IDS = ["we", "x" * 66, "we b", "wéb", "web\n", "web~"]
TAGS = ["a", "A", "b", "a-b", ".", "ü b"]
KEYS = [
    "abc",
    "abc.d",
    "/abc",
    "/abc/def",
    "/abc/def/ghi",
    "/abc-1/def",
    "/abcd/def",
    "/abc/de_f",
    "abc/def",
    "/zzz/a.b",
]
BAD_KEYS = ["/", "//", "ab", "/a/b", "a b c", "/abc//def", "abc/def//ghi", "x" * 501, "/abc\n", "/" + "é" * 3]
NAMESPACES = [
    "",
    "/",
    "//",
    "abc/",
    "/abc/",
    "/abc/def/",
    "abc/def/",
    "/abcd/",
    "/nothing/",
    "///",
    "//abc/",
    "/a/",
    "abc.d/",
]
LIMITS = [None, None, "1", "1", "2", "2", "3", "1000"]
BAD_LIMITS = ["0", "1001", "-1", "x", "", "1.0"]
MARKERS = [
    None,
    None,
    None,
    None,
    None,
    None,
    "",
    "a",
    "we",
    "web",
    "web0",
    "Z",
    "/abc",
    "/abc/",
    "abc",
    "~",
    "x" * 256,
    "é",
]
TIMEOUTS = [3, 4, 30, 30, 120, "5", 6.0, " 07", "3e1"]
BAD_TIMEOUTS = [2, 121, "x", "3.5", 3.5, None, True, [], "-3", "121", "1e400"]
TAG_LISTS = [[], ["a"], ["a"], ["b"], ["A"], ["a", "b"], ["a", "a"], [".", "ü b"], None]
BAD_TAG_LISTS = [["a"] * 11, "a", [1], [""], ["x" * 56], {}, [None]]
METADATA = [
    {},
    {"k": "v"},
    {"k": "w", "é": "☃"},
    None,
    {"host": "::1", "port": "80", "a-b": "1", "a.b": "2"},
    {"host": "h", "port": "80", "status": "disabled"},
]
BAD_METADATA = [{"": "v"}, {"k": ""}, {"k": 1}, [], "x", {str(n): "v" for n in range(21)}, {"k" * 256: "v"}]
VALUES = ["1", "1", "2", " ", "é☃", "x" * 1024]
BAD_VALUES = ["", "x" * 1025, 1, None, []]
STATES = [
    {"state": "drain"},
    {"state": "drain", "reason": "rack move é☃"},
    {"state": "out", "reason": None},
    {"state": "up", "reason": "note"},
    {"state": "up"},
    {"state": "drain", "expires_in": 1},
    {"state": "out", "expires_in": 3, "reason": "soon"},
    {"state": "out", "expires_in": "600"},
    {"state": "up", "expires_in": 5},
]
BAD_STATES = [
    {},
    {"state": "down"},
    {"state": None},
    {"state": "out", "reason": "x" * 256},
    {"state": "out", "reason": 5},
    {"state": "out", "expires_in": 0},
    {"state": "out", "expires_in": None},
    {"state": "drain", "expires_in": 2_592_001},
]
BAD_UUIDS = [
    "",
    "x",
    "00000000-0000-4000-8000-000000000000",
    "00000000-0000-1000-0000-000000000000",
    "00000000000010008000000000000000",
]
MOMENTS = [-86400.0, -7200.0, -3600.0, -10.0, -1.0, -0.125, 0.0, 0.125, 1.0, 3600.0]
ODD_REQUESTS = [
    ("POST", "/services/web"),
    ("PUT", "/services"),
    ("DELETE", "/services"),
    ("GET", "/services/"),
    ("GET", "/services/web/"),
    ("GET", "/services//"),
    ("GET", "/services/web/heartbeat"),
    ("PUT", "/services/web/heartbeat"),
    ("POST", "/services/web/heartbeat/"),
    ("POST", "/services/web/heartbeat/x"),
    ("POST", "/configuration"),
    ("POST", "/configuration/abc"),
    ("PUT", "/configuration"),
    ("DELETE", "/configuration/"),
    ("POST", "/events"),
    ("GET", "/events/"),
    ("PUT", "/limits"),
    ("GET", "/limits/"),
    ("GET", "/heartbeats"),
    ("GET", "/"),
    ("GET", ""),
    ("GET", "/tell"),
    ("PATCH", "/services/web"),
    ("POST", "/services/web/state"),
    ("PUT", "/services/web/state/x"),
    ("GET", "/services/web/state/"),
    ("PUT", "/states"),
    ("GET", "/states/web"),
]
BODIES = [b"{", b"[]", b"1", b"\xff", b'"x"', b"null", b"{}", b"", b' {"heartbeat_timeout": 5} ', b"{}{}"]
#: Requests that two clients may send at once.
CHANGES = [
    "acquire",
    "acquire",
    "release",
    "force",
    "lockHeartbeat",
    "state",
    "create",
    "create",
    "remove",
    "update",
    "heartbeat",
    "set",
    "set",
    "setIf",
    "setIf",
    "unset",
]
#: The values of ``If-Match``, ``{}`` for a tag.
MATCHES = ["*", "{}", "{}", "{}", "W/{}", '"0", {}', '{} , "x"', '"0"']
BAD_MATCHES = ["", "x", '"', "*, *", "{}{}", "0", 'w/"0"']
MEDIA = [None, "application/json", "Application/JSON; charset=UTF-8", "text/plain", "foo/bar; a=b"]
picks = st.integers(0, 2**12)
tenants = st.sampled_from(["1", "1", "1", "2"])
ids = st.sampled_from(IDS)
keys = st.sampled_from(KEYS)


def mostly(good: list[Any], bad: list[Any]) -> st.SearchStrategy[Any]:
    """One of the *good* ones, and now and then of the *bad* ones."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(bad if n == 9 else good))
