import os

from dice import diceService
from twisted.application.service import Application

from txserviceregistry import Client, useMonotonic

useMonotonic()
application = Application("dice")
port = int(os.environ.get("PORT", "8001"))
diceService(Client.fromSettings(), f"dice-{port}", port).setServiceParent(application)
