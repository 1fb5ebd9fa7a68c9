//! `warren.dev/v1alpha1 Mesh`: facts of the mesh, and where local pods are.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{FieldProblem, typed};
use crate::addr::canonical;
use crate::identity::TrustDomain;
use crate::world::manifest::Document;
use crate::world::model::MeshConfig;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mesh {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
    #[serde(default)]
    spec: MeshObject,
}

/// `spec` of a Mesh. What is absent keeps the agent's own setting.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(in crate::world) struct MeshObject {
    trust_domain: Option<TrustDomain>,
    trust_domain_aliases: Option<Vec<String>>,
    root_namespace: Option<String>,
    cluster: Option<String>,
    region: Option<String>,
    capture_ranges: Option<Vec<IpNet>>,
    pub(in crate::world) local_pods: Vec<LocalPod>,
}

/// One entry of `localPods`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::world) struct LocalPod {
    #[serde(default = "default_namespace")]
    pub(in crate::world) namespace: String,
    pub(in crate::world) name: String,
    pub(in crate::world) netns: PathBuf,
    #[serde(default)]
    pub(in crate::world) ips: Vec<IpAddr>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl MeshObject {
    /// The mesh's facts, over those that the agent was started with.
    pub(in crate::world) fn over(&self, defaults: &MeshConfig) -> MeshConfig {
        let text = |own: &Option<String>, default: &String| own.as_ref().unwrap_or(default).clone();
        let mut aliases = self.trust_domain_aliases.clone().unwrap_or_else(|| defaults.trust_domain_aliases.clone());
        if !aliases.iter().any(|a| a == MeshConfig::CLUSTER_LOCAL) {
            aliases.push(MeshConfig::CLUSTER_LOCAL.to_owned());
        }
        let ranges = self.capture_ranges.as_ref().unwrap_or(&defaults.capture_ranges);
        MeshConfig {
            trust_domain: self.trust_domain.as_ref().unwrap_or(&defaults.trust_domain).clone(),
            trust_domain_aliases: aliases,
            root_namespace: text(&self.root_namespace, &defaults.root_namespace),
            cluster: text(&self.cluster, &defaults.cluster),
            region: text(&self.region, &defaults.region),
            capture_ranges: ranges.iter().map(IpNet::trunc).collect(),
            unknown_destination: defaults.unknown_destination,
            unpublished: defaults.unpublished,
            incapable_destination: defaults.incapable_destination,
            never_enrolled: defaults.never_enrolled.clone(),
        }
    }
}

pub(super) fn read(document: &Document) -> Result<MeshObject, Vec<FieldProblem>> {
    if let Some(field) = document.root.get("spec").and_then(|spec| spec.find_null("spec")) {
        return Err(vec![FieldProblem::new(field, "has no value")]);
    }
    let Mesh { mut spec, .. } = typed(&document.root)?;
    let mut problems = Vec::new();
    for (i, alias) in spec.trust_domain_aliases.iter().flatten().enumerate() {
        if let Err(error) = alias.parse::<TrustDomain>() {
            let field = format!("spec.trustDomainAliases[{i}]");
            problems.push(FieldProblem::new(field, error.to_string()));
        }
    }
    for (i, pod) in spec.local_pods.iter_mut().enumerate() {
        if !pod.netns.is_absolute() {
            let field = format!("spec.localPods[{i}].netns");
            problems.push(FieldProblem::new(field, "not an absolute path"));
        }
        for ip in &mut pod.ips {
            *ip = canonical(*ip);
        }
    }
    if problems.is_empty() { Ok(spec) } else { Err(problems) }
}
