//! The commands: what they print, and their exit codes.

use crate::client::Client;
use crate::error::Context;
use crate::host::{Host, Plan, start_detached, wait_for_signal};
use crate::manifests;
use crate::node;
use crate::proto::Readiness;
use crate::rundir::RunDir;
use crate::{Error, args, table};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use weft_core::names::CONTROL_NAMESPACE;

/// A container that ends as soon as it has begun looks ready for a moment: everything must stay ready this long.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// How a cluster is started; [`up`] uses the default. Tests start one without control plane.
#[derive(Debug, Clone)]
pub struct Options {
    /// Run the control plane, and inject pods that ask for it.
    pub control_plane: bool,
    /// The run directory, when it is not the environment's.
    pub run_dir: Option<RunDir>,
}

impl Default for Options {
    fn default() -> Self {
        Self { control_plane: true, run_dir: None }
    }
}

/// `weft up`: starts the cluster, applies the files, waits until everything is ready, then stays until Ctrl-C, or
/// returns with `--detach`.
///
/// # Errors
/// When something is wrong with the files or the machine, or something is not ready in time; the cluster is stopped then.
pub async fn up(args: args::Up) -> Result<ExitCode, Error> {
    up_with(args, Options::default()).await
}

/// As [`up`], with options that the command line does not have.
///
/// # Errors
/// As [`up`].
pub async fn up_with(args: args::Up, options: Options) -> Result<ExitCode, Error> {
    let run = match options.run_dir {
        Some(run) => run,
        None => RunDir::from_env()?,
    };
    let mut ports = BTreeSet::new();
    if let Some(twice) = args.publish.iter().find(|publish| !ports.insert(publish.host_port)) {
        return Err(Error::new(format!("--publish: port {} is given twice", twice.host_port)));
    }
    // Everything that can be wrong with the files is known before anything starts.
    let documents = manifests::read(&args.files)?;
    let programs = std::env::current_exe().context("cannot find this program")?;
    let plan = Plan {
        node: node::Config {
            run_dir: run.path().to_owned(),
            programs: programs.parent().map(std::path::Path::to_owned).unwrap_or_default(),
            path: std::env::var("PATH").unwrap_or_default(),
            control_plane: options.control_plane,
            log_level: std::env::var("WEFT_LOG").unwrap_or_else(|_| "info".into()),
        },
        publish: args.publish.clone(),
        follow: args
            .files
            .iter()
            .filter(|f| f.is_dir())
            .map(|dir| std::path::absolute(dir).context(format!("cannot find {}", dir.display())))
            .collect::<Result<_, _>>()?,
    };
    let timeout = Duration::from_secs(args.timeout);
    if args.detach {
        start_detached(&plan).await?;
        let client = Client::at(run.clone()).await?;
        let result = bring_up(&client, documents, &args.publish, options.control_plane, timeout).await;
        if let Err(e) = result {
            shut_down(&run).await?;
            return Err(e);
        }
        announce(&args, true);
        return Ok(ExitCode::SUCCESS);
    }
    let mut host = Host::start(&plan).await?;
    let client = host.client.clone();
    let outcome = tokio::select! {
        result = bring_up(&client, documents, &args.publish, options.control_plane, timeout) => result.map(|()| true),
        () = wait_for_signal() => Ok(false),
        () = host.ended() => Err(Error::new("the cluster has ended; see the log of the node")),
    };
    let outcome = match outcome {
        Ok(true) => {
            announce(&args, false);
            tokio::select! {
                () = wait_for_signal() => eprintln!("stopping the cluster"),
                () = host.ended() => eprintln!("the cluster was stopped"),
            }
            Ok(())
        }
        Ok(false) => {
            eprintln!("stopping the cluster");
            Ok(())
        }
        Err(e) => Err(e),
    };
    host.stop().await?;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Applies files and waits for everything, showing how far it is.
async fn bring_up(
    client: &Client,
    documents: Vec<crate::proto::Document>,
    publish: &[args::Publish],
    control_plane: bool,
    timeout: Duration,
) -> Result<(), Error> {
    if control_plane {
        eprintln!("started the cluster; the control plane runs in namespace {CONTROL_NAMESPACE}");
    } else {
        eprintln!("started the cluster, without control plane");
    }
    if !documents.is_empty() {
        for outcome in client.apply(documents, "default").await? {
            eprintln!("{} {}", outcome.object, outcome.verb);
        }
    }
    for args::Publish { service, namespace, port, .. } in publish {
        let services = client.objects("services", Some(namespace)).await?;
        let found = services.iter().find(|s| s["metadata"]["name"] == service.as_str());
        let ports = found.and_then(|s| s["spec"]["ports"].as_array());
        if !ports.is_some_and(|ports| ports.iter().any(|p| p["port"] == *port)) {
            let what = if found.is_some() { format!("has no port {port}") } else { "does not exist".to_owned() };
            return Err(Error::new(format!("--publish: service {service} in {namespace} {what}")));
        }
    }
    wait_until_ready(client, timeout).await
}

async fn wait_until_ready(client: &Client, timeout: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    let terminal = std::io::stderr().is_terminal();
    let mut shown = String::new();
    let mut since = 0;
    let mut ready_since: Option<Instant> = None;
    let mut trouble = Readiness::default();
    loop {
        let until = ready_since.map_or(deadline, |since| since + SETTLED_AFTER);
        let readiness = match tokio::time::timeout_at(until, client.readiness(since)).await {
            Ok(asked) => asked?,
            Err(_) if ready_since.is_some() => {
                if terminal {
                    eprintln!();
                }
                return Ok(());
            }
            Err(_) => break,
        };
        since = readiness.version;
        let line = format!("{} of {} pods ready", readiness.ready, readiness.wanted);
        if line != shown {
            if terminal {
                eprint!("\r\x1b[K{line}");
            } else {
                eprintln!("{line}");
            }
            shown = line;
        }
        if readiness.hopeless {
            if terminal {
                eprintln!();
            }
            return Err(explain("something has failed for good:", &readiness));
        }
        if !readiness.missing.is_empty() {
            ready_since = None;
            // At the end it may look ready for a moment again; what was wrong is what counts then.
            if !readiness.details.is_empty() || trouble.details.is_empty() {
                trouble = readiness;
            }
        } else if ready_since.is_none() {
            ready_since = Some(Instant::now());
        }
    }
    if terminal {
        eprintln!();
    }
    let mut readiness = client.readiness(0).await?;
    if readiness.missing.is_empty() || readiness.details.is_empty() {
        readiness = trouble;
    }
    Err(explain(&format!("not everything is ready after {} s:", timeout.as_secs()), &readiness))
}

fn explain(what: &str, readiness: &Readiness) -> Error {
    let lines = readiness.missing.iter().chain(&readiness.details);
    Error::new(lines.fold(what.to_owned(), |message, line| format!("{message}\n  {line}")))
}

fn announce(args: &args::Up, detached: bool) {
    for publish in &args.publish {
        let (name, namespace) = (&publish.service, &publish.namespace);
        eprintln!("http://127.0.0.1:{} leads to {name}.{namespace} port {}", publish.host_port, publish.port);
    }
    if detached {
        eprintln!("everything is ready; `weft ps -A` lists the pods, `weft down` stops the cluster");
    } else {
        eprintln!("everything is ready; `weft ps -A` lists the pods, Ctrl-C stops the cluster");
    }
}

/// `weft down`: stops the cluster and removes what a crashed one left.
///
/// # Errors
/// When the cluster does not end.
pub async fn down(args: args::Down) -> Result<ExitCode, Error> {
    let args::Down {} = args;
    down_at(&RunDir::from_env()?).await
}

/// As [`down`], of a given run directory.
///
/// # Errors
/// As [`down`].
pub async fn down_at(run: &RunDir) -> Result<ExitCode, Error> {
    let shown = run.path().display();
    if !run.is_held() {
        let removed = run.remove_stale()?;
        if removed {
            eprintln!("removed what a crashed cluster left in {shown}");
        } else {
            eprintln!("no cluster is running (run directory {shown})");
        }
        return Ok(ExitCode::SUCCESS);
    }
    shut_down(run).await?;
    eprintln!("stopped the cluster");
    Ok(ExitCode::SUCCESS)
}

/// Tells the cluster to end and waits until it has. One that holds its directory but does not listen is just beginning, and
/// is told as soon as it does, or just ending, which is what is wanted.
async fn shut_down(run: &RunDir) -> Result<(), Error> {
    let tell = async || Client::at(run.clone()).await?.shut_down().await;
    let mut told = tell().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while run.is_held() {
        if Instant::now() > deadline {
            told?;
            return Err(Error::new(format!("the cluster in {} does not end", run.path().display())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        if told.is_err() {
            told = tell().await;
        }
    }
    run.remove_stale().map(drop)
}

/// `weft apply -f`: creates and changes objects, all or none.
///
/// # Errors
/// When something is wrong with the files; nothing is changed then.
pub async fn apply(args: args::Apply) -> Result<ExitCode, Error> {
    let client = Client::connect().await?;
    let documents = manifests::read(&args.files)?;
    for outcome in client.apply(documents, &args.namespace).await? {
        println!("{} {}", outcome.object, outcome.verb);
    }
    Ok(ExitCode::SUCCESS)
}

/// `weft delete -f`: deletes the objects that the files name, and waits until they are gone.
///
/// # Errors
/// When something is wrong with the files, or an object does not exist; nothing is deleted then.
pub async fn delete(args: args::Delete) -> Result<ExitCode, Error> {
    let client = Client::connect().await?;
    let documents = manifests::read(&args.files)?;
    for outcome in client.delete(documents, &args.namespace, args.ignore_not_found).await? {
        println!("{} {}", outcome.object, outcome.verb);
    }
    Ok(ExitCode::SUCCESS)
}

/// `weft ps`: the table of pods.
///
/// # Errors
/// When no cluster runs.
pub async fn ps(args: args::Ps) -> Result<ExitCode, Error> {
    let client = Client::connect().await?;
    let namespace = (!args.all_namespaces).then_some(args.namespace.as_str());
    let pods = client.objects("pods", namespace).await?;
    if args.output.as_deref() == Some("json") {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": pods});
        println!("{}", serde_json::to_string_pretty(&list).context("cannot write JSON")?);
    } else if pods.is_empty() {
        match namespace {
            Some(namespace) => eprintln!("No resources found in {namespace} namespace."),
            None => eprintln!("No resources found."),
        }
    } else {
        print!("{}", table::pods(&pods, args.all_namespaces, node::timestamp()));
        let details = client.readiness(0).await?.details;
        for line in of_namespace(&details, namespace) {
            eprintln!("{line}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Why pods of a namespace are not ready. Each begins with a line that is not indented and names the pod.
fn of_namespace<'a>(details: &'a [String], namespace: Option<&str>) -> Vec<&'a String> {
    let wanted = namespace.map(|namespace| format!(" in {namespace}: "));
    let mut shown = true;
    let mut lines = Vec::new();
    for line in details {
        if !line.starts_with(' ') {
            shown = wanted.as_ref().is_none_or(|wanted| line.contains(wanted));
        }
        if shown {
            lines.push(line);
        }
    }
    lines
}

/// `weft logs`: what a container printed.
///
/// # Errors
/// When there is no such container.
pub async fn logs(args: args::Logs) -> Result<ExitCode, Error> {
    let client = Client::connect().await?;
    let mut stream = client.logs(&args).await?;
    let mut stdout = tokio::io::stdout();
    // Both a closed pipe and a cluster that ends are an end of the log.
    let _ = tokio::io::copy(&mut stream, &mut stdout).await;
    let _ = stdout.flush().await;
    Ok(ExitCode::SUCCESS)
}

/// `weft exec`: runs a command in a container's namespaces; answers its exit code.
///
/// # Errors
/// When there is no such container, or the command cannot be run.
pub async fn exec(args: args::Exec) -> Result<ExitCode, Error> {
    let client = Client::connect().await?;
    let code = client.exec(&args, tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr()).await?;
    if args.stdin {
        // A thread of the runtime may still wait for standard input, and would keep the program from ending.
        std::process::exit(i32::from(code));
    }
    Ok(ExitCode::from(code))
}
