# Every target is for people and for CI alike. `make help` lists them.

HOST      := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
RELEASE   := $(or $(CARGO_TARGET_DIR),target)/$(HOST)/release
# What a cluster is made of; the static binaries need no library of the machine they run on. The proxy is built by itself:
# together with others its libraries would have every feature that any of them wants, TLS 1.2 among them.
PRODUCTS  := weft weft-controller weft-cni weft-demo
STATIC    := RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bins --target $(HOST)
# Seconds for each fuzz target.
FUZZ_TIME ?= 60
# How long make soak takes.
SOAK_MINUTES ?= 30
# Options of weft-bench, such as BENCH="--quick" or BENCH="--rounds 5 --seconds 4".
BENCH     ?=

.DEFAULT_GOAL := help
.PHONY: help setup build images demo kubernetes test soak lint bench fuzz deny

help: ## This list
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r target text; do \
	  printf '  make %-10s %s\n' "$$target" "$$text"; done

setup: ## Install what tests and benchmark need and this machine lacks, and say what
	@scripts/setup.sh all

build: ## Build the static release binaries
	@scripts/setup.sh build
	$(STATIC) --package weft-proxy
	$(STATIC) $(PRODUCTS:%=--package %)
	@cd $(RELEASE) && ls -l weft-proxy weft-init $(PRODUCTS) | awk '{ printf "  %-16s %6.1f MB\n", $$NF, $$5 / 1e6 }'

images: build ## Build container images of the static binaries, as archives, without a container engine
	@scripts/images.sh $(RELEASE) $(or $(CARGO_TARGET_DIR),target)/images

kubernetes: ## Build a real single-node Kubernetes for the tests, outside of the checkout, once
	@scripts/setup.sh kubernetes
	@e2e/kubernetes/build.sh

demo: ## Build, mesh the demo application on this machine, show it, and stay until Ctrl-C
	@scripts/setup.sh demo
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh $(RELEASE)

test: ## Every test there is (needs root)
	@scripts/setup.sh all
	@scripts/test.sh

soak: ## Half an hour of churn under load (SOAK_MINUTES); nothing may grow (needs root; make test has five minutes of it)
	@scripts/setup.sh all
	cargo test --workspace --locked --no-run
	SOAK_MINUTES=$(SOAK_MINUTES) cargo test --workspace --locked --test soak -- --nocapture

lint: ## Formatting and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

bench: ## Compare with other proxies on this machine, see BENCH in the Makefile (needs root)
	@scripts/setup.sh bench
	$(STATIC) --package weft-proxy
	$(STATIC) --package weft-bench
	$(RELEASE)/weft-bench $(BENCH)

fuzz: ## Run every fuzz target for FUZZ_TIME seconds
	@scripts/fuzz.sh $(FUZZ_TIME)

deny: ## Check licences, bans, sources and advisories of the dependencies
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check
