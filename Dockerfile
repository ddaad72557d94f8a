# Images of redis-proxy. `docker build .` builds the last stage: the program, the certificate
# authorities for TLS and the C library, without a shell or root. `docker build --target test .`
# builds the image that runs the tests.
#
# No step depends on an architecture: docker buildx build --platform linux/amd64,linux/arm64 .

FROM rust:1.95-slim-bookworm AS toolchain
WORKDIR /src

FROM toolchain AS build
ARG TARGETARCH
COPY Cargo.toml Cargo.lock ./
COPY redis-proxy.toml ./
COPY scripts/release scripts/
COPY src src
# The build of the dependencies is kept between builds; cargo tells their versions apart. The
# project's files are touched because cargo compares only their times. Otherwise files of another
# checkout could be older and count as built.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=redis-proxy-target-$TARGETARCH,sharing=locked \
    find src -name '*.rs' -exec touch {} + && \
    scripts/release && \
    install -D target/release/redis-proxy /out/redis-proxy

# For the tests of the alerts, of the dashboard's queries, and of the metrics.
FROM prom/prometheus:v3.5.0 AS prometheus

FROM toolchain AS test
# rotel-agent, the collector of traces, links libpython3.11.
RUN apt-get update && \
    apt-get install -y --no-install-recommends curl faketime haproxy libpython3.11 make python3-venv redis-server wrk && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --create-home tester && \
    install -d -o tester -g tester /build /build/target
COPY --from=prometheus /bin/prometheus /bin/promtool /usr/local/bin/
# All downloads of the tests happen here, because the container that runs them has no network. pip
# and npm trust the system's authorities. Otherwise they would ignore an authority that was added to
# the base image.
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
# Nothing is written beside the sources, so the root may be read-only; a volume on /build keeps the
# build.
ENV CARGO_NET_OFFLINE=true CARGO_TARGET_DIR=/build/target
USER tester
CMD ["make", "test"]

FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
LABEL org.opencontainers.image.title="redis-proxy" \
      org.opencontainers.image.description="Caching proxy (near cache) for Redis, over HTTP and for Redis clients" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/redis-proxy /usr/bin/redis-proxy
COPY LICENSE NOTICE THIRD-PARTY-LICENSES /usr/share/doc/redis-proxy/
# Inside a container the loopback address reaches no client. Published ports and the container's
# networks decide which hosts reach the listeners. The second line relies on that: without it, no
# listener without authentication starts. Set both to false if others share the network, together
# with http.tokens_file, resp.password_file or the like. These are environment variables and not
# flags, so `health` knows them, too.
ENV REDIS_PROXY_HTTP__LISTEN=0.0.0.0:8080 REDIS_PROXY_RESP__LISTEN=0.0.0.0:6380 \
    REDIS_PROXY_HTTP__ALLOW_UNPROTECTED=true REDIS_PROXY_RESP__ALLOW_UNPROTECTED=true
EXPOSE 8080 6380
# A number, so that Kubernetes can verify that it is not root.
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=3 CMD ["/usr/bin/redis-proxy", "health"]
ENTRYPOINT ["/usr/bin/redis-proxy"]
