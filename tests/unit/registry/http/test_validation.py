"""The rules for fields and parameters, and the exact words of their reasons."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.http import validation
from txserviceregistry.registry.http.handlers import heartbeatOf
from txserviceregistry.registry.model import NewService, ServiceChanges

TOKEN = "a56b7c00-f7c2-11e1-a0d7-8d4d1d0b7f2e"

JSON_TEXTS = st.text(st.characters(), max_size=70)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | JSON_TEXTS,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(JSON_TEXTS, inner, max_size=22),
    max_leaves=12,
)
BODIES = st.dictionaries(
    st.sampled_from(["id", "heartbeat_timeout", "tags", "metadata", "token", "value", "heartbeats"]) | JSON_TEXTS,
    JSON_VALUES,
    max_size=7,
)


def newService(body: Mapping[str, Any]) -> NewService:
    """The service that the body of a ``POST /services`` describes."""
    return NewService(*[field.value(body) for field in validation.SERVICE_FIELDS])


def heartbeatToken(body: Mapping[str, Any]) -> Any:
    """The token in the body of a heartbeat."""
    return validation.HEARTBEAT_FIELDS[0].value(body)


def heartbeats(body: Mapping[str, Any]) -> Any:
    """The entries in the body of a batch."""
    return validation.BATCH_FIELDS[0].value(body)


def configurationValue(body: Mapping[str, Any]) -> Any:
    """The value in the body of a ``PUT /configuration/<key>``."""
    return [field.value(body) for field in validation.VALUE_FIELDS][-1]


class ValidationTestCase(SynchronousTestCase):
    """The common parts of the tests below."""

    def refused(self, function: Callable[..., Any], *args: Any) -> Fault:
        """The fault that *function* raises."""
        fault = self.assertRaises(Fault, function, *args)
        self.assertEqual(fault.code, 400)
        self.assertIsInstance(fault.details, str)
        return fault

    def assertField(self, key: str, reason: str, function: Callable[..., Any], *args: Any) -> None:
        """*function* refuses the body field *key* for this *reason*."""
        fault = self.refused(function, *args)
        self.assertEqual(
            (fault.type, fault.message, fault.details),
            ("badRequest", f"Validation error for key '{key}'", reason),
        )

    def assertParameter(self, name: str, reason: str, function: Callable[[str], str], text: str) -> None:
        """*function* refuses the parameter *name* for this *reason*."""
        fault = self.refused(function, text)
        self.assertEqual(
            (fault.type, fault.message, fault.details),
            ("badRequest", f"Invalid value for '{name}' query string parameter", reason),
        )


def body(**fields: Any) -> dict[str, Any]:
    """The body of a good registration, but for *fields*."""
    return {"id": "web1", "heartbeat_timeout": 30, **fields}


class NewServiceTests(ValidationTestCase):
    """``POST /services``."""

    def assertBad(self, key: str, value: Any, reason: str) -> None:
        """A registration with this *value* is refused for this *reason*."""
        self.assertField(key, reason, newService, body(**{key: value}))

    def test_takesAllFields(self) -> None:
        """All fields come out as they were sent."""
        made = newService(body(tags=["a", "b"], metadata={"k": "v"}))
        self.assertEqual(made, NewService("web1", 30, ("a", "b"), {"k": "v"}))

    def test_fillsInDefaults(self) -> None:
        """Absent tags and metadata, and those that are null, are empty."""
        plain = NewService("web1", 30, (), {})
        self.assertEqual(newService(body()), plain)
        self.assertEqual(newService(body(tags=None, metadata=None)), plain)

    def test_defaultsAreNotShared(self) -> None:
        """A caller's change of its service's metadata does not show in the next service."""
        first = newService(body()).metadata
        assert isinstance(first, dict)
        first["k"] = "v"
        self.assertEqual(newService(body()).metadata, {})

    def test_ignoresUnknownKeys(self) -> None:
        """A key that the API does not know changes nothing, whatever it holds."""
        self.assertEqual(newService(body(last_seen=[], x={})), newService(body()))

    def test_namesTheFirstMissingKey(self) -> None:
        """A required field that is absent is named; they are looked at in the order of the API's table."""
        for fields, key in (({}, "id"), ({"heartbeat_timeout": 2}, "id"), ({"id": "web1"}, "heartbeat_timeout")):
            self.assertField(key, f"Missing required key ({key})", newService, fields)

    def test_takesIdsOfEveryLengthAndLetter(self) -> None:
        """Ids have 3 to 65 characters of the set, any case."""
        for id in ("abc", "A" * 65, "aZ09_-.", "...", "a.b"):
            self.assertEqual(newService(body(id=id)).id, id)

    def test_refusesIdsThatAreNoStrings(self) -> None:
        """The type is checked first; null is not a string."""
        for id in (None, 5, 1.5, True, [], ["abc"], {}):
            self.assertBad("id", id, "Not a string")

    def test_checksLengthBeforeCharacters(self) -> None:
        """An id that is too short and has bad characters is too short; length is in code points."""
        for id in ("", "ab", "a/", "a" * 66, "/" * 66, "💩💩"):
            self.assertBad("id", id, "String is not in range (3..65)")

    def test_refusesOtherCharacters(self) -> None:
        """Patterns match the whole text, and ASCII only."""
        for id in (
            "a/b", "abc\n", "\nabc", "a b", "abc\x00", "äbc", "a\u017fc", "abc\u212a", "a\u0663c", "%00", "a:b",
            "💩💩💩", "ab\ud800", "\udc00\ud800\ud800",
        ):  # fmt: skip
            self.assertBad("id", id, "Invalid characters")

    def test_takesIntegersInEachForm(self) -> None:
        """An integer may be written as an integer, as a float that is one, or as a string."""
        for value in (30, 30.0, "30", " 30", "30\n", "+30", "030", "30.", "30.0", "3e1", "300e-1", ".3E+2"):
            timeout = newService(body(heartbeat_timeout=value)).heartbeatTimeout
            self.assertEqual(timeout, 30)
            self.assertIs(type(timeout), int)
        for value in (3, "3", 120, "120", 120.0):
            self.assertEqual(newService(body(heartbeat_timeout=value)).heartbeatTimeout, int(value))

    def test_refusesWhatIsNotAnInteger(self) -> None:
        """Booleans, null, fractions, infinities, and text that does not read as an integer."""
        for value in (
            None, True, False, 30.5, float("nan"), float("inf"), float("-inf"), json.loads("1e400"), "", " ",
            "--30", "3_0", "30.5", "3 0", "3e", "e1", ".", "3.1e0", "0x1e", "\uff13\uff10", "\u0663\u0660", "abc",
             "\ud800", "NaN", "Infinity", "30\xa0",
            [], [30], {}, {"a": 30},
        ):  # fmt: skip
            self.assertBad("heartbeat_timeout", value, "Invalid integer")

    def test_integersAreCheckedQuickly(self) -> None:
        """Long text that is nearly an integer is refused in a moment, in a body as in a query."""
        begun = time.process_time()
        for text in ("1" * 4900 + "x", "1" * 4900 + ".x", "1e" + "1" * 4900 + "x", "\n" * 4900 + "x"):
            self.assertBad("heartbeat_timeout", text, "Invalid integer")
            self.assertParameter("wait", "Invalid integer", validation.WAIT.value, text)
        self.assertLess(time.process_time() - begun, 0.5)

    def test_refusesIntegersOutOfRange(self) -> None:
        """From 3 to 120 seconds, however large a number may be."""
        for value in (
            2, 121, 0, -0.0, -30, "-30", "0", "-0", "121", 2.0, 1e308, 10**400, "9" * 4900, "-" + "9" * 4900,
            3 * 10**30,
            "1e400", "-1e999999999", " 2.0 ",
        ):  # fmt: skip
            self.assertBad("heartbeat_timeout", value, "Value out of range (3..120)")

    def test_takesTagsOfAnyCharacters(self) -> None:
        """Up to ten tags of 1 to 55 code points; what they say is the client's business, twice if it likes."""
        tags = ["ä", "💩" * 55, "a b/c", "\x00", "same", "same", "t7", "t8", "t9", "t10"]
        self.assertEqual(newService(body(tags=tags)).tags, tuple(tags))

    def test_refusesTags(self) -> None:
        """The array is checked before its elements, and its length before them; an element has its own reason."""
        for value, reason in (
            ("a", "Not an array"),
            ({}, "Not an array"),
            (0, "Not an array"),
            (False, "Not an array"),
            ([1] * 11, "Object needs to have between 0 and 10 items"),
            (["a", 1], "Not a string"),
            (["a", None], "Not a string"),
            ([["a"]], "Not a string"),
            ([""], "String is not in range (1..55)"),
            (["a" * 56], "String is not in range (1..55)"),
            (["\udfff"], "Invalid characters"),
        ):
            self.assertBad("tags", value, reason)

    def test_takesMetadata(self) -> None:
        """Up to twenty pairs of strings of 1 to 255 code points, in their order."""
        metadata = {f"k{i}": "v" for i in range(18)} | {"💩" * 255: "v" * 255, "__proto__": "\x00"}
        self.assertEqual(newService(body(metadata=metadata)).metadata, metadata)

    def test_refusesMetadata(self) -> None:
        """The object, its size, then each pair: the key, and then its value."""
        for value, reason in (
            ([], "Not a hash"),
            ("a", "Not a hash"),
            (False, "Not a hash"),
            ({str(i): 1 for i in range(21)}, "Object needs to have between 0 and 20 items"),
            ({"": 1}, "Key : String is not in range (1..255)"),
            ({"k" * 256: 1}, f"Key {'k' * 256}: String is not in range (1..255)"),
            ({"a": "b", "k": 1}, "Value for key 'k': Not a string"),
            ({"k": None}, "Value for key 'k': Not a string"),
            ({"k": {}}, "Value for key 'k': Not a string"),
            ({"k": ""}, "Value for key 'k': String is not in range (1..255)"),
            ({"k": "v" * 256}, "Value for key 'k': String is not in range (1..255)"),
            ({"k": "\ud83d"}, "Value for key 'k': Invalid characters"),
            ({"k\ud83d": "v"}, "Key k\\ud83d: Invalid characters"),
        ):
            self.assertBad("metadata", value, reason)


