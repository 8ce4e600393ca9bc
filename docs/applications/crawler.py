from scrapy import Spider, signals
from scrapy.crawler import CrawlerProcess
from scrapy.utils.defer import maybe_deferred_to_future
from scrapy.utils.reactor import install_reactor

from txserviceregistry import Client, RegisteredService, useMonotonic


class Registration:
    """A Scrapy extension: the crawler is a registered service while its engine runs."""

    def __init__(self, serviceId):
        self.client = Client.fromSettings()
        self.service = RegisteredService(self.client, serviceId, 30, tags=["crawler"])

    @classmethod
    def from_crawler(cls, crawler):
        extension = cls(f"crawler-{crawler.spider.name}")
        crawler.signals.connect(extension.start, signals.engine_started)
        crawler.signals.connect(extension.stop, signals.engine_stopped)
        return extension

    async def start(self):
        self.service.startService()

    async def stop(self):
        await maybe_deferred_to_future(self.service.stopService())
        await maybe_deferred_to_future(self.client.close())


class Titles(Spider):
    name = "titles"
    start_urls = ["http://127.0.0.1:8000/"]

    def parse(self, response):
        print("read:", response.text.strip())


if __name__ == "__main__":
    install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
    useMonotonic()
    process = CrawlerProcess({"EXTENSIONS": {Registration: 500}, "LOG_LEVEL": "WARNING"})
    process.crawl(Titles)
    process.start()
