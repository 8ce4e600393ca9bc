from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.application.service import Application
from twisted.application.strports import service as listen

from txserviceregistry import useMonotonic


class Echo(WebSocketServerProtocol):
    def onMessage(self, payload, isBinary):
        self.sendMessage(payload, isBinary)


useMonotonic()
factory = WebSocketServerFactory()
factory.protocol = Echo
application = Application("echo")
where = r"registered:id=echo1:tags=echo:endpoint=tcp\:9000\:interface=127.0.0.1"
listen(where, factory).setServiceParent(application)
