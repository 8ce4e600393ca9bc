"""``raxsr services watch`` and ``configuration watch``, as installed, beside a real registry."""

from __future__ import annotations

import json

from tests.system.commands.raxsr.raxsrcase import RAXSR, RaxsrProcessTestCase


class WatchTests(RaxsrProcessTestCase):
    """The commands that show changes."""

    async def test_watch(self) -> None:
        """In a pipe there is a line for each change; on a terminal a table shows what there is, and is drawn again."""
        tag = self.prefix[-20:]
        key = f"/{self.prefix}/value"
        client = self.client()
        await client.services.create(f"{self.prefix}-1", 120, {"tags": [tag]})
        await client.configuration.set(key, "old")
        services = self.started("services", "watch", "--tag", tag, "-f", "json")
        values = self.started("configuration", "watch", "--namespace", f"/{self.prefix}", "-f", "value")
        live = self.spawn("raxsr", "services", "watch", "--tag", tag, "-c", "id", "-c", "tags", usePTY=True)
        script = f"stty cols 60 && exec {RAXSR} services watch --tag {tag}"
        narrow = self.spawn("/bin/sh", "-c", script, usePTY=True)
        for child in (services, live, narrow):
            await child.says(f"{self.prefix}-1")
        await values.says("old")
        await client.services.update(f"{self.prefix}-1", {"tags": [tag, "another"]})
        await client.configuration.remove(key)
        await services.says("another")
        await values.says("remove")
        await live.says("another")
        for child in self.children:
            child.kill("INT")
            await child.ended
            self.assertEqual((child.exitCode, child.errors), (130, ""))
        changes = [json.loads(line) for line in services.output.splitlines()]
        self.assertEqual(
            [(each["change"], each["id"]) for each in changes],
            [
                ("join", f"{self.prefix}-1"),
                ("update", f"{self.prefix}-1"),
            ],
        )
        self.assertEqual(values.output.splitlines(), [f"set {key} old", f"remove {key} None"])
        *_, last = live.output.split("\x1b[H\x1b[J")
        self.assertIn("| Service ID", last)
        self.assertIn(f"{tag}, another", last)
        self.assertNotIn("not current", live.output)
        self.assertIn("the terminal is too narrow for Heartbeat Timeout", narrow.output)
