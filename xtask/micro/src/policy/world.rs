//! What the worlds are made of.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use serde_json::{Value, json};
use warren_core::enrolment::mode::Decision;
use warren_core::identity::SpiffeId;
use warren_core::policy::{AuthorizationPolicy, PolicySet};
use warren_core::world::{MeshConfig, MeshMode, Pod, Workload, WorkloadKind};

use super::{Caller, Kind};

/// The fewest policies of a world.
pub(super) const LEAST: usize = 10;
/// The workload that is called.
pub(super) const SELECTED: usize = 7;
/// The most workloads of a world.
pub(super) const WORKLOADS: usize = 1000;
/// Where it is called.
pub(super) const DESTINATION: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 0, 1));

const NAMESPACE: &str = "shop";
/// Ports that policies name.
const PORTS: usize = 50_000;
const FIRST_PORT: u16 = 1000;
/// Principals of a world whose policies name ports as well.
const PRINCIPALS: usize = 1000;

/// A pod of one workload.
pub(super) fn pod(mesh: &MeshConfig, workload: usize) -> Result<Pod> {
    let name = format!("app-{workload}");
    Ok(Pod {
        uid: name.as_str().into(),
        namespace: NAMESPACE.into(),
        service_account: "default".into(),
        node: "node".into(),
        ips: [DESTINATION].into(),
        labels: [("app", name.as_str())].into_iter().collect(),
        ready: true,
        identity: SpiffeId::new(&mesh.trust_domain, NAMESPACE, "default")?,
        decision: Decision::Enrol,
        mode: MeshMode::Ambient,
        netns: None,
        workload: Workload { kind: WorkloadKind::Pod, name: name.as_str().into() },
        canonical_name: name.as_str().into(),
        canonical_revision: "latest".into(),
        probed: [].into(),
        ports: [].into(),
        host_network: false,
        host_ips: [].into(),
        name: name.into(),
    })
}

/// `size` policies.
pub(super) fn policies(kind: Kind, size: usize) -> Result<PolicySet> {
    let mut set = PolicySet::default();
    if kind == Kind::Deny {
        let all = json!({"rules": [{"from": [{"source": {"namespaces": ["callers"]}}]}]});
        set.authorization.push(policy("the-allow".to_owned(), all)?);
    }
    for number in 0..size {
        set.authorization.push(policy(format!("p{number}"), spec(kind, number))?);
    }
    Ok(set)
}

fn policy(name: String, spec: Value) -> Result<AuthorizationPolicy> {
    Ok(AuthorizationPolicy {
        namespace: NAMESPACE.to_owned(),
        name,
        dry_run: false,
        spec: serde_json::from_value(spec)?,
    })
}

fn spec(kind: Kind, number: usize) -> Value {
    let from = |source: Value| json!({"rules": [{"from": [{"source": source}]}]});
    let principal = |number: usize| format!("cluster.local/ns/callers/sa/s{number}");
    match kind {
        Kind::Identity | Kind::Spread => from(json!({"principals": [principal(number)]})),
        Kind::Namespace => from(json!({"namespaces": [format!("n{number}")]})),
        Kind::Address => from(json!({"ipBlocks": [format!("{}/32", address(number))]})),
        Kind::Port => json!({"rules": [{
            "from": [{"source": {"principals": [principal(number % PRINCIPALS)]}}],
            "to": [{"operation": {"ports": [port(number).to_string()]}}],
        }]}),
        Kind::Selector => json!({
            "selector": {"matchLabels": {"app": format!("app-{number}")}},
            "rules": [{"from": [{"source": {"principals": [principal(number)]}}]}],
        }),
        Kind::Deny => json!({
            "action": "DENY",
            "rules": [{"from": [{"source": {"principals": [principal(number)]}}]}],
        }),
        Kind::Mixed => match number % 5 {
            0 => spec(Kind::Identity, number),
            1 => spec(Kind::Namespace, number),
            2 => spec(Kind::Address, number),
            3 => spec(Kind::Port, number),
            _ => json!({"action": "DENY", "rules": [{"from": [{"source": {"principals": [principal(number)]}}]}]}),
        },
    }
}

/// A caller that policy `number` allows.
pub(super) fn allowed(kind: Kind, number: usize) -> Result<Caller> {
    let own = |namespace: &str, account: String| id(namespace, &account);
    Ok(match kind {
        Kind::Identity | Kind::Selector | Kind::Spread => caller(own("callers", format!("s{number}"))?, 0, 80),
        Kind::Namespace => caller(own(&format!("n{number}"), "x".into())?, 0, 80),
        Kind::Address => caller(own("elsewhere", "x".into())?, number, 80),
        Kind::Port => caller(own("callers", format!("s{}", number % PRINCIPALS))?, 0, port(number)),
        Kind::Deny => caller(own("callers", format!("good{number}"))?, 0, 80),
        Kind::Mixed => match number % 5 {
            0 => allowed(Kind::Identity, number)?,
            1 => allowed(Kind::Namespace, number)?,
            2 => allowed(Kind::Address, number)?,
            3 => allowed(Kind::Port, number)?,
            _ => allowed(Kind::Identity, 0)?,
        },
    })
}

/// A caller that no policy allows, or one denies.
pub(super) fn denied(kind: Kind, number: usize) -> Result<Caller> {
    Ok(match kind {
        Kind::Deny => caller(id("callers", &format!("s{number}"))?, 0, 80),
        // Known to the policies, but at another port.
        Kind::Port => caller(id("callers", &format!("s{}", number % PRINCIPALS))?, 0, 80),
        // The policies of this number deny.
        Kind::Mixed => caller(id("callers", "s4")?, STRANGER, 80),
        _ => caller(id("strangers", &format!("s{number}"))?, STRANGER, 80),
    })
}

/// An address that no policy names.
const STRANGER: usize = 1 << 20;

fn caller(id: SpiffeId, address_number: usize, port: u16) -> Caller {
    Caller { id, ip: address(address_number).into(), port }
}

fn id(namespace: &str, account: &str) -> Result<SpiffeId> {
    Ok(SpiffeId::new(&"mesh.example".parse()?, namespace, account)?)
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number as u32)
}

fn port(number: usize) -> u16 {
    FIRST_PORT + (number % PORTS) as u16
}

/// A number below `size` that follows no pattern a processor could foresee.
pub(super) fn scattered(at: usize, size: usize) -> usize {
    let mixed = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16) as usize % size
}
