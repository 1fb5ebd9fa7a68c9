//! The world both agents read, as it changes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::lab::{PAIRS, PODS, PORT, Pair, Pod, SERVICE_PORT, TRUST_DOMAIN, address_ranges};

/// How a pair is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Denial {
    /// A DENY policy names the caller.
    Deny,
    /// The ALLOW policy names it no longer.
    NotAllowed,
    /// A DENY policy on the server's port, whoever calls but the others.
    DenyPort,
}

/// What stands in the file.
#[derive(Debug, Clone)]
pub(super) struct World {
    path: PathBuf,
    /// Pods that exist, by their places, each with the number of its lives.
    pods: [Option<u32>; PODS.len()],
    lives: u32,
    denied: BTreeSet<(Pair, Denial)>,
    /// Policies for apps that nobody is.
    unrelated: usize,
    /// Changes nothing: a label that only this number tells.
    revision: u32,
}

impl World {
    /// All pods, nobody denied who calls.
    pub(super) fn new(path: PathBuf) -> Self {
        let mut world =
            Self { path, pods: [None; PODS.len()], lives: 0, denied: BTreeSet::new(), unrelated: 0, revision: 0 };
        (0..PODS.len()).for_each(|pod| world.add(pod));
        world
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A pod is new, or there again.
    pub(super) fn add(&mut self, pod: usize) {
        self.lives += 1;
        self.pods[pod] = Some(self.lives);
    }

    /// A pod is gone.
    pub(super) fn remove(&mut self, pod: usize) {
        self.pods[pod] = None;
    }

    /// Denies a pair from now on.
    pub(super) fn deny(&mut self, pair: Pair, how: Denial) {
        self.denied.insert((pair, how));
    }

    /// Allows it again.
    pub(super) fn allow(&mut self, pair: Pair) {
        self.denied.retain(|(denied, _)| *denied != pair);
    }

    /// Changes what nobody notices: policies for others, a label.
    pub(super) fn stir(&mut self, unrelated: usize) {
        self.unrelated = unrelated;
        self.revision += 1;
    }

    /// Replaces the file at once: no reader sees half of it.
    pub(super) fn write(&self) -> Result<()> {
        let next = self.path.with_extension("next");
        fs::write(&next, self.text()).with_context(|| next.display().to_string())?;
        fs::rename(&next, &self.path).with_context(|| self.path.display().to_string())
    }

    fn text(&self) -> String {
        let mut text = format!(
            "apiVersion: warren.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: soak}}\nspec:\n  \
             trustDomain: {TRUST_DOMAIN}\n  captureRanges: [{}]\n---\n{PREAMBLE}",
            address_ranges().map(|range| format!("\"{range}\"")).join(", ")
        );
        for (place, pod) in PODS.into_iter().enumerate() {
            text += &account_and_service(pod);
            if let Some(life) = self.pods[place] {
                text += &self.pod(pod, life);
            }
            text += &self.policies(place, pod);
        }
        for number in 0..self.unrelated {
            let _ = write!(
                text,
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: unrelated-{number}, namespace: soak}}\nspec:\n  \
                 selector: {{matchLabels: {{app: nobody-{number}}}}}\n  action: DENY\n  \
                 rules: [{{from: [{{source: {{namespaces: [elsewhere-{number}]}}}}]}}]\n"
            );
        }
        text
    }

    fn pod(&self, pod: Pod, life: u32) -> String {
        let Pod { name, node, .. } = pod;
        let [v4, v6] = pod.addresses();
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: soak\n  uid: {name}-{life}\n  \
             labels: {{app: {name}, revision: \"{}\"}}\n  annotations: {{\"warren.dev/netns\": \"{}\"}}\n\
             spec:\n  nodeName: {}\n  serviceAccountName: {name}\n  \
             containers: [{{name: app, ports: [{{name: main, containerPort: {PORT}}}]}}]\n\
             status: {{podIPs: [{{ip: \"{v4}\"}}, {{ip: \"{v6}\"}}]}}\n",
            self.revision,
            pod.netns().display(),
            node.name,
        )
    }

    /// One ALLOW for each server, with its callers, and the DENYs of the moment.
    fn policies(&self, place: usize, server: Pod) -> String {
        let name = server.name;
        let callers = PAIRS.into_iter().filter(|pair| pair.to == place);
        let allowed = callers.filter(|pair| !self.denied.contains(&(*pair, Denial::NotAllowed)));
        let mut text = policy(&format!("{name}-callers"), name, "ALLOW", &from(allowed.map(Pair::client)));
        for (pair, how) in self.denied.iter().filter(|(pair, _)| pair.to == place) {
            let caller = pair.client();
            let rule = match how {
                Denial::NotAllowed => continue,
                Denial::Deny => from([caller].into_iter()),
                Denial::DenyPort => format!(
                    "{{from: [{{source: {{principals: [\"{}\"]}}}}], to: [{{operation: {{ports: [\"{PORT}\"]}}}}]}}",
                    caller.principal()
                ),
            };
            text += &policy(&format!("{name}-not-{}", caller.name), name, "DENY", &rule);
        }
        text
    }
}