class ServiceChangesTests(ValidationTestCase):
    """``PUT /services/<id>``."""

    def test_absentFieldsStay(self) -> None:
        """A field that is not there is not changed."""
        self.assertEqual(validation.serviceChanges({}, "web1"), ServiceChanges())
        changes = validation.serviceChanges({"tags": ["a"]}, "web1")
        self.assertEqual(changes, ServiceChanges(tags=("a",)))

    def test_nullSetsTheDefault(self) -> None:
        """Null tags and metadata become empty ones; that is a change."""
        changes = validation.serviceChanges({"tags": None, "metadata": None}, "web1")
        self.assertEqual(changes, ServiceChanges(tags=(), metadata={}))

    def test_nullIsNotATimeout(self) -> None:
        """The timeout has no default."""
        self.assertField(
            "heartbeat_timeout", "Invalid integer", validation.serviceChanges, {"heartbeat_timeout": None}, "web1"
        )

    def test_takesEachField(self) -> None:
        """All that can be changed can be changed at once."""
        changes = validation.serviceChanges({"heartbeat_timeout": "5", "tags": [], "metadata": {"a": "b"}}, "web1")
        self.assertEqual(changes, ServiceChanges(5, (), {"a": "b"}))

    def test_takesItsOwnIdOnly(self) -> None:
        """The id may be said again, but not changed, not even in case."""
        self.assertEqual(validation.serviceChanges({"id": "web1"}, "web1"), ServiceChanges())
        for other in ("web2", "WEB1", "web1\n", "", "x" * 100):
            self.assertField(
                "id", "Attempted to mutate immutable field", validation.serviceChanges, {"id": other}, "web1"
            )
        for other in (None, 5, ["web1"]):
            self.assertField("id", "Not a string", validation.serviceChanges, {"id": other}, "web1")

    def test_checksFieldsAsARegistrationDoes(self) -> None:
        """A bad field has the same reason as in a registration."""
        for key, value, reason in (
            ("heartbeat_timeout", 2, "Value out of range (3..120)"),
            ("tags", ["a"] * 11, "Object needs to have between 0 and 10 items"),
            ("metadata", [], "Not a hash"),
        ):
            self.assertField(key, reason, validation.serviceChanges, {key: value}, "web1")


