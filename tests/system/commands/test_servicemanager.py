"""Programs below a service manager, in whose place the tests are: notifications, the watchdog and passed sockets."""

from __future__ import annotations

import os
import socket
import sys

from twisted.internet.defer import succeed

from tests.system.commands.test_wrapper import WrapperTestCase
from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.system.etcd.relay import Relay
from tests.system.ports import freePorts
from tests.system.processes import Child, reactor, sharedRegistry

# Hands a socket over as descriptor 3, and becomes the program.
ACTIVATE = """
import os, socket, sys
made = socket.create_server(("127.0.0.1", 0))
os.dup2(made.fileno(), 3)
os.set_inheritable(3, True)
pid = str(os.getpid())
os.environ.update(LISTEN_PID=pid, LISTEN_FDS="1", WATCHDOG_PID=pid, WATCHDOG_USEC="600000")
os.execv(sys.argv[1], sys.argv[1:])
"""

# A program that is ready, and takes the socket over if it is meant for it.
WRAPPED = """
import os, socket, sys
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def send(text):
    notify.sendto(text.encode(), "\\0" + os.environ["NOTIFY_SOCKET"][1:])
send(f"MAINPID={os.getpid()}\\nREADY=1\\nSTATUS=serving")
mine = str(os.getpid())
print("for me:", os.environ["LISTEN_PID"] == mine, os.environ["WATCHDOG_PID"] == mine, sorted(os.environ) == sorted(
    open("/proc/self/environ").read().replace("=", "\\0=").split("\\0")[0::2][:-1]), flush=True)
send("WATCHDOG=1")
send("BARRIER=1")
connection, _ = socket.socket(fileno=3).accept()
connection.sendall(b"served")
send("STOPPING=1")
"""


