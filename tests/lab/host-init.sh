#!/bin/bash
# host-init.sh LAB HOST SUITE - pid 1 of a lab host: makes its root out of the suite's root and the
# host's own layer, then starts rsyslog and sshd in it.  Run by lab.sh in fresh namespaces.
set -euo pipefail
LAB=$1 HOST=$2 SUITE=$3
DIR=$LAB/hosts/$HOST
ROOT=$DIR/mnt

make_root() {
  mount --make-rprivate /
  mount -t overlay -o "lowerdir=$LAB/roots/$SUITE,upperdir=$DIR/upper,workdir=$DIR/work" "lab-$HOST" "$ROOT"
  mount -t proc proc "$ROOT/proc"
  mount -t tmpfs -o mode=755 tmpfs "$ROOT/run"
  mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
  mkdir -p "$ROOT/run/sshd" "$ROOT/run/lab" "$ROOT/run/lock"
  mount --bind "$LAB/run/shared" "$ROOT/run/lab"
  if [ -n "${MBCOPY_LAB_DISK:-}" ]; then # seen by this host alone, so that it ends with it
    mount "$MBCOPY_LAB_DISK" "$DIR/data"
    touch "$ROOT/run/lab-disk"
  fi
  mount --bind "$DIR/data/lib" "$ROOT/var/lib/cyrus"
  mount --bind "$DIR/data/spool" "$ROOT/var/spool/cyrus"
  mount --bind "$DIR/data/sieve" "$ROOT/var/spool/sieve"
}

make_dev() {
  local dev=$ROOT/dev node
  mount -t tmpfs -o mode=755 tmpfs "$dev"
  mkdir "$dev/pts" "$dev/shm"
  for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
    set -- $node
    mknod -m 666 "$dev/$1" c "$2" "$3"
  done
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$dev/pts"
  mount -t tmpfs -o mode=1777 tmpfs "$dev/shm"
  ln -s pts/ptmx "$dev/ptmx"
  ln -s /proc/self/fd "$dev/fd"
  ln -s /proc/self/fd/0 "$dev/stdin"
  ln -s /proc/self/fd/1 "$dev/stdout"
  ln -s /proc/self/fd/2 "$dev/stderr"
}

make_names() { # links, so that all running hosts learn at once of a new one
  hostname "$HOST"
  echo "$HOST" > "$ROOT/etc/hostname"
  ln -sfn /run/lab/hosts "$ROOT/etc/hosts"
  local service
  for service in csync:2005 lmtp:24 sieve:4190 mupdate:3905; do # Debian's list has no csync
    grep -qE "^${service%:*}[[:space:]]" "$ROOT/etc/services" || echo "${service/:/ }/tcp" >> "$ROOT/etc/services"
  done
}

make_ssh() { # root of every host may log in everywhere, and knows all host keys
  local ssh=$ROOT/root/.ssh
  install -d -m 700 "$ssh"
  install -m 600 "$LAB/run/id_ed25519" "$LAB/run/id_ed25519.pub" "$ssh/"
  install -m 600 "$LAB/run/id_ed25519.pub" "$ssh/authorized_keys"
  ln -sfn /run/lab/known_hosts "$ssh/known_hosts"
  install -m 600 "$DIR"/ssh/ssh_host_ed25519_key* "$ROOT/etc/ssh/"
  cat > "$ROOT/etc/ssh/sshd_config" <<E
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
MaxStartups 100
UseDNS no
UsePAM no
AcceptEnv LANG LC_*
Subsystem sftp /usr/lib/openssh/sftp-server
E
}

make_syslog() {
  cat > "$ROOT/etc/rsyslog.conf" <<'E'
module(load="imuxsock" SysSock.RateLimit.Interval="0")
template(name="lab" type="string" string="%timegenerated:::date-rfc3339% %syslogtag%%msg:::drop-last-lf%\n")
*.* action(type="omfile" file="/var/log/messages" template="lab")
E
}

exec 7> "$DIR/alive.lock" # one init per host, whatever became of those who started them
flock -w 5 7
read -r pid _ < /proc/self/stat # still the machine's /proc: the pid as seen from the machine
make_root
make_dev
make_names
make_ssh
make_syslog
echo "$DIR" > "$ROOT/run/lab-host"
echo "$pid" > "$DIR/pid"
cd "$ROOT"
exec chroot . /bin/bash -c '
  trap : TERM INT HUP
  rsyslogd -n -iNONE </dev/null >/dev/null 2>&1 &
  /usr/sbin/sshd -D -e </dev/null >/var/log/sshd.log 2>&1 &
  while :; do sleep 1000000 & wait $!; done'