class OtherBodiesTests(ValidationTestCase):
    """Heartbeats and configuration values."""

    def test_takesTokensOfAnyCase(self) -> None:
        """A token is a version-1 UUID, and comes out as it was sent."""
        for token in (TOKEN, TOKEN.upper(), str(uuid.uuid1())):
            self.assertEqual(heartbeatToken({"token": token}), token)

    def test_refusesTokens(self) -> None:
        """It has to be there, a string, a UUID in its one form, of version 1, of the RFC's variant; in this order."""
        self.assertField("token", "Missing required key (token)", heartbeatToken, {})
        for token, reason in (
            (None, "Not a string"),
            (5, "Not a string"),
            ([TOKEN], "Not a string"),
            ("", "Invalid UUID"),
            ("t", "Invalid UUID"),
            (TOKEN[:-1], "Invalid UUID"),
            (TOKEN + "\n", "Invalid UUID"),
            (TOKEN + "0", "Invalid UUID"),
            (TOKEN.replace("-", ""), "Invalid UUID"),
            ("{" + TOKEN + "}", "Invalid UUID"),
            ("urn:uuid:" + TOKEN, "Invalid UUID"),
            (TOKEN.replace("a", "\uff41"), "Invalid UUID"),
            (TOKEN.replace("a", "g"), "Invalid UUID"),
            ("\ud800" * 36, "Invalid UUID"),
            (str(uuid.uuid4()), "UUID is not version 1"),
            ("0" * 8 + "-0000-0000-0000-" + "0" * 12, "UUID is not version 1"),
            (TOKEN.replace("-a0d7-", "-c0d7-"), "Unsupported UUID variant"),
            (TOKEN.replace("-a0d7-", "-70d7-"), "Unsupported UUID variant"),
        ):
            self.assertField("token", reason, heartbeatToken, {"token": token})

    def test_takesValues(self) -> None:
        """A value is any string of 1 to 1024 code points."""
        for value in ("v", "💩" * 1024, "\x00", " ", "null"):
            self.assertEqual(configurationValue({"value": value, "id": "other_key", "more": 5}), value)

    def test_refusesValues(self) -> None:
        """A value that is missing, no string, empty, too long, or not to be encoded."""
        self.assertField("value", "Missing required key (value)", configurationValue, {})
        for value, reason in (
            (None, "Not a string"),
            (5, "Not a string"),
            ("", "String is not in range (1..1024)"),
            ("v" * 1025, "String is not in range (1..1024)"),
            ("\ud800", "Invalid characters"),
        ):
            self.assertField("value", reason, configurationValue, {"value": value})


