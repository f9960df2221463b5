# On a fresh Debian 12 as root, with nothing but a Rust toolchain:
#   make demo     two real Cyrus servers, mail flowing, one user moved
#   make test     everything that must be true
#   make matrix   every process killed at every point of a move, every message lost, every
#                 write failing, the disk full at any moment; resumed and aborted
#   make versions every release of Cyrus in the lab to every other, there and back, also with
#                 calendars, archives and indexes; writes the table in docs/cyrus.md; and old
#                 servers' disks onto the later ones
#   make static   target/static/mbcopy, which starts on every Linux
#   make power    a hundred power cuts of each server in the middle of moves
#   make chaos    five hundred moves with harm at random (RUNS=, SEED=)
#   make fuzz     any bytes at every parser, ten minutes each (FUZZ_TIME=, FUZZ_TARGETS=)
#   make bulk     many users by eight moves at once (USERS=, TARGET=, SIZES=): XFER beside
#                 it; with everything killed meanwhile; some of whom cannot be moved
#   make bench    push beside rsync, XFER, sync_client and tar: near, far, slow, cold, again;
#                 what others notice; a plot; make microbench: formats and wire
#   make growth   freeze, waits, memory and time by the number of messages (SIZES=); a plot
#   make lint     formatting, clippy, licences; make audit: advisories

CARGO ?= cargo
LAB := tests/lab/lab.sh
MUSL := $(shell uname -m)-unknown-linux-musl

USERS ?= 200
TARGET ?= bw2

.PHONY: demo test matrix versions static chaos power fuzz bulk bench growth microbench lint audit tools lab lab-down

demo: lab
	$(CARGO) build --release --bin mbcopy
	$(CARGO) run -p mbcopy-lab --bin lab -- demo --mbcopy target/release/mbcopy

test: lab
	$(CARGO) test --workspace --features mbcopy/faults --lib --bins --test parsers --test spools --test ssh --test paper --test stores
	$(CARGO) test --workspace --features mbcopy/faults --test servers -- --test-threads=1

matrix: lab
	$(CARGO) test --workspace --features mbcopy/faults --test servers -- --test-threads=1 --ignored --nocapture \
		--skip versions

versions: lab
	$(CARGO) test --workspace --features mbcopy/faults --test servers versions -- --test-threads=1 --ignored --nocapture

static: tools
	tools/static.sh

power: lab
	$(CARGO) build --features faults --bin mbcopy
	$(CARGO) run -p mbcopy-lab --bin lab -- power --mbcopy target/debug/mbcopy --runs 100 --side both

# Cyrus's programs are optimized, so is what is measured beside them.
bulk: lab
	$(CARGO) build --release --bin mbcopy
	MBCOPY_PROGRAM=target/release/mbcopy USERS=$(USERS) TARGET=$(TARGET) \
		$(CARGO) test --workspace --features mbcopy/faults --test servers many_users -- --test-threads=1 --ignored --nocapture; \
		status=$$?; rm -rf "$${MBCOPY_LAB:-/var/tmp/mbcopy-lab}/snaps/many"; exit $$status

bench: lab
	$(CARGO) build --release --bin mbcopy
	$(CARGO) run --release -p mbcopy-lab --bin lab -- bench --mbcopy target/release/mbcopy \
		--plot docs/bench.svg

SIZES ?= 1000,10000,100000

growth: lab
	$(CARGO) build --release --bin mbcopy
	$(CARGO) run --release -p mbcopy-lab --bin lab -- growth --mbcopy target/release/mbcopy --sizes $(SIZES) \
		--plot docs/growth.svg

microbench:
	$(CARGO) bench --bench formats --bench wire --bench bulk

RUNS ?= 500
SEED ?= 1

chaos: lab
	$(CARGO) build --bin mbcopy --features mbcopy/faults
	$(CARGO) run -p mbcopy-lab --bin lab -- chaos --runs $(RUNS) --seed $(SEED) \
		--mbcopy target/debug/mbcopy $(if $(OUT),--out $(OUT))

FUZZ_TIME ?= 600
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

fuzz:
	command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	$(CARGO) run --release --manifest-path fuzz/Cargo.toml --example corpus
	for target in $(FUZZ_TARGETS); do \
		$(CARGO) fuzz run --sanitizer none $$target -- -max_total_time=$(FUZZ_TIME) \
			-max_len=20000 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 || exit 1; done

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --features mbcopy/faults --all-targets -- -D warnings
	command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

# Known vulnerabilities of dependencies; needs the advisory database's network.
audit:
	$(CARGO) deny check advisories

# What the tests need of Debian: a C compiler for the bundled libraries, sshd
# for the transport's own test, a browser that looks at reports, a PostgreSQL whose
# programs the tests start by themselves, and what the lab builds its hosts with.
tools:
	@missing=; for tool in cc debootstrap ip nsenter /usr/sbin/sshd ssh-keygen rsync chromium musl-gcc jq systemd-analyze; do \
		command -v $$tool >/dev/null || missing=1; done; \
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing=1; \
	ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || missing=1; \
	if [ -n "$$missing" ]; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
			gcc libc6-dev debootstrap iproute2 util-linux openssh-server openssh-client rsync libfaketime chromium \
			musl-tools postgresql ca-certificates jq systemd; fi
	@[ -d "$$(rustc --print target-libdir --target $(MUSL))" ] || rustup target add $(MUSL) || \
		echo "no $(MUSL) for this toolchain: tools/static.sh builds in the lab's oldest root instead"

lab: tools
	for suite in bullseye bookworm trixie sid mx; do $(LAB) build $$suite || exit; done

lab-down:
	$(LAB) down --all
