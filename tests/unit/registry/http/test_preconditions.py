"""Tests for conditional writes of configuration values over HTTP: tags, ``If-Match`` and ``If-None-Match``."""

from __future__ import annotations

from typing import Any

from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.uuids import position

from ..wire import Api, Connection, Reply, requestBytes
from .test_resource import ApiCase

PATH = "/configuration/abc"
CANT_COMBINE = "'If-Match' and 'If-None-Match' headers can't be combined"


class ConditionCase(ApiCase):
    def put(self, value: Any = "x", **conditions: str) -> Reply:
        return self.ask("PUT", PATH, {"value": value}, self.headers(conditions))

    def delete(self, **conditions: str) -> Reply:
        return self.ask("DELETE", PATH, headers=self.headers(conditions))

    def headers(self, conditions: dict[str, str]) -> dict[str, str]:
        names = {"match": "If-Match", "noneMatch": "If-None-Match"}
        return {names[name]: value for name, value in conditions.items()}

    def changes(self) -> list[str]:
        return [event["type"].partition(".")[2] for event in self.ask("GET", "/events").json["values"]]

    def assertFails(self, reply: Reply, etag: str | None) -> None:
        found = f"has the tag {etag}" if etag else "does not exist"
        details = f'Object "ConfigurationValue" with key "abc" {found}'
        self.assertFault(reply, 412, "preconditionFailed", "precondition failed", details)
        self.assertEqual(reply.header("ETag"), etag)
        self.assertEqual(reply.header("Cache-Control"), "no-store")


class TagTests(ConditionCase):
    """The tags of values."""

    def test_isThePositionOfTheLastChange(self) -> None:
        """GET, HEAD and PUT have the same tag, which is the position of the last event, and no cache keeps them."""
        self.put("first")
        put = self.put("second")
        event = self.ask("GET", "/events").json["values"][-1]
        replies = [put, self.put("second"), self.ask("GET", PATH), self.ask("HEAD", PATH)]
        for reply in replies:
            self.assertEqual(reply.headers["etag"], [f'"{position(event["id"])}"'])
            self.assertEqual(reply.headers["cache-control"], ["no-store"])
        self.assertEqual(self.ask("GET", PATH).json, {"id": "abc", "value": "second"})
        self.assertEqual(self.changes(), ["update", "update"])

    def test_isNotOnOtherResponses(self) -> None:
        """Lists, removals and faults have no tag, unless a list is asked for the tags."""
        self.put()
        for method, path in (("GET", "/configuration"), ("GET", "/configuration/x_y"), ("DELETE", PATH)):
            reply = self.ask(method, path)
            self.assertIsNone(reply.header("ETag"))
            self.assertNotIn("etag", str(reply.raw))

    def test_lists(self) -> None:
        """A list has the tag of each value if it is asked for them, also on its next page."""
        etag = self.put().header("ETag")
        other = self.ask("PUT", "/configuration/production/x_y", {"value": "y"}).header("ETag")
        tagged = [{"id": "/production/x_y", "value": "y", "etag": other}, {"id": "abc", "value": "x", "etag": etag}]
        self.assertEqual(self.ask("GET", "/configuration?etags=true").json["values"], tagged)
        self.assertEqual(self.ask("GET", "/configuration/production/?etags=true").json["values"], tagged[:1])
        first = self.ask("GET", "/configuration?etags=true&limit=1").json
        self.assertEqual(first["values"], tagged[:1])
        self.assertTrue(first["metadata"]["next_href"].endswith("/configuration?etags=true&limit=1&marker=abc"))
        plain = [{"id": value["id"], "value": value["value"]} for value in tagged]
        for query in ("", "?etags=false", "?etags=false&etags=true"):
            self.assertEqual(self.ask("GET", f"/configuration{query}").json["values"], plain)
        for bad in ("", "1", "True", "yes"):
            reply = self.ask("GET", f"/configuration?etags={bad}")
            message = "Invalid value for 'etags' query string parameter"
            self.assertFault(reply, 400, "badRequest", message, f"Invalid value: {bad}. Valid values are: true,false")

    def test_readsAreUnconditional(self) -> None:
        """A read ignores the headers, even malformed ones."""
        etag = self.put().header("ETag")
        assert etag is not None
        for method, path in (("GET", PATH), ("HEAD", PATH), ("GET", "/configuration")):
            for headers in ({"If-None-Match": etag}, {"If-None-Match": "*"}, {"If-Match": '"0"'}, {"If-Match": "x"}):
                self.assertEqual(self.ask(method, path, headers=headers).code, 200, (method, headers))


