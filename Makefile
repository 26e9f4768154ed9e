# Everything a developer types. CI calls only these. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

INSTALL := tests/tools/install.sh
TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
CRDS := charts/mailbell-crds/templates/crds.yaml
# The server that tests and the demo start: the one that was installed for them, or the one that you name.
export MAILBELL_NATS_SERVER ?= $(CURDIR)/.tools/bin/nats-server

.PHONY: help
help: ## This list
	@echo "Mailbell: push e-mail for ordinary IMAP mailboxes"; echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 12 | sed 's/^/  make /'

.PHONY: demo
demo: tools demo-build ## See it work: a private mail server, two devices, one message; leaves nothing running
	$(RELEASE)/mailbell-demo --mailbell $(RELEASE)/mailbell

.PHONY: run
run: nats ## Watch your own mailbox: make run ACCOUNT=imaps://you@example.org@imap.example.org
	@[ -n "$(ACCOUNT)" ] || { echo "which mailbox? make run ACCOUNT=imaps://user@host" >&2; exit 64; }
	@$(MAKE) --no-print-directory demo-build
	$(RELEASE)/mailbell-demo --mailbell $(RELEASE)/mailbell --account '$(ACCOUNT)'

.PHONY: demo-build
demo-build:
	@echo "==> building (several minutes on two cores when nothing is cached)" >&2
	cargo build --release -p mailbell -p mailbell-demo

.PHONY: build
build: nats ## The binary, optimized: target/release/mailbell, with the nats-server that standalone runs beside it
	cargo build --release -p mailbell
	install -m 755 "$(MAILBELL_NATS_SERVER)" $(RELEASE)/nats-server

# Without libraries, and without a path of this machine in it: the same commit makes the same bytes, in any folder of a machine with the
# same C library and compiler (its own are linked in). Without symbols, a quarter of it: with STRIP=debuginfo the same code has them, for
# whoever is to read a back-trace.
TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')
CARGO_AT = $(or $(CARGO_HOME),$(HOME)/.cargo)
REMAP = $(CURDIR)=/mailbell $(abspath $(TARGET))=/target $(CARGO_AT)=/cargo $(shell rustc --print sysroot)=/rust
STATIC = $(TARGET)/image/$(TRIPLE)/release/mailbell
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
PACK = cargo run --quiet --release --locked -p mailbell-image -- --binary
COMMIT = --revision $$(git describe --always --abbrev=40 --dirty --exclude '*') --created $$(git log -1 --format=%ct)
IMAGE ?= mailbell.dev/mailbell:$(VERSION)

BUILD_STATIC = CFLAGS="$(REMAP:%=-ffile-prefix-map=%)" RUSTFLAGS="-C target-feature=+crt-static $(REMAP:%=--remap-path-prefix=%)" \
	  cargo rustc --release --locked --target $(TRIPLE) --target-dir $(TARGET)/image -p mailbell --bin mailbell
STRIPPED = -- -C strip=$(or $(STRIP),symbols)

.PHONY: static
static:
	$(BUILD_STATIC) $(STRIPPED)

.PHONY: image
image: static sbom ## target/mailbell.oci.tar: the image for a cluster (make image IMAGE=name:tag), without an engine or a registry
	$(PACK) $(STATIC) archive --output $(TARGET)/mailbell.oci.tar --name $(IMAGE) \
	  $(COMMIT)

.PHONY: image-check
image-check: image ## Whether the image starts, in an empty root and a network of its own, and what is in it
	python3 tests/image/check.py $(TARGET)/mailbell.oci.tar
	$(PACK) $(STATIC) archive --output $(TARGET)/again.oci.tar --name $(IMAGE) $(COMMIT) >/dev/null
	cargo tree --locked -p mailbell --edges normal --target $(TRIPLE) --prefix none | python3 tests/image/contents.py \
	  --archive $(TARGET)/mailbell.oci.tar --again $(TARGET)/again.oci.tar --sbom $(TARGET)/mailbell.cdx.json --lock Cargo.lock \
	  $(foreach folder,$(REMAP),--folder $(firstword $(subst =, ,$(folder))))
	rm $(TARGET)/again.oci.tar

# A new file that is not in a commit yet is compiled here, and not in the clone.
.PHONY: committed
committed:
	@[ -z "$$(git status --porcelain)" ] \
	  || { echo "the tree has changes that are not committed, and an image is compared with that of a commit: commit or stash them" >&2; exit 1; }

