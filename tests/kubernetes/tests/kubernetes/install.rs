//! Warren is installed by one apply, upgraded under load, and removed.

use std::process::Stdio;

use serde_json::json;

use crate::cluster::Cluster;
use crate::objects::{Namespace, Pod};
use crate::warren::{Warren, comes_to_reach, reaches, well};

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/default";

/// A server and a client in a namespace, and somebody who is in no mesh.
struct Shop<'a> {
    shop: Namespace<'a>,
    outside: Namespace<'a>,
    web: String,
}

impl<'a> Shop<'a> {
    #[track_caller]
    fn open(cluster: &'a Cluster) -> Self {
        let (shop, outside) = (Namespace::new(cluster, "shop"), Namespace::new(cluster, "outside"));
        shop.run(&[Pod::web("web").on("node2"), Pod::idle("client").on("node1")]);
        outside.run(&[Pod::idle("stranger").on("node1")]);
        let [web, _] = shop.addresses("web");
        Self { shop, outside, web }
    }

    /// Into the mesh, and nobody else may come.
    #[track_caller]
    fn enrol(&self, warren: &Warren<'_>) {
        self.shop.create(json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "default"},
            "spec": {"mtls": {"mode": "STRICT"}},
        }));
        warren.cluster.kube(&["label", "namespace", "shop", "warren.dev/mode=ambient"]);
        warren.enrolled("node2", "shop/web");
        warren.enrolled("node1", "shop/client");
        comes_to_reach(false, &self.outside, "stranger", &self.web);
        comes_to_reach(true, &self.shop, "client", &self.web);
    }

    /// As if there were no mesh.
    #[track_caller]
    fn is_open_to_all(&self) {
        comes_to_reach(true, &self.shop, "client", &self.web);
        comes_to_reach(true, &self.outside, "stranger", &self.web);
    }
}

pub(crate) fn one_apply_and_one_label_put_pods_in(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = Shop::open(cluster);
    assert!(reaches(&shop.outside, "stranger", &shop.web), "before the label");
    shop.enrol(&warren);
    // Pods that start now are in before their first process.
    shop.shop.run(&[Pod::idle("late").on("node1")]);
    assert!(reaches(&shop.shop, "late", &shop.web));
    let events = warren.audit("node2");
    let tunnelled = events.iter().filter(|event| {
        event["mtls"] == true
            && event["decision"] == "ALLOW"
            && event["source_identity"] == IDENTITY
            && event["destination_identity"] == IDENTITY
    });
    assert!(tunnelled.count() >= 2, "{events:?}");
    let refused = |event: &&serde_json::Value| event["decision"] == "DENY" && event["source"]["pod"] == "stranger";
    assert!(events.iter().any(|event| refused(&event)), "{events:?}");
    let said = well(&warren.run(&["doctor", "--cluster-only"]));
    assert!(said.contains("2 of 2 agents are ready"), "{said}");
    // What would go wrong is said, with another exit code.
    shop.shop.create(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web-only"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 8080}]}]},
    }));
    let found = warren.run(&["doctor", "--cluster-only"]);
    assert_eq!(found.status.code(), Some(9), "{found:?}");
    assert!(String::from_utf8_lossy(&found.stdout).contains("shop/web-only"), "{found:?}");
}

