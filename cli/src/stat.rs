//! `weft stat`: the golden metrics of resources.

use crate::args::{Output, Stat};
use crate::cluster::Mesh;
use crate::resource::{self, Resource};
use crate::table::{Align, Column, render as render_table};
use crate::{Failure, api, print};
use serde_json::{Map, Number, Value};
use std::process::ExitCode;
use weft_core::api::{ResourceRef, StatRequest, StatRow};

/// Runs the command.
///
/// # Errors
/// When the arguments contradict each other, or the control plane cannot answer.
pub async fn run(args: Stat, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let requests = requests(&args)?;
    let api = api::Api::connect(mesh).await?;
    let (mut rows, mut seconds) = (Vec::new(), args.time_window);
    for request in &requests {
        let answer = api.stat(request).await?;
        rows.extend(answer.rows);
        // Nothing is said by a control plane that is older than this program.
        seconds = if answer.window_seconds == 0 { seconds } else { seconds.min(answer.window_seconds) };
    }
    match render(rows, &args) {
        Some(text) => print(&text),
        None => eprintln!("No traffic found."),
    }
    if seconds < args.time_window {
        eprintln!("Note: the control plane keeps metrics for {seconds}s; that is what is shown.");
    }
    Ok(ExitCode::SUCCESS)
}

/// The questions that the arguments ask, one a resource.
///
/// # Errors
/// When the arguments contradict each other.
pub fn requests(args: &Stat) -> Result<Vec<StatRequest>, Failure> {
    let fail = |message: &str| Err(Failure::new(message));
    let peer = |text: &Option<String>, namespace: &Option<String>, flag: &str| {
        let Some(text) = text else {
            return match namespace {
                Some(_) => Err(Failure::new(format!("--{flag}-namespace needs --{flag}"))),
                None => Ok(None),
            };
        };
        let Resource { kind, name } = resource::parse_one(text)?;
        if kind == "all" || (flag == "from" && (kind == "service" || kind == "authority")) {
            return Err(Failure::new(format!("--{flag} does not take resources of type {kind}")));
        }
        let own = namespace.clone().or_else(|| (!args.all_namespaces).then(|| in_namespace(&args.namespace)));
        Ok(Some(ResourceRef { kind: kind.into(), name, namespace: own.filter(|_| kind != "namespace") }))
    };
    let to = peer(&args.to, &args.to_namespace, "to")?;
    let from = peer(&args.from, &args.from_namespace, "from")?;
    let mut out = Vec::new();
    for target in resource::parse(&args.resources)? {
        let mut namespace = (!args.all_namespaces).then(|| in_namespace(&args.namespace));
        if target.kind == "namespace" {
            if args.namespace.is_some() {
                return fail("--namespace flag is incompatible with namespace resource type");
            }
            if args.to_namespace.is_some() {
                return fail("--to-namespace flag is incompatible with namespace resource type");
            }
            if args.from_namespace.is_some() {
                return fail("--from-namespace flag is incompatible with namespace resource type");
            }
            namespace = None;
        }
        out.push(StatRequest {
            kind: target.kind.into(),
            name: target.name,
            namespace,
            selector: args.selector.clone(),
            window_seconds: args.time_window,
            to: to.clone(),
            from: from.clone(),
        });
    }
    Ok(out)
}

/// The namespace that is meant when none is given.
pub(crate) fn in_namespace(namespace: &Option<String>) -> String {
    namespace.clone().unwrap_or_else(|| "default".into())
}

