//! `podFailurePolicy` of jobs: which failures of pods end a job at once, and which do not count.

use super::super::slot;
use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use weft_core::names::PROXY_CONTAINER;

/// Rules of one policy at most, as in Kubernetes.
const MOST_RULES: usize = 20;

/// What a pod's failure means for its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// One failure more, towards `backoffLimit`.
    Counts,
    /// As if it had not been.
    Ignored,
    /// The job fails, for this reason.
    Ends(String),
}

/// What the first rule that matches says about a pod that has failed.
pub(super) fn meaning(spec: &JobSpec, pod: &Pod) -> Meaning {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules).enumerate();
    for (at, rule) in rules {
        let Some(why) = matched(rule, pod) else { continue };
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        return match rule.action.as_str() {
            "FailJob" => Meaning::Ends(format!("pod {name}: {why}, matching FailJob rule at index {at}")),
            "Ignore" => Meaning::Ignored,
            _ => Meaning::Counts,
        };
    }
    Meaning::Counts
}

/// Why a rule matches, if it does.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if let Some(wanted) = &rule.on_exit_codes {
        // What stands beside the work and is ended with it says nothing about it.
        let beside = |name: &str| name == PROXY_CONTAINER || slot::is_sidecar(pod, name);
        let code = |c: &ContainerStatus| Some(c.state.as_ref()?.terminated.as_ref()?.exit_code);
        let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        return statuses
            .filter(|c| wanted.container_name.as_ref().map_or(!beside(&c.name), |name| *name == c.name))
            .filter_map(|c| Some((&c.name, code(c).filter(|code| *code != 0)?)))
            .find(|(_, code)| wanted.values.contains(code) == (wanted.operator == "In"))
            .map(|(name, code)| format!("container {name} ended with exit code {code}"));
    }
    let wanted = rule.on_pod_conditions.iter().flatten();
    let conditions = || status.conditions.iter().flatten();
    let held = wanted.flat_map(|w| conditions().find(|c| c.type_ == w.type_ && Some(&c.status) == w.status.as_ref()));
    held.map(|c| format!("has condition {} {}", c.type_, c.status)).next()
}

/// Refuses a policy that means nothing.
///
/// # Errors
/// The field within the job's specification, and one sentence.
pub(crate) fn check(spec: &JobSpec) -> Result<(), (String, String)> {
    let Some(policy) = &spec.pod_failure_policy else { return Ok(()) };
    let fault = |field: String, message: &str| Err((field, message.to_owned()));
    let template = spec.template.spec.as_ref();
    if template.and_then(|s| s.restart_policy.as_deref()) != Some("Never") {
        return fault("podFailurePolicy".into(), "needs the restartPolicy Never");
    }
    if policy.rules.len() > MOST_RULES {
        return fault("podFailurePolicy.rules".into(), "may have 20 rules at most");
    }
    for (at, rule) in policy.rules.iter().enumerate() {
        let path = format!("podFailurePolicy.rules[{at}]");
        if !["FailJob", "Ignore", "Count"].contains(&rule.action.as_str()) {
            return fault(format!("{path}.action"), "is none of FailJob, Ignore, Count");
        }
        let conditions = rule.on_pod_conditions.as_deref().unwrap_or_default();
        match &rule.on_exit_codes {
            Some(_) if !conditions.is_empty() => {
                return fault(path, "onExitCodes and onPodConditions exclude each other");
            }
            None if conditions.is_empty() => return fault(path, "needs onExitCodes or onPodConditions"),
            Some(codes) => {
                if !["In", "NotIn"].contains(&codes.operator.as_str()) {
                    return fault(format!("{path}.onExitCodes.operator"), "is neither In nor NotIn");
                }
                if codes.values.is_empty() || (codes.operator == "In" && codes.values.contains(&0)) {
                    let message = "must be exit codes of failures, so In has no 0, and at least one";
                    return fault(format!("{path}.onExitCodes.values"), message);
                }
                let known = |name: &String| {
                    let spec = template.iter();
                    let mut all = spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
                    all.any(|c| c.name == *name)
                };
                if codes.container_name.as_ref().is_some_and(|name| !known(name)) {
                    return fault(format!("{path}.onExitCodes.containerName"), "names no container of the template");
                }
            }
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(rules: Value) -> JobSpec {
        serde_json::from_value(json!({"podFailurePolicy": {"rules": rules}, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "main"}]}}}))
        .unwrap()
    }

    fn pod(code: i32, proxy: i32, condition: &str) -> Pod {
        let ended = |name: &str, code: i32| {
            json!({"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "",
                   "state": {"terminated": {"exitCode": code}}})
        };
        serde_json::from_value(json!({"metadata": {"name": "run-1"}, "status": {"phase": "Failed",
            "containerStatuses": [ended("linkerd-proxy", proxy), ended("main", code)],
            "conditions": [{"type": condition, "status": "True"}]}}))
        .unwrap()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let spec = spec(json!([
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42, 43]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Count", "onExitCodes": {"containerName": "main", "operator": "In", "values": [1]}},
            {"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [7]}},
        ]));
        assert_eq!(check(&spec), Ok(()));
        let why = "pod run-1: container main ended with exit code 42, matching FailJob rule at index 0";
        assert_eq!(meaning(&spec, &pod(42, 0, "DisruptionTarget")), Meaning::Ends(why.into()));
        assert_eq!(meaning(&spec, &pod(1, 0, "DisruptionTarget")), Meaning::Ignored);
        assert_eq!(meaning(&spec, &pod(1, 0, "Ready")), Meaning::Counts);
        assert_eq!(meaning(&spec, &pod(2, 0, "Ready")), Meaning::Ignored);
        assert_eq!(meaning(&spec, &pod(7, 0, "Ready")), Meaning::Counts);
        // The proxy was killed at the end of the pod.
        assert_eq!(meaning(&spec, &pod(7, 42, "Ready")), Meaning::Counts);
    }

    #[test]
    fn a_policy_that_means_nothing_is_refused() {
        let codes = |more: Value| {
            let mut codes = json!({"operator": "In", "values": [1]});
            codes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!([{"action": "Ignore", "onExitCodes": codes}])
        };
        for (rules, field) in [
            (json!([{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}]), "action"),
            (json!([{"action": "Ignore"}]), "rules[0]"),
            (codes(json!({"operator": "Between"})), "operator"),
            (codes(json!({"values": []})), "values"),
            (codes(json!({"values": [0]})), "values"),
            (codes(json!({"containerName": "other"})), "containerName"),
        ] {
            let (found, _) = check(&spec(rules)).unwrap_err();
            assert!(found.starts_with("podFailurePolicy.rules[0]") && found.ends_with(field), "{found}");
        }
        let mut restarts = spec(json!([]));
        restarts.template.spec.as_mut().unwrap().restart_policy = Some("OnFailure".into());
        assert_eq!(check(&restarts).unwrap_err().0, "podFailurePolicy");
    }
}
