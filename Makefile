# The commands of this project. Each is a line or two here, or one script in scripts/. The rule: a
# target's text says plainly what it does, and the target leaves no process running.

.DEFAULT_GOAL := help
.PHONY: help run test page-check memory soak verify simulate fuzz bench bench-parts instructions docs check deny sbom release planted-faults reproducible compose-test nix-check systemd-check deb deb-check rpm rpm-check schema chart chart-check notices release-check examples-check clean

# The ports of `make run` on 127.0.0.1, for HTTP and for Redis clients: make run PORT=9000
# RESP_PORT=9001
PORT ?= 8080
RESP_PORT ?= 6380

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build the proxy and run it with a private Redis and sample keys until Ctrl-C (PORT=8080 RESP_PORT=6380)
	@scripts/run '$(PORT)' '$(RESP_PORT)'

test: ## Run every test: unit, documentation, orders of steps, a simulation, a short soak, integration against real redis-servers
	@scripts/test

page-check: ## Test the status page in Chromium, and write pictures of it and of top under target/screens (needs chromium, tmux)
	@scripts/page-check

memory: ## Read 5,000,000 small keys and 12,000 large values under bounds on memory, then flush: memory throughout and after (KEYS=5000000)
	MEMORY_KEYS='$(or $(KEYS),5000000)' MEMORY_VALUES=12000 cargo test --locked --test it -- --nocapture --test-threads=1 small_keys many_large_values

planted-faults: ## Plant faults in a build of its own: verification, the soak and the checker find them within seconds, the simulation within some seeds
	cargo test --locked --features planted-faults --test it verify::
	cargo test --locked --features planted-faults --test soak planted_
	cargo test --locked --config tests/simulation/profile.toml --features planted-faults --test simulation -- --nocapture planted

soak: ## Soak both front ends in faults: no wrong reply, no leak (SECONDS=60 SEED=1 SERVER=redis-server PROXIES=1)
	@scripts/soak '$(SECONDS)' '$(SEED)' '$(SERVER)' '$(PROXIES)'

verify: ## Soak in faults, and have an independent checker judge the histories too (SECONDS=60 SEED=1 SERVER=redis-server MODE='standalone sentinel cluster')
	@scripts/verify '$(SECONDS)' '$(SEED)' '$(SERVER)' '$(MODE)'

simulate: ## Simulate the proxy and Redis in virtual time for the first SEEDS seeds, or one with its events (SEEDS=1000, SEED=7)
	SIMULATION_SEEDS='$(or $(SEEDS),1000)' SIMULATION_SEED='$(SEED)' cargo test --locked --config tests/simulation/profile.toml --test simulation -- --exact --nocapture seeds_hold

fuzz: ## Run each fuzz target and fail on a crash (SECONDS=60 each, TARGET=all; installs cargo-fuzz if missing)
	@scripts/fuzz '$(SECONDS)' $(TARGET)

bench: ## Measure side by side with nginx, Redis and others: bench/RESULTS.md (ROUNDS=5 RUNS=3 QUICK=1 CASES='http resp' WITHOUT='nginx'; CASES=policies TRACES=DIRECTORY)
	@python3 bench/run.py

bench-parts: ## Time each part of a read by itself (criterion)
	cargo bench --locked --bench hit --bench codec --bench flight --bench metrics

instructions: ## Count the instructions of a read, and fail if they are more than recorded (installs valgrind)
	@scripts/instructions

compose-test: ## Test docker-compose.yml with every service: health, scrapes, dashboard, reload, tests, stop
	@scripts/compose-test

docs: ## Build the book under target/book, and fail on a dead link (installs mdbook if missing)
	@scripts/docs

# With a target that has the development dependencies, the other dependencies have the same features
# as in the first command. Otherwise each of the two commands would check most of them again.
SAME_FEATURES = --example bridge

check: ## Check the formatting, the lints and the documentation, with warnings as errors
	@echo 'Checking the formatting, the lints and the documentation.'
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --all-targets --locked -- -D warnings
	cargo clippy --lib $(SAME_FEATURES) --profile test --features shuttle --locked -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --lib $(SAME_FEATURES) --no-deps --locked

deny: ## Check the dependencies for advisories, licences, bans and sources (installs cargo-deny if missing)
	@cargo deny --version >/dev/null 2>&1 || { echo 'Installing cargo-deny; this takes some minutes.' && cargo install --locked cargo-deny; }
	cargo deny check advisories licenses bans sources

nix-check: ## Check everything Nix: packages, the NixOS module, its tests and a virtual machine (needs Nix)
	nix --extra-experimental-features 'nix-command flakes' flake check --print-build-logs

sbom: ## Write the software bill of materials of a release, as CycloneDX (installs cargo-cyclonedx if missing)
	@cargo cyclonedx --version >/dev/null 2>&1 || { echo 'Installing cargo-cyclonedx; this takes some minutes.' && cargo install --locked cargo-cyclonedx; }
	cargo cyclonedx --quiet --format json --spec-version 1.5 --override-filename redis-proxy.sbom
	@mkdir -p "$${CARGO_TARGET_DIR:-target}" && mv redis-proxy.sbom.json "$${CARGO_TARGET_DIR:-target}/" && \
	  echo "It is $${CARGO_TARGET_DIR:-target}/redis-proxy.sbom.json."

release: ## Build the program for a release: the same bytes from the same sources, everywhere
	@scripts/release

reproducible: ## Build the committed sources twice, in two places, and fail if the bytes differ (takes some minutes)
	@scripts/reproducible

systemd-check: ## Check the units in systemd/ by systemd's own rules, and the exposure of the service (needs systemd)
	@scripts/systemd-check

deb: ## Build a Debian package (installs cargo-deb if missing)
	@scripts/deb

deb-check: ## Test the Debian package under a real systemd: install, init, reload, upgrade, purge (needs root, systemd-nspawn)
	@scripts/package-check deb

rpm-check: ## Test the RPM package under a real systemd: install, init, reload, upgrade, erase (needs root, systemd-nspawn, rpm)
	@scripts/package-check rpm

rpm: ## Build an RPM package (installs cargo-generate-rpm if missing)
	@scripts/rpm

schema: ## Write redis-proxy.schema.json, the JSON schema of the configuration
	cargo run --locked --quiet -- schema >redis-proxy.schema.json.new && mv redis-proxy.schema.json.new redis-proxy.schema.json

chart: ## Write what is made from the chart and for it: values.schema.json and deploy/kubernetes
	@scripts/chart schema
	@scripts/chart render

chart-check: ## Check the Helm chart by Helm's engine, Kubernetes's schemas and the proxy itself
	cargo build --locked
	@PROXY="$${CARGO_TARGET_DIR:-target}/debug/redis-proxy" scripts/chart check

notices: ## Write THIRD-PARTY-LICENSES, the licences of the dependencies (installs cargo-bundle-licenses if missing)
	@scripts/notices

examples-check: ## Run each example of examples/ that this machine can run
	@scripts/examples-check

release-check: ## Make and check everything of a release that needs no account, and print what was made
	@scripts/release-check

clean: ## Remove everything that was built, and the unpacked Redis
	cargo clean
