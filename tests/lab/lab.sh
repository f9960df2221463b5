#!/bin/bash
# lab.sh - real Cyrus IMAP servers on one machine.
#
# A "host" is an overlay on a debootstrapped Debian, in its own pid, uts, ipc, mount and network
# namespaces, running Debian's own Cyrus, sshd and rsyslog.  All hosts hang on a bridge that lives
# in a network namespace of its own (mbcopylab, 10.77.0.1): the machine's network is not touched.
#
#   lab.sh build [suite]                   make a root with Cyrus (bookworm; bullseye trixie sid),
#                                          or mx: bookworm with MTAs, proxies and slapd
#   lab.sh up <host> [suite] [ip]          create or start a host; returns when imapd answers
#   lab.sh up <host> --disk <device>       the same, with this filesystem for its data until it stops
#   lab.sh down <host>|--all               stop a host; what it holds is kept
#   lab.sh kill <host>                     end all its processes at once, as when its power fails
#   lab.sh destroy <host>|--all            stop a host and forget all it holds
#   lab.sh status                          the hosts, and which of them run
#
#   lab.sh exec <host> cmd...              run in the host as root (AS=cyrus: as cyrus:mail)
#   lab.sh shell <host>                    an interactive root shell in the host
#   lab.sh client cmd...                   run a command of the machine in the client's network
#   lab.sh log <host> [n]                  the last n lines of its syslog
#   lab.sh root <host>                     its merged root, as a path on the machine
#   lab.sh pid <host>                      its init, as a pid on the machine
#   lab.sh pids <host> [pattern]           its processes (command line matches), likewise
#
#   lab.sh startcyrus|stopcyrus|restartcyrus <host>
#   lab.sh killcyrus <host>                SIGKILL the master and all its children at once
#   lab.sh adduser <host> user[:pw]...     let users log in; the password is "pw"
#   lab.sh set <host> [--reset] "option: value"...
#                                          change imapd.conf and restart Cyrus; "option:" leaves the
#                                          option out, --reset first goes back to the lab's defaults
#   lab.sh conf <host>                     rewrite imapd.conf and cyrus.conf, adding hosts/<host>/
#                                          imapd.conf.extra and cyrus.conf.extra.{start,services}
#
#   lab.sh cut|heal <host>                 unplug its network cable / plug it in again
#   lab.sh snap|unsnap <host> <name>       save / put back all Cyrus data
#   lab.sh empty <host>                    Cyrus data as freshly installed (users still log in)
#
# Hosts that need neither suite nor ip:  bw1 bw2 bw3 (bookworm)  bull bull2 (bullseye)  trix trix2 (trixie)
# sid sid2 (sid)
# mx (mx): programs that lead mail and clients to the others; it has no Cyrus
# and, all bookworm, a Murder: mup (mupdate master)  be1 be2 (backends)  fe1 (frontend); mup comes first
#
# State lives in $MBCOPY_LAB (default /var/tmp/mbcopy-lab), never in the repository.  Cyrus data is
# in hosts/<host>/data/{lib,spool,sieve} there: on the plain file system, not on the overlay.
# $MBCOPY_LAB_MIRROR overrides the Debian mirror that roots are built from, $MBCOPY_LAB_NETNS the
# name of the bridge's namespace: a second lab, with the same addresses, needs one of its own.
set -euo pipefail

HERE=$(dirname "$(readlink -f "$0")")
LAB=$(readlink -m "${MBCOPY_LAB:-/var/tmp/mbcopy-lab}")
MIRROR=${MBCOPY_LAB_MIRROR:-} # empty: the one debootstrap chooses
NETNS=${MBCOPY_LAB_NETNS:-mbcopylab}
NET=10.77.0
PACKAGES="cyrus-imapd cyrus-admin cyrus-clients cyrus-replication cyrus-murder
  sasl2-bin libsasl2-modules openssh-server openssh-client rsync rsyslog
  iproute2 procps strace netbase sqlite3"
