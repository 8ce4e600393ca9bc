# A registry in a container:
#
#     docker build -t service-registry .
#     docker run -d --name registry -p 127.0.0.1:8880:8880 -v registry:/data service-registry
#     docker exec registry cat /data/raxrc      # the first user's name and API key
#
# Options go behind the image's name and take the place of those below: see docs/registry.rst.

FROM python:3.12-slim AS build
COPY . /src
RUN python -m venv /opt/service-registry
RUN /opt/service-registry/bin/pip install --no-cache-dir "/src[all]"

FROM python:3.12-slim
RUN useradd --system --uid 8880 --no-create-home --home-dir /data service-registry \
    && install -d -m 0700 -o service-registry -g service-registry /data
COPY --from=build /opt/service-registry /opt/service-registry
ENV PATH=/opt/service-registry/bin:$PATH RAXSR_DATA_DIR=/data PYTHONUNBUFFERED=1
USER service-registry
VOLUME /data
EXPOSE 8880
# A listener on loopback in a container can't be reached from outside of it. Its clients are decided by what is
# published (-p), and by TLS: without it, publish on 127.0.0.1 only, or let the network be one that you trust.
ENTRYPOINT ["twistd", "--nodaemon", "--pidfile=", "service-registry"]
CMD ["--listen=tcp:8880"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8880/health', timeout=4)"]