# What is changed here meanwhile is in neither: git speaks of the clone.
.PHONY: image-again
image-again: committed image ## Whether the same commit makes the same image in another folder: builds all anew
	@again=$$(mktemp -d); trap 'rm -rf "$$again"' EXIT; \
	git clone --quiet . "$$again/mailbell"; \
	env -u CARGO_TARGET_DIR make --no-print-directory -C "$$again/mailbell" static; \
	export GIT_DIR="$$again/mailbell/.git" GIT_WORK_TREE="$$again/mailbell"; \
	$(PACK) "$$again/mailbell/target/image/$(TRIPLE)/release/mailbell" archive --output "$$again/mailbell.oci.tar" --name $(IMAGE) $(COMMIT); \
	cmp $(TARGET)/mailbell.oci.tar "$$again/mailbell.oci.tar" \
	  || { echo "this commit has made two images that differ: its digest says nothing of what is in it" >&2; exit 1; }; \
	echo "$(TARGET)/mailbell.oci.tar: the same from a clone in another folder"

# What runs beside Mailbell on the cluster of the tests.
.PHONY: cluster-images
cluster-images: nats nodes
	$(PACK) .tools/nodes/pod --program pod archive --output $(TARGET)/pod.oci.tar --name mailbell.dev/tests/pod:1 $(COMMIT)
	$(PACK) $(MAILBELL_NATS_SERVER) --program nats-server archive --output $(TARGET)/nats.oci.tar --name mailbell.dev/tests/nats:1 $(COMMIT)

# For the Dockerfile.
.PHONY: image-files
image-files: static
	$(PACK) $(STATIC) files --output $(TARGET)/image-files

.PHONY: sbom
sbom:
	@$(INSTALL) sbom
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) .tools/bin/cargo-cyclonedx cyclonedx -qq --format json --target $(TRIPLE) \
	  --no-build-deps --manifest-path services/mailbell/Cargo.toml --override-filename mailbell-sbom
	python3 tests/image/materials.py services/mailbell/mailbell-sbom.json services/image/mailbell-sbom.json \
	  | sed 's|file://$(CURDIR)|file:///mailbell|g' > $(TARGET)/mailbell.cdx.json
	@# It leaves one beside each member of the workspace.
	find proto services tests -name mailbell-sbom.json -delete

.PHONY: test
test: tools kube prev ## All tests, on a real Dovecot, real nats-servers and a real Kubernetes API server
	@$(INSTALL) faketime promtool
	cargo test --workspace --features mailbell/failpoints

# Of the whole workspace, as `make test`, so that nothing is built a second time. One after the other: each test has a cluster of its own.
E2E := cargo test --workspace --features mailbell/failpoints,mailbell-test-cluster/e2e,mailbell-tests/e2e
ON_CLUSTER := MAILBELL_BIN=$(abspath $(STATIC)) $(E2E) --test kubernetes -- --test-threads 1 --nocapture

# One test is tried while something is written; all of them are for a commit.
COMMITTED := $(if $(TEST),,committed)

.PHONY: e2e
e2e: $(COMMITTED) nodes e2e-prev e2e-images $(COMMITTED:committed=image-again) ## Tests on a Kubernetes with nodes, or one: make e2e TEST=guide
	@$(INSTALL) registry
	$(E2E) --test nodes --test registry -- --test-threads 1 $(TEST)
	$(ON_CLUSTER) $(TEST)

.PHONY: e2e-short
e2e-short: nodes e2e-images ## Of these one: Mailbell is installed, mail arrives, and it is upgraded
	$(ON_CLUSTER) installed_and_upgraded | tee >(cat >&2) | grep '^test result: ok. 1 passed' >/dev/null

# The release before this one, which one of them begins with. First: `static` puts this one in its place.
.PHONY: e2e-prev
e2e-prev:
	$(BUILD_STATIC) --features mailbell/schema-prev $(STRIPPED)
	$(PACK) $(STATIC) archive --output $(TARGET)/mailbell-prev.oci.tar --name mailbell.dev/mailbell:prev $(COMMIT)

# The same images by other names are what is upgraded to.
.PHONY: e2e-images
e2e-images: tools kube cluster-images image
	$(PACK) $(STATIC) archive --output $(TARGET)/mailbell-next.oci.tar --name mailbell.dev/mailbell:next $(COMMIT)
	$(PACK) $(MAILBELL_NATS_SERVER) --program nats-server archive --output $(TARGET)/nats-next.oci.tar \
	  --name mailbell.dev/tests/nats:next $(COMMIT)

# Asking for a test too makes the features of all dependencies those of `cargo test`, so that none is built a second time.
DEBUG := cargo build --workspace --bin mailbell --test proxy --features mailbell/failpoints

# The release before this one, for the tests of mixed versions: it knows one schema less.
.PHONY: prev
prev: ## target/debug/mailbell-prev: what the tests of mixed versions run beside this release
	$(DEBUG),mailbell/schema-prev
	cp --reflink=auto $(TARGET)/debug/mailbell $(TARGET)/debug/mailbell-prev

.PHONY: lint
lint: deny ## Format, clippy, documentation, generated files, dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features mailbell/failpoints,mailbell-test-cluster/e2e,mailbell-tests/e2e -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	$(MAKE) --no-print-directory drift
	.tools/bin/cargo-deny --locked check --hide-inclusion-graph bans licenses sources

