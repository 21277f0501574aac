//! MariaDB, whose server speaks first; PostgreSQL, whose clients do, in binary; Redis, whose clients speak in lines.

use anyhow::ensure;
use weft_e2e::Cluster;

use crate::{Port, Test, client};

pub const TESTS: &[(&str, Test)] = &[
    ("mariadb_on_its_port", |cluster| mariadb(cluster, Port::opaque("mariadb", 3306))),
    ("mariadb_on_an_undeclared_port", |cluster| {
        mariadb(cluster, Port::undeclared("mariadb", 13306, &["server_first"]))
    }),
    ("postgresql_on_its_port", |cluster| postgresql(cluster, Port::opaque("postgres", 5432))),
    ("postgresql_on_an_undeclared_port", |cluster| {
        postgresql(cluster, Port::undeclared("postgres", 15432, &["not_http"]))
    }),
    ("redis_on_its_port", |cluster| redis(cluster, Port::opaque("redis", 6379))),
    ("redis_on_an_undeclared_port", |cluster| redis(cluster, Port::undeclared("redis", 16379, &["not_http"]))),
];

fn mariadb(cluster: &Cluster, port: Port) -> anyhow::Result<()> {
    let sql =
        format!("mariadb --no-defaults -h mariadb -P {} -uapp -papp -N -B --max-allowed-packet=64M app", port.service);
    let said = client(
        cluster,
        &format!(
            "{sql} -e \"create or replace table t (id int primary key auto_increment, b longblob);
                       insert into t (b) values (repeat('x', 16777216)), ('short');
                       select id, length(b) from t order by id;
                       prepare s from 'select ? + 1'; set @n = 41; execute s using @n\"
             {sql} -e \"select b from t where id = 1\" | tr -d '\\n' | sha256sum
             head -c 16777216 /dev/zero | tr '\\0' x | sha256sum"
        ),
    )?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 5 && lines[..3] == ["1\t16777216", "2\t5", "42"] && lines[3] == lines[4], "{said}");
    // An error of the server's, and many clients.
    let said = client(
        cluster,
        &format!(
            "{sql} -e 'select * from nothing' 2>&1 || true
             for n in $(seq 20); do {sql} -e 'insert into t (b) values (connection_id())' & done; wait
             {sql} -e 'select count(*) from t'"
        ),
    )?;
    ensure!(said.contains("ERROR 1146") && said.ends_with("\n22\n"), "{said}");
    port.was_secured(cluster)
}

fn postgresql(cluster: &Cluster, port: Port) -> anyhow::Result<()> {
    let psql = format!("psql -h postgres -p {} -U app -X -q -t -A -v ON_ERROR_STOP=1 postgres", port.service);
    let said = client(
        cluster,
        &format!(
            "{psql} -c 'create table t (n int)' -c 'insert into t select generate_series(1, 200000)'
             {psql} -c 'copy t to stdout' | {psql} -c 'copy t from stdin'
             {psql} -c 'select count(*), sum(n) from t' -c \"select md5(repeat('x', 50000000))\"
             {psql} -c \"select repeat('x', 50000000)\" | tr -d '\\n' | md5sum"
        ),
    )?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 3 && lines[0] == "400000|40000200000" && lines[2] == format!("{}  -", lines[1]), "{said}");
    // A query is cancelled over a connection of its own. It must have begun, or psql ends by the signal itself.
    let running = "select count(*) from pg_stat_activity where query = 'select pg_sleep(10000)' and state = 'active'";
    let said = client(
        cluster,
        &format!(
            "{psql} -c 'select pg_sleep(10000)' 2>&1 & psql=$!
             until [ \"$({psql} -c \"{running}\")\" = 1 ]; do sleep 0.1; done
             kill -INT $psql; wait $psql || true"
        ),
    )?;
    ensure!(said.contains("canceling statement due to user request"), "{said}");
    let bench = format!("$(echo /usr/lib/postgresql/*/bin/pgbench) -h postgres -p {} -U app", port.service);
    let said =
        client(cluster, &format!("{bench} -i -q -s 1 postgres 2>&1; {bench} -c 8 -t 50 -M prepared postgres 2>&1"))?;
    ensure!(said.contains("number of transactions actually processed: 400/400"), "{said}");
    port.was_secured(cluster)
}

fn redis(cluster: &Cluster, port: Port) -> anyhow::Result<()> {
    let number = port.service;
    let redis = format!("redis-cli -h redis -p {number}");
    let said = client(
        cluster,
        &format!(
            "head -c 20000000 /dev/urandom >/tmp/value
             {redis} -x set large </tmp/value
             {redis} get large | head -c 20000000 | cmp - /tmp/value && echo same
             seq 50000 | sed 's/.*/set key& value&/' | {redis} --pipe | tail -n 1
             {redis} get key50000; {redis} dbsize
             {redis} not-a-command; {redis} flushall; rm /tmp/value"
        ),
    )?;
    let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    ensure!(lines[..5] == ["OK", "same", "errors: 0, replies: 50000", "value50000", "50001"], "{said}");
    ensure!(lines[5].starts_with("ERR unknown command") && lines[6..] == ["OK"], "{said}");
    // A subscriber is silent, and is told something in the end.
    let said = client(
        cluster,
        &format!(
            "{redis} subscribe news | head -n 6 & subscriber=$!
             until [ \"$({redis} publish news hello)\" = 1 ]; do sleep 0.1; done
             {redis} client kill type pubsub; wait $subscriber"
        ),
    )?;
    ensure!(said.contains("subscribe\nnews\n1\n") && said.contains("message\nnews\nhello\n"), "{said}");
    // Lines that a person types look a little like HTTP.
    let said = client(
        cluster,
        &format!("printf 'PING\\r\\nGET key\\r\\nQUIT\\r\\n' | curl -sS -m 100 telnet://redis:{number}"),
    )?;
    ensure!(said == "+PONG\r\n$-1\r\n+OK\r\n", "{said:?}");
    port.was_secured(cluster)
}
