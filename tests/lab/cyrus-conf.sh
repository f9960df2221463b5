# cyrus-conf.sh - imapd.conf and cyrus.conf of a lab host; sourced by lab.sh

imapd_conf() { # host extra: an option in the file extra replaces ours (Cyrus takes no option twice)
  [ -e "$2" ] || set -- "$1" /dev/null
  imapd_conf_base "$1" | awk -F: -v extra="$2" '
    BEGIN { while ((getline line < extra) > 0) {
      name = line; sub(/:.*/, "", name)
      if (line ~ /^[a-z0-9_.-]+:/) given[name] = 1
      if (line !~ /^[^:]*:[ \t]*$/) lines[++n] = line    # "option:" only leaves the option out
    } }
    !($1 in given)
    END { for (i = 1; i <= n; i++) print lines[i] }'
}

imapd_conf_base() { # host
  cat <<E
servername: $1
configdirectory: /var/lib/cyrus
proc_path: /run/cyrus/proc
mboxname_lockpath: /run/cyrus/lock
lmtpsocket: /run/cyrus/socket/lmtp
idlesocket: /run/cyrus/socket/idle
notifysocket: /run/cyrus/socket/notify
syslog_prefix: cyrus
defaultpartition: default
partition-default: /var/spool/cyrus/mail
partition-p2: /var/spool/cyrus/p2
hashimapspool: yes
altnamespace: no
unixhierarchysep: no
virtdomains: off
umask: 077
admins: cyrus
proxyservers: cyrus
allowplaintext: yes
sasl_mech_list: PLAIN
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_auto_transition: no
proxy_authname: cyrus
proxy_password: pw
sync_authname: cyrus
sync_password: pw
sync_shutdown_file: /var/lib/cyrus/sync/shutdown
sync_timeout: 300
allowusermoves: yes
allowallsubscribe: yes
delete_mode: delayed
expunge_mode: delayed
autocreate_quota: -1
quotawarnpercent: 90
lmtp_downcase_rcpt: yes
duplicatesuppression: no
maxmessagesize: 0
sieveusehomedir: false
sievedir: /var/spool/sieve
specialusealways: yes
annotation_allow_undefined: yes
E
}

cyrus_conf() { # extra imapd.conf: extra.start and extra.services hold further lines
  cat <<E
START {
  recover      cmd="/usr/sbin/cyrus ctl_cyrusdb -r"
$(cat "$1.start" 2>/dev/null)
}
SERVICES {
  imap         cmd="imapd -U 30" listen="imap" prefork=0 maxchild=200
  pop3         cmd="pop3d -U 30" listen="pop3" prefork=0 maxchild=20
  lmtpunix     cmd="lmtpd" listen="/run/cyrus/socket/lmtp" prefork=0 maxchild=20
  lmtp         cmd="lmtpd -a" listen="lmtp" prefork=0 maxchild=20
  sieve        cmd="timsieved" listen="sieve" prefork=0 maxchild=20
  csync        cmd="sync_server" listen="csync" prefork=0 maxchild=50
$(! grep -q "^httpmodules:" "$2" || echo '  http         cmd="httpd" listen="http" prefork=0 maxchild=20')
$(cat "$1.services" 2>/dev/null)
}
EVENTS {
  checkpoint   cmd="/usr/sbin/cyrus ctl_cyrusdb -c" period=30
}
E
}
