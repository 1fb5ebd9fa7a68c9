//! No right too many: each verb that the manifests give is taken away once, and then something does not work, and says so.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};
use crate::objects::{Namespace, Pod};
use crate::warren::Warren;

/// Where a right is given.
type Role = (&'static str, &'static str);

const AGENT: Role = ("clusterrole", "warren-agent");
const AGENT_HERE: Role = ("role", "warren-agent");
const CONTROLLER: Role = ("clusterrole", "warren-controller");
const CONTROLLER_HERE: Role = ("role", "warren-controller");

/// What is done once the right is gone, and where it then shows.
#[derive(Clone, Copy)]
enum Symptom {
    /// An agent that starts says this.
    AgentStarts(&'static str),
    /// A pod that starts gets no identity: its agent says this.
    PodStarts(&'static str),
    /// An agent that ends says this.
    AgentEnds(&'static str),
    /// A pod that cannot be taken in is not told why.
    NoEvent,
    /// Controllers that start say this.
    ControllersStart(&'static str),
    /// The same, on their first start: keys, roots and Lease are not there yet.
    ControllersFirst(&'static str),
    /// A running controller says this.
    Controllers(&'static str),
}
use Symptom::{AgentEnds, AgentStarts, Controllers, ControllersFirst, ControllersStart, NoEvent, PodStarts};

const RIGHTS: [(Role, &str, &str, Symptom); 23] = [
    (AGENT, "namespaces", "watch", AgentStarts("may not list and watch namespaces")),
    (AGENT, "nodes", "watch", AgentStarts("may not list and watch nodes")),
    (AGENT, "pods", "watch", AgentStarts("may not list and watch pods")),
    (AGENT, "services", "watch", AgentStarts("may not list and watch services")),
    (AGENT, "endpointslices", "watch", AgentStarts("may not list and watch endpointslices")),
    (AGENT, "servicecidrs", "watch", AgentStarts("may not list and watch servicecidrs")),
    (AGENT, "authorizationpolicies", "watch", AgentStarts("may not list and watch authorizationpolicies")),
    (AGENT, "peerauthentications", "watch", AgentStarts("may not list and watch peerauthentications")),
    (AGENT, "meshnodes", "watch", AgentStarts("may not list and watch meshnodes")),
    (AGENT, "endpointslices", "list", PodStarts("cannot list resource \\\"endpointslices\\\"")),
    (AGENT, "events", "create", NoEvent),
    (AGENT_HERE, "configmaps", "get", AgentStarts("cannot get resource \\\"configmaps\\\"")),
    (AGENT_HERE, "daemonsets", "get", AgentEnds("whether the DaemonSet is being deleted is not known")),
    (CONTROLLER, "tokenreviews", "create", PodStarts("cannot create resource \\\"tokenreviews\\\"")),
    (CONTROLLER, "pods", "get", PodStarts("cannot get resource \\\"pods\\\"")),
    (CONTROLLER, "customresourcedefinitions", "create", ControllersStart("cannot create resource")),
    (CONTROLLER_HERE, "secrets", "get", Controllers("cannot get resource \\\"secrets\\\"")),
    (CONTROLLER_HERE, "configmaps", "get", Controllers("cannot get resource \\\"configmaps\\\"")),
    (CONTROLLER_HERE, "leases", "get", Controllers("cannot get resource \\\"leases\\\"")),
    (CONTROLLER_HERE, "leases", "update", Controllers("cannot update resource \\\"leases\\\"")),
    (CONTROLLER_HERE, "secrets", "create", ControllersFirst("cannot create resource \\\"secrets\\\"")),
    (CONTROLLER_HERE, "configmaps", "create", ControllersFirst("cannot create resource \\\"configmaps\\\"")),
    (CONTROLLER_HERE, "leases", "create", ControllersFirst("cannot create resource \\\"leases\\\"")),
];

/// Rights that are not taken away here, and why.
fn is_excepted(role: Role, resource: &str, verb: &str) -> Option<&'static str> {
    match (role, resource, verb) {
        (AGENT | CONTROLLER, _, "list") => Some("for servers that do not send lists as streams, which this one does"),
        (CONTROLLER, "meshnodes", _) | (CONTROLLER, "nodes", "get" | "patch") => {
            Some("netns module controller: rotation; cluster module mesh: start-up taint")
        }
        (AGENT, "meshnodes", _) => Some("netns module mesh_node; without it nobody is led into the node's tunnels"),
        (CONTROLLER, _, "watch") | (CONTROLLER, _, "get" | "update") => {
            Some("the same watches as the agent's; netns module controller: conditions of policies")
        }
        (CONTROLLER_HERE, "secrets" | "configmaps", "update") => Some("netns module controller: rotation"),
        _ => None,
    }
}

pub(crate) fn without_any_verb_something_does_not_work(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let mesh = Namespace::new(cluster, "rights");
    cluster.kube(&["label", "namespace", "rights", "warren.dev/mode=ambient"]);
    every_right_has_its_line(cluster);
    for (number, (role, resource, verb, symptom)) in RIGHTS.into_iter().enumerate() {
        println!("without {verb} {resource} of {} {}", role.0, role.1);
        let before = take_away(cluster, role, resource, verb);
        shows(&warren, &mesh, &format!("pod-{number}"), symptom);
        cluster.replace(&before);
    }
}

/// No verb of the roles is left out above.
fn every_right_has_its_line(cluster: &Cluster) {
    for role in [AGENT, AGENT_HERE, CONTROLLER, CONTROLLER_HERE] {
        let object = get(cluster, role);
        let mut given = BTreeSet::new();
        for rule in object["rules"].as_array().expect("rules") {
            let words = |field: &str| -> Vec<String> {
                rule[field].as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
            };
            for resource in words("resources") {
                given.extend(words("verbs").into_iter().map(|verb| (resource.clone(), verb)));
            }
        }
        for (resource, verb) in given {
            let has_line = RIGHTS.iter().any(|right| right.0 == role && right.1 == resource && right.2 == verb);
            let excepted = is_excepted(role, &resource, &verb).is_some();
            assert!(has_line || excepted, "{verb} {resource} of {role:?}: what breaks without it?");
        }
    }
}

#[track_caller]
fn get(cluster: &Cluster, (kind, name): Role) -> Value {
    cluster.get(&["-n", "warren-system", kind, name])
}

/// Takes one verb away; what the role was before.
#[track_caller]
fn take_away(cluster: &Cluster, role: Role, resource: &str, verb: &str) -> Value {
    let mut before = get(cluster, role);
    before["metadata"].as_object_mut().expect("an object").remove("resourceVersion");
    let mut after = before.clone();
    let mut rules = Vec::new();
    for rule in before["rules"].as_array().expect("rules") {
        let has = |field: &str, word: &str| rule[field].as_array().is_some_and(|all| all.iter().any(|one| one == word));
        if !has("resources", resource) || !has("verbs", verb) {
            rules.push(rule.clone());
            continue;
        }
        let without = |field: &str, word: &str| {
            json!(rule[field].as_array().into_iter().flatten().filter(|one| *one != word).collect::<Vec<_>>())
        };
        let mut others = rule.clone();
        others["resources"] = without("resources", resource);
        let mut rest = rule.clone();
        (rest["resources"], rest["verbs"]) = (json!([resource]), without("verbs", verb));
        let is_empty = |rule: &Value, field: &str| rule[field].as_array().is_none_or(Vec::is_empty);
        rules.extend([others].into_iter().filter(|rule| !is_empty(rule, "resources")));
        rules.extend([rest].into_iter().filter(|rule| !is_empty(rule, "verbs")));
    }
    after["rules"] = json!(rules);
    assert_ne!(after["rules"], before["rules"], "{role:?} does not give {verb} {resource}");
    cluster.replace(&after);
    before
}

#[track_caller]
fn shows(warren: &Warren<'_>, mesh: &Namespace<'_>, name: &str, symptom: Symptom) {
    const AGENTS: &str = "app.kubernetes.io/name=warren-agent";
    const CONTROLLERS: &str = "app.kubernetes.io/name=warren-controller";
    let restart = |which: &str| warren.kube(&["delete", "pod", "-l", which, "--wait=true"]);
    let pod = Pod::idle(name).on("node1");
    match symptom {
        AgentStarts(text) => {
            restart(AGENTS);
            says(warren, AGENTS, text);
        }
        PodStarts(text) => {
            // The agent's connection to a controller, and the token's proof, are not to outlast the right.
            restart(AGENTS);
            mesh.create(pod.object());
            says(warren, AGENTS, text);
        }
        AgentEnds(text) => {
            let agent = warren.agent("node1");
            let log = warren.follow(&agent);
            warren.kube(&["delete", &agent]);
            let said = log.wait_with_output().expect("kubectl ends");
            let said = String::from_utf8_lossy(&said.stdout);
            assert!(said.contains(text), "{said}");
        }
        NoEvent => {
            restart(AGENTS);
            let mut object = pod.object();
            object["spec"]["hostNetwork"] = json!(true);
            mesh.create(object);
            mesh.ready(name);
            // With the right it comes within two seconds.
            thread::sleep(Duration::from_secs(8));
            let about = format!("involvedObject.name={name},reason=WarrenRefused");
            assert_eq!(mesh.kube(&["get", "events", "--field-selector", &about, "-o", "name"]).trim(), "");
        }
        ControllersStart(text) => {
            restart(CONTROLLERS);
            says(warren, CONTROLLERS, text);
        }
        ControllersFirst(text) => {
            let made = ["secret/warren-ca", "configmap/warren-trust-bundle", "lease/warren-controller"];
            warren.kube(&[&["delete", "--ignore-not-found"][..], &made].concat());
            restart(CONTROLLERS);
            says(warren, CONTROLLERS, text);
        }
        Controllers(text) => says(warren, CONTROLLERS, text),
    }
}

/// Waits until one of the pods has written it.
#[track_caller]
fn says(warren: &Warren<'_>, which: &str, text: &str) {
    eventually(&format!("{which} says {text:?}"), || {
        let log = ["-n", "warren-system", "logs", "-l", which, "--all-containers", "--tail=400", "--ignore-errors"];
        let output = warren.cluster.kubectl(&log).output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // The init container's log is no JSON, so its quotes are not escaped.
        if said.contains(text) { Ok(()) } else { Err(said.lines().rev().take(10).collect::<Vec<_>>().join("\n")) }
    });
}
