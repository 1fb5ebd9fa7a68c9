//! Pods from files: which of them are sound together, since no address, UID or namespace may be two pods'.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use super::Loader;
use crate::identity::{PodUid, SpiffeId};
use crate::world::World;
use crate::world::manifest::{Kind, ObjectKey};
use crate::world::model::{MeshConfig, MeshMode};
use crate::world::object::{FieldProblem, LocalPod, MeshObject, Object, PodObject};

/// The pods that may be put into a world together, without those that have ended. A pod that claims what another one
/// has is refused; if `previous` had it without that claim, that version stays.
pub(super) fn sound(
    loader: &mut Loader,
    mesh: &MeshConfig,
    local: &MeshObject,
    previous: Option<&World>,
) -> BTreeMap<ObjectKey, PodObject> {
    let places = local_pods(loader, local);
    let mut checked = Checked { mesh, places, claims: Claims::default(), pods: BTreeMap::new() };
    let mut refused = Vec::new();
    let order = loader.order.clone();
    for key in order.into_iter().filter(|key| key.kind == Kind::Pod) {
        let Some(in_force) = loader.objects.get(&key).cloned() else { continue };
        if let Err(problem) = checked.add(&key, &in_force.object) {
            refused.push((key, problem));
        }
    }
    for (key, mut problem) in refused {
        let old = previous.and_then(|world| world.objects.get(&key)).cloned();
        let stays = old.filter(|old| checked.add(&key, &old.object).is_ok());
        if stays.is_some() {
            problem.reason = format!("{}; {}", problem.reason, super::STAYS);
        }
        loader.reject_in_force(&key, problem);
        loader.objects.remove(&key);
        if let Some(old) = stays {
            loader.keep(&key, &old);
        }
    }
    checked.pods
}

struct Checked<'a> {
    mesh: &'a MeshConfig,
    places: BTreeMap<ObjectKey, LocalPod>,
    claims: Claims,
    pods: BTreeMap<ObjectKey, PodObject>,
}

impl Checked<'_> {
    fn add(&mut self, key: &ObjectKey, object: &Object) -> Result<(), FieldProblem> {
        let Object::Pod(object) = object else { return Ok(()) };
        if object.is_finished {
            return Ok(());
        }
        SpiffeId::new(&self.mesh.trust_domain, &key.namespace, &object.service_account)
            .map_err(|e| FieldProblem::new("spec.serviceAccountName", e.to_string()))?;
        let place = self.places.get(key);
        let fields = Fields {
            ips: if object.ips.is_empty() { "" } else { &object.ips_field },
            netns: if place.is_some() { "" } else { NETNS_FIELD },
        };
        let mut pod = (**object).clone();
        if let Some(place) = place {
            pod.netns = Some(place.netns.clone());
            if pod.ips.is_empty() {
                pod.ips.clone_from(&place.ips);
            }
        }
        self.claims.take(key, &pod, &fields)?;
        self.pods.insert(key.clone(), pod);
        Ok(())
    }
}

/// The Mesh object's `localPods`, by pod. An entry for a pod that is not in
/// the world, or for the same pod again, is a fault of the Mesh object.
fn local_pods(loader: &mut Loader, local: &MeshObject) -> BTreeMap<ObjectKey, LocalPod> {
    let mut places = BTreeMap::new();
    let mesh = loader.objects.keys().find(|key| key.kind == Kind::Mesh).cloned();
    for (i, entry) in local.local_pods.iter().enumerate() {
        let (namespace, name) = (entry.namespace.clone(), entry.name.clone());
        let key = ObjectKey { kind: Kind::Pod, namespace, name };
        let fault = if !loader.objects.contains_key(&key) {
            Some("the world has no such pod")
        } else if places.contains_key(&key) {
            Some("the pod is listed already")
        } else {
            None
        };
        match (fault, &mesh) {
            (Some(fault), Some(mesh)) => {
                let field = format!("spec.localPods[{i}].name");
                loader.reject_in_force(mesh, FieldProblem::new(field, fault));
            }
            _ => {
                places.insert(key, entry.clone());
            }
        }
    }
    places
}

/// Without a node no agent feels responsible, which is easily overlooked.
pub(super) fn hint_at_missing_nodes(loader: &mut Loader, world: &World) {
    let lost = world.pods.values().filter(|pod| pod.netns.is_some() && pod.node.is_empty());
    for pod in lost.filter(|pod| pod.mode == MeshMode::Ambient) {
        let (namespace, name) = (pod.namespace.to_string(), pod.name.to_string());
        let reason = "missing, so no node's agent enrols the pod although its namespace is known";
        let key = ObjectKey { kind: Kind::Pod, namespace, name };
        loader.reject_in_force(&key, FieldProblem::new("spec.nodeName", reason));
    }
}

const NETNS_FIELD: &str = "metadata.annotations.warren.dev/netns";

/// Where the pod's claims stand; empty if the Mesh object makes them.
struct Fields<'a> {
    ips: &'a str,
    netns: &'a str,
}

/// What only one pod can have. The first one counts.
#[derive(Default)]
struct Claims {
    uids: BTreeSet<PodUid>,
    ips: BTreeMap<IpAddr, String>,
    /// By node: a path means nothing elsewhere.
    namespaces: BTreeMap<(String, PathBuf), String>,
}

impl Claims {
    /// Claims all that the pod has, or nothing.
    fn take(&mut self, key: &ObjectKey, pod: &PodObject, fields: &Fields<'_>) -> Result<(), FieldProblem> {
        if self.uids.contains(&pod.uid) {
            let reason = format!("{} belongs to another pod already", pod.uid);
            return Err(FieldProblem::new("metadata.uid", reason));
        }
        let own_ips = || pod.ips.iter().filter(|_| !pod.facts.host_network);
        if let Some((ip, owner)) = own_ips().find_map(|ip| Some((ip, self.ips.get(ip)?))) {
            let reason = format!("{ip} belongs to {owner} already; the first one counts");
            return Err(FieldProblem::new(fields.ips, reason));
        }
        let namespace = pod.netns.clone().map(|path| (pod.node.clone(), path));
        if let Some(owner) = namespace.as_ref().and_then(|at| self.namespaces.get(at)) {
            let reason = format!("the namespace belongs to {owner} already; the first one counts");
            return Err(FieldProblem::new(fields.netns, reason));
        }
        self.uids.insert(pod.uid.clone());
        self.ips.extend(own_ips().map(|ip| (*ip, key.to_string())));
        self.namespaces.extend(namespace.map(|at| (at, key.to_string())));
        Ok(())
    }
}
