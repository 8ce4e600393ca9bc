"""``GET /openapi.json``, and that requests and responses are as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.registry.http.test_pages import metricsOf
from tests.unit.registry.wire import KEY, OPERATIONS, USER, Api
from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.http import pages, validation
from txserviceregistry.registry.http.messages import API, EXTENSIONS
from txserviceregistry.registry.http.pages import Health, statusPages
from txserviceregistry.registry.model import EVENT_TYPES

DOCUMENT: dict[str, Any] = json.loads(pages.document())
# The fields of each body, and what reads its schema. Entries of a batch are checked one by one.
BODIES = [
    (operation.body, Draft202012Validator(validation.schemaOf(operation.body)))
    for operation in OPERATIONS
    if operation.body and operation.name != "heartbeats"
]
CREDENTIALS = {"auth": {"passwordCredentials": {"username": USER, "password": KEY}}}


def texts(alphabet: str, longest: int) -> st.SearchStrategy[str]:
    """Texts that are often right, and often wrong by a little."""
    return st.text(st.sampled_from(alphabet), max_size=longest) | st.text(max_size=longest)


def values(document: Any, key: str) -> Iterator[Any]:
    """All that stands anywhere under *key*."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from values(value, key)


class DocumentTests(SynchronousTestCase):
    """The document as such."""

    def test_isOpenAPI(self) -> None:
        """It is what OpenAPI 3.1 asks for."""
        # It takes seconds to import, also in runs of other tests.
        from openapi_spec_validator import OpenAPIV31SpecValidator

        errors = [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()]
        self.assertEqual(errors, [])

    def test_describesEveryRoute(self) -> None:
        """Every route is described, and no other."""
        described = {
            (path, method.upper(), operation["operationId"])
            for path, operations in DOCUMENT["paths"].items()
            if path.startswith(API)
            for method, operation in operations.items()
            if method != "parameters"
        }
        routes = {(API + "/{tenant}" + each.path, each.method, each.name) for each in OPERATIONS}
        self.assertEqual(described, routes)
        self.assertEqual({path for path in DOCUMENT["paths"] if not path.startswith(API)}, {"/v2.0/tokens"})
        self.assertEqual(set(DOCUMENT["paths"]["/v2.0/tokens"]), {"post"})

    def test_describesEveryQueryAndBody(self) -> None:
        """Every parameter, header and field of an operation is described, and no other."""
        for operation in OPERATIONS:
            described = DOCUMENT["paths"][API + "/{tenant}" + operation.path][operation.method.lower()]
            found = [(parameter["in"], parameter["name"]) for parameter in described.get("parameters", ())]
            expected = [("query", parameter.name) for parameter in operation.query]
            expected += [("header", parameter.name) for parameter in operation.headers]
            self.assertEqual(found, expected, operation.name)
            body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            fields = None if operation.body is None else {field.name for field in operation.body}
            self.assertEqual(body and set(body["properties"]), fields, operation.name)

    def test_tellsTheExtensions(self) -> None:
        """It names the extensions, and describes what they add."""
        for name in EXTENSIONS:
            self.assertIn(name, DOCUMENT["info"]["description"])
        parameters = DOCUMENT["paths"]["/v1.0/{tenant}/events"]["get"]["parameters"]
        (wait,) = (parameter["schema"] for parameter in parameters if parameter["name"] == "wait")
        self.assertEqual(wait, {"type": "integer", "minimum": 1, "maximum": 60})
        operation = DOCUMENT["paths"]["/v1.0/{tenant}/heartbeats"]["post"]
        self.assertIn("262144", operation["responses"]["413"]["description"])

    def test_tellsWhatIsInEveryEvent(self) -> None:
        """For each type of event there is one description of its payload, and what lacks a field of it does not fit."""
        event = DOCUMENT["components"]["schemas"]["Event"]
        described = [name for each in event["oneOf"] for name in each["properties"]["type"]["enum"]]
        self.assertEqual(sorted(described), sorted(EVENT_TYPES))
        validator = Draft202012Validator({"components": DOCUMENT["components"], **event})
        service = {"id": "web1", "heartbeat_timeout": 30, "tags": ["www"], "metadata": {"port": "80"}}
        lock = {"name": "/a/lock", "holder": "", "fence": 1, "timeout": 15, "acquired_at": 1, "metadata": {}}
        value = {"configuration_value_id": "key", "old_value": "a"}
        for type, payload in [
            ("service.join", service),
            ("service.remove", service),
            ("service.timeout", service),
            ("service.update", {**service, "changed": ["tags"]}),
            ("configuration_value.update", {**value, "new_value": "b"}),
            ("configuration_value.remove", value),
            ("lock.acquire", lock),
            ("lock.release", {**lock, "forced": False}),
            ("lock.expire", {**lock, "forced": True}),
        ]:
            whole = {"id": "11111111-1111-1111-8111-111111111111", "timestamp": 1, "type": type, "payload": payload}
            self.assertEqual([error.message for error in validator.iter_errors(whole)], [], type)
            for name in payload:
                less = {key: value for key, value in payload.items() if key != name}
                self.assertFalse(validator.is_valid({**whole, "payload": less}), (type, name))
        removed = {**whole, "type": "configuration_value.remove"}
        self.assertFalse(validator.is_valid({**removed, "payload": {**value, "new_value": "b"}}))

    def test_patternsAreOfBothDialects(self) -> None:
        """No pattern says what Python and ECMAScript understand differently, or only one of them."""
        patterns = list(values(DOCUMENT, "pattern"))
        self.assertGreater(len(patterns), 10)
        for pattern in patterns:
            self.assertTrue(pattern.startswith("^(?:") and pattern.endswith(")$"), pattern)
            inside = pattern[4:-2]
            self.assertIsNone(
                re.search(r"\(\?<|\(\?P|\(\?[aiLmsux]|\(\?\(|\\[AZzdDwWsSbB]|[*+?}][+]|\\u", inside), pattern
            )
            # With ECMAScript's flag "u" nothing else may be escaped, and "-" in a class only.
            self.assertLessEqual(set(re.findall(r"\\(.)", inside)), set("^$\\.*+?()[]{}|/-"), pattern)

    def test_unknownTypes(self) -> None:
        """A type without an equivalent in JSON is an error."""
        self.assertRaises(TypeError, pages._ofType, bytes)


