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
  case $1 in be[12]|fe1) murder_conf;; esac
}

murder_conf() { # how a member of the Murder reaches the mupdate master
  cat <<E
mupdate_server: mup
mupdate_port: 3905
mupdate_authname: cyrus
mupdate_username: cyrus
mupdate_password: pw
mupdate_config: standard
mupdate_retry_delay: 1
E
}

murder_start() { # host: what a backend tells the mupdate master at every start
  case $1 in be[12]) echo '  mupdatepush  cmd="/usr/sbin/cyrus ctl_mboxlist -m"';; esac
}

lmtpd_of() { # host: a backend's frontend must be able to log in, which it cannot where all may deliver
  case $1 in be[12]) echo lmtpd;; *) echo "lmtpd -a";; esac
}

murder_services() { # host: the mupdate master's own service, and the frontend's copy of its list
  case $1 in
    mup) echo '  mupdate      cmd="mupdate -m" listen=3905 prefork=1';;
    fe1) echo '  mupdate      cmd="mupdate" listen=3905 prefork=1';;
  esac
}

cyrus_conf() { # host extra imapd.conf: extra.start and extra.services hold further lines
  cat <<E
START {
  recover      cmd="/usr/sbin/cyrus ctl_cyrusdb -r"
$(murder_start "$1")
$(cat "$2.start" 2>/dev/null)
}
SERVICES {
  imap         cmd="imapd -U 30" listen="imap" prefork=0 maxchild=200
  pop3         cmd="pop3d -U 30" listen="pop3" prefork=0 maxchild=20
  lmtpunix     cmd="lmtpd" listen="/run/cyrus/socket/lmtp" prefork=0 maxchild=20
  lmtp         cmd="$(lmtpd_of "$1")" listen="lmtp" prefork=0 maxchild=20
  sieve        cmd="timsieved" listen="sieve" prefork=0 maxchild=20
  csync        cmd="sync_server" listen="csync" prefork=0 maxchild=50
$(! grep -q "^httpmodules:" "$3" || echo '  http         cmd="httpd" listen="http" prefork=0 maxchild=20')
$(murder_services "$1")
$(cat "$2.services" 2>/dev/null)
}
EVENTS {
  checkpoint   cmd="/usr/sbin/cyrus ctl_cyrusdb -c" period=30
}
E
}
