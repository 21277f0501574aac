//! The table of `weft ps`, with the columns and words of `kubectl get pods`, and the pod's IP.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// Renders pods, sorted as they come.
pub(crate) fn pods(pods: &[Value], with_namespace: bool, now: Timestamp) -> String {
    let mut rows = vec![["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"].map(str::to_owned)];
    for value in pods {
        let Ok(pod) = serde_json::from_value::<Pod>(value.clone()) else { continue };
        let statuses = || pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let init = || pod.status.iter().flat_map(|s| s.init_container_statuses.iter().flatten());
        let ready = statuses().filter(|c| c.ready).count();
        let all = pod.spec.as_ref().map_or(0, |s| s.containers.len());
        let restarts: i32 = statuses().chain(init()).map(|c| c.restart_count).sum();
        rows.push([
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
            format!("{ready}/{all}"),
            status(&pod),
            restarts.to_string(),
            pod.metadata.creation_timestamp.as_ref().map_or_else(|| "<unknown>".into(), |t| age(now, t.0)),
            pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_else(|| "<none>".into()),
        ]);
    }
    let first = usize::from(!with_namespace);
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).skip(first).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// The STATUS column.
fn status(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "Pending".into() };
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".into();
    }
    if let Some(reason) = &status.reason {
        return reason.clone();
    }
    let phase = status.phase.clone().unwrap_or_else(|| "Pending".into());
    let word = |c: &ContainerStatus| {
        let state = c.state.as_ref()?;
        if let Some(waiting) = &state.waiting {
            return waiting.reason.clone();
        }
        let ended = state.terminated.as_ref()?;
        Some(match ended.signal {
            _ if ended.reason.as_deref() == Some("OOMKilled") => "OOMKilled".into(),
            Some(signal) => format!("Signal:{signal}"),
            None => ended.reason.clone().unwrap_or_else(|| format!("ExitCode:{}", ended.exit_code)),
        })
    };
    let init: Vec<&ContainerStatus> = status.init_container_statuses.iter().flatten().collect();
    for (index, container) in init.iter().enumerate() {
        let done = container.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
        if done || container.started == Some(true) {
            continue;
        }
        return match word(container).filter(|w| w != "PodInitializing" && w != "ContainerCreating") {
            Some(word) => format!("Init:{word}"),
            None => format!("Init:{index}/{}", init.len()),
        };
    }
    if phase == "Succeeded" {
        return "Completed".into();
    }
    let mut words: Vec<String> = status.container_statuses.iter().flatten().filter_map(word).collect();
    // As kubectl: what went wrong before what went well.
    words.sort_by_key(|w| w == "Completed");
    let running = status.container_statuses.iter().flatten().any(|c| c.ready);
    match words.into_iter().next() {
        Some(word) if word == "Completed" && running => "Running".into(),
        Some(word) => word,
        None => phase,
    }
}

/// As kubectl shortens times: `45s`, `5m10s`, `3h`, `2d`.
fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = (now.as_second() - then.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 > 0 => format!("{minutes}m{}s", seconds % 60),
        120..10800 => format!("{minutes}m"),
        10800..28800 if minutes % 60 > 0 => format!("{hours}h{}m", minutes % 60),
        10800..172_800 => format!("{hours}h"),
        172_800..691_200 if hours % 24 > 0 => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_kubectls() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let created = Timestamp::from_second(999_700).unwrap().to_string();
        let container = |name: &str, ready: bool, restarts: i32, state: Value| json!({"name": name, "ready": ready, "restartCount": restarts, "image": "", "imageID": "", "state": state});
        let pod = |name: &str, status: Value| {
            json!({"metadata": {"name": name, "namespace": "a", "creationTimestamp": created},
                   "spec": {"containers": [{"name": "web"}, {"name": "proxy"}]}, "status": status})
        };
        let list = vec![
            pod(
                "good",
                json!({"phase": "Running", "podIP": "10.244.0.2", "containerStatuses": [
                    container("web", true, 0, json!({"running": {}})), container("proxy", true, 1, json!({"running": {}}))]}),
            ),
            pod(
                "bad",
                json!({"phase": "Running", "podIP": "10.244.0.3", "containerStatuses": [
                    container("web", false, 4, json!({"waiting": {"reason": "CrashLoopBackOff"}})),
                    container("proxy", true, 0, json!({"running": {}}))]}),
            ),
            pod(
                "init",
                json!({"phase": "Pending", "initContainerStatuses": [container("i", false, 0, json!({"running": {}}))],
                       "containerStatuses": [container("web", false, 0, json!({"waiting": {"reason": "PodInitializing"}}))]}),
            ),
        ];
        let expected = "\
NAME   READY   STATUS             RESTARTS   AGE   IP
good   2/2     Running            1          5m    10.244.0.2
bad    1/2     CrashLoopBackOff   4          5m    10.244.0.3
init   0/2     Init:0/1           0          5m    <none>
";
        assert_eq!(pods(&list, false, now), expected);
        assert!(pods(&list, true, now).starts_with("NAMESPACE   NAME "));
    }

    #[test]
    fn ages() {
        let then = Timestamp::from_second(0).unwrap();
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (130, "2m10s"),
            (700, "11m"),
            (3600, "60m"),
            (11000, "3h3m"),
            (90000, "25h"),
            (864_000, "10d"),
        ] {
            assert_eq!(age(Timestamp::from_second(seconds).unwrap(), then), text);
        }
    }
}
