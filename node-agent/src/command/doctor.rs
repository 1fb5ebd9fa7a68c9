//! `warren doctor`: checks, or cleans the node that it runs on.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;

use crate::cli::DoctorArgs;
use crate::cni::default_decisions;
use crate::cni::install::detect;
use crate::config::{CniTarget, check_node as check_name, default_run_dir};
use crate::doctor::{Cluster, Finding, Level, check_cluster, check_node};
use crate::exit::{Exit, Fatal};
use crate::kube_client::connect_as_kubectl;
use crate::traces::Traces;

/// Checks and prints; an error if something was found that keeps Warren from working.
pub(crate) async fn run(args: DoctorArgs) -> Result<(), Fatal> {
    if args.clean_node {
        return clean_node(args.node.as_deref().unwrap_or_default());
    }
    let mut findings = Vec::new();
    if !args.cluster_only {
        findings.extend(check_node());
    }
    if !args.node_only {
        match connect_as_kubectl(args.api.kubeconfig.as_deref()).await {
            Ok(client) => findings.extend(check_cluster(&Cluster::new(client), &args.namespace).await),
            Err(error) => findings.push(Finding {
                check: "api-server",
                level: Level::Skipped,
                message: error.to_string(),
                cure: Some("--kubeconfig FILE names the cluster that is to be looked at".to_owned()),
            }),
        }
    }
    if args.json {
        println!("{}", json!({"version": 1, "findings": findings}));
    } else {
        print!("{}", human(&findings));
    }
    match findings.iter().filter(|one| one.level == Level::Error).count() {
        0 => Ok(()),
        count => Err(Fatal { exit: Exit::Doctor, message: format!("{count} found that must be cured first") }),
    }
}

fn human(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { check, level, message, cure } in findings {
        let sign = match level {
            Level::Ok => "ok",
            Level::Skipped => "skipped",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
        };
        let _ = writeln!(text, "{sign:<8} {check:<18} {message}");
        if let Some(cure) = cure {
            let _ = writeln!(text, "{:<27} → {cure}", "");
        }
    }
    text
}

fn clean_node(node: &str) -> Result<(), Fatal> {
    check_name(node).map_err(|error| Fatal::new(Exit::Usage, "configuration", &error))?;
    let folders = detect(Path::new("/"));
    let traces = Traces {
        node: node.to_owned(),
        run_dir: default_run_dir(node),
        decisions: Some(default_decisions(node)),
        cni: folders.map(|found| CniTarget { conf_dir: found.conf_dir.into(), bin_dir: found.bin_dir.into() }),
    };
    // A running agent would put back what is removed, and its pods would be cut off meanwhile.
    traces.must_be_nobodys().map_err(|error| Fatal::new(Exit::CleanupIncomplete, "cleanup", &error))?;
    let report = traces.remove().map_err(|error| Fatal::new(Exit::CleanupIncomplete, "cleanup", &error))?;
    for removed in &report.removed {
        println!("removed {removed}");
    }
    if report.left.is_empty() {
        println!("warren: nothing of node {node} is left");
        return Ok(());
    }
    Err(Fatal { exit: Exit::CleanupIncomplete, message: format!("not removed: {}", report.left.join("; ")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_stands_with_its_cure() {
        let finding = |level, cure: Option<&str>| Finding {
            check: "clock",
            level,
            message: "they differ".to_owned(),
            cure: cure.map(str::to_owned),
        };
        let text = human(&[finding(Level::Ok, None), finding(Level::Error, Some("set it"))]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("ok ") && lines[1].starts_with("ERROR ") && lines[2].trim() == "→ set it",
            "{text}"
        );
    }
}
