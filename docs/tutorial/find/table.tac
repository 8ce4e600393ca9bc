from table import tableService
from twisted.application.service import Application

from txserviceregistry import Client, useMonotonic

useMonotonic()
application = Application("table")
tableService(Client.fromSettings(), 8000).setServiceParent(application)
