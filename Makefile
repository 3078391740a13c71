# SPDX-License-Identifier: Apache-2.0
# Thin: everything with more than one step is in xtask.

CARGO ?= cargo
XTASK := $(CARGO) run --quiet --package xtask --
TOPOLOGY ?= duo
# Which binaries go into the image: dev or release.
PROFILE ?= dev
BINARIES := -p isthmus-operator -p isthmus-node-agent -p isthmus-cni -p isthmus-cli -p isthmus-plugins

.PHONY: help deps build image lab-build lab-up lab-down lab-status lab-load lab-logs demo conformance test test-fast test-vm kill-points soak fuzz sanitize bench bench-wg

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## Install the Debian packages that are missing (as root), check Go and Rust
	@$(XTASK) deps

build: ## Build the binaries
	$(CARGO) build --profile $(PROFILE) $(BINARIES)

image: build ## Write the Isthmus image (no daemon) and say where
	@$(XTASK) image --profile $(PROFILE)

lab-build: ## Build what the lab needs without starting it (minutes, once)
	@$(XTASK) build

lab-up: ## Bring the lab up: real kind clusters (TOPOLOGY=duo|solo|routed|chained)
	@$(XTASK) lab up $(TOPOLOGY)

lab-load: build ## Put the Isthmus image onto all nodes
	@$(XTASK) lab load --profile $(PROFILE)

lab-status: ## Say what is up
	@$(XTASK) lab status

lab-logs: ## Write all nodes' logs into ./lab-logs
	@$(XTASK) lab logs lab-logs

lab-down: ## Take the lab down, leaving nothing but the cache
	@$(XTASK) lab down

demo: deps ## Two clusters from nothing to one network, step by step (as root); leaves them running
	@$(XTASK) demo --profile $(PROFILE) --topology $(TOPOLOGY)

conformance: deps ## Kubernetes' own network tests on one cluster (as root)
	@$(XTASK) conformance

test: deps ## Everything: unit, namespaces, API server, two clusters (as root); ends with counts
	@$(XTASK) test

test-fast: ## What needs neither root nor Go
	@$(XTASK) test --fast

test-vm: ## The kernel's WireGuard and rare kinds of links, in a virtual machine (ONLY=part_of_a_name; needs qemu-system-x86, fetches a kernel once)
	@$(XTASK) vm-test "$(ONLY)"

kill-points: ## Kill the agent at every system call of ADD and DEL, 10,000 times (as root; minutes)
	$(CARGO) test -p isthmus-netns-tests --test main -- --ignored --nocapture every_system_call

soak: ## Pods come and go at random while agents die, for MINUTES=10 (as root; SEED=… repeats a run)
	ISTHMUS_SOAK_SECONDS=$$(( $(or $(MINUTES),10) * 60 )) $(if $(SEED),ISTHMUS_SEED=$(SEED)) $(CARGO) test -p isthmus-netns-tests --test main -- --nocapture a_long_life

fuzz: ## Look for inputs that break a target (TARGET=mesh-frames SECONDS=60; needs a nightly toolchain and g++)
	@$(XTASK) fuzz "$(TARGET)" --seconds $(or $(SECONDS),60)

# The runtime of the sanitizer comes with the pinned toolchain; its flag does not need another one. With a target it is ours alone, not that of macros.
SANITIZED = RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address $(CARGO) test --target-dir target/sanitize --target $$(rustc -vV | sed -n 's/^host: //p') -p isthmus-packet-io -p isthmus-wg-device

sanitize: ## The packet path's system calls (all of its `unsafe`) under AddressSanitizer: tests, and isthmus-wg with traffic (as root)
	$(SANITIZED) --lib
	$(SANITIZED) --test it -- --test-threads=1 traffic:: ends::

bench-wg: ## isthmus-wg beside other WireGuard programs, which are built once (as root; minutes) -> docs/benchmarks.md
	$(CARGO) build --release -p isthmus-bench -p isthmus-wg-device
	@$(CARGO) run --release --quiet -p isthmus-bench -- run --only wg $(BENCH)

bench: ## Beside the others: CNI, tunnels, imports, memory (as root) -> docs/benchmarks.md
	$(CARGO) build --release -p isthmus-bench -p isthmus-node-agent -p isthmus-cni -p isthmus-plugins -p isthmus-wg-device
	@$(CARGO) run --release --quiet -p isthmus-bench -- run $(BENCH)
