//! kubectl reaches into pods through kubelets.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use crate::cluster::{Cluster, eventually, succeeded};
use crate::objects::{Namespace, Pod};

pub(crate) fn exec_carries_input_output_and_exit_code(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "exec");
    namespace.run(&[Pod::idle("one").on("node1"), Pod::idle("two").on("node2")]);
    for pod in ["one", "two"] {
        let mut command =
            cluster.kubectl(&["-n", "exec", "exec", "-i", pod, "--", "sh", "-c", "cat; hostname; exit 7"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"given\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("given\n{pod}\n"));
        assert_eq!(output.status.code(), Some(7));
    }
}

pub(crate) fn logs_are_read_from_every_node(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "logs");
    let speaking = |name: &str| Pod::idle(name).command(&["sh", "-c", "hostname; sleep 1000000"]);
    namespace.run(&[speaking("one").on("node1"), speaking("two").on("node2")]);
    for pod in ["one", "two"] {
        eventually("the pod's name is in its log", || {
            let log = namespace.kube(&["logs", pod]);
            if log.trim() == pod { Ok(()) } else { Err(log) }
        });
    }
}

pub(crate) fn a_forwarded_port_leads_into_the_pod(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "forward");
    namespace.run(&[Pod::web("web").on("node2")]);
    let mut command = cluster.kubectl(&["-n", "forward", "port-forward", "pod/web", "18080:8080"]);
    let mut forward = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(forward.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("18080"), "{said}");
    // kubectl listens where the control plane is.
    let answer =
        succeeded(&mut cluster.xtask(["node", "control-plane", "busybox", "wget", "-qO-", "http://127.0.0.1:18080/"]));
    forward.kill().unwrap();
    forward.wait().unwrap();
    assert_eq!(answer.trim(), "web");
}
