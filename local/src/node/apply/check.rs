//! What a cluster on one machine can do, and what of an object may change.

use crate::node::services;
use crate::node::spec::Programs;
use crate::node::workloads::{check_cron_job, check_pod_failure_policy};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, PodSpec, Service};
use std::net::Ipv4Addr;
use weft_core::kinds::Object;

/// A field, and a sentence about it.
pub(super) type Fault = (String, String);

/// What a cluster on one machine cannot do is refused by name, before anything happens.
pub(super) fn object(object: &Object, programs: &Programs) -> Result<(), Fault> {
    let fault = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
    match object {
        Object::Job(job) => job.spec.as_ref().map_or(Ok(()), |spec| check_job(spec, "spec", programs)),
        Object::CronJob(cron) => {
            check_cron_job(cron)?;
            let spec = cron.spec.job_template.spec.as_ref();
            spec.map_or(Ok(()), |spec| check_job(spec, "spec.jobTemplate.spec", programs))
        }
        Object::StatefulSet(set) => {
            let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
            if policy.and_then(|p| p.when_scaled.as_deref()) == Some("Delete") {
                let message = "on one machine claims stay when a set is scaled down";
                return fault("spec.persistentVolumeClaimRetentionPolicy.whenScaled", message);
            }
            check_endless(set.spec.template.spec.as_ref(), programs)
        }
        Object::DaemonSet(set) => check_endless(set.spec.template.spec.as_ref(), programs),
        Object::Pod(pod) => pod.spec.as_ref().map_or(Ok(()), |spec| check_pod(spec, "spec", programs)),
        Object::Service(service) => check_service(service),
        Object::Deployment(deployment) => {
            let spec = &deployment.spec;
            let (deadline, ready) = (spec.progress_deadline_seconds, spec.min_ready_seconds.unwrap_or(0));
            if deadline.is_some_and(|deadline| deadline <= ready) {
                return fault("spec.progressDeadlineSeconds", "must be more than minReadySeconds");
            }
            check_endless(spec.template.spec.as_ref(), programs)
        }
        Object::ReplicaSet(set) => check_endless(set.spec.template.as_ref().and_then(|t| t.spec.as_ref()), programs),
        Object::Node(_) => fault("kind", "there is one node, the machine, and nothing to set about it"),
        _ => Ok(()),
    }
}

/// The template of pods that are to run for ever.
fn check_endless(spec: Option<&PodSpec>, programs: &Programs) -> Result<(), Fault> {
    let Some(spec) = spec else { return Ok(()) };
    if spec.active_deadline_seconds.is_some() {
        let message = "is for Pods and Jobs: the pods of this kind have no end";
        return Err(("spec.template.spec.activeDeadlineSeconds".into(), message.into()));
    }
    check_pod(spec, "spec.template.spec", programs)
}

fn check_job(spec: &JobSpec, path: &str, programs: &Programs) -> Result<(), Fault> {
    for (field, used) in [
        ("successPolicy", spec.success_policy.is_some()),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.is_some()),
        ("maxFailedIndexes", spec.max_failed_indexes.is_some()),
        ("managedBy", spec.managed_by.is_some()),
    ] {
        if used {
            return Err((format!("{path}.{field}"), "does not exist on one machine".to_owned()));
        }
    }
    check_pod_failure_policy(spec).map_err(|(field, message)| (format!("{path}.{field}"), message))?;
    let template = format!("{path}.template.spec");
    spec.template.spec.as_ref().map_or(Ok(()), |spec| check_pod(spec, &template, programs))
}

