//! What is asked for about the traffic to a service: routes, profiles, splits.
//!
//! A service carries it as a part of itself, so that whoever watches the service hears of it, and nobody else.

use super::pod::Id;
use super::policy::{RouteSpec, created};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use weft_core::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_core::kinds::{Key, Kind, Object};
use weft_core::mesh::types::{BackendReference, ParentReference, ServiceProfileSpec, TrafficSplitSpec};

/// Annotations that say something about traffic begin with one of these.
const PREFIXES: &[&str] = &["timeout.linkerd.io/", "retry.linkerd.io/", "balancer.linkerd.io/"];

/// A route of services.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its kind.
    pub kind: Kind,
    /// Namespace and name.
    pub id: Id,
    /// What it says.
    pub spec: RouteSpec,
    /// Its annotations about traffic.
    pub annotations: BTreeMap<String, String>,
    created: String,
    /// The services, each with a port, or all of its ports.
    parents: Vec<(Id, Option<u16>)>,
}

/// A profile of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Namespace, and the full name of the service.
    pub id: Id,
    /// What it says.
    pub spec: ServiceProfileSpec,
}

/// A split of a service's traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    id: Id,
    created: String,
    /// What it says.
    pub spec: TrafficSplitSpec,
}

/// What is asked for about the traffic to one service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    /// Routes of any namespace, the oldest first.
    routes: Vec<Arc<Route>>,
    /// Profiles by namespace.
    profiles: BTreeMap<String, Arc<Profile>>,
    /// The split.
    pub split: Option<Arc<Split>>,
    /// Services that the routes lead to and that do not exist.
    pub missing: BTreeSet<Id>,
}

impl Traffic {
    /// The routes of a client's requests to a port: those of the client's own namespace when there are any, else those of
    /// the service's.
    pub fn routes(&self, service: &Id, port: u16, client: &str) -> Vec<&Arc<Route>> {
        let of = |namespace: &str| -> Vec<&Arc<Route>> {
            let is_parent = |(id, of): &(Id, Option<u16>)| id == service && of.is_none_or(|of| of == port);
            let here = |route: &&Arc<Route>| route.id.namespace == namespace && route.parents.iter().any(is_parent);
            self.routes.iter().filter(here).collect()
        };
        let own = of(client);
        if own.is_empty() { of(&service.namespace) } else { own }
    }

    /// The profile that a client goes by: that of its own namespace, else that of the service's.
    pub fn profile(&self, service: &Id, client: &str) -> Option<&Arc<Profile>> {
        self.profiles.get(client).or_else(|| self.profiles.get(&service.namespace))
    }
}

/// All that is asked for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    routes: HashMap<(Kind, Id), Arc<Route>>,
    profiles: HashMap<Id, Arc<Profile>>,
    splits: HashMap<Id, Arc<Split>>,
    routes_by_service: HashMap<Id, BTreeSet<(Kind, Id)>>,
    profiles_by_service: HashMap<Id, BTreeSet<Id>>,
    splits_by_service: HashMap<Id, BTreeSet<Id>>,
    /// Services with routes, by the service that a route leads to.
    parents_by_backend: HashMap<Id, BTreeMap<Id, usize>>,
}

impl Wishes {
    /// Takes in an object, or forgets the one of this key. Gives the services that it is or was about.
    pub fn set(&mut self, key: &Key, object: Option<&Object>) -> BTreeSet<Id> {
        let id = Id::new(&key.namespace, &key.name);
        match key.kind {
            Kind::ServiceProfile => {
                let service = service_of_profile(&key.name);
                let profile = match object {
                    Some(Object::ServiceProfile(o)) => Some(Profile { id: id.clone(), spec: o.spec.clone() }),
                    _ => None,
                };
                put(&mut self.profiles, &mut self.profiles_by_service, id, profile.zip(service), |profile| {
                    service_of_profile(&profile.id.name)
                })
            }
            Kind::TrafficSplit => {
                let split = match object {
                    Some(Object::TrafficSplit(o)) => {
                        let split = Split { id: id.clone(), created: created(&o.metadata), spec: o.spec.clone() };
                        let service = apex(&split);
                        Some((split, service))
                    }
                    _ => None,
                };
                put(&mut self.splits, &mut self.splits_by_service, id, split, |split| Some(apex(split)))
            }
            _ => self.set_route((key.kind, id.clone()), object.and_then(|object| route(key, object))),
        }
    }

    fn set_route(&mut self, place: (Kind, Id), route: Option<Route>) -> BTreeSet<Id> {
        let mut touched = BTreeSet::new();
        let before = match route.clone() {
            Some(route) => self.routes.insert(place.clone(), Arc::new(route)),
            None => self.routes.remove(&place),
        };
        for (route, there) in [(before.as_deref(), false), (route.as_ref(), true)] {
            let Some(route) = route else { continue };
            for parent in route.parents.iter().map(|(id, _)| id).collect::<BTreeSet<_>>() {
                touched.insert(parent.clone());
                let routes = self.routes_by_service.entry(parent.clone()).or_default();
                if there {
                    routes.insert(place.clone());
                } else {
                    routes.remove(&place);
                    if routes.is_empty() {
                        self.routes_by_service.remove(parent);
                    }
                }
                for backend in backends(route) {
                    let parents = self.parents_by_backend.entry(backend.clone()).or_default();
                    let count = parents.entry(parent.clone()).or_default();
                    if there {
                        *count += 1;
                    } else {
                        *count = count.saturating_sub(1);
                        if *count == 0 {
                            parents.remove(parent);
                        }
                        if parents.is_empty() {
                            self.parents_by_backend.remove(&backend);
                        }
                    }
                }
            }
        }
        touched
    }

