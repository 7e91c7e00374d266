# The front door. Every target does its own set-up; a second run reuses what is there.
.DEFAULT_GOAL := help
SHELL := /bin/bash

.PHONY: demo test lint generate bench image help

demo: ## A Hub and two Spokes with real nodes: a ManagedClusterModule ends as a module in their kernels (KEEP=1: leave it running)
	@hack/demo

test: ## Everything: format, lints, generated files, licences, and every layer of tests on real parts
	@hack/test

lint: ## Format, Clippy, generated files, licences and bans, unused dependencies
	@hack/lint

generate: ## Write crds/ from the Rust types
	@hack/generate

bench: ## Hub and Spoke against a bare client, pulls against skopeo and tar, memory, image size: a table, and JSON in target/bench.json
	@hack/bench

image: ## Build the product image (IMAGE=registry/name:tag pushes it)
	@hack/image

help: ## This list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'
