"""``raxsr services drain``, ``out``, ``up`` and ``states``."""

from __future__ import annotations

from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase


class StatesTests(RaxsrTestCase):
    """The states of services."""

    async def test_drainOutUp(self) -> None:
        """Each command sets its state, for a time if one is given, and says so."""
        client = self.client()
        drained = await self.good("services", "drain", "web1", "--reason", "rack move", "--for", "10m")
        self.assertEqual(drained.out, 'Service "web1" gets no new work for 10m\n')
        state = await client.services.getState("web1")
        self.assertEqual((state["state"], state["reason"]), ("drain", "rack move"))
        self.assertIsNotNone(state["expires_at"])
        self.assertEqual(
            (await self.good("services", "out", "--id", "web2")).out, 'Service "web2" receives no traffic\n'
        )
        shown = (await self.good("services", "states", "-f", "json")).json
        self.assertEqual([(one["id"], one["state"], one["reason"]) for one in shown], [
            ("web1", "drain", "rack move"),
            ("web2", "out", ""),
        ])  # fmt: skip
        self.assertRegex(shown[0]["expires_at"], r"\d{4}-\d\d-\d\dT.*Z")
        self.assertIsNone(shown[1]["expires_at"])
        for id in ("web1", "web2"):
            self.assertEqual((await self.good("services", "up", id)).out, f'Service "{id}" is up\n')
        self.assertEqual((await self.good("services", "states", "-f", "json")).json, [])

    async def test_wrongUse(self) -> None:
        """A duration that is none, and one that is too long, are refused before anything is sent."""
        await self.allRefused(
            [
                (("services", "drain", "web1", "--for", "soon"), "--for: "),
                (("services", "drain", "web1", "--for", "31d"), "--for: "),
            ],
            code=2,
        )
        self.assertIn("serviceId", await self.refused("services", "out", "x"))