.PHONY: drift
drift: ## Whether the generated files are what the sources say
	cargo run --quiet -p mailbell-proto --features gen --bin proto-gen -- --check \
	  || { echo "proto/src/generated is stale: make proto" >&2; exit 1; }
	$(DEBUG) --quiet
	$(TARGET)/debug/mailbell reference | diff -u docs/reference.md - \
	  || { echo "docs/reference.md is stale: make reference" >&2; exit 1; }
	$(TARGET)/debug/mailbell crds | diff -u $(CRDS) - \
	  || { echo "$(CRDS) is stale: make crds" >&2; exit 1; }
	$(CHART) readme

.PHONY: proto
proto: ## Generate the Rust code of the .proto files
	cargo run --quiet -p mailbell-proto --features gen --bin proto-gen

.PHONY: reference
reference: ## Generate docs/reference.md: every command, flag and variable
	$(DEBUG) --quiet
	$(TARGET)/debug/mailbell reference > docs/reference.md.new
	mv docs/reference.md.new docs/reference.md

.PHONY: crds
crds: ## Generate the chart of the custom resource definitions
	$(DEBUG) --quiet
	$(TARGET)/debug/mailbell crds > $(CRDS).new
	mv $(CRDS).new $(CRDS)

# Like DEBUG: all members, so that nothing is built a second time.
CHART := cargo test --quiet --workspace --features mailbell/failpoints --test charts

.PHONY: chart-readme
chart-readme: ## Generate the list of values in charts/mailbell/README.md
	MAILBELL_UPDATE_GOLDEN=1 $(CHART) readme

.PHONY: bench
bench: tools ## Latency beside a bare IDLE client, CPU and memory of each role (docs/performance.md)
	cargo build --release -p mailbell -p mailbell-tests
	$(RELEASE)/bench roles $(BENCH)
	$(RELEASE)/bench roles --messages 20 --batch 200 --interval-ms 2000 $(BENCH)
	$(RELEASE)/bench standalone $(BENCH)
	$(RELEASE)/bench roles --lazy-sync $(BENCH)
	@ls -l $(RELEASE)/mailbell | awk '{printf "binary: %.1f MB\n", $$5 / 1e6}'

.PHONY: bench-accounts
bench-accounts: tools ## A watcher that owns 100,000 of 1,000,000 accounts, and one that owns 100: time, memory, what idles
	cargo bench -p mailbell-watcher --bench accounts -- $(BENCH)
	cargo bench -p mailbell-watcher --bench accounts -- --accounts 1000 $(BENCH)

.PHONY: bench-sharing
bench-sharing: nats ## Watchers that share 3,000 accounts: one is killed, all are restarted, one more comes; what idles
	cargo build --release -p mailbell -p mailbell-tests
	$(RELEASE)/sharing $(BENCH)

.PHONY: bench-devices
bench-devices: tools ## By how much each device makes the memory of a gateway grow
	cargo build --release -p mailbell -p mailbell-tests
	$(RELEASE)/devices $(BENCH)

.PHONY: bench-mail-accounts
bench-mail-accounts: nats kube ## From 10 to 1,000 MailAccounts: until all are watched, the operator's requests and memory
	MAILBELL_BENCH_MAIL_ACCOUNTS=$(or $(ACCOUNTS),1000) cargo test --release -p mailbell --test standalone many_mail_accounts -- --nocapture

.PHONY: sim
sim: ## The simulation with many seeds: make sim SEEDS=100000
	MAILBELL_SIM_SEEDS=$(or $(SEEDS),100000) cargo test --release -p mailbell-sim -- --nocapture

.PHONY: tools
tools: nats
	@$(INSTALL) dovecot

.PHONY: nats
nats:
	@$(INSTALL) nats

.PHONY: kube
kube: ## Kubernetes' programs for the tests, from Go modules (tests/cluster/README.md)
	@$(INSTALL) kube

.PHONY: promtool
promtool:
	@$(INSTALL) promtool

.PHONY: nodes
nodes: ## The same, and what a cluster with nodes needs more (tests/cluster/README.md)
	@$(INSTALL) nodes

.PHONY: cluster
cluster: nodes tools image cluster-images ## A Kubernetes with three nodes to play with, our image on it (make cluster NODES=2); as root
	cargo build -p mailbell-test-cluster --bin cluster
	$(TARGET)/debug/cluster up --state $(TARGET)/cluster --nodes $(or $(NODES),3) \
	  --image $(TARGET)/mailbell.oci.tar --image $(TARGET)/nats.oci.tar --mailbell $(STATIC)

.PHONY: cluster-down
cluster-down: ## End it, with all that it has written
	cargo build --quiet -p mailbell-test-cluster --bin cluster
	$(TARGET)/debug/cluster down --state $(TARGET)/cluster

.PHONY: deny
deny:
	@$(INSTALL) deny

.PHONY: clean
clean: ## Remove what was built and installed here
	cargo clean
	rm -rf .tools