/// Table or JSON; nothing when a table would have no rows.
pub fn render(mut rows: Vec<StatRow>, args: &Stat) -> Option<String> {
    rows.retain(|row| {
        // Services and authorities have no pods of their own; with --from the figures are the clients'.
        args.unmeshed || row.meshed > 0 || args.from.is_some() || ["service", "authority"].contains(&row.kind.as_str())
    });
    let order = |kind: &str| resource::kinds().position(|k| k == kind);
    rows.sort_by(|a, b| {
        (order(&a.kind), &a.kind, &a.namespace, &a.name).cmp(&(order(&b.kind), &b.kind, &b.namespace, &b.name))
    });
    rows.dedup_by(|a, b| a.kind == b.kind && a.namespace == b.namespace && a.name == b.name);
    if args.output == Output::Json {
        let list: Vec<Value> = rows.iter().map(json).collect();
        // Maps of strings and numbers only: serialising cannot fail.
        return Some(format!("{}\n", serde_json::to_string_pretty(&list).unwrap_or_default()));
    }
    if rows.is_empty() {
        return None;
    }
    let several = rows.windows(2).any(|w| matches!(w, [a, b] if a.kind != b.kind));
    let name = |row: &StatRow| match several {
        true => format!("{}/{}", resource::short_name(&row.kind), row.name),
        false => row.name.clone(),
    };
    // Tables of several kinds line up with each other.
    let name_width = rows.iter().map(|r| name(r).chars().count()).max().unwrap_or_default();
    let namespace_width = rows.iter().map(|r| r.namespace.chars().count()).max().unwrap_or_default();
    let mut tables = Vec::new();
    for group in rows.chunk_by(|a, b| a.kind == b.kind) {
        let kind = group.first().map_or("", |r| r.kind.as_str());
        let mut columns = Vec::new();
        let mut left = |name, min_width| columns.push(Column { name, align: Align::Left, min_width });
        if args.all_namespaces {
            left("NAMESPACE", namespace_width);
        }
        left("NAME", name_width);
        let mut rest = vec!["MESHED", "SUCCESS", "RPS", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99", "TCP_CONN"];
        if kind == "pod" {
            rest.insert(0, "STATUS");
        }
        if args.output == Output::Wide {
            rest.extend(["READ_BYTES/SEC", "WRITE_BYTES/SEC"]);
        }
        columns.extend(rest.into_iter().map(|name| Column::new(name, Align::Right)));
        let cells = group.iter().map(|row| {
            let mut cells = Vec::new();
            if args.all_namespaces {
                cells.push(row.namespace.clone());
            }
            cells.push(name(row));
            if kind == "pod" {
                cells.push(row.status.clone().unwrap_or_else(|| "-".into()));
            }
            cells.extend(figures(row, args.output == Output::Wide));
            cells
        });
        tables.push(render_table(&columns, &cells.collect::<Vec<_>>()));
    }
    Some(tables.join("\n"))
}

fn figures(row: &StatRow, wide: bool) -> Vec<String> {
    fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
        value.map_or_else(|| "-".into(), show)
    }
    let mut cells = vec![
        if row.kind == "service" || row.kind == "authority" {
            "-".into()
        } else {
            format!("{}/{}", row.meshed, row.running)
        },
        or_dash(row.success, |v| format!("{:.2}%", v * 100.0)),
        or_dash(row.rps, |v| format!("{v:.1}rps")),
        or_dash(row.latency_ms_p50, |v| format!("{v}ms")),
        or_dash(row.latency_ms_p95, |v| format!("{v}ms")),
        or_dash(row.latency_ms_p99, |v| format!("{v}ms")),
        or_dash(row.tcp_open_connections, |v| v.to_string()),
    ];
    if wide {
        cells.push(or_dash(row.tcp_read_bytes_rate, |v| format!("{v:.1}B/s")));
        cells.push(or_dash(row.tcp_write_bytes_rate, |v| format!("{v:.1}B/s")));
    }
    cells
}

fn json(row: &StatRow) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("namespace", row.namespace.clone().into());
    put("kind", row.kind.clone().into());
    put("name", row.name.clone().into());
    if row.kind != "service" && row.kind != "authority" {
        put("meshed", format!("{}/{}", row.meshed, row.running).into());
    }
    if let Some(status) = &row.status {
        put("status", status.clone().into());
    }
    put("success", row.success.map_or(Value::Null, number));
    put("rps", row.rps.map_or(Value::Null, number));
    put("latency_ms_p50", row.latency_ms_p50.into());
    put("latency_ms_p95", row.latency_ms_p95.into());
    put("latency_ms_p99", row.latency_ms_p99.into());
    if let Some(connections) = row.tcp_open_connections {
        put("tcp_open_connections", connections.into());
    }
    if let Some(rate) = row.tcp_read_bytes_rate {
        put("tcp_read_bytes_rate", number(rate));
    }
    if let Some(rate) = row.tcp_write_bytes_rate {
        put("tcp_write_bytes_rate", number(rate));
    }
    map.into()
}

/// Whole numbers without a fraction, as in Linkerd's output.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return (value as i64).into();
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}
