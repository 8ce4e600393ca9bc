"""
A TCP load balancer: ``python examples/loadbalancer.py web 8000`` listens on port 8000 and forwards each connection to a
service with the tag ``web``. It uses the instance with the fewest connections, and fails over to the next one. The
registry is the one in this machine's settings.
"""

import sys

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint, clientFromString
from twisted.internet.protocol import Factory
from twisted.protocols.portforward import ProxyClientFactory, ProxyServer

from txserviceregistry import useMonotonic


class Balanced(ProxyServer):
    def connectionMade(self):
        self.transport.pauseProducing()
        inside = ProxyClientFactory()
        inside.setServer(self)
        services.connect(inside).addErrback(self.refused)

    def refused(self, reason):
        print(reason.getErrorMessage(), flush=True)
        self.transport.loseConnection()


useMonotonic(reactor)
services = clientFromString(reactor, f"registry:{sys.argv[1]}:strategy=least-connections")
listening = TCP4ServerEndpoint(reactor, int(sys.argv[2]), interface="127.0.0.1").listen(Factory.forProtocol(Balanced))
listening.addCallback(lambda port: print(f"listens on 127.0.0.1:{port.getHost().port}", flush=True))
reactor.run()
