//! The Kubernetes API server: for each kind one task that lists, then watches.
//!
//! What is told once stays until the server says otherwise. A server that is away, hangs, or talks nonsense costs
//! nothing but freshness: nothing is forgotten, and it is asked again with growing, random pauses. After an outage
//! everything is read again, since what comes back need not be what went. What the server does not have in the best
//! form is taken in the next one, and the better one is looked for from time to time. That it has a kind in no form is
//! believed when its discovery says so too.

mod forms;

use super::Event;
use crate::kubernetes::{Api, Error};
use crate::telemetry::{Telemetry, Value as Figure};
use forms::Form;
use futures_util::FutureExt;
use http::StatusCode;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use weft_core::kinds::{Key, Kind};

/// Objects of a page.
const PAGE: &str = "500";
/// Pages of a list, at most: a server that never comes to an end lies.
const MAX_PAGES: usize = 10_000;
/// Most events of a batch.
const BATCH: usize = 256;
/// A watch lasts this long, and up to half as long again; then it is renewed. Shorter than the patience of most things
/// on the way, and a connection that died without a word is found out in this time.
const WATCH: Duration = Duration::from_secs(60);
/// A watch that ended sooner than this without a word has not worked.
const TOO_SHORT: Duration = Duration::from_secs(1);
/// Everything is read again after this time, and up to half as long again, whatever the watches say.
const RELIST: Duration = Duration::from_secs(3600);
/// The shortest pause before another try.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before another try.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What to watch.
#[derive(Debug, Clone)]
pub struct Options {
    /// The API server.
    pub api: Api,
    /// How often what the server lacked is looked for again.
    pub resync: Duration,
}

/// Starts the tasks; they end when nobody listens any more.
pub(super) fn spawn(options: &Options, kinds: &'static [Kind], telemetry: &Telemetry, out: &mpsc::Sender<Vec<Event>>) {
    let unread = Arc::new(AtomicUsize::new(kinds.len()));
    for kind in kinds {
        let reflector = Reflector {
            api: options.api.clone(),
            resync: options.resync,
            kind: *kind,
            forms: forms::of(*kind),
            form: None,
            told: HashMap::new(),
            unread: Some(unread.clone()),
            failures: 0,
            failed: telemetry.counter(
                "weft_source_failures_total",
                "Requests to the API server that came to nothing, by kind of object",
                &[("kind", kind.singular())],
            ),
            bad: telemetry.counter(
                "weft_source_bad_objects_total",
                "Objects of the API server that could not be understood",
                &[("kind", kind.singular())],
            ),
            watching: telemetry.gauge(
                "weft_source_watching",
                "Whether the kind is being watched now",
                &[("kind", kind.singular())],
            ),
            out: out.clone(),
        };
        tokio::spawn(reflector.run());
    }
}

/// What one object of the server's was told as: namespace and name of that object, names of those.
type Told = HashMap<(String, String), Vec<String>>;

struct Reflector {
    api: Api,
    resync: Duration,
    kind: Kind,
    forms: &'static [Form],
    /// The form in use; `None` while the server has the kind in no form, or before the first list.
    form: Option<usize>,
    told: Told,
    /// Kinds that have not been read yet, this one among them while this is there.
    unread: Option<Arc<AtomicUsize>>,
    /// Failures in a row.
    failures: u32,
    failed: Figure,
    bad: Figure,
    watching: Figure,
    out: mpsc::Sender<Vec<Event>>,
}

/// Why following came to an end.
enum End {
    /// The watch ended as it should.
    Over,
    /// Everything must be read again.
    Relist(String),
    /// It broke.
    Failed(Error),
    /// Nobody listens.
    Unheard,
}

