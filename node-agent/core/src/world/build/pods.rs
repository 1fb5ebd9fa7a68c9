//! Pods of the world: modes, identities, and who owns which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Loader;
use crate::identity::{PodUid, SpiffeId};
use crate::world::World;
use crate::world::manifest::{Kind, ObjectKey};
use crate::world::model::{MeshConfig, MeshMode, Pod};
use crate::world::object::{FieldProblem, LocalPod, MeshObject, Object, PodObject};

/// Namespaces whose pods are never taken into the mesh (policy.md §10).
const EXCLUDED_NAMESPACES: [&str; 1] = ["kube-system"];

/// The pods in force. A pod that claims what another one has is refused; if
/// `previous` had it without that claim, that version stays.
pub(super) fn build(
    loader: &mut Loader,
    mesh: &MeshConfig,
    local: &MeshObject,
    previous: Option<&World>,
) -> BTreeMap<PodUid, Arc<Pod>> {
    let (modes, places) = (namespace_modes(loader), local_pods(loader, local));
    let mut builder = Builder { mesh, modes, places, claims: Claims::default(), pods: BTreeMap::new() };
    let mut refused = Vec::new();
    let order = loader.order.clone();
    for key in order.into_iter().filter(|key| key.kind == Kind::Pod) {
        let Some(in_force) = loader.objects.get(&key).cloned() else { continue };
        match builder.add(&key, &in_force.object) {
            Ok(()) => hint_at_missing_node(loader, &key, &builder),
            Err(problem) => refused.push((key, problem)),
        }
    }
    for (key, mut problem) in refused {
        let old = previous.and_then(|world| world.objects.get(&key)).cloned();
        let stays = old.filter(|old| builder.add(&key, &old.object).is_ok());
        if stays.is_some() {
            problem.reason = format!("{}; {}", problem.reason, super::STAYS);
        }
        loader.reject_in_force(&key, problem);
        loader.objects.remove(&key);
        if let Some(old) = stays {
            loader.keep(&key, &old);
        }
    }
    builder.pods
}

struct Builder<'a> {
    mesh: &'a MeshConfig,
    modes: BTreeMap<String, MeshMode>,
    places: BTreeMap<ObjectKey, LocalPod>,
    claims: Claims,
    pods: BTreeMap<PodUid, Arc<Pod>>,
}

impl Builder<'_> {
    fn add(&mut self, key: &ObjectKey, object: &Object) -> Result<(), FieldProblem> {
        let Object::Pod(object) = object else { return Ok(()) };
        if object.is_finished {
            return Ok(());
        }
        let place = self.places.get(key);
        let pod = assemble(key, object, self.mesh, &self.modes, place)?;
        let fields = Fields {
            ips: if object.ips.is_empty() { "" } else { &object.ips_field },
            netns: if place.is_some() { "" } else { NETNS_FIELD },
        };
        self.claims.take(key, &pod, &fields)?;
        self.pods.insert(pod.uid.clone(), Arc::new(pod));
        Ok(())
    }
}

fn namespace_modes(loader: &Loader) -> BTreeMap<String, MeshMode> {
    let modes = loader.objects.iter().filter_map(|(key, in_force)| match &in_force.object {
        Object::Namespace(namespace) => Some((key.name.clone(), namespace.mode?)),
        _ => None,
    });
    modes.collect()
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

fn assemble(
    key: &ObjectKey,
    object: &PodObject,
    mesh: &MeshConfig,
    modes: &BTreeMap<String, MeshMode>,
    place: Option<&LocalPod>,
) -> Result<Pod, FieldProblem> {
    let account = object.service_account.as_str();
    let identity = SpiffeId::new(&mesh.trust_domain, &key.namespace, account)
        .map_err(|e| FieldProblem::new("spec.serviceAccountName", e.to_string()))?;
    let netns = place.map(|p| p.netns.clone()).or_else(|| object.netns.clone());
    let annotated = place.filter(|_| object.ips.is_empty()).map(|p| p.ips.clone());
    let labels = object.labels.clone();
    let label = |names: [&str; 3]| names.into_iter().find_map(|n| labels.get(n)).cloned();
    let canonical_name = label(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let canonical_revision = label(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    Ok(Pod {
        uid: object.uid.clone(),
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        service_account: account.to_owned(),
        node: object.node.clone(),
        ips: annotated.unwrap_or_else(|| object.ips.clone()),
        ready: object.ready,
        identity,
        mode: mode(key, object, modes),
        netns,
        canonical_name: canonical_name.unwrap_or_else(|| object.workload.name.clone()),
        canonical_revision: canonical_revision.unwrap_or_else(|| "latest".to_owned()),
        workload: object.workload.clone(),
        ports: object.ports.clone(),
        host_network: object.host_network,
        host_ips: object.host_ips.clone(),
        labels,
    })
}

fn mode(key: &ObjectKey, object: &PodObject, modes: &BTreeMap<String, MeshMode>) -> MeshMode {
    let excluded = EXCLUDED_NAMESPACES.contains(&key.namespace.as_str());
    if excluded || object.host_network || object.has_sidecar {
        return MeshMode::None;
    }
    let inherited = || modes.get(&key.namespace).copied();
    object.mode.or_else(inherited).unwrap_or(MeshMode::None)
}

/// Without a node no agent feels responsible, which is easily overlooked.
fn hint_at_missing_node(loader: &mut Loader, key: &ObjectKey, builder: &Builder<'_>) {
    let lost = |pod: &&Arc<Pod>| pod.netns.is_some() && pod.node.is_empty() && pod.mode == MeshMode::Ambient;
    let uid = loader.objects.get(key).and_then(|in_force| match &in_force.object {
        Object::Pod(pod) => Some(pod.uid.clone()),
        _ => None,
    });
    if uid.and_then(|uid| builder.pods.get(&uid)).filter(lost).is_some() {
        let reason = "missing, so no node's agent enrols the pod although its namespace is known";
        loader.reject_in_force(key, FieldProblem::new("spec.nodeName", reason));
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
    fn take(&mut self, key: &ObjectKey, pod: &Pod, fields: &Fields<'_>) -> Result<(), FieldProblem> {
        if self.uids.contains(&pod.uid) {
            let reason = format!("{} belongs to another pod already", pod.uid);
            return Err(FieldProblem::new("metadata.uid", reason));
        }
        let own_ips = || pod.ips.iter().filter(|_| !pod.host_network);
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