MORE="cyrus-caldav" # added to roots that were built without
MTAS="postfix postfix-lmdb postfix-ldap postfix-sqlite dovecot-imapd dovecot-sqlite sqlite3 nginx-light libnginx-mod-mail slapd ldap-utils"
EXIM="exim4-base exim4-daemon-light" # unpacked beside them, below /opt/exim: only one MTA can be installed
EXIM_NEEDS="libgnutls-dane0 libidn12 libnsl2 libpcre2-8-0 libspf2-2"

. "$HERE/cyrus-conf.sh"

die() { echo "lab.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$HERE/lab.sh"; }

known_host() { # "suite ip" of the hosts that everybody knows
  case $1 in
    bw1)  echo bookworm $NET.11;;
    bw2)  echo bookworm $NET.12;;
    bw3)  echo bookworm $NET.13;;
    bull) echo bullseye $NET.21;;
    trix) echo trixie $NET.22;;
    sid)  echo sid $NET.23;;
    bull2) echo bullseye $NET.31;;
    trix2) echo trixie $NET.32;;
    sid2) echo sid $NET.33;;
    mup)  echo bookworm $NET.41;;
    be1)  echo bookworm $NET.42;;
    be2)  echo bookworm $NET.43;;
    fe1)  echo bookworm $NET.44;;
    mx)   echo mx $NET.45;;
  esac
}

wait_for() { # seconds command...: until it succeeds
  local end=$((SECONDS + $1)); shift
  until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done
}

lock() { # fd name [seconds]: held until this script ends; nothing that stays may inherit it (see unlocked)
  mkdir -p "$LAB/run"
  eval "exec $1>'$LAB/run/$2.lock'"
  flock -w "${3:-120}" "$1" || die "cannot get the lock $LAB/run/$2.lock"
}
unlocked() { "$@" 8>&- 9>&-; }

# --- the machine --------------------------------------------------------------------------------

need_tools() { # command:package...
  local tool missing=()
  for tool in "$@"; do command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}"); done
  [ ${#missing[@]} = 0 ] && return
  echo "lab.sh: installing ${missing[*]}" >&2
  { apt-get -q update && DEBIAN_FRONTEND=noninteractive \
      apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}"; } >&2
}

network_up() {
  ip -n $NETNS link show br0 >/dev/null 2>&1 && return
  ip netns del $NETNS 2>/dev/null || rm -f /run/netns/$NETNS
  ip netns add $NETNS
  ip -n $NETNS link set lo up
  ip -n $NETNS link add br0 type bridge
  ip -n $NETNS addr add $NET.1/24 dev br0
  ip -n $NETNS link set br0 up
}

in_client() { # with the hosts' names resolving
  exec nsenter --net=/run/netns/$NETNS unshare --mount \
    sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$LAB/run/shared/hosts" "$@"
}

# --- roots --------------------------------------------------------------------------------------

build() {
  local suite=${1:-bookworm}
  case $suite in bookworm|bullseye|trixie|sid|mx) ;; *) die "unknown suite $suite";; esac
  [ "$suite" != mx ] || "$HERE/lab.sh" build bookworm >&2
  need_tools debootstrap:debootstrap unshare:util-linux flock:util-linux
  lock 9 "build-$suite" 1800
  if is_built "$suite"; then
    has_more "$suite" || unshare --mount --pid --fork --kill-child --mount-proc "$HERE/lab.sh" _add "$suite"
    echo "$suite is built"
    return
  fi
  local host
  for host in $(hosts); do
    if [ "$(cat "$LAB/hosts/$host/suite")" = "$suite" ] && init_pid "$host" >/dev/null; then
      die "$suite must be rebuilt, but $host is running on it: lab.sh down $host"
    fi
  done
  # own namespaces, so that neither a mount nor a process can be left behind
  unshare --mount --pid --fork --kill-child --mount-proc "$HERE/lab.sh" _build "$suite"
}

is_built() { [ "$(cat "$LAB/roots/$1/.lab-built" 2>/dev/null)" = "$(packages "$1")" ]; }
packages() { case $1 in mx) echo "$MTAS $EXIM";; *) echo "$PACKAGES";; esac; }
has_more() { [ "$(cat "$LAB/roots/$1/.lab-more" 2>/dev/null)" = "$MORE" ]; }