    /// Services with routes that lead to this one.
    pub fn parents(&self, backend: &Id) -> Vec<Id> {
        self.parents_by_backend.get(backend).into_iter().flat_map(|parents| parents.keys().cloned()).collect()
    }

    /// What is asked for about a service.
    pub fn of(&self, service: &Id, exists: impl Fn(&Id) -> bool) -> Traffic {
        let routes = self.routes_by_service.get(service).into_iter().flatten();
        let mut routes: Vec<Arc<Route>> = routes.filter_map(|place| self.routes.get(place)).cloned().collect();
        routes.sort_by(|a, b| (&a.created, &a.id.name, a.kind).cmp(&(&b.created, &b.id.name, b.kind)));
        let missing =
            routes.iter().flat_map(|route| backends(route)).filter(|id| id != service && !exists(id)).collect();
        let profiles = self.profiles_by_service.get(service).into_iter().flatten();
        let profiles = profiles.filter_map(|id| Some((id.namespace.clone(), self.profiles.get(id)?.clone())));
        let splits = self.splits_by_service.get(service).into_iter().flatten().filter_map(|id| self.splits.get(id));
        let split = splits.min_by_key(|split| (&split.created, &split.id.name)).cloned();
        Traffic { profiles: profiles.collect(), split, missing, routes }
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.routes.len() + self.profiles.len() + self.splits.len()
    }
}

/// Puts a value with its service under an id, or removes it. Gives the services before and after.
fn put<V>(
    values: &mut HashMap<Id, Arc<V>>,
    by_service: &mut HashMap<Id, BTreeSet<Id>>,
    id: Id,
    value: Option<(V, Id)>,
    service_of: impl Fn(&V) -> Option<Id>,
) -> BTreeSet<Id> {
    let mut touched = BTreeSet::new();
    if let Some(service) = values.remove(&id).and_then(|before| service_of(&before)) {
        if let Some(ids) = by_service.get_mut(&service) {
            ids.remove(&id);
            if ids.is_empty() {
                by_service.remove(&service);
            }
        }
        touched.insert(service);
    }
    if let Some((value, service)) = value {
        by_service.entry(service.clone()).or_default().insert(id.clone());
        values.insert(id, Arc::new(value));
        touched.insert(service);
    }
    touched
}

/// The service that a profile is named after: `web.shop.svc.cluster.local`.
fn service_of_profile(name: &str) -> Option<Id> {
    let mut parts = name.splitn(4, '.');
    let (service, namespace, svc) = (parts.next()?, parts.next()?, parts.next()?);
    (svc == "svc").then(|| Id::new(namespace, service))
}

/// The service whose traffic is split. Some write its full name.
fn apex(split: &Split) -> Id {
    let name = split.spec.service.split('.').next().unwrap_or_default();
    Id::new(&split.id.namespace, name)
}

fn route(key: &Key, object: &Object) -> Option<Route> {
    let (metadata, parents, spec) = match object {
        Object::HttpRoute(o) | Object::GatewayHttpRoute(o) => {
            (&o.metadata, &o.spec.parent_refs, RouteSpec::Http(o.spec.clone()))
        }
        Object::GrpcRoute(o) => (&o.metadata, &o.spec.parent_refs, RouteSpec::Grpc(o.spec.clone())),
        _ => return None,
    };
    let parent = |parent: &ParentReference| {
        let of_services = matches!(parent.group.as_deref(), Some("" | "core"))
            && parent.kind.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("Service"));
        let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
        of_services.then(|| (Id::new(namespace, &parent.name), parent.port))
    };
    let parents: Vec<_> = parents.iter().flatten().filter_map(parent).collect();
    if parents.is_empty() {
        return None;
    }
    Some(Route {
        kind: key.kind,
        id: Id::new(&key.namespace, &key.name),
        spec,
        annotations: annotations(metadata),
        created: created(metadata),
        parents,
    })
}

/// The annotations about traffic.
pub(super) fn annotations(metadata: &ObjectMeta) -> BTreeMap<String, String> {
    let all = metadata.annotations.iter().flatten();
    let ours = all.filter(|(key, _)| PREFIXES.iter().any(|prefix| key.starts_with(prefix)));
    ours.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The service that a reference leads to; `None` for what is no service.
pub fn backend(route: &Id, reference: &BackendReference) -> Option<Id> {
    let is_service = matches!(reference.group.as_deref(), None | Some("" | "core"))
        && reference.kind.as_deref().is_none_or(|kind| kind.eq_ignore_ascii_case("Service"));
    is_service.then(|| Id::new(reference.namespace.as_deref().unwrap_or(&route.namespace), &reference.name))
}

/// The services that a route leads to.
fn backends(route: &Route) -> BTreeSet<Id> {
    let references: Vec<&BackendReference> = match &route.spec {
        RouteSpec::Http(spec) => {
            spec.rules.iter().flatten().flat_map(|rule| rule.backend_refs.iter().flatten()).collect()
        }
        RouteSpec::Grpc(spec) => {
            spec.rules.iter().flatten().flat_map(|rule| rule.backend_refs.iter().flatten()).collect()
        }
    };
    references.into_iter().filter_map(|reference| backend(&route.id, reference)).collect()
}
