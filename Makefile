# One command from a fresh checkout: every target below sets up what it needs first.

BIN := .venv/bin

.PHONY: help run build test asan soak bench lint clean

help:
	@echo "make run [ARGS=...]   build and serve on 127.0.0.1:2379; ARGS are flags of etcdfast"
	@echo "make build            system packages, .venv, extensions (nothing to do when up to date)"
	@echo "make test [ARGS=...]  build and run all tests; ARGS go to pytest (-n 0: one after the other, as -s needs it)"
	@echo "make asan [ARGS=...]  tests under AddressSanitizer and UBSan, in a copy below build/"
	@echo "make soak             a thousand rounds of kill -9, of cluster faults, ten long differential runs (two hours)"
	@echo "make bench [ARGS=...] side-by-side run against real etcd (bench/compare.py)"
	@echo "make lint             ruff"
	@echo "make clean            remove what was built; .venv and data stay"
	@echo "ETCDFAST_BUILD=release|debug|asan picks the kind of build"

build:
	@scripts/setup

run: build
	@exec $(BIN)/etcdfast $(ARGS)

test: build
	@scripts/setup-tests
	@exec $(BIN)/python -m pytest -n auto $(ARGS)

asan: build
	@exec scripts/asan $(ARGS)

soak: build
	@$(BIN)/python -m tests.consensus.sim.replay 1 --runs 5000 --chaos-ms 20000
	@ETCDFAST_CRASH_ROUNDS=1000 ETCDFAST_STORM_ACTIONS=20000 $(BIN)/python -m pytest -s tests/crash $(ARGS)
	@for kinds in etcdfast,etcdfast,etcdfast etcd,etcdfast,etcdfast etcdfast,etcdfast,etcdfast,etcdfast,etcdfast; do \
		ETCDFAST_CLUSTER_KINDS=$$kinds ETCDFAST_CLUSTER_ROUNDS=100 $(BIN)/python -m pytest -s tests/cluster/test_faults.py $(ARGS) || exit 1; done
	@for seed in 1 2 3 4 5 6 7 8 9 10; do \
		$(BIN)/python -m tests.differential.replay $$seed --calls 100000 || exit 1; \
		$(BIN)/python -m tests.differential.watch_replay $$seed --steps 20000 || exit 1; done

bench: build
	@exec $(BIN)/python bench/compare.py $(ARGS)

lint: build
	@exec $(BIN)/ruff check .

clean:
	rm -rf build dist *.egg-info etcdfast/api/pb etcdfast/_ext/*.so etcdfast/_ext/*.c etcdfast/_ext/*.html .venv/.etcdfast-*
	find etcdfast tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