class ServedTests(SynchronousTestCase):
    """The page."""

    def setUp(self) -> None:
        self.api = Api()
        self.api.resource.pages = statusPages(Health(self.api.store, self.api.clock), metricsOf(self.api))

    def test_page(self) -> None:
        """It needs no token, and its server is the one that it comes from."""
        reply = self.api.ask("GET", b"/openapi.json", token=None)
        self.assertEqual((reply.code, reply.header("Content-Type")), (200, "application/json; charset=UTF-8"))
        self.assertEqual(reply.json, DOCUMENT)
        self.assertEqual(DOCUMENT["servers"], [{"url": "/"}])

    def test_answersConform(self) -> None:
        """Responses, faults too, are as described."""
        token = self.api.create("web1", tags=["www"], metadata={"port": "80"})
        entries = [{"id": "web1", "token": token}, {"id": "gone", "token": token}]
        for method, path, body, code in [
            ("GET", "/limits", None, 200),
            ("GET", "/services", None, 200),
            ("GET", "/services?limit=x", None, 400),
            ("POST", "/services", {"id": "web2", "heartbeat_timeout": "30"}, 201),
            ("POST", "/services", {"id": "web2", "heartbeat_timeout": "30"}, 400),
            ("GET", "/services/{serviceId}", None, 200),
            ("PUT", "/services/{serviceId}", {"tags": None}, 204),
            ("POST", "/services/{serviceId}/heartbeat", {"token": token}, 200),
            ("POST", "/heartbeats", {"heartbeats": entries}, 200),
            ("DELETE", "/services/{serviceId}", None, 204),
            ("DELETE", "/services/{serviceId}", None, 404),
            ("PUT", "/configuration/{configurationId}", {"value": "x"}, 204),
            ("GET", "/configuration/{configurationId}", None, 200),
            ("GET", "/configuration", None, 200),
            ("GET", "/configuration/{namespace}/", None, 200),
            ("DELETE", "/configuration/{configurationId}", None, 204),
            ("GET", "/events", None, 200),
        ]:
            sent = path.format(serviceId="web1", configurationId="some/key", namespace="some") if "{" in path else path
            reply = self.api.ask(method, sent, body)
            self.assertEqual(reply.code, code, (method, path, reply))
            self.assertConforms(f"/v1.0/{{tenant}}{path.partition('?')[0]}", method, reply)
        self.assertConforms("/v1.0/{tenant}/limits", "GET", self.api.ask("GET", "/limits", token=None))
        self.assertConforms("/v2.0/tokens", "POST", self.api.ask("POST", b"/v2.0/tokens", CREDENTIALS))
        self.assertConforms("/v2.0/tokens", "POST", self.api.ask("POST", b"/v2.0/tokens", {}))

    def assertConforms(self, path: str, method: str, reply: Any) -> None:
        described = DOCUMENT["paths"][path][method.lower()]["responses"][str(reply.code)]
        for name, header in described["headers"].items():
            component = DOCUMENT["components"]["headers"][header["$ref"].rpartition("/")[2]]
            if component["required"]:
                self.assertTrue(reply.header(name), (path, method, name))
        if reply.code == 204:
            self.assertEqual(("content" in described, reply.raw), (False, b""))
            return
        mediaType = str(reply.header("Content-Type")).partition(";")[0]
        schema = described["content"][mediaType]["schema"]
        if mediaType != "application/json":
            self.assertEqual(schema, {"type": "string"})
            return
        whole = {"components": DOCUMENT["components"], **schema}
        errors = [error.message for error in Draft202012Validator(whole).iter_errors(reply.json)]
        self.assertEqual(errors, [], (path, method))

    def test_declaredQueriesAreChecked(self) -> None:
        """Every parameter of a query that is described is looked at."""
        for operation in OPERATIONS:
            for parameter in operation.query:
                path = re.sub(r"\{\w+\}", "some", operation.path)
                body = None if operation.body is None else {}
                reply = self.api.ask(operation.method, f"{path}?{parameter.name}=%F0%9F%92%A9", body)
                self.assertEqual(reply.code, 400, (operation.name, parameter.name))