add_more() { # to a root that may be in use: only new files come
  local root=$LAB/roots/$1
  mount -t proc proc "$root/proc"
  mount --bind /dev "$root/dev"
  DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" \
    sh -ec "get() { apt-get -q -y --no-upgrade install $MORE; }; get || { apt-get -q update; get; }; apt-get clean"
  umount "$root/dev" "$root/proc"
  echo "$MORE" > "$root/.lab-more"
}

build_mx() { # on top of bookworm
  local new=$LAB/roots/mx.new
  rm -rf --one-file-system "$new"
  cp -a "$LAB/roots/bookworm/." "$new"
  cp -L /etc/resolv.conf "$new/etc/resolv.conf" || true
  mount -t proc proc "$new/proc"
  mount --bind /dev "$new/dev"
  DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$new" sh -ec "
    apt-get -q update
    apt-get -q -y install $MTAS $EXIM_NEEDS
    mkdir -p /opt/exim && cd /opt/exim
    apt-get -q download $EXIM
    for package in *.deb; do dpkg-deb -x \$package . && rm \$package; done
    apt-get clean"
  umount "$new/dev" "$new/proc"
  packages mx > "$new/.lab-built"
  rm -rf --one-file-system "$LAB/roots/mx"
  mv "$new" "$LAB/roots/mx"
}

build_root() { # beside the final place: a half-finished root never gets its name
  local suite=$1 root=$LAB/roots/$1 new=$LAB/roots/$1.new
  rm -rf --one-file-system "$new"
  mkdir -p "$new"
  debootstrap --variant=minbase "$suite" "$new" ${MIRROR:+"$MIRROR"}
  printf '#!/bin/sh\nexit 101\n' > "$new/usr/sbin/policy-rc.d"
  chmod 755 "$new/usr/sbin/policy-rc.d"
  echo force-unsafe-io > "$new/etc/dpkg/dpkg.cfg.d/lab"
  # sid's index is valid for a few days only, and a machine's clock may be ahead
  printf 'APT::Install-Recommends "false";\nAcquire::Check-Valid-Until "false";\n' \
    > "$new/etc/apt/apt.conf.d/99lab"
  cp -L /etc/resolv.conf "$new/etc/resolv.conf" || true
  mount -t proc proc "$new/proc"
  mount --bind /dev "$new/dev"
  DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$new" \
    sh -ec "apt-get -q update; apt-get -q -y install $(echo $PACKAGES $MORE); apt-get clean"
  umount "$new/dev" "$new/proc"
  rm -f "$new"/etc/ssh/ssh_host_*
  echo "$PACKAGES" > "$new/.lab-built"
  echo "$MORE" > "$new/.lab-more"
  rm -rf --one-file-system "$root"
  mv "$new" "$root"
  chroot "$root" dpkg-query -W cyrus-imapd openssh-server rsync
}

# --- hosts --------------------------------------------------------------------------------------