def isRunning(pid: int) -> bool:
    """Whether a process runs: one that has ended may be there until it is waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class ServiceManagerTests(WrapperTestCase):
    """A socket in the place of systemd's."""

    def setUp(self) -> None:
        super().setUp()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(self.manager.close)
        path = os.path.join("/tmp", f"txsr-notify-{os.getpid()}-{self.id().rpartition('_')[2]}")
        self.manager.bind(path)
        self.addCleanup(os.unlink, path)
        self.given = {"NOTIFY_SOCKET": path}
        self.received: list[str] = []

    def notifications(self) -> list[str]:
        """Those that have come."""
        try:
            while True:
                self.received.append(self.manager.recv(4096).decode())
        except BlockingIOError:
            return self.received

    async def untilReceived(self, text: str) -> None:
        """Wait until a notification has a text."""
        await self.until(lambda: succeed(any(text in each for each in self.notifications())))

    def activated(self, program: str, *words: str) -> Child:
        """Start a program with a passed socket and a watchdog."""
        here = os.path.join(os.path.dirname(sys.executable), program)
        return self.spawn(os.path.basename(sys.executable), "-c", ACTIVATE, here, *words, environment=self.given)

    async def test_theWrappedProgram(self) -> None:
        """
        Its notifications reach the service manager, except those that would make it the main process. Sockets and the
        watchdog are meant for it, and its environment is otherwise the wrapper's.
        """
        self.settings = sharedRegistry()
        wrapper = self.activated("service-registry-wrapper", "--id=wrapped", sys.executable, "-c", WRAPPED)
        await self.untilReceived("READY=1\nSTATUS=serving")
        await self.untilReceived("WATCHDOG=1")
        await wrapper.says("for me: True True")
        (pid,) = self.childrenOf(self.pidOf(wrapper))
        inode = os.stat(f"/proc/{pid}/fd/3").st_ino
        with open("/proc/net/tcp") as file:
            (address,) = [line.split()[1] for line in file if f" {inode} " in line]
        with socket.create_connection(("127.0.0.1", int(address.partition(":")[2], 16))) as connection:
            connection.settimeout(30)
            self.assertEqual(connection.recv(10), b"served")
        await wrapper.ended
        self.assertEqual(wrapper.exitCode, 0, wrapper.errors)
        await self.untilReceived("STOPPING=1")
        self.assertNotIn("MAINPID", "".join(self.received))
        self.assertNotIn("BARRIER", "".join(self.received))

    async def test_aProgramThatCantBeRun(self) -> None:
        """Started with its own process id, it has the same exit code as otherwise."""
        self.settings = sharedRegistry()
        path = os.path.join(self.home, "program")
        with open(path, "w") as file:
            file.write("#!/no/such/interpreter\n")
        os.chmod(path, 0o755)
        wrapper = await self.activated("service-registry-wrapper", "--id=broken", path).ended
        self.assertEqual(wrapper.exitCode, 126)
        self.assertIn("can't run", wrapper.errors)

    async def test_theRegistry(self) -> None:
        """It is ready when it listens, satisfies the watchdog while it works, and says when it stops."""
        registry = self.activated(
            "twistd", "-n", "--pidfile=", "service-registry", "--listen", "tcp:0:interface=127.0.0.1"
        )
        await self.untilReceived("READY=1\nSTATUS=Listening on http://127.0.0.1:")
        await self.untilReceived("WATCHDOG=1")
        registry.kill("TERM")
        await self.untilReceived("STOPPING=1")
        await registry.ended
        self.assertNoTraceback()

    async def test_aRegistryWhoseEtcdStartsLater(self) -> None:
        """It waits, with one line in the log, and is not ready before it listens."""
        relay = Relay(reactor, int(sharedEtcd().rpartition(":")[2]))
        self.addCleanup(relay.stop)
        registry = self.activated(
            "twistd",
            *("-n", "--pidfile=", "service-registry", "--listen", "tcp:0:interface=127.0.0.1"),
            *("--store", "etcd", "--etcd", relay.url, "--etcd-prefix", newPrefix()),
        )
        await registry.says("Store unavailable at the start (retrying): etcd: ")
        relay.hang()
        relay.start()
        await self.until(lambda: succeed(len(relay.ends) > 2))
        self.assertEqual(self.notifications(), [])
        relay.heal()
        await registry.says("Store available after")
        await self.untilReceived("READY=1\nSTATUS=Listening on http://127.0.0.1:")
        self.assertEqual(registry.output.count("Store unavailable"), 1)
        registry.kill("TERM")
        await registry.ended
        self.assertEqual(registry.exitCode, None)
        self.assertNoTraceback()

    async def test_aRegistryThatIsStoppedWhileItWaits(self) -> None:
        """It ends at once."""
        registry = self.twistd("service-registry", "--store", "etcd", "--etcd", f"http://127.0.0.1:{freePorts(1)[0]}")
        await registry.says("Store unavailable at the start (retrying): etcd: ")
        registry.kill("TERM")
        await registry.ended
        self.assertNoTraceback()

    async def test_aCheckThatIsACommand(self) -> None:
        """The service is registered while the command succeeds; its output is in the log when it fails."""
        self.settings = sharedRegistry()
        check = "exec:test -e well || { echo not well; exit 3; }"
        options = ["--id=executed", "--interval=3", f"--check={check}", "--check-interval=0.1", "--fall=2"]
        wrapper = self.wrapper(*options, "--check-timeout=30", "cat")
        self.assertEqual(await self.events("executed"), [])
        well = os.path.join(self.home, "well")
        open(well, "w").close()
        await self.untilRegistered("executed")
        os.unlink(well)
        await wrapper.says("failed: exit code 3: not well; heartbeats suspended")
        await self.untilRegistered("executed", present=False)
        wrapper.kill("TERM")
        await wrapper.ended

    async def test_aCommandThatHangs(self) -> None:
        """It is killed after --check-timeout, with all that it has started."""
        self.settings = sharedRegistry()
        check = "exec:sleep 60 & echo $! >>started; sleep 60"
        wrapper = self.wrapper("--id=hanging", f"--check={check}", "--check-timeout=0.2", "cat")

        def pids() -> list[int]:
            path = os.path.join(self.home, "started")
            return list(map(int, open(path).read().split())) if os.path.exists(path) else []

        def running() -> list[int]:
            return [pid for pid in pids() if isRunning(pid)]

        await self.until(lambda: succeed(len(pids()) > 2))
        self.assertLessEqual(len(running()), 1)
        wrapper.kill("TERM")
        await wrapper.ended
        await self.until(lambda: succeed(not running()))
