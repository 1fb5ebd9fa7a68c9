//! Shared pieces of this module's tests.

use crate::enrolment::mode::Decision;
use crate::identity::SpiffeId;
use crate::world::{MeshConfig, MeshMode, Pod, Workload, WorkloadKind};

pub(super) fn mesh(trust_domain: &str) -> MeshConfig {
    MeshConfig::new(trust_domain.parse().unwrap())
}

pub(super) fn pod(mesh: &MeshConfig, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Pod {
    let labels = labels.iter().map(|(k, v)| (*k, *v));
    Pod {
        uid: format!("{namespace}/{name}").as_str().into(),
        name: name.into(),
        namespace: namespace.into(),
        service_account: "default".into(),
        node: "node-1".into(),
        ips: ["10.0.0.1".parse().unwrap()].into(),
        labels: labels.collect(),
        ready: true,
        identity: SpiffeId::new(&mesh.trust_domain, namespace, "default").unwrap(),
        decision: Decision::Enrol,
        mode: MeshMode::Ambient,
        netns: None,
        workload: Workload { kind: WorkloadKind::Pod, name: name.into() },
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        probed: [].into(),
        ports: [].into(),
        host_network: false,
        host_ips: [].into(),
    }
}