class SchemaTests(SynchronousTestCase):
    """
    A schema takes the same values as its rule. (The validator reads patterns as ECMAScript does; Python's own would let
    a line feed at the end pass.)
    """

    def agrees(self, rule: validation.Rule, value: Any, schema: validation.Schema | None = None) -> None:
        fits = Draft202012Validator(schema or rule.schema).is_valid(value)
        try:
            rule.check(value)
        except validation.Invalid:
            self.assertFalse(fits, value)
        else:
            self.assertTrue(fits, value)

    @given(texts("aZ0/_-.~\n", 60) | st.from_regex(r"(/[a-z]{3,4}/?){1,11}[a-z]{0,3}", fullmatch=True))
    def test_texts(self, text: str) -> None:
        """Ids, keys, tags and markers."""
        parameters = (
            *validation.PATH_PARAMETERS,
            validation.MARKER,
            validation.KEY_MARKER,
            validation.TAG,
            validation.EVENT_TYPE,
        )
        for parameter in parameters:
            self.agrees(parameter.rule, text)

    @given(st.integers() | st.integers(0, 130) | st.floats())
    def test_numbers(self, value: Any) -> None:
        """The timeout of a service, as a number."""
        if value == value and value not in (float("inf"), float("-inf")):
            self.agrees(validation.number(3, 120), value)

    @given(st.uuids(version=1).map(str) | st.uuids().map(str).map(str.upper) | texts("0123456789abcdefg-", 36))
    def test_tokens(self, text: str) -> None:
        """Version-1 UUIDs."""
        self.agrees(validation.TIME_UUID, text)

    @given(
        st.dictionaries(
            st.sampled_from(["id", "heartbeat_timeout", "tags", "metadata", "token", "value", "heartbeats"]),
            st.none() | st.booleans() | st.just("web1") | st.integers(0, 150)
            | st.lists(st.text(max_size=57), max_size=12)
            | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=22),
            max_size=5,
        )
    )  # fmt: skip
    def test_bodies(self, body: dict[str, Any]) -> None:
        """Whole bodies: what has to be there, and what may be ``null``."""
        for fields, validator in BODIES:
            fits = validator.is_valid(body)
            try:
                for field in fields:
                    field.value(body)
            except Fault:
                self.assertFalse(fits, body)
            else:
                self.assertTrue(fits, body)