fn check_pod(spec: &PodSpec, path: &str, programs: &Programs) -> Result<(), Fault> {
    for (field, used) in [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)] {
        if used == Some(true) {
            let message = "a pod cannot share the machine's own namespaces on one machine".to_owned();
            return Err((format!("{path}.{field}"), message));
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let known = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
            || volume.empty_dir.is_some()
            || volume.host_path.is_some()
            || volume.persistent_volume_claim.is_some();
        if !known {
            let message = "one machine has volumes of the kinds configMap, secret, emptyDir, hostPath, projected, \
                           downwardAPI and persistentVolumeClaim only";
            return Err((format!("{path}.volumes[{index}]"), message.to_owned()));
        }
    }
    let lists = [("initContainers", spec.init_containers.as_deref()), ("containers", Some(spec.containers.as_slice()))];
    for (list, containers) in lists {
        for (index, container) in containers.into_iter().flatten().enumerate() {
            check_container(container, programs).map_err(|(f, m)| (format!("{path}.{list}[{index}].{f}"), m))?;
        }
    }
    Ok(())
}

fn check_container(container: &Container, programs: &Programs) -> Result<(), Fault> {
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        let message = "is required: no image is pulled on one machine, `command` names a program of this machine";
        return Err(("command".into(), message.into()));
    }
    if let Some(message) = programs.missing(container) {
        return Err(("command[0]".into(), message));
    }
    if container.tty == Some(true) || container.stdin == Some(true) {
        return Err(("stdin".into(), "containers have no standard input on one machine".into()));
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        let actions =
            [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
        if actions.into_iter().filter(|a| *a).count() != 1 {
            return Err((name.into(), "needs exactly one of exec, httpGet, tcpSocket and grpc".into()));
        }
        let scheme = probe.http_get.as_ref().and_then(|h| h.scheme.as_deref());
        if scheme.is_some_and(|s| !["HTTP", "HTTPS"].contains(&s.to_ascii_uppercase().as_str())) {
            return Err((format!("{name}.httpGet.scheme"), "is neither HTTP nor HTTPS".into()));
        }
    }
    Ok(())
}

fn check_service(service: &Service) -> Result<(), Fault> {
    let Some(spec) = &service.spec else { return Ok(()) };
    if let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") {
        let parsed: Result<Ipv4Addr, _> = ip.parse();
        if !parsed.is_ok_and(services::is_service_ip) {
            let message = format!("{ip} is no free address of the service network 10.96.0.0/16");
            return Err(("spec.clusterIP".into(), message));
        }
    }
    Ok(())
}

/// What must stay as it is.
pub(super) fn change(old: &Object, new: &Object) -> Result<(), Fault> {
    let immutable = |field: &str| Err((field.to_owned(), "cannot be changed; delete the object first".to_owned()));
    match (old, new) {
        (Object::Deployment(old), Object::Deployment(new)) if old.spec.selector != new.spec.selector => {
            immutable("spec.selector")
        }
        (Object::DaemonSet(old), Object::DaemonSet(new)) if old.spec.selector != new.spec.selector => {
            immutable("spec.selector")
        }
        (Object::StatefulSet(old), Object::StatefulSet(new)) => {
            let (old, new) = (&old.spec, &new.spec);
            for (field, changed) in [
                ("spec.selector", old.selector != new.selector),
                ("spec.serviceName", old.service_name != new.service_name),
                ("spec.podManagementPolicy", old.pod_management_policy != new.pod_management_policy),
                ("spec.volumeClaimTemplates", old.volume_claim_templates != new.volume_claim_templates),
            ] {
                if changed {
                    return immutable(field);
                }
            }
            Ok(())
        }
        (Object::Job(old), Object::Job(new)) => {
            let part = |job: &Job| job.spec.clone().map(|s| (s.template, s.completions, s.completion_mode));
            match (part(old), part(new)) {
                (Some(old), Some(new)) if old.0 != new.0 => immutable("spec.template"),
                (Some(old), Some(new)) if old.1 != new.1 => immutable("spec.completions"),
                (Some(old), Some(new)) if old.2 != new.2 => immutable("spec.completionMode"),
                _ => Ok(()),
            }
        }
        (Object::Service(old), Object::Service(new)) => {
            let asked = services::cluster_ip(new);
            let headless = (services::is_headless(old), services::is_headless(new));
            match (services::cluster_ip(old), asked) {
                (Some(old), Some(new)) if old != new => immutable("spec.clusterIP"),
                _ if headless == (true, false) || headless == (false, true) => immutable("spec.clusterIP"),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}
