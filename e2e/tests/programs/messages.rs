//! Exim, whose server speaks first; sshd, where both speak at once; two brokers with binary protocols: Mosquitto, and one
//! that speaks Kafka's to the client that everybody uses for it.

use anyhow::ensure;
use weft_e2e::{Cluster, wait_for};

use crate::{Port, Test, case, client, server};

pub const TESTS: &[(&str, Test)] = &[
    ("exim_on_its_port", |cluster| exim(cluster, Port::opaque("exim", 25))),
    ("exim_on_an_undeclared_port", |cluster| exim(cluster, Port::undeclared("exim", 2525, &["server_first"]))),
    ("sshd_on_its_port", |cluster| sshd(cluster, Port::opaque("sshd", 22))),
    ("sshd_on_an_undeclared_port", |cluster| {
        sshd(cluster, Port::undeclared("sshd", 2022, &["not_http", "server_first"]))
    }),
    ("mosquitto_on_its_port", |cluster| mosquitto(cluster, Port::opaque("mosquitto", 1883))),
    ("mosquitto_on_an_undeclared_port", |cluster| {
        mosquitto(cluster, Port::undeclared("mosquitto", 11883, &["not_http"]))
    }),
    ("kafka_on_its_port", |cluster| kafka(cluster, Port::opaque("kafka", 9092))),
    ("kafka_on_an_undeclared_port", |cluster| kafka(cluster, Port::undeclared("kafka", 19092, &["not_http"]))),
];

fn exim(cluster: &Cluster, port: Port) -> anyhow::Result<()> {
    let number = port.service.to_string();
    client(
        cluster,
        &format!(
            "printf 'Subject: from curl\\r\\n\\r\\nto port {number}\\r\\n' >/tmp/mail
             curl -sS -m 100 smtp://exim:{number} --mail-from a@example.com --mail-rcpt b@example.com -T /tmp/mail"
        ),
    )?;
    case(cluster, "smtp_client.py", &["exim", &number])?;
    wait_for("the mails are delivered", || {
        let mailbox = server(cluster, "exim", "cat /tmp/mailbox")?;
        for expected in [format!("\nto port {number}\n"), format!("\nthird to port {number}\n")] {
            ensure!(mailbox.contains(&expected), "{expected:?} is not there");
        }
        let longest = mailbox.lines().filter(|line| *line == format!("{} {number}", "x".repeat(70))).count();
        ensure!(longest == 50_000, "{longest} lines of the large one");
        Ok(())
    })?;
    port.was_secured(cluster)
}

fn sshd(cluster: &Cluster, port: Port) -> anyhow::Result<()> {
    let number = port.service;
    let options = "-q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -i /key/private";
    let ssh = format!("ssh {options} -p {number} root@sshd");
    let said = client(
        cluster,
        &format!(
            "head -c 20000000 /dev/urandom >/tmp/file
             {ssh} 'echo $SSH_CONNECTION'
             {ssh} 'exit 7' || echo ended with $?
             {ssh} 'cat >/tmp/there && cat /tmp/there' </tmp/file | cmp - /tmp/file && echo same
             scp {options} -P {number} root@sshd:/tmp/there /tmp/back && cmp /tmp/back /tmp/file && echo same
             {ssh} -tt tty
             rm /tmp/file /tmp/back"
        ),
    )?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 5 && lines[0].ends_with(&format!(" {number}")), "{said}");
    ensure!(lines[1..4] == ["ended with 7", "same", "same"] && lines[4].starts_with("/dev/pts/"), "{said}");
    port.was_secured(cluster)
}

fn mosquitto(cluster: &Cluster, port: Port) -> anyhow::Result<()> {
    let (publish, subscribe) = (
        format!("mosquitto_pub -h mosquitto -p {}", port.service),
        format!("mosquitto_sub -h mosquitto -p {}", port.service),
    );
    // Kept by the broker, with each grade of assurance; then a large one.
    let said = client(
        cluster,
        &format!(
            "for q in 0 1 2; do
               {publish} -q $q -r -t kept/$q -m \"message $q\"; {subscribe} -q $q -t kept/$q -C 1
             done
             head -c 5000000 /dev/urandom >/tmp/payload
             {publish} -q 1 -r -t kept/large -f /tmp/payload
             {subscribe} -t kept/large -C 1 -N | cmp - /tmp/payload && echo same
             rm /tmp/payload"
        ),
    )?;
    ensure!(said == "message 0\nmessage 1\nmessage 2\nsame\n", "{said}");
    // A subscriber is silent until somebody publishes.
    let said = client(
        cluster,
        &format!(
            "{subscribe} -t live -C 3 >/tmp/heard & subscriber=$!
             while kill -0 $subscriber 2>/dev/null; do {publish} -t live -m hello; done
             wait $subscriber; cat /tmp/heard"
        ),
    )?;
    ensure!(said == "hello\nhello\nhello\n", "{said}");
    port.was_secured(cluster)
}

fn kafka(cluster: &Cluster, port: Port) -> anyhow::Result<()> {
    let number = port.service;
    let kcat = format!("kcat -q -b kafka:{number}");
    // Many small messages in batches, then large ones, then all of them back.
    let said = client(
        cluster,
        &format!(
            "seq 1 20000 >/tmp/lines
             {kcat} -P -t small-{number} </tmp/lines
             {kcat} -C -t small-{number} -p 0 -o beginning -e | cmp - /tmp/lines && echo same
             head -c 600000 /dev/urandom | base64 -w 0 >/tmp/payload
             for i in 1 2 3; do {kcat} -P -t large-{number} -X message.max.bytes=2000000 /tmp/payload; done
             {kcat} -C -t large-{number} -p 0 -o 1 -c 1 -D '' | cmp - /tmp/payload && echo same
             rm /tmp/lines /tmp/payload"
        ),
    )?;
    ensure!(said == "same\nsame\n", "{said}");
    // A consumer waits in the middle of a request until somebody produces.
    let said = client(
        cluster,
        &format!(
            "{kcat} -C -t live-{number} -p 0 -o beginning -c 3 >/tmp/heard & consumer=$!
             while kill -0 $consumer 2>/dev/null; do echo hello | {kcat} -P -t live-{number}; done
             wait $consumer; cat /tmp/heard; rm /tmp/heard"
        ),
    )?;
    ensure!(said == "hello\nhello\nhello\n", "{said}");
    port.was_secured(cluster)
}