class ParameterTests(ValidationTestCase):
    """Values in paths and queries."""

    def test_serviceId(self) -> None:
        """The same rule as for the field."""
        self.assertEqual(validation.SERVICE_ID.value("Web.1_-"), "Web.1_-")
        for text in ("ab", "a" * 66, ""):
            self.assertParameter("serviceId", "String is not in range (3..65)", validation.SERVICE_ID.value, text)
        for text in ("a/b", "a\x00b", "abc\n", "\u017f" * 3, "äöü"):
            self.assertParameter("serviceId", "Invalid characters", validation.SERVICE_ID.value, text)

    def test_tag(self) -> None:
        """1 to 65 characters, of fewer kinds than a tag itself may have."""
        for text in ("a", "A" * 65, "a_-.0"):
            self.assertEqual(validation.TAG.value(text), text)
        for text in ("", "a" * 66):
            self.assertParameter("tag", "String is not in range (1..65)", validation.TAG.value, text)
        for text in ("a b", "ä", "a\n", "\u212a", "\u017f", "a/b"):
            self.assertParameter("tag", "Invalid characters", validation.TAG.value, text)

    def test_marker(self) -> None:
        """Up to 255 characters, none at all included."""
        for text in ("", "a" * 255, "/a/b.c:d-e_F9"):
            self.assertEqual(validation.MARKER.value(text), text)
        for text in ("a b", "ä", "a\n", "\n", "%", "a" * 256):
            self.assertParameter("marker", validation.BAD_MARKER, validation.MARKER.value, text)

    def test_configurationKey(self) -> None:
        """Simple names, and names under up to ten namespaces."""
        for text in (
            "abc",
            "listen_ip",
            "Listen.IP-1",
            "a" * 170,
            "/abc_def",
            "/production/cassandra/listen_ip",
            "/production/cassandra/listen.ip",
            "/a-c" * 10 + "/last.name",
            "/" + "n" * 50 + "/" + "k" * 50,
        ):
            self.assertEqual(validation.KEY.value(text), text)

    def test_refusesConfigurationKeys(self) -> None:
        """Length, then characters and form; a namespace alone, with its slash, is not a key."""
        for text in ("", "/", "ab", "/a" * 251):
            self.assertParameter("configurationId", "String is not in range (3..500)", validation.KEY.value, text)
        for text in (
            "a b", "äöü", "abc\n", "a" * 171, "abc/def", "abc/", "/abc/", "/abc/def/", "/ab/c", "/ab", "//abc", "///",
            "/abc//", "/abc" * 12, "/a.b/def", "/abc/de", "../..", "abc\x00", "/a:b/cde",
        ):  # fmt: skip
            self.assertParameter("configurationId", "Invalid characters", validation.KEY.value, text)

    def test_keysAreCheckedQuickly(self) -> None:
        """No key takes the pattern long."""
        begun = time.process_time()
        for text in ("/" + "a" * 498 + "!", "/aaa" * 124 + "!", "/aaa/" * 99 + "!", "a" * 499 + "!", "/" * 500):
            self.refused(validation.KEY.value, text)
        self.assertLess(time.process_time() - begun, 0.5)

    def test_limit(self) -> None:
        """From 1 to 1000; 100 when it is not given."""
        self.assertEqual(validation.LIMIT.value(), 100)
        for text in ("1", "1000", "57"):
            self.assertEqual(validation.LIMIT.value(text), int(text))

    def test_refusesLimits(self) -> None:
        """No number, and a number out of range, have details of their own."""
        for text in (
            "",
            "abc",
            "1.5",
            "1e2",
            " 5",
            "5 ",
            "+5",
            "1_0",
            "\u0663",
            "\uff15",
            "5\n",
            "0x5",
            "NaN",
            "--5",
            "null",
        ):
            fault = self.refused(validation.LIMIT.value, text)
            self.assertEqual(
                (fault.type, fault.message, fault.details), ("invalidLimit", "Invalid limit", "Limit must be a number")
            )
        for text in ("0", "-1", "1001", "5000", "9" * 6000, "-" + "9" * 6000):
            fault = self.refused(validation.LIMIT.value, text)
            self.assertEqual(
                (fault.type, fault.message, fault.details),
                (
                    "invalidLimit",
                    "Invalid limit",
                    f"Invalid limit {text}. Minimum limit is 1 and maximum limit is 1000.",
                ),
            )

    def test_eventType(self) -> None:
        """One of the five types, which the refusal lists; an empty one is none."""
        types = (
            "service.join", "service.remove", "service.timeout", "configuration_value.update",
            "configuration_value.remove",
        )  # fmt: skip
        for text in types:
            self.assertEqual(validation.EVENT_TYPE.value(text), text)
        self.assertIsNone(validation.EVENT_TYPE.value(""))
        for text in ("x", "Service.Join", "service.join\n"):
            fault = self.refused(validation.EVENT_TYPE.value, text)
            self.assertEqual(fault.details, f"Invalid type: {text}. Valid types are: {','.join(types)}")
            self.assertEqual(fault.type, "badRequest")

    def test_eventMarker(self) -> None:
        """A version-1 UUID of any case."""
        self.assertEqual(validation.EVENT_MARKER.value(TOKEN.upper()), TOKEN.upper())

    def test_refusesEventMarkers(self) -> None:
        """The message says the same as the details."""
        for text, reason in (
            ("", "Invalid UUID"),
            ("web1", "Invalid UUID"),
            (TOKEN + "\n", "Invalid UUID"),
            (str(uuid.uuid4()), "UUID is not version 1"),
            (TOKEN.replace("-a0d7-", "-f0d7-"), "Unsupported UUID variant"),
        ):
            fault = self.refused(validation.EVENT_MARKER.value, text)
            self.assertEqual((fault.type, fault.message, fault.details), ("badRequest", reason, reason))


