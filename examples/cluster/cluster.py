"""
High availability on one machine: three members of etcd, three registries over them, and an application, all on
loopback. The program kills each registry and etcd's leader with ``kill -9``, and the application reports its errors::

    python examples/cluster/cluster.py

It takes about 20 seconds, removes its files, and exits with 0 if the application had no errors. It needs etcd 3.4, or
3.5.3 and newer, such as Debian's or Ubuntu's package ``etcd-server``.
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

# Seconds to wait for anything here.
PATIENCE = 60.0
# Seconds: a little more than the heartbeat timeout of the application.
TIMEOUT = 3.5
BEGAN = time.monotonic()


def say(text):
    print(f"{time.monotonic() - BEGAN:5.1f} s  {text}", flush=True)


def until(condition, what):
    """Wait until *condition* returns something true, and return that."""
    latest = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > latest:
            raise SystemExit(f"timed out: {what}")
        time.sleep(0.05)
    return found


def findEtcd():
    """The path of an etcd that keeps its data after ``kill -9``: not 3.5.0 to 3.5.2 (etcd issue 13766)."""
    own = os.path.realpath(os.path.dirname(sys.executable))
    for folder in [*os.get_exec_path(), "/usr/bin", "/usr/local/bin"]:
        program = os.path.join(folder, "etcd")
        if os.path.realpath(folder) == own or not os.access(program, os.X_OK):
            continue
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        if re.search(r"Version: 3\.(?!5\.[012]\b)", version):
            return program
    raise SystemExit("No suitable etcd found: install Debian's etcd-server, or etcd 3.5.3 or newer")


def freePorts(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def ask(url, body=None):
    """The JSON at *url*, or ``None`` if the request fails."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=1) as answer:
            return json.load(answer)
    except OSError:
        return None


class Process:
    """A process that can be restarted, with its output in a file."""

    def __init__(self, folder, name, command, environment=None):
        self.name = name
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._log = folder / f"{name}.log"
        self._process = None
        self.start()

    def start(self):
        with open(self._log, "w") as log:
            # A session of its own, so that Ctrl-C ends only this program.
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def signal(self, how):
        self._process.send_signal(how)

    def end(self, how):
        """Send a signal, and return the exit code."""
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
    """The processes of etcd, the registries and the application."""

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
                # It creates the first user, which the others then find.
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
        # Settings of this machine do not apply.
        clean = dict.fromkeys([name for name in os.environ if name.startswith(("RAXSR_", "ETCD_"))], "")
        process = Process(self.folder, name, command, {**clean, "HOME": str(self.folder), **(environment or {})})
        self.processes.append(process)
        return process

    def listens(self, registry):
        until(lambda: registry.said("The registry listens on"), f"{registry.name} listens")

    def areHealthy(self):
        return all((ask(f"{url}/health") or {}).get("health") == "true" for url in self.etcdUrls)

    def leader(self):
        """The process of etcd's leader."""
        for number, url in enumerate(self.etcdUrls):
            status = ask(f"{url}/v3/maintenance/status", {})
            if status and status.get("leader") == status["header"]["member_id"]:
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
    # An expiration would happen within the heartbeat timeout.
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
    say("the application had no errors" if code == 0 else "the application had errors")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
