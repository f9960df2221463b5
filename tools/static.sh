#!/bin/bash
# static.sh - leaves target/static/mbcopy: one program that starts on every Linux of this
# architecture, whatever its C library.
#
# Linked against musl where rustup has the target (the allocator is mimalloc, so musl's own slow
# one does not matter); else built inside the oldest root of the lab, so that it needs no newer
# glibc than that one has. MBCOPY_STATIC=musl|oldest asks for one of them.
set -euo pipefail

HERE=$(dirname "$(readlink -f "$0")")/..
TARGET=$(readlink -m "${CARGO_TARGET_DIR:-$HERE/target}")
OUT=$TARGET/static/mbcopy
PROFILE=release FLAGS=--release
if [ "${1:-}" = --faults ]; then # as the tests want it: target/static/mbcopy-faults
  shift; OUT+=-faults PROFILE=debug FLAGS="--features faults"
fi
TRIPLE=$(uname -m)-unknown-linux-musl
OLDEST=bullseye # glibc 2.31

die() { echo "static.sh: $*" >&2; exit 1; }

has_musl() { # the target's libraries, and a C compiler for what is bundled
  [ -d "$(rustc --print sysroot)/lib/rustlib/$TRIPLE/lib" ] || rustup target add "$TRIPLE" || return 1
  command -v musl-gcc >/dev/null && return
  apt-get -q update && DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y install --no-install-recommends musl-tools || return 1
}

build_musl() {
  (cd "$HERE" && cargo build $FLAGS --bin mbcopy --target "$TRIPLE" --target-dir "$TARGET")
  cp "$TARGET/$TRIPLE/$PROFILE/mbcopy" "$OUT.new"
}

build_oldest() { # in namespaces of its own: nothing that is mounted is left behind
  local lab=${MBCOPY_LAB:-/var/tmp/mbcopy-lab}
  "$HERE/tests/lab/lab.sh" build $OLDEST
  (cd "$HERE" && cargo fetch --locked)
  mkdir -p "$TARGET/static/"{upper,work,mnt,$OLDEST}
  unshare --mount --pid --fork --kill-child --mount-proc \
    "$0" _inside "$lab/roots/$OLDEST" "$TARGET/static" "$FLAGS"
  cp "$TARGET/static/$OLDEST/$PROFILE/mbcopy" "$OUT.new"
}

inside() { # root directory: the root is not changed, what is installed goes over it
  local root=$1 dir=$2 mnt=$2/mnt flags=$3
  mount -t overlay overlay -o "lowerdir=$root,upperdir=$dir/upper,workdir=$dir/work" "$mnt"
  mkdir -p "$mnt"/{mbcopy,out,rust,cargo/registry}
  mount -t proc proc "$mnt/proc"
  mount --bind /dev "$mnt/dev"
  mount --bind "$dir/$OLDEST" "$mnt/out"
  local pair
  for pair in "$HERE:mbcopy" "$(rustc --print sysroot):rust" \
    "${CARGO_HOME:-$HOME/.cargo}/registry:cargo/registry"; do
    mount --bind "${pair%:*}" "$mnt/${pair#*:}"
    mount -o remount,bind,ro "$mnt/${pair#*:}"
  done
  cp -L /etc/resolv.conf "$mnt/etc/resolv.conf" || true
  FLAGS=$flags chroot "$mnt" /bin/sh -ec '
    command -v gcc >/dev/null || {
      apt-get -q update
      DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends gcc libc6-dev
    }
    cd /mbcopy
    export PATH=/rust/bin:$PATH CARGO_HOME=/cargo CARGO_TARGET_DIR=/out
    cargo build $FLAGS --bin mbcopy --locked --offline'
}

if [ "${1:-}" = _inside ]; then shift; inside "$@"; exit; fi
mkdir -p "$TARGET/static"
case ${MBCOPY_STATIC:-} in
  musl)   has_musl || die "rustup has no $TRIPLE, or there is no musl-gcc"; build_musl;;
  oldest) build_oldest;;
  '')     if has_musl; then build_musl; else build_oldest; fi;;
  *)      die "MBCOPY_STATIC is musl or oldest";;
esac
mv "$OUT.new" "$OUT"
file "$OUT" 2>/dev/null || ls -l "$OUT"
