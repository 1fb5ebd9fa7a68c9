//! Shared pieces of this module's tests.

use crate::identity::SpiffeId;
use crate::world::{MeshConfig, MeshMode, Pod, Workload, WorkloadKind};

pub(super) fn mesh(trust_domain: &str) -> MeshConfig {
    MeshConfig::new(trust_domain.parse().unwrap())
}

pub(super) fn pod(mesh: &MeshConfig, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Pod {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Pod {
        uid: format!("{namespace}/{name}").as_str().into(),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: "default".to_owned(),
        node: "node-1".to_owned(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        labels: labels.collect(),
        ready: true,
        identity: SpiffeId::new(&mesh.trust_domain, namespace, "default").unwrap(),
        mode: MeshMode::Ambient,
        netns: None,
        workload: Workload { kind: WorkloadKind::Pod, name: name.to_owned() },
        canonical_name: name.to_owned(),
        canonical_revision: "latest".to_owned(),
        ports: Vec::new(),
        host_network: false,
        host_ips: Vec::new(),
    }
}