pub(crate) fn agents_are_replaced_under_load_and_nothing_is_refused_or_in_clear(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = Shop::open(cluster);
    shop.enrol(&warren);
    let forever = |pod: &Namespace<'_>, name: &str| {
        // Each try has as long as connections wait for an agent that is away.
        let script = format!(
            "while [ ! -e /tmp/end ]; do timeout 12 wget -qO /dev/null http://{}:8080/ && echo ok || echo failed; done",
            shop.web
        );
        let words = ["--namespace", &pod.name, "exec", name, "--", "sh", "-c", &script];
        cluster.kubectl(&words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kubectl starts")
    };
    let (member, stranger) = (forever(&shop.shop, "client"), forever(&shop.outside, "stranger"));
    warren.kube(&["rollout", "restart", "daemonset/warren-agent"]);
    warren.kube(&["rollout", "status", "daemonset/warren-agent", "--timeout=120s"]);
    shop.shop.exec("client", &["touch", "/tmp/end"]);
    shop.outside.exec("stranger", &["touch", "/tmp/end"]);
    let count = |child: std::process::Child, word: &str| {
        let output = child.wait_with_output().expect("kubectl ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (text.lines().filter(|line| *line == word).count(), text.lines().count())
    };
    let (failed, all) = count(member, "failed");
    assert!(failed == 0 && all > 10, "{failed} of {all} were refused");
    let (through, tried) = count(stranger, "ok");
    assert!(through == 0 && tried > 0, "{through} of {tried} came through in clear");
}

pub(crate) fn an_uninstall_leaves_policies_keys_and_clean_nodes(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = Shop::open(cluster);
    shop.enrol(&warren);
    let roots =
        || warren.kube(&["get", "configmap", "warren-trust-bundle", "-o", "jsonpath={.data.trust-bundle\\.pem}"]);
    let before = roots();
    assert!(before.contains("BEGIN CERTIFICATE"));
    well(&warren.run(&["uninstall"]));
    warren.nodes_are_clean();
    shop.is_open_to_all();
    shop.shop.kube(&["get", "peerauthentication", "default"]);
    cluster.kube(&["get", "crd", "authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io"]);
    for kind in ["daemonset", "deployment", "serviceaccount", "role", "clusterrole", "clusterrolebinding"] {
        let left = cluster.kube(&["get", kind, "-A", "-o", "name", "-l", "app.kubernetes.io/part-of=warren"]);
        assert_eq!(left.trim(), "", "{kind}");
    }
    // The same keys sign again, and the labels, which stayed, put the pods back.
    warren.apply();
    assert_eq!(roots(), before);
    comes_to_reach(false, &shop.outside, "stranger", &shop.web);
    comes_to_reach(true, &shop.shop, "client", &shop.web);
    let said = well(&warren.run(&["uninstall", "--purge"]));
    assert!(said.contains("deleted namespaces/warren-system"), "{said}");
    cluster.kube(&["wait", "--for=delete", "namespace/warren-system", "--timeout=60s"]);
    warren.nodes_are_clean();
}

pub(crate) fn a_delete_in_a_hurry_cleans_the_nodes_too(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = Shop::open(cluster);
    shop.enrol(&warren);
    cluster.kube(&["delete", "-k", "deploy/", "--timeout=90s"]);
    warren.nodes_are_clean();
    shop.is_open_to_all();
    shop.shop.kube(&["get", "peerauthentication", "default"]);
}

pub(crate) fn without_proof_capture_stays_until_doctor_cleans_the_node(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = Shop::open(cluster);
    shop.enrol(&warren);
    // The right to ask goes first, so that the agents get 403 for an answer.
    warren.kube(&["delete", "rolebinding", "warren-agent"]);
    warren.kube(&["delete", "daemonset", "warren-agent"]);
    warren.kube(&["wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=warren-agent", "--timeout=60s"]);
    assert!(!reaches(&shop.outside, "stranger", &shop.web), "a node was opened without proof");
    for node in cluster.nodes() {
        assert_ne!(warren.traces(&node), "", "{node} was cleaned without proof");
        // A node of the lab has a boot id of its own, which containers, and so its agent, do not see.
        let script = format!(
            "cp /opt/cni/bin/warren-cni /tmp/warren && umount /proc/sys/kernel/random/boot_id && \
             /tmp/warren doctor --clean-node --node {node} && rm /tmp/warren"
        );
        let said = cluster.run(&["node", &node, "unshare", "--mount", "sh", "-c", &script]);
        assert!(said.contains(&format!("nothing of node {node} is left")), "{said}");
    }
    warren.nodes_are_clean();
    shop.is_open_to_all();
}