const PREAMBLE: &str = "apiVersion: v1
kind: Namespace
metadata: {name: soak, labels: {warren.dev/mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-by-default, namespace: istio-system}
spec: {}
";

fn account_and_service(pod: Pod) -> String {
    let name = pod.name;
    let [v4, v6] = pod.service_addresses();
    format!(
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: soak}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: soak}}\nspec:\n  \
         selector: {{app: {name}}}\n  clusterIP: \"{v4}\"\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  \
         ports: [{{name: main, port: {SERVICE_PORT}, targetPort: main}}]\n"
    )
}

fn policy(name: &str, app: &str, action: &str, rule: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: soak}}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  \
         action: {action}\n  rules: [{rule}]\n"
    )
}

/// A rule about these callers; without any it matches nobody.
fn from(callers: impl Iterator<Item = Pod>) -> String {
    let principals: Vec<String> = callers.map(|caller| format!("\"{}\"", caller.principal())).collect();
    if principals.is_empty() {
        return String::new();
    }
    format!("{{from: [{{source: {{principals: [{}]}}}}]}}", principals.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        World::new("/nowhere".into())
    }

    fn document<'a>(text: &'a str, name: &str) -> Option<&'a str> {
        text.split("---\n").find(|part| part.contains(&format!("{{name: {name}, ")))
    }

    #[test]
    fn a_denied_caller_is_named_or_left_out() {
        let pair = PAIRS[0];
        let (caller, server) = (pair.client(), pair.server());
        let mut world = world();
        let allow = format!("{}-callers", server.name);
        let deny = format!("{}-not-{}", server.name, caller.name);
        assert!(document(&world.text(), &allow).unwrap().contains(&caller.principal()));
        world.deny(pair, Denial::NotAllowed);
        assert!(!document(&world.text(), &allow).unwrap().contains(&caller.principal()));
        world.allow(pair);
        for how in [Denial::Deny, Denial::DenyPort] {
            world.deny(pair, how);
            assert!(document(&world.text(), &deny).unwrap().contains(&caller.principal()), "{how:?}");
            world.allow(pair);
        }
        assert!(document(&world.text(), &deny).is_none());
    }

    #[test]
    fn a_pod_that_comes_back_is_another_one() {
        let mut world = world();
        let uid = |text: &str| text.lines().find(|line| line.contains("uid: amber-")).map(str::to_owned);
        let first = uid(&world.text());
        world.remove(0);
        assert_eq!(uid(&world.text()), None);
        world.add(0);
        assert!(first.is_some() && uid(&world.text()).is_some_and(|second| Some(second) != first));
    }
}
