//! Services from files: which addresses each may have.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::Loader;
use crate::world::manifest::{Kind, ObjectKey};
use crate::world::object::{FieldProblem, Object, PodObject, ServiceObject};

/// The services with the addresses that they may have. One that a pod or an earlier service has is left out: a Service
/// must not be able to take over somebody's traffic.
pub(super) fn sound(loader: &mut Loader, pods: &BTreeMap<ObjectKey, PodObject>) -> BTreeMap<ObjectKey, ServiceObject> {
    let own = pods.iter().filter(|(_, pod)| !pod.facts.host_network);
    let mut owners: HashMap<IpAddr, String> =
        own.flat_map(|(key, pod)| pod.ips.iter().map(move |ip| (*ip, key.to_string()))).collect();
    let mut services = BTreeMap::new();
    let order = loader.order.clone();
    for key in order.into_iter().filter(|key| key.kind == Kind::Service) {
        let Some(Object::Service(mut service)) = loader.objects.get(&key).map(|o| o.object.clone()) else { continue };
        let claimed = std::mem::take(&mut service.vips);
        for (ip, field) in claimed {
            if let Some(owner) = owners.get(&ip) {
                let reason = format!(
                    "{ip} belongs to {owner} already; the first one counts, the rest of this \
                     Service is in force"
                );
                loader.reject_in_force(&key, FieldProblem::new(field, reason));
                continue;
            }
            owners.insert(ip, key.to_string());
            service.vips.push((ip, field));
        }
        services.insert(key, service);
    }
    services
}