class AnythingTests(SynchronousTestCase):
    """For any input, the outcome is a value or a fault that can be sent."""

    def check(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call *function*; a fault it raises has to be one that UTF-8 can express."""
        try:
            return function(*args)
        except Fault as fault:
            self.assertEqual(fault.code, 400)
            json.dumps([fault.message, fault.details], ensure_ascii=False).encode("utf-8")
            return None

    @given(BODIES)
    def test_anyBody(self, body: dict[str, Any]) -> None:
        """Any JSON object is taken or refused by each of the functions for bodies."""
        service = self.check(newService, body)
        if service is not None:
            self.assertTrue(3 <= service.heartbeatTimeout <= 120)
        self.check(validation.serviceChanges, body, "web1")
        self.check(heartbeatToken, body)
        self.check(configurationValue, body)
        self.check(heartbeatOf, body)
        for entry in self.check(heartbeats, body) or ():
            self.check(heartbeatOf, entry)

    @given(
        st.fixed_dictionaries(
            {"id": st.from_regex(r"[a-z]{3,9}", fullmatch=True), "heartbeat_timeout": JSON_VALUES},
            optional={"tags": JSON_VALUES | st.lists(JSON_TEXTS), "metadata": st.dictionaries(JSON_TEXTS, JSON_TEXTS)},
        )
    )
    def test_anyFields(self, body: dict[str, Any]) -> None:
        """Any JSON value in any field is taken or refused; what is taken can be kept as UTF-8."""
        for taken in (self.check(newService, body), self.check(validation.serviceChanges, body, body["id"])):
            if taken is not None:
                repr((taken.tags, taken.metadata)).encode("utf-8")
                "".join([*(taken.tags or ()), *(taken.metadata or {}), *(taken.metadata or {}).values()]).encode()

    @given(JSON_TEXTS)
    def test_anyParameter(self, text: str) -> None:
        """Any text is taken or refused by each of the parameters."""
        for parameter in (
            validation.SERVICE_ID, validation.KEY, validation.TAG, validation.MARKER, validation.LIMIT,
            validation.EVENT_TYPE, validation.EVENT_MARKER,
        ):  # fmt: skip
            self.check(parameter.value, text)
