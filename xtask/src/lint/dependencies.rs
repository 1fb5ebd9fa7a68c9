//! Which crate may depend on which, as cargo resolved it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::outcome::Outcome;
use crate::process;
use crate::workspace::Workspace;

/// The allowed edges between crates of this tree. A crate that is not named
/// here is refused: its place in the architecture has not been said yet.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("warren-core", &[]),
    ("warren-ebpf-abi", &[]),
    ("warren-mesh", &["warren-core"]),
    ("warren-agent", &["warren-core", "warren-ebpf-abi", "warren-mesh"]),
    ("warren-waypoint", &["warren-core", "warren-mesh"]),
    ("warren-test-support", &["warren-core", "warren-mesh"]),
    ("warren-netns-tests", &["warren-core", "warren-mesh", "warren-test-support"]),
    ("warren-interop-tests", &["warren-core", "warren-mesh", "warren-test-support"]),
    ("warren-kubernetes-tests", &[]),
    ("warren-load", &[]),
    ("warren-micro", &["warren-core"]),
    ("xtask", &["warren-load"]),
];

/// The only crate that may name aya.
const AYA_USER: &str = "warren-agent";

/// What core may not reach, however indirectly: runtimes, sockets, TLS, kernel.
const IMPURE: [&str; 12] =
    ["async-io", "aya", "h2", "hyper", "mio", "nix", "quinn", "rustix", "rustls", "smol", "socket2", "tokio"];

/// Edges between crates of this tree, and the one that leads to aya.
pub(crate) fn edges(workspace: &Workspace) -> Outcome {
    match metadata(workspace) {
        Ok(metadata) => Outcome::of_findings(&forbidden_edges(&metadata)),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// Everything that core reaches.
pub(crate) fn core_is_pure(workspace: &Workspace) -> Outcome {
    let reached = metadata(workspace).and_then(|metadata| reached_from(&metadata, "warren-core"));
    match reached {
        Ok(reached) => {
            let found: Vec<String> = IMPURE
                .iter()
                .filter(|name| reached.contains(**name))
                .map(|name| {
                    format!("warren-core depends on {name} (see `cargo tree -p warren-core -e normal -i {name}`)")
                })
                .collect();
            Outcome::of_findings(&found)
        }
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// A crate that does not opt in has no lints at all.
pub(crate) fn lints_are_inherited(workspace: &Workspace) -> Outcome {
    let packages = match metadata(workspace) {
        Ok(metadata) => members(&metadata),
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    let found: Vec<String> = packages
        .iter()
        .filter_map(|package| package["manifest_path"].as_str())
        .filter(|path| !std::fs::read_to_string(path).is_ok_and(|text| inherits_lints(&text)))
        .map(|path| format!("{path} has no `[lints] workspace = true`"))
        .collect();
    Outcome::of_findings(&found)
}

fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.find(|line| !line.is_empty()).is_some_and(|line| line.replace(' ', "") == "workspace=true")
}

fn metadata(workspace: &Workspace) -> Result<Value> {
    let mut cargo = process::command("cargo");
    cargo.current_dir(workspace.root()).args(["metadata", "--format-version", "1"]);
    serde_json::from_str(&process::output(&mut cargo)?).context("cargo metadata")
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn members(metadata: &Value) -> Vec<Value> {
    let ids: BTreeSet<&str> = array(metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    array(metadata, "packages")
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| ids.contains(id)))
        .cloned()
        .collect()
}

fn forbidden_edges(metadata: &Value) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let mut found = Vec::new();
    for package in members(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(targets) = allowed.get(name) else {
            found.push(format!("{name} has no place in the map of allowed dependencies"));
            continue;
        };
        for dependency in array(&package, "dependencies") {
            let to = dependency["name"].as_str().unwrap_or_default();
            let inside = dependency["path"].is_string();
            if inside && to != name && !targets.contains(&to) {
                found.push(format!("{name} may not depend on {to}"));
            }
            if (to == "aya" || to.starts_with("aya-")) && name != AYA_USER {
                found.push(format!("{name} may not depend on {to}: only {AYA_USER} does"));
            }
        }
    }
    found
}

/// Names of the packages that one reaches by normal dependencies.
fn reached_from(metadata: &Value, start: &str) -> Result<BTreeSet<String>> {
    let names: BTreeMap<&str, &str> = array(metadata, "packages")
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
        .collect();
    let nodes: BTreeMap<&str, &Value> =
        array(&metadata["resolve"], "nodes").iter().filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let first = names.iter().find(|(_, name)| **name == start).map(|(id, _)| *id);
    let mut waiting = vec![first.with_context(|| format!("no crate {start}"))?];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in nodes.get(id).map_or(&[][..], |node| array(node, "deps")) {
            if is_normal(dependency)
                && let Some(next) = dependency["pkg"].as_str()
            {
                waiting.push(next);
            }
        }
    }
    Ok(seen.into_iter().filter_map(|id| names.get(id)).map(|name| (*name).to_owned()).collect())
}

fn is_normal(dependency: &Value) -> bool {
    array(dependency, "dep_kinds").iter().any(|kind| kind["kind"].is_null())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn world(dependencies: Value) -> Value {
        json!({
            "workspace_members": ["m"],
            "packages": [{"id": "m", "name": "warren-mesh", "dependencies": dependencies}],
        })
    }

    #[test]
    fn downward_is_allowed_and_upward_is_not() {
        assert!(forbidden_edges(&world(json!([{"name": "warren-core", "path": "x"}, {"name": "tokio"}]))).is_empty());
        let found = forbidden_edges(&world(json!([{"name": "warren-agent", "path": "x"}, {"name": "aya"}])));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_crate_without_a_place_is_refused() {
        let metadata = json!({"workspace_members": ["n"], "packages": [{"id": "n", "name": "newcomer"}]});
        assert_eq!(forbidden_edges(&metadata).len(), 1);
    }

    #[test]
    fn what_is_reached_indirectly_counts_and_dev_dependencies_do_not() {
        let metadata = json!({
            "packages": [{"id": "1", "name": "a"}, {"id": "2", "name": "b"}, {"id": "3", "name": "tokio"}, {"id": "4", "name": "t"}],
            "resolve": {"nodes": [
                {"id": "1", "deps": [{"pkg": "2", "dep_kinds": [{"kind": null}]}, {"pkg": "4", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "2", "deps": [{"pkg": "3", "dep_kinds": [{"kind": null}]}]},
            ]},
        });
        let reached = reached_from(&metadata, "a").unwrap();
        assert!(reached.contains("tokio") && !reached.contains("t"));
    }

    #[test]
    fn inheriting_lints_is_seen() {
        assert!(inherits_lints("[package]\n\n[lints]\nworkspace = true\n"));
        assert!(!inherits_lints("[package]\nworkspace = true\n"));
    }
}
