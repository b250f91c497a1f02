# syntax=docker/dockerfile:1
# edgeguard as a sidecar or gateway container. Nothing runs as root, nothing needs a writable root file
# system: mount a volume at /var/lib/edgeguard and run with `--read-only --cap-drop ALL`.

FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN ["python", "-m", "venv", "/opt/build"]
RUN ["/opt/build/bin/pip", "install", "--no-cache-dir", "--require-hashes", "-r", "requirements-build.lock"]
RUN ["python", "-m", "venv", "/opt/edgeguard"]
RUN ["/opt/edgeguard/bin/pip", "install", "--no-cache-dir", "--require-hashes", "-r", "requirements.lock"]
COPY pyproject.toml README.md LICENSE ./
COPY edgeguard ./edgeguard
RUN ["/opt/build/bin/python", "-m", "hatchling", "build", "-t", "wheel", "-d", "/src/dist"]
RUN ["/opt/edgeguard/bin/pip", "install", "--no-cache-dir", "--no-deps", "--no-index", "--find-links", "/src/dist", "edgeguard"]
RUN ["/opt/edgeguard/bin/python", "-m", "compileall", "-q", "/opt/edgeguard/lib"]
RUN ["install", "-d", "-m", "0700", "-o", "65532", "-g", "65532", "/opt/state"]

# The packet filter's init container, the only one with a capability: `docker build --target netfilter`.
FROM python:3.13-slim-bookworm AS netfilter
RUN ["apt-get", "update"]
RUN ["apt-get", "install", "--yes", "--no-install-recommends", "nftables"]
COPY --from=build /opt/edgeguard /opt/edgeguard
ENV PATH=/opt/edgeguard/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["edgeguard"]
CMD ["netfilter", "--apply", "--config", "/etc/edgeguard/edgeguard.toml"]

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="edgeguard" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/edgeguard /opt/edgeguard
COPY --from=build --chown=65532:65532 /opt/state /var/lib/edgeguard
ENV PATH=/opt/edgeguard/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
VOLUME ["/var/lib/edgeguard"]
EXPOSE 3128
# Ready means: a verified policy is in force. An orchestrator's own probe can ask /readyz on the admin address instead.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["edgeguard", "status", "--quiet"]
ENTRYPOINT ["edgeguard"]
CMD ["run", "--config", "/etc/edgeguard/edgeguard.toml"]