hosts() { local dir; for dir in "$LAB"/hosts/*/; do [ -e "$dir/suite" ] && basename "$dir"; done; true; }

init_pid() { # pid of the host's init; fails if the host is not running (a stale pid does not fool it)
  local pid
  pid=$(cat "$LAB/hosts/$1/pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ "$(cat "/proc/$pid/root/run/lab-host" 2>/dev/null)" = "$LAB/hosts/$1" ] && echo "$pid"
}

need_pid() { init_pid "$1" || die "host $1 is not up"; }

in_host() { # host command...: as root, or as $AS
  local pid as=() home=/root
  pid=$(need_pid "$1"); shift
  if [ -n "${AS:-}" ] && [ "$AS" != root ]; then
    home=/var/spool/cyrus as=(setpriv "--reuid=$AS" --regid=mail --init-groups --)
  fi
  unlocked nsenter -t "$pid" -m -u -i -n -p -r -w env -i HOME=$home LANG=C.UTF-8 TERM="${TERM:-dumb}" \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/cyrus/bin "${as[@]}" "$@"
}

up() {
  local host=$1 dir=$LAB/hosts/$1 suite ip pid
  if pid=$(init_pid "$host"); then
    if [ -e "/proc/$pid/root/run/lab-complete" ]; then
      start_cyrus "$host"
      echo "$host is up: init $pid"
      return
    fi
    kill_init "$pid" # whoever started it did not live to finish
  fi
  read -r suite ip < <(known_host "$host") || true
  suite=${2:-$(cat "$dir/suite" 2>/dev/null || echo "${suite:-}")}
  ip=${3:-$(cat "$dir/ip" 2>/dev/null || echo "${ip:-}")}
  [ -n "$suite" ] && [ -n "$ip" ] || die "$host is new here: lab.sh up $host <suite> <ip>"
  if [ -e "$dir/suite" ] && [ "$(cat "$dir/suite")" != "$suite" ]; then
    die "$host exists as $(cat "$dir/suite"): destroy it first"
  fi
  need_tools ip:iproute2 nsenter:util-linux pgrep:procps ssh-keygen:openssh-client
  { is_built "$suite" && has_more "$suite"; } || "$HERE/lab.sh" build "$suite" >&2

  mkdir -p "$dir"/{upper,work,mnt,data,ssh}
  echo "$suite" > "$dir/suite"; echo "$ip" > "$dir/ip"
  [ -e "$dir/data/.complete" ] || fresh_data "$host"
  [ -e "$dir/ssh/ssh_host_ed25519_key.pub" ] || ssh_key "$dir/ssh/ssh_host_ed25519_key" "$host"
  publish_names
  start_init "$host" "$suite"
  pid=$(need_pid "$host")
  plug_in "$host" "$pid" "$ip"
  write_conf "$host"
  add_users "$host" cyrus
  touch "/proc/$pid/root/run/lab-complete"
  start_cyrus "$host"
  echo "$host is up: $suite $ip init $pid"
}

ssh_key() { # file comment
  rm -f "$1" "$1.pub"
  ssh-keygen -q -t ed25519 -N '' -C "$2" -f "$1"
}

publish_names() { # /etc/hosts and known_hosts of all hosts, replaced as a whole
  local shared=$LAB/run/shared host
  mkdir -p "$shared"
  lock 9 names
  [ -e "$LAB/run/id_ed25519.pub" ] || ssh_key "$LAB/run/id_ed25519" lab
  { echo "127.0.0.1 localhost"; echo "$NET.1 client"; } > "$shared/hosts.new"
  : > "$shared/known_hosts.new"
  for host in $(hosts); do
    [ -s "$LAB/hosts/$host/ip" ] || continue
    echo "$(cat "$LAB/hosts/$host/ip") $host" >> "$shared/hosts.new"
    [ -e "$LAB/hosts/$host/ssh/ssh_host_ed25519_key.pub" ] || continue
    echo "$host,$(cat "$LAB/hosts/$host/ip") $(cat "$LAB/hosts/$host/ssh/ssh_host_ed25519_key.pub")" >> "$shared/known_hosts.new"
  done
  mv "$shared/hosts.new" "$shared/hosts"
  mv "$shared/known_hosts.new" "$shared/known_hosts"
  network_up
  exec 9>&-
}

start_init() { # host suite
  local dir=$LAB/hosts/$1
  unlocked bash -c 'setsid unshare --mount --uts --ipc --net --pid --fork --kill-child=SIGKILL "$@" &' - \
    bash "$HERE/host-init.sh" "$LAB" "$1" "$2" </dev/null >"$dir/init.log" 2>&1
  wait_for 20 host_ready "$1" || { cat "$dir/init.log" >&2; die "$1 does not come up"; }
}

host_ready() { # its syslog and its sshd listen
  local pid
  pid=$(init_pid "$1") && [ -S "/proc/$pid/root/dev/log" ] && [ -e "/proc/$pid/root/run/sshd.pid" ]
}

plug_in() { # host pid ip
  local cable=v-$1 mac
  mac=$(printf '02:00:%02x:%02x:%02x:%02x' ${3//./ }) # the same after a restart, as a machine's is
  ip -n $NETNS link del "$cable" 2>/dev/null || true
  ip -n $NETNS link add "$cable" type veth peer name eth0 address "$mac" netns "$2"
  ip -n $NETNS link set "$cable" master br0 up
  nsenter -t "$2" -n ip link set lo up
  nsenter -t "$2" -n ip addr add "$3/24" dev eth0
  nsenter -t "$2" -n ip link set eth0 up
}

down() {
  local pid
  if pid=$(init_pid "$1"); then
    stop_cyrus "$1" || true
    kill_init "$pid"
  fi
  for pid in $(strays "$1"); do kill_init "$pid"; done
  rm -f "$LAB/hosts/$1/pid"
}

kill_host() { # nothing in it is told
  local pid
  for pid in $(init_pid "$1") $(strays "$1"); do kill_init "$pid"; done
  rm -f "$LAB/hosts/$1/pid"
}

kill_init() { # its whole pid namespace, mounts and network go with it
  kill -KILL "$1" 2>/dev/null || true
  wait_for 20 not_running "$1" || die "cannot end init $1"
}
not_running() { [ ! -e "/proc/$1" ]; }

strays() { # [host]: inits of this lab that its state does not know of
  local marker pid
  for marker in /proc/[0-9]*/root/run/lab-host; do
    pid=${marker#/proc/}; pid=${pid%%/*}
    [[ $(cat "$marker" 2>/dev/null) == "$LAB"/hosts/${1:-*} ]] || continue
    [ "$(awk '/^NSpid:/ {print $NF}' "/proc/$pid/status" 2>/dev/null)" = 1 ] && echo "$pid"
  done
  true
}

down_all() {
  local host pid
  for host in $(hosts); do "$HERE/lab.sh" down "$host"; done
  for pid in $(strays); do kill_init "$pid"; done
  # another lab (another $MBCOPY_LAB) may hang on the same bridge
  [ -n "$(ip -n $NETNS -o link show type veth 2>/dev/null)" ] || ip netns del $NETNS 2>/dev/null || true
}

destroy() {
  down "$1"
  rm -rf --one-file-system "${LAB:?}/hosts/${1:?}"
  publish_names
}

destroy_all() {
  down_all
  rm -rf --one-file-system "${LAB:?}/hosts"
}

status() {
  local host pid state
  for host in $(hosts); do
    state=down
    if pid=$(init_pid "$host"); then
      state="up: init $pid, Cyrus $(master_pid "$host" >/dev/null && echo runs || echo stopped)"
    fi
    printf '%-12s %-9s %-12s %s\n' "$host" "$(cat "$LAB/hosts/$host/suite")" "$(cat "$LAB/hosts/$host/ip")" "$state"
  done
}

pids() { # host [pattern]
  local pid
  pid=$(need_pid "$1")
  pgrep --ns "$pid" --nslist pid -f -- "${2:-.}"
}

# --- Cyrus --------------------------------------------------------------------------------------

write_conf() {
  local host=$1 dir=$LAB/hosts/$1 etc
  etc=/proc/$(need_pid "$host")/root/etc
  imapd_conf "$host" "$dir/imapd.conf.extra" > "$etc/imapd.conf"
  cyrus_conf "$host" "$dir/cyrus.conf.extra" "$etc/imapd.conf" > "$etc/cyrus.conf"
}

set_options() { # host [--reset] "option: value"...: kept in its imapd.conf.extra
  local host=$1 extra=$LAB/hosts/$1/imapd.conf.extra option; shift
  need_pid "$host" >/dev/null || exit
  [ "${1:-}" != --reset ] || { rm -f "$extra"; shift; }
  for option in "$@"; do
    [[ $option == *:* ]] || die "not an option for imapd.conf: $option"
    touch "$extra"
    awk -F: -v name="${option%%:*}" '$1 != name' "$extra" > "$extra.new"
    echo "$option" >> "$extra.new"
    mv "$extra.new" "$extra"
  done
  write_conf "$host"
  restart_cyrus "$host"
}

master_pid() { # inside the host
  in_host "$1" bash -c 'read -r pid < /run/cyrmaster.pid && [ "$(cat /proc/$pid/comm)" = cyrmaster ] && echo $pid' 2>/dev/null
}

imap_answers() {
  in_host "$1" timeout 3 bash -c 'exec 3<>/dev/tcp/127.0.0.1/143 && read -r line <&3 && [[ $line == "* OK"* ]]' 2>/dev/null
}

start_cyrus() {
  [ "$(cat "$LAB/hosts/$1/suite")" != mx ] || return 0 # Dovecot has taken its place
  if ! master_pid "$1" >/dev/null; then
    # directories must belong to cyrus: one made by root breaks the locks
    in_host "$1" bash -ec '
      install -d -o cyrus -g mail /run/cyrus /run/cyrus/{proc,lock,socket}
      # what a killed imapd leaves may vanish meanwhile
      find /run/cyrus -ignore_readdir_race ! -user cyrus -exec chown cyrus:mail {} +
      sed -nE "s/^(configdirectory|sievedir|(meta|archive|backup)?partition-[^:]*): *//p" /etc/imapd.conf |
        while read -r dir; do [ -d "$dir" ] || install -d -o cyrus -g mail -m 750 "$dir"; done
      install -d -o cyrus -g mail -m 750 /var/lib/cyrus/sync
      cd /
      setsid cyrmaster -l 32 -p /run/cyrmaster.pid -C /etc/imapd.conf -M /etc/cyrus.conf \
        </dev/null >>/var/log/cyrmaster.out 2>&1 &'
  fi
  wait_for 20 imap_answers "$1" && return
  in_host "$1" tail -n 20 /var/log/messages >&2 || true
  echo "lab.sh: imapd of $1 does not answer; its syslog ends as above" >&2
  return 1
}

stop_cyrus() { # politely, but not for ever
  local master
  master=$(master_pid "$1") || return 0
  in_host "$1" bash -c '
    kill -TERM $0
    for i in {1..100}; do pgrep -s $0 >/dev/null || exit 0; sleep 0.1; done
    pkill -KILL -s $0' "$master" || true
  in_host "$1" rm -f /run/cyrmaster.pid
}

kill_cyrus() { # the master is stopped first, so that it sees and says nothing
  local master
  master=$(master_pid "$1") || return 0
  in_host "$1" bash -c '
    kill -STOP $0; pkill -KILL -s $0
    for i in {1..100}; do pgrep -s $0 >/dev/null || exit 0; sleep 0.05; done; exit 1' "$master"
}

restart_cyrus() { stop_cyrus "$1"; start_cyrus "$1"; }

add_users() { # host user[:password]...
  in_host "$1" bash -ec '
    for user in "${@:2}"; do
      password=pw; [[ $user != *:* ]] || password=${user#*:}
      printf %s "$password" | saslpasswd2 -p -c -u "$1" "${user%%:*}"
    done
    chmod 644 /etc/sasldb2' - "$@"
}

# --- Cyrus data ---------------------------------------------------------------------------------

own_data() { # not on a disk that is mounted in the host alone
  local pid
  if pid=$(init_pid "$1") && [ -e "/proc/$pid/root/run/lab-disk" ]; then
    die "the data of $1 are on a disk of its own: lab.sh down $1 first"
  fi
}

fresh_data() { # as the packages install it
  local root data=$LAB/hosts/$1/data
  root=$LAB/roots/$(cat "$LAB/hosts/$1/suite")
  replace_data "$data" "$root/var/lib/cyrus" "$root/var/spool/cyrus" "$root/var/spool/sieve"
}

replace_data() { # data lib spool sieve: the three directories stay, being mounted in the host
  local data=$1 part
  rm -f "$data/.complete"
  mkdir -p "$data"/{lib,spool,sieve}
  for part in lib spool sieve; do
    shift
    find "$data/$part" -xdev -mindepth 1 -delete
    cp -a "$1/." "$data/$part/"
  done
  touch "$data/.complete"
}

with_cyrus_stopped() { # host command...: afterwards Cyrus runs again, if it did
  local host=$1 ran=; shift
  if init_pid "$host" >/dev/null; then
    if master_pid "$host" >/dev/null; then ran=1; fi
    stop_cyrus "$host"
  fi
  "$@"
  [ -z "$ran" ] || start_cyrus "$host"
}

snap() { # host name
  local to=$LAB/snaps/$2/$1
  rm -rf --one-file-system "$to" "$to.new"
  mkdir -p "$to.new"
  cp -a "$LAB/hosts/$1/data/"{lib,spool,sieve} "$to.new/"
  mv "$to.new" "$to"
}

unsnap() { # host name
  local from=$LAB/snaps/$2/$1
  replace_data "$LAB/hosts/$1/data" "$from/lib" "$from/spool" "$from/sieve"
}

# ------------------------------------------------------------------------------------------------

command=${1:-help}; [ $# = 0 ] || shift
case $command in
  help|-h|--help) usage; exit;;
  build|status|client|_build|_add) ;;
  down|destroy) [ $# = 1 ] || die "$command <host>|--all";;
  *) [ $# -ge 1 ] || die "$command <host> ...; see lab.sh help";;
esac
[ "$(id -u)" = 0 ] || die "must run as root"
host=${1:-}
case $command in
  up|build|down|destroy|status|client|_build|_add) ;;
  *) [ -e "$LAB/hosts/$host/suite" ] || die "no host $host; see lab.sh status";;
