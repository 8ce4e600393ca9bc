"""
A registry that outlives its machines, on this one: three members of etcd, three registries over them, and an
application, all on loopback. Then each of the registries is killed, one after the other, and etcd's leader, with
``kill -9``; and the application tells what it has noticed of it::

    python examples/cluster/cluster.py

It takes about 20 seconds, leaves nothing behind, and its exit code is 0 if nothing was noticed. It needs an etcd that
can be killed: that of Debian's or Ubuntu's package ``etcd-server``, or another one of 3.4, or of 3.5.3 and newer.
"""

import configparser
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

# Seconds: far more than anything here takes.
PATIENCE = 60.0
# Seconds: a little more than the timeout of the application's service.
TIMEOUT = 3.5
BEGAN = time.monotonic()


def say(text):
    print(f"{time.monotonic() - BEGAN:5.1f} s  {text}", flush=True)


def until(condition, what):
    """Wait until *condition* is true; what it says."""
    latest = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > latest:
            raise SystemExit(f"waited in vain: {what}")
        time.sleep(0.05)
    return found


def findEtcd():
    """An etcd that bears being killed. 3.5.0 to 3.5.2 (PyPI has these) may lose data then: etcd's issue 13766."""
    own = os.path.realpath(os.path.dirname(sys.executable))
    for folder in [*os.get_exec_path(), "/usr/bin", "/usr/local/bin"]:
        program = os.path.join(folder, "etcd")
        if os.path.realpath(folder) == own or not os.access(program, os.X_OK):
            continue
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        if re.search(r"Version: 3\.(?!5\.[012]\b)", version):
            return program
    raise SystemExit("There is no etcd here that may be killed: install Debian's etcd-server, or etcd 3.5.3 or newer")


def freePorts(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def ask(url, body=None):
    """The JSON at *url*; ``None`` if there is none just now."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=1) as answer:
            return json.load(answer)
    except OSError:
        return None


class Process:
    """A process that can be killed and started again; it writes to a file of its own."""

    def __init__(self, folder, name, command, environment=None):
        self.name = name
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._log = folder / f"{name}.log"
        self._process = None
        self.start()

    def start(self):
        with open(self._log, "w") as log:
            # A session of its own: Ctrl-C is for us.
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def signal(self, how):
        self._process.send_signal(how)

    def end(self, how):
        """Send a signal; the exit code."""
        self.signal(how)
        try:
            return self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def said(self, pattern):
        if self._process.poll() is not None:
            raise SystemExit(f"{self.name} has ended:\n{self._log.read_text()}")
        return re.search(pattern, self._log.read_text())

    def output(self):
        return self._log.read_text()


class Cluster:
    """All of it."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []
        self.etcds = []
        self.registries = []
        self.urls = []

    def start(self, etcd):
        folder = self.folder
        clients, peers = freePorts(3), freePorts(3)
        self.etcdUrls = [f"http://127.0.0.1:{port}" for port in clients]
        peerUrls = [f"http://127.0.0.1:{port}" for port in peers]
        members = ",".join(f"etcd{number}={url}" for number, url in enumerate(peerUrls, 1))
        for number, (clientUrl, peerUrl) in enumerate(zip(self.etcdUrls, peerUrls, strict=True), 1):
            command = [
                etcd,
                f"--name=etcd{number}",
                f"--data-dir={folder}/etcd{number}",
                f"--listen-client-urls={clientUrl}",
                f"--advertise-client-urls={clientUrl}",
                f"--listen-peer-urls={peerUrl}",
                f"--initial-advertise-peer-urls={peerUrl}",
                f"--initial-cluster={members}",
            ]
            self.etcds.append(self.run(f"etcd{number}", command))
        until(self.areHealthy, "etcd is healthy")
        for number, port in enumerate(freePorts(3), 1):
            command = [
                os.path.join(os.path.dirname(sys.executable), "twistd"),
                *("-n", "--pidfile=", "service-registry", "--store", "etcd", "--etcd", ",".join(self.etcdUrls)),
                *("--data-dir", f"{folder}/registry{number}", "--listen", f"tcp:{port}:interface=127.0.0.1"),
            ]
            self.registries.append(self.run(f"registry{number}", command))
            self.urls.append(f"http://127.0.0.1:{port}/v1.0")
            if number == 1:
                # It makes the first user, and the others find that there is one.
                self.listens(self.registries[0])
        for registry in self.registries:
            self.listens(registry)
        raxrc = configparser.ConfigParser()
        raxrc.read(folder / "registry1" / "raxrc")
        application = Path(__file__).with_name("application.py")
        settings = {
            "RAXSR_API_URL": ",".join(self.urls),
            "RAXSR_USERNAME": raxrc["credentials"]["username"],
            "RAXSR_API_KEY": raxrc["credentials"]["api_key"],
        }
        self.application = self.run("application", [sys.executable, str(application)], settings)
        until(lambda: self.application.said("is registered"), "the application is registered")

    def run(self, name, command, environment=None):
        # Nothing of what is configured on this machine is meant for these.
        clean = dict.fromkeys([name for name in os.environ if name.startswith(("RAXSR_", "ETCD_"))], "")
        process = Process(self.folder, name, command, {**clean, "HOME": str(self.folder), **(environment or {})})
        self.processes.append(process)
        return process

    def listens(self, registry):
        until(lambda: registry.said("The registry listens on"), f"{registry.name} listens")

    def areHealthy(self):
        return all((ask(f"{url}/health") or {}).get("health") == "true" for url in self.etcdUrls)

    def leader(self):
        """The member of etcd that leads."""
        for number, url in enumerate(self.etcdUrls):
            status = ask(f"{url}/v3/maintenance/status", {})
            if status and status["leader"] == status["header"]["member_id"]:
                return self.etcds[number]
        return None

    def end(self):
        for processes in ([p for p in self.processes if p not in self.etcds], self.etcds):
            for process in processes:
                process.signal(signal.SIGTERM)
            for process in processes:
                process.end(signal.SIGTERM)


def tour(cluster):
    say(f"three etcds:      {' '.join(cluster.etcdUrls)}")
    say(f"three registries: {' '.join(cluster.urls)}")
    say("an application is registered there, with a timeout of 3 s")
    for registry in cluster.registries:
        registry.end(signal.SIGKILL)
        say(f"killed {registry.name}")
        time.sleep(1)
        registry.start()
        cluster.listens(registry)
        say(f"started {registry.name} again")
    leader = until(cluster.leader, "etcd has a leader")
    leader.end(signal.SIGKILL)
    killed = time.monotonic()
    say(f"killed {leader.name}, etcd's leader")
    say(f"{until(cluster.leader, 'etcd has a leader').name} leads")
    # What any of this has done to the application's service shows within its timeout.
    time.sleep(max(0.0, killed + TIMEOUT - time.monotonic()))
    leader.start()
    until(cluster.areHealthy, "etcd is healthy")
    say(f"started {leader.name} again")
    code = cluster.application.end(signal.SIGTERM)
    for line in cluster.application.output().splitlines():
        if "is registered" not in line:
            say(line)
    return code


def main():
    etcd = findEtcd()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    cluster = Cluster(folder)
    try:
        cluster.start(etcd)
        code = tour(cluster)
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)
    say("nothing was noticed" if code == 0 else "something was noticed")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
