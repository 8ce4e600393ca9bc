from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import react

from txserviceregistry import useMonotonic


class Ask(WebSocketClientProtocol):
    def onOpen(self):
        self.sendMessage(b"Hello")

    def onMessage(self, payload, isBinary):
        print(payload.decode())
        self.sendClose()

    def onClose(self, wasClean, code, reason):
        self.factory.done.callback(None)


async def main(reactor):
    factory = WebSocketClientFactory()
    factory.protocol = Ask
    factory.done = Deferred()
    await clientFromString(reactor, "registry:echo").connect(factory)
    await factory.done


useMonotonic()
react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