esac
[ "$command" != up ] || [[ $host =~ ^[a-z][a-z0-9-]{0,11}$ ]] || die "not a host name for the lab: $host"
[ "$command" = exec ] || unset AS
case $command in # commands that change a host take turns
  up|kill|startcyrus|stopcyrus|restartcyrus|killcyrus|conf|set|adduser|snap|unsnap|empty) lock 8 "host-$host";;
  down|destroy) [ "$host" = --all ] || lock 8 "host-$host";;
esac

case $command in snap|unsnap|empty) own_data "$host";; esac
if [ "$command" = up ] && [ "${2:-}" = --disk ]; then
  export MBCOPY_LAB_DISK=${3:?the device}
  set -- "$host"
fi

case $command in
  build)        build "$@";;
  _build)       case $1 in mx) build_mx;; *) build_root "$1";; esac;;
  _add)         add_more "$1";;
  up)           up "$@";;
  down)         if [ "$host" = --all ]; then down_all; else down "$host"; fi;;
  kill)         kill_host "$host";;
  destroy)      if [ "$host" = --all ]; then destroy_all; else destroy "$host"; fi;;
  status)       status;;
  exec)         shift; in_host "$host" "$@";;
  shell)        in_host "$host" bash -l;;
  client)       network_up; in_client "$@";;
  log)          pid=$(need_pid "$host"); tail -n "${2:-40}" "/proc/$pid/root/var/log/messages";;
  root)         pid=$(need_pid "$host"); echo "/proc/$pid/root";;
  pid)          need_pid "$host";;
  pids)         pids "$@";;
  startcyrus)   start_cyrus "$host";;
  stopcyrus)    stop_cyrus "$host";;
  restartcyrus) restart_cyrus "$host";;
  killcyrus)    kill_cyrus "$host";;
  adduser)      add_users "$@";;
  conf)         write_conf "$host";;
  set)          set_options "$@";;
  cut)          ip -n $NETNS link set "v-$host" down;;
  heal)         ip -n $NETNS link set "v-$host" up;;
  snap)         [ $# = 2 ] || die "snap <host> <name>"
                with_cyrus_stopped "$host" snap "$@";;
  unsnap)       [ -d "$LAB/snaps/${2:-}/$host" ] || die "no snap ${2:-} of $host"
                with_cyrus_stopped "$host" unsnap "$@";;
  empty)        with_cyrus_stopped "$host" fresh_data "$host";;
  *)            die "no command $command; see lab.sh help";;
esac