impl Reflector {
    async fn run(mut self) {
        while !self.out.is_closed() {
            match self.list().await {
                Ok(Some(version)) => {
                    self.synced().await;
                    self.follow(version).await;
                    self.watching.set(0);
                }
                Ok(None) => {
                    self.synced().await;
                    tracing::debug!(kind = %self.kind, "the API server does not have this kind");
                    self.failures = 0;
                    tokio::time::sleep(spread(self.resync)).await;
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Tells that everything was told, when this was the last kind.
    async fn synced(&mut self) {
        if let Some(unread) = self.unread.take()
            && unread.fetch_sub(1, Ordering::AcqRel) == 1
        {
            tracing::info!("the cluster's objects are read");
            // Nobody listening any more is seen by the caller's loop.
            let _ = self.out.send(vec![Event::Synced]).await;
        }
    }

    /// Waits before another try, longer from time to time. The first failure is reported, those after it are counted.
    async fn pause(&mut self, error: &Error) {
        self.failed.inc();
        if self.failures == 0 {
            tracing::warn!(kind = %self.kind, %error, "cannot follow the API server; what is known stays");
        } else {
            tracing::debug!(kind = %self.kind, %error, failures = self.failures, "again");
        }
        let pause = MIN_PAUSE.saturating_mul(1 << self.failures.min(10)).min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(spread(pause)).await;
    }

    fn recovered(&mut self) {
        if self.failures > 0 {
            tracing::info!(kind = %self.kind, "the API server is followed again");
            self.failures = 0;
        }
    }

    /// Reads everything in the best form that there is. `None` when there is none.
    async fn list(&mut self) -> Result<Option<String>, Error> {
        let mut absent = None;
        for (at, form) in self.forms.iter().enumerate() {
            match self.list_form(form).await {
                Ok(version) => {
                    if self.form != Some(at) {
                        let Form { resource, .. } = form;
                        tracing::info!(kind = %self.kind, from = resource.api_version, of = resource.plural, "following");
                    }
                    self.form = Some(at);
                    return Ok(Some(version));
                }
                Err(error) if error.is(StatusCode::NOT_FOUND) => absent = Some(error),
                Err(error) => return Err(error),
            }
        }
        match absent {
            Some(error) if !forms::optional(self.kind) => Err(error),
            // One wrong word must not take every Server away, and with it what keeps their ports shut.
            Some(_) if self.discovered().await? => {
                Err(Error::Malformed("it does not find a kind that its discovery lists".into()))
            }
            _ => {
                // What defined the kind is gone, and with it all objects.
                self.form = None;
                let seen = Told::new();
                self.forget_others(seen).await;
                Ok(None)
            }
        }
    }

    /// Whether the server's discovery has the kind in any form. While it starts a server may answer 404 to what it has.
    async fn discovered(&self) -> Result<bool, Error> {
        let malformed = |what: &str| Error::Malformed(format!("a list of {what} that is none"));
        let groups = self.api.get("/apis").await?;
        let groups = groups.get("groups").and_then(Value::as_array).ok_or_else(|| malformed("API groups"))?;
        let versions = groups.iter().filter_map(|group| group.get("versions")?.as_array()).flatten();
        let versions: HashSet<&str> =
            versions.filter_map(|version| version.get("groupVersion").and_then(Value::as_str)).collect();
        for Form { resource, .. } in self.forms {
            let listed = match self.api.get(&format!("/apis/{}", resource.api_version)).await {
                Ok(listed) => listed,
                Err(error) if error.is(StatusCode::NOT_FOUND) && !versions.contains(resource.api_version) => continue,
                Err(error) => return Err(error),
            };
            let resources = listed.get("resources").ok_or_else(|| malformed("resources"))?;
            // Nothing of a version that is being set up or taken away.
            let resources = resources.as_array().map(Vec::as_slice).unwrap_or_default();
            if resources.iter().any(|r| r.get("name").and_then(Value::as_str) == Some(resource.plural)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn list_form(&mut self, form: &Form) -> Result<String, Error> {
        let path = form.resource.all();
        let mut seen = Told::new();
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = vec![("limit", PAGE)];
            query.extend(token.as_deref().map(|token| ("continue", token)));
            let mut page = self.api.list(&path, &query, form.metadata).await?;
            let malformed = |message: &str| Error::Malformed(format!("a list {message}"));
            if !page.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List")) {
                return Err(malformed("that does not say that it is one"));
            }
            let items = match page.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => items,
                Some(Value::Null) => Vec::new(),
                _ => return Err(malformed("without items")),
            };
            let text = |key: &str| {
                let text = page.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str);
                text.filter(|text| !text.is_empty()).map(str::to_owned)
            };
            let mut events = Vec::new();
            for item in items {
                self.applied(form, item, Some(&mut seen), &mut events);
            }
            self.tell(events).await;
            match text("continue") {
                Some(next) if token.as_ref() == Some(&next) => return Err(malformed("that goes round in a circle")),
                Some(next) => token = Some(next),
                None => {
                    let version = text("resourceVersion").ok_or_else(|| malformed("without a version"))?;
                    self.forget_others(seen).await;
                    return Ok(version);
                }
            }
        }
        Err(Error::Malformed("a list without end".into()))
    }

    /// Takes in one object. What cannot be understood keeps the last good version of the object, if there is one.
    fn applied(&mut self, form: &Form, value: Value, seen: Option<&mut Told>, events: &mut Vec<Event>) {
        let Some(id) = id_of(&value) else {
            self.bad.inc();
            tracing::warn!(kind = %self.kind, "an object without a name is ignored");
            return;
        };
        let names = match form.read(self.kind, value) {
            Ok(objects) => {
                let names: Vec<_> = objects.iter().filter_map(|object| object.metadata().name.clone()).collect();
                events.extend(objects.into_iter().map(Event::Applied));
                Some(names)
            }
            Err((field, message)) => {
                self.bad.inc();
                tracing::warn!(
                    kind = %self.kind, namespace = id.0, name = id.1, field,
                    "object ignored, its last good version stays: {message}"
                );
                self.told.get(&id).cloned()
            }
        };
        let Some(names) = names else { return };
        match seen {
            // Of a list, what is told no more is told at its end.
            Some(seen) => {
                let told = self.told.entry(id.clone()).or_default();
                for name in &names {
                    if !told.contains(name) {
                        told.push(name.clone());
                    }
                }
                seen.insert(id, names);
            }
            None => {
                let before = self.told.insert(id.clone(), names.clone()).unwrap_or_default();
                let gone = before.into_iter().filter(|name| !names.contains(name));
                events.extend(gone.map(|name| Event::Deleted(Key::new(self.kind, &id.0, &name))));
            }
        }
    }

    /// Tells that everything is gone that was told before and not seen now.
    async fn forget_others(&mut self, seen: Told) {
        let still: HashSet<(&str, &str)> = seen
            .iter()
            .flat_map(|((namespace, _), names)| names.iter().map(move |name| (namespace.as_str(), name.as_str())))
            .collect();
        let mut events = Vec::new();
        let mut gone = HashSet::new();
        for ((namespace, _), names) in &self.told {
            for name in names {
                if !still.contains(&(namespace.as_str(), name.as_str())) && gone.insert((namespace, name)) {
                    events.push(Event::Deleted(Key::new(self.kind, namespace, name)));
                }
            }
        }
        self.told = seen;
        self.tell(events).await;
    }

    async fn tell(&self, events: Vec<Event>) {
        if !events.is_empty() {
            // Nobody listening any more is seen by the caller's loop.
            let _ = self.out.send(events).await;
        }
    }

    /// Watches from this version on, until everything must be read again.
    async fn follow(&mut self, mut version: String) {
        let relist = Instant::now() + spread(RELIST);
        while Instant::now() < relist {
            let started = Instant::now();
            match self.watch(&mut version).await {
                End::Unheard => return,
                End::Over => {
                    if self.better_form().await {
                        return;
                    }
                }
                End::Relist(reason) => {
                    tracing::debug!(kind = %self.kind, reason, "everything is read again");
                    // A server that says so again and again must not be asked without a pause.
                    if started.elapsed() < TOO_SHORT {
                        self.pause(&Error::Malformed(reason)).await;
                    }
                    return;
                }
                // One more try from here: connections end. If that fails too, the server is away.
                End::Failed(error) => {
                    let again = self.failures > 0;
                    self.pause(&error).await;
                    if again {
                        return;
                    }
                }
            }
        }
    }

    async fn watch(&mut self, version: &mut String) -> End {
        let Some(form) = self.form.and_then(|at| self.forms.get(at)) else { return End::Relist("no form".into()) };
        // A worse form is left as soon as there is a better one.
        let length = if self.form == Some(0) { spread(WATCH) } else { spread(WATCH.min(self.resync)) };
        let seconds = length.as_secs().max(1).to_string();
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", seconds.as_str()),
            ("resourceVersion", version.as_str()),
        ];
        let mut lines = match self.api.watch(&form.resource.all(), &query, form.metadata).await {
            Ok(lines) => lines,
            Err(error) if error.is(StatusCode::GONE) => return End::Relist(error.to_string()),
            Err(error) => return End::Failed(error),
        };
        self.watching.set(1);
        let started = Instant::now();
        let patience = length + self.api.timeout();
        let mut events = Vec::new();
        let mut heard = false;
        loop {
            // A watch that holds for a moment works, also when nothing happens.
            let unproven = self.failures > 0 && started.elapsed() < TOO_SHORT;
            let patience = if unproven { TOO_SHORT } else { patience };
            let line = tokio::select! {
                line = tokio::time::timeout(patience, lines.next()) => line,
                () = self.out.closed() => return End::Unheard,
            };
            let mut end = None;
            match line {
                Err(_) if unproven => self.recovered(),
                Err(_) => end = Some(End::Failed(Error::Timeout(patience))),
                Ok(Err(error)) => end = Some(End::Failed(error)),
                Ok(Ok(None)) => {
                    let silent = !heard && started.elapsed() < TOO_SHORT;
                    end = Some(if silent {
                        End::Failed(Error::Transport("a watch ended as soon as it began".into()))
                    } else {
                        End::Over
                    });
                }
                Ok(Ok(Some(line))) => {
                    end = self.event(form, &line, version, &mut events).or(end);
                    // What has come already makes one batch.
                    while end.is_none() && events.len() < BATCH {
                        match lines.next().now_or_never() {
                            Some(Ok(Some(line))) => end = self.event(form, &line, version, &mut events),
                            Some(Ok(None)) => end = Some(End::Over),
                            Some(Err(error)) => end = Some(End::Failed(error)),
                            None => break,
                        }
                    }
                    if !matches!(end, Some(End::Relist(_) | End::Failed(_))) {
                        heard = true;
                        self.recovered();
                    }
                }
            }
            self.tell(std::mem::take(&mut events)).await;
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Takes in one event of a watch; gives an end when the watch is of no more use.
    fn event(&mut self, form: &Form, line: &[u8], version: &mut String, events: &mut Vec<Event>) -> Option<End> {
        let malformed = |message: &str| Some(End::Failed(Error::Malformed(format!("an event {message}"))));
        let Ok(mut event) = serde_json::from_slice::<Value>(line) else { return malformed("that is not JSON") };
        let object = event.get_mut("object").map(Value::take).unwrap_or_default();
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind == "ERROR" {
            let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let code = object.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
            let error = Error::Status {
                code: code.unwrap_or_default(),
                reason: text("reason"),
                message: text("message").chars().take(300).collect(),
            };
            return Some(if error.is(StatusCode::GONE) { End::Relist(error.to_string()) } else { End::Failed(error) });
        }
        let new = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        if new.is_empty() {
            return malformed("without a version");
        }
        // Versions are numbers, if not by contract; where they go backwards, the server's history is another one.
        if let (Ok(before), Ok(now)) = (version.parse::<u64>(), new.parse::<u64>())
            && now < before
        {
            return Some(End::Relist(format!("the version went from {before} back to {now}")));
        }
        match kind {
            "ADDED" | "MODIFIED" => self.applied(form, object, None, events),
            "DELETED" => {
                if let Some(id) = id_of(&object) {
                    let names = self.told.remove(&id).unwrap_or_default();
                    events.extend(names.iter().map(|name| Event::Deleted(Key::new(self.kind, &id.0, name))));
                }
            }
            "BOOKMARK" => {}
            _ => return malformed("of an unknown type"),
        }
        *version = new;
        None
    }

    /// Whether the server has a better form by now.
    async fn better_form(&self) -> bool {
        for form in self.forms.iter().take(self.form.unwrap_or_default()) {
            if self.api.list(&form.resource.all(), &[("limit", "1")], form.metadata).await.is_ok() {
                return true;
            }
        }
        false
    }
}

fn id_of(value: &Value) -> Option<(String, String)> {
    let text = |key: &str| value.get("metadata")?.get(key)?.as_str();
    let name = text("name").filter(|name| !name.is_empty())?;
    Some((text("namespace").unwrap_or_default().to_owned(), name.to_owned()))
}

/// A time between this long and half as long again, so that many who wait do not ask at once.
pub(crate) fn spread(time: Duration) -> Duration {
    time.mul_f64(1.0 + fastrand::f64() / 2.0)
}
