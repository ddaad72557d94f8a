# Images of redis-proxy. `docker build .` makes the last stage: the program, the authorities it trusts for TLS and the C
# library, no shell, no root. `docker build --target test .` makes the one that runs the tests.
#
# No step knows an architecture: docker buildx build --platform linux/amd64,linux/arm64 .

FROM rust:1.95-slim-bookworm AS toolchain
WORKDIR /src

FROM toolchain AS build
ARG TARGETARCH
COPY Cargo.toml Cargo.lock ./
COPY scripts/release scripts/
COPY src src
# What was built for the dependencies is kept between builds; cargo tells their versions apart. Our own files are touched
# because cargo tells those apart by their times alone, and another checkout may have older files that say something else.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=redis-proxy-target-$TARGETARCH,sharing=locked \
    find src -name '*.rs' -exec touch {} + && \
    scripts/release && \
    install -D target/release/redis-proxy /out/redis-proxy

# For the tests of the alerts, of the dashboard's queries, and of the metrics.
FROM prom/prometheus:v3.5.0 AS prometheus

FROM toolchain AS test
# libpython3.11 is for rotel-agent, the collector of traces, which links it.
RUN apt-get update && \
    apt-get install -y --no-install-recommends curl faketime haproxy libpython3.11 make python3-venv redis-server wrk && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --create-home tester && \
    install -d -o tester -g tester /build /build/target
COPY --from=prometheus /bin/prometheus /bin/promtool /usr/local/bin/
# Everything that the tests fetch elsewhere is fetched here: the container that runs them reaches no network. pip and npm
# trust the system's authorities, otherwise an authority that was added to the base image would mean nothing to them.
ENV REDIS_PROXY_TEST_CLIENTS=/opt/clients
COPY scripts/clients scripts/collector scripts/
RUN export PIP_CERT=/etc/ssl/certs/ca-certificates.crt NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt && \
    scripts/clients && \
    collector=$(PATH=/opt/clients/python/bin:$PATH CARGO_TARGET_DIR=/opt scripts/collector) && \
    if [ -n "$collector" ]; then ln -s "$collector/rotel-agent" /usr/local/bin/; fi
COPY Cargo.toml Cargo.lock ./
# Some crates hold files that only their owner may read, and another user runs the tests.
RUN mkdir src && touch src/lib.rs src/main.rs && cargo fetch --locked && chmod -R a+rX "$CARGO_HOME/registry"
COPY . .
# Nothing is written beside the sources, so that the root may be read-only; a volume on /build keeps the build.
ENV CARGO_NET_OFFLINE=true CARGO_TARGET_DIR=/build/target
USER tester
CMD ["make", "test"]

FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
LABEL org.opencontainers.image.title="redis-proxy" \
      org.opencontainers.image.description="A near cache for Redis in a daemon of its own" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/redis-proxy /usr/bin/redis-proxy
# In a container loopback reaches nobody; who may reach the ports is said where they are published, and by the networks the
# container is in. That is what the second line relies on: without it, nothing starts that asks nobody who he is. Set both
# to false where others share the network, and http.tokens_file, resp.password_file or the like with them. Environment
# variables and no flags, so that `health` knows them too.
ENV REDIS_PROXY_HTTP__LISTEN=0.0.0.0:8080 REDIS_PROXY_RESP__LISTEN=0.0.0.0:6380 \
    REDIS_PROXY_HTTP__ALLOW_UNPROTECTED=true REDIS_PROXY_RESP__ALLOW_UNPROTECTED=true
EXPOSE 8080 6380
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=3 CMD ["/usr/bin/redis-proxy", "health"]
ENTRYPOINT ["/usr/bin/redis-proxy"]