class ConditionTests(ConditionCase):
    """Writes with a condition."""

    def test_missingValue(self) -> None:
        """A missing value can't be matched; If-None-Match creates it, and a removal finds nothing."""
        for match in ("*", '"0"', '"None"'):
            self.assertFails(self.put(match=match), None)
            self.assertFails(self.delete(match=match), None)
        self.assertEqual(self.delete(noneMatch="*").code, 404)
        self.assertEqual(self.changes(), [])
        made = self.put(noneMatch="*")
        self.assertEqual(made.code, 204)
        self.assertEqual(made.header("Location"), "http://registry.example:8880/v1.0/1234/configuration/abc")
        self.assertEqual(made.header("ETag"), self.ask("GET", PATH).header("ETag"))

    def test_existingValue(self) -> None:
        """It is written with its own tag, alone or in a list, weak or strong, or with ``*``; else it stays."""
        stale, etag = self.put("1").header("ETag"), self.put("2").header("ETag")
        assert stale is not None and etag is not None
        for match in (stale, f"{stale},{stale}", '""', '"*"'):
            self.assertFails(self.put("3", match=match), etag)
            self.assertFails(self.put("2", match=match), etag)
            self.assertFails(self.delete(match=match), etag)
        self.assertFails(self.put("2", noneMatch="*"), etag)
        self.assertFails(self.delete(noneMatch="*"), etag)
        self.assertEqual(self.ask("GET", PATH).json["value"], "2")
        for form in ("{}", "W/{}", '"0", {}', '{} ,"a,b"', ", {},", '\t{}\t,\t"x"', "*"):
            etag = self.ask("GET", PATH).header("ETag")
            assert etag is not None
            self.assertEqual(self.put(f"as {form}", match=form.format(etag)).code, 204, form)
        etag = self.ask("GET", PATH).header("ETag")
        assert etag is not None
        self.assertEqual(self.delete(match=etag).code, 204)
        self.assertEqual(self.ask("GET", PATH).code, 404)

    def test_anEqualValue(self) -> None:
        """It changes neither the tag nor the feed, and needs the right condition like any other."""
        etag = self.put().header("ETag")
        assert etag is not None
        self.assertEqual(self.put(match=etag).header("ETag"), etag)
        self.assertEqual(self.changes(), ["update"])

    def test_aNewValueHasANewTag(self) -> None:
        """A value that was removed and set again has no tag of before."""
        etag = self.put().header("ETag")
        assert etag is not None
        self.delete()
        new = self.put().header("ETag")
        self.assertNotEqual(new, etag)
        self.assertFails(self.put(match=etag), new)

    def test_severalLines(self) -> None:
        """Several lines of a header are one list."""
        etag = self.put().header("ETag")
        connection = Connection(self.api)
        body = b'{"value": "y"}'
        request = requestBytes("PUT", "/v1.0/1234/configuration/abc", body, {"X-Auth-Token": self.api.token})
        for lines, code in (((etag, "*"), 400), (('"0"', "x"), 400), (('"0"', etag), 204)):
            head = "".join(f"If-Match: {line}\r\n" for line in lines).encode()
            connection.send(request.replace(b"\r\nHost", b"\r\n" + head + b"Host", 1))
            self.assertEqual([reply.code for reply in connection.replies()], [code], lines)

    def test_anyBytes(self) -> None:
        """Bytes that are not UTF-8 are a malformed header like any other."""
        request = requestBytes("DELETE", "/v1.0/1234/configuration/abc", None, {"X-Auth-Token": self.api.token})
        for name in (b"If-Match", b"If-None-Match"):
            connection = Connection(self.api)
            connection.send(request.replace(b"\r\nHost", b"\r\n" + name + b': "\xff"\r\nHost', 1))
            (reply,) = connection.replies()
            self.assertEqual((reply.code, reply.json["message"]), (400, f"Invalid value for '{name.decode()}' header"))

    def test_malformed(self) -> None:
        """A header that is no list of tags is a fault that names it and what it may be; nothing is written."""
        self.put()
        reason = 'Not * or a list of tags in quotes, such as "1", "2"'
        for match in ("", " ", "x", "0", '"', '"a', 'a"', "*, *", '*, "0"', 'w/"0"', 'W/ "0"', '"0" "1"', ",", '"é"'):
            for reply in (self.put("y", match=match), self.delete(match=match)):
                self.assertFault(reply, 400, "badRequest", "Invalid value for 'If-Match' header", reason)
        for noneMatch in ("", "x", '"0"', '"*"', "*, *", "**"):
            for reply in (self.put("y", noneMatch=noneMatch), self.delete(noneMatch=noneMatch)):
                given = f"Invalid value: {noneMatch}. Valid values are: *"
                self.assertFault(reply, 400, "badRequest", "Invalid value for 'If-None-Match' header", given)
        for reply in (self.put("y", match="*", noneMatch="*"), self.delete(match='"0"', noneMatch='"1"')):
            self.assertFault(reply, 400, "badRequest", CANT_COMBINE, "Send only one of them")
        self.assertEqual(self.ask("GET", PATH).json["value"], "x")

    def test_order(self) -> None:
        """The key is checked first, then the body, the headers, the condition, the limit, and existence."""
        self.api = Api(limits=ResourceLimits(configurationValue=0))
        self.ask = self.api.ask
        reply = self.ask("PUT", "/configuration/a", {"value": 1}, {"If-Match": "x"})
        self.assertIn("configurationId", reply.json["message"])
        self.assertIn("value", self.put(1, match="x").json["message"])
        self.assertIn("If-Match", self.put(match="x").json["message"])
        self.assertFails(self.put(match="*"), None)
        self.assertEqual(self.put(noneMatch="*").json["type"], "limitReached")
        self.assertFails(self.delete(match="*"), None)
        self.assertEqual(self.delete().code, 404)

    def test_longLists(self) -> None:
        """A list may be long, but has a limit."""
        etag = self.put().header("ETag")
        self.assertEqual(self.put("y", match=", ".join([*['"0"'] * 900, f"{etag}"])).code, 204)
        self.assertEqual(self.put("z", match=", ".join(['"0"'] * 1001)).code, 400)

    def test_aStoreThatIsUnavailable(self) -> None:
        """A conditional write is refused with 503 and nothing is written."""
        etag = self.put().header("ETag")
        assert etag is not None
        self.api.store.unavailable = True
        for reply in (self.put("y", match=etag), self.delete(match=etag)):
            self.assertEqual((reply.code, reply.header("ETag")), (503, None))
        self.api.store.unavailable = False
        self.assertEqual(self.ask("GET", PATH).header("ETag"), etag)
