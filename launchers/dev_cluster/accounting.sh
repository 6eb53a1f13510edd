# Accounting: slurmdbd, over a MariaDB that listens at a socket in its own directory only.

accounting_port() {
  echo $((options[port] + 1))
}

accounting_storage() {
  if has accounting; then echo slurmdbd; else echo none; fi
}

start_accounting() {
  local socket=$dir/state/mariadb/socket
  mkdir --mode=700 "$dir/state/mariadb"
  # Without tables of grants, which take seconds to make: who reaches the socket may do everything.
  start mariadbd setsid --fork mariadbd --no-defaults --user=root --datadir="$dir/state/mariadb" \
    --socket="$socket" --pid-file="$dir/run/mariadbd.pid" --skip-networking --skip-grant-tables \
    --performance-schema=0 --innodb-buffer-pool-size=64M --innodb-log-file-size=16M \
    --innodb-lock-wait-timeout=900 --innodb-flush-method=nosync
  wait_for mariadbd test -S "$socket"
  fill_in slurmdbd.conf
  chmod 600 "$dir/etc/slurmdbd.conf"
  MYSQL_UNIX_PORT=$socket start slurmdbd slurmdbd
  wait_for slurmdbd listens "$(controller_address)" "$(accounting_port)"
}
