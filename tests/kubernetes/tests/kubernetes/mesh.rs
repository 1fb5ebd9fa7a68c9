//! Pods of the mesh beside the rest of Kubernetes: probes, Services, Jobs, reboots, labels that come and go.

use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};
use crate::objects::{Namespace, Pod, host};
use crate::warren::{Warren, comes_to_reach, reaches, well};

const START_UP: &str = "warren.dev/agent-not-ready";

/// Makes a namespace whose pods are in the mesh from their first process on.
#[track_caller]
fn member_namespace<'a>(cluster: &'a Cluster, name: &str, mode: &str) -> Namespace<'a> {
    let namespace = Namespace::new(cluster, name);
    cluster.kube(&["label", "namespace", name, "warren.dev/mode=ambient"]);
    namespace.create(json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "default"},
        "spec": {"mtls": {"mode": mode}},
    }));
    namespace
}

/// Fetches a page again and again, a word for each try, until `/tmp/end` is there in the pod.
fn fetches(namespace: &Namespace<'_>, pod: &str, address: &str) -> Child {
    let url = format!("http://{}:8080/", host(address));
    let script = format!(
        "rm -f /tmp/end; while [ ! -e /tmp/end ]; do timeout 12 wget -qO /dev/null {url} && echo ok || echo failed; done"
    );
    let words = ["--namespace", &namespace.name, "exec", pod, "--", "sh", "-c", &script];
    let mut command = namespace.cluster.kubectl(&words);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kubectl starts")
}

/// Ends that; how many tries succeeded and how many failed.
#[track_caller]
fn ended(namespace: &Namespace<'_>, pod: &str, child: Child) -> (usize, usize) {
    namespace.exec(pod, &["touch", "/tmp/end"]);
    let output = child.wait_with_output().expect("kubectl ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = |word: &str| text.lines().filter(|line| *line == word).count();
    (count("ok"), count("failed"))
}

/// A web server that kubelet asks in every way, by a port's name and by its number.
fn probed(name: &str) -> Value {
    let mut object = Pod::web(name).on("node2").object();
    let main = &mut object["spec"]["containers"][0];
    main["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    let every_second = |mut probe: Value| {
        (probe["periodSeconds"], probe["failureThreshold"]) = (1.into(), 30.into());
        probe
    };
    main["startupProbe"] = every_second(json!({"httpGet": {"path": "/", "port": "http"}}));
    main["readinessProbe"] = every_second(json!({"httpGet": {"path": "/", "port": 8080}}));
    main["livenessProbe"] = every_second(json!({"tcpSocket": {"port": "http"}}));
    main["lifecycle"] = json!({"preStop": {"httpGet": {"path": "/", "port": "http"}}});
    object
}

pub(crate) fn strict_pods_are_probed_and_nothing_else_of_the_host_gets_in(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = member_namespace(cluster, "probed", "STRICT");
    let outside = Namespace::new(cluster, "probing");
    shop.run(&[Pod::idle("client").on("node1")]);
    shop.create(probed("web"));
    shop.ready("web");
    let mut of_the_host = Pod::idle("host").on("node2").object();
    of_the_host["spec"]["hostNetwork"] = true.into();
    outside.run(&[Pod::idle("stranger").on("node1")]);
    outside.create(of_the_host);
    outside.ready("host");
    let addresses = shop.addresses("web");
    for address in &addresses {
        assert!(reaches(&shop, "client", address), "{address}");
        assert!(!reaches(&outside, "stranger", address), "{address}");
        assert!(!reaches(&outside, "host", address), "{address}");
        let url = format!("http://{}:8080/", host(address));
        let other_node = cluster.xtask(["node", "node1", "timeout", "3", "busybox", "wget", "-qO-", &url]).output();
        assert!(!other_node.unwrap().status.success(), "{address}");
    }
    let restarts = || shop.get(&["pod", "web"])["status"]["containerStatuses"][0]["restartCount"].clone();
    assert_eq!(restarts(), 0);
    // kubelet's own address is what the server sees; the agent's evidence has both.
    let events = warren.audit("node2");
    let probes = events.iter().filter(|event| event["route"] == "probe" && event["decision"] == "ALLOW");
    assert!(probes.count() > 2, "{events:?}");
    let denied = events.iter().filter(|event| event["decision"] == "DENY").count();
    assert!(denied >= 4, "{events:?}");
}

pub(crate) fn members_use_services_names_jobs_and_init_containers(cluster: &Cluster) {
    cluster.kube(&["taint", "node", "node2", &format!("{START_UP}=:NoSchedule")]);
    let warren = Warren::install(cluster);
    eventually("the agent serves, so the node takes pods", || {
        let taints = cluster.get(&["node", "node2"])["spec"]["taints"].to_string();
        if taints.contains(START_UP) { Err(taints) } else { Ok(()) }
    });
    let shop = member_namespace(cluster, "members", "STRICT");
    shop.run(&[Pod::web("web").on("node2"), Pod::idle("client").on("node1"), Pod::idle("near").on("node2")]);
    let mut addresses: Vec<String> = shop.service("web", 80).iter().map(|address| host(address)).collect();
    addresses.extend(["web".to_owned(), "web.members.svc.cluster.local".to_owned()]);
    for address in &addresses {
        for client in ["client", "near"] {
            assert_eq!(shop.fetch(client, &format!("http://{address}/")), "web", "{client} {address}");
        }
    }
    // A StatefulSet's pods by their own names, through a Service without an address.
    let labels = json!({"app": "set"});
    let mut template = Pod::web("set").object();
    template["spec"]["nodeName"] = "node2".into();
    shop.create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "set"},
        "spec": {"clusterIP": "None", "selector": labels, "ports": [{"port": 8080}]}}));
    shop.create(json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "set"},
        "spec": {"serviceName": "set", "replicas": 2, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "containers": template["spec"]["containers"], "terminationGracePeriodSeconds": 0}}}}));
    for pod in ["set-0", "set-1"] {
        eventually(&format!("{pod} is there"), || {
            let found = cluster.kubectl(&["-n", "members", "get", "pod", pod]).output().map_err(|e| e.to_string())?;
            if found.status.success() { Ok(()) } else { Err("not yet".to_owned()) }
        });
        shop.ready(pod);
        assert_eq!(shop.fetch("client", &format!("http://{pod}.set.members.svc.cluster.local:8080/")), pod);
    }
    // The first connection of an init container is one of the mesh, and a Job ends as it should.
    let mut job = Pod::idle("job").on("node1").command(&["true"]).object();
    let mut first = job["spec"]["containers"][0].clone();
    first["name"] = "first".into();
    first["command"] = json!(["wget", "-qO-", "http://web.members.svc.cluster.local/"]);
    job["spec"]["initContainers"] = json!([first]);
    job["spec"]["restartPolicy"] = "Never".into();
    shop.create(json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": "job"}}, "spec": job["spec"]}}}));
    shop.kube(&["wait", "--for=condition=complete", "job/job", "--timeout=60s"]);
    let said = shop.kube(&["logs", "job/job", "-c", "first"]);
    assert_eq!(said.trim(), "web");
    // kubectl's ways into a pod are not the network's.
    assert_eq!(shop.exec("web", &["hostname"]).trim(), "web");
    let clear = warren.audit("node2").into_iter().find(|event| {
        event["decision"] == "ALLOW"
            && event["mtls"] == false
            && !["kernel", "probe"].contains(&event["route"].as_str().unwrap_or(""))
    });
    assert_eq!(clear, None);
    // Authors of policies are told, and the keys are replaced while everything runs.
    let condition = || shop.get(&["peerauthentication", "default"])["status"]["conditions"][0].clone();
    eventually("the policy's status", || match condition() {
        one if one["type"] == "warren.dev/Accepted" && one["status"] == "True" => Ok(()),
        other => Err(other.to_string()),
    });
    let load = fetches(&shop, "client", &shop.addresses("web")[0]);
    let said = well(&warren.run(&["ca", "rotate", "root"]));
    let (good, failed) = ended(&shop, "client", load);
    assert!(said.contains("done") && failed == 0 && good > 10, "{failed} of {} failed: {said}", good + failed);
}

pub(crate) fn without_their_agent_members_wait_and_others_do_not(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = member_namespace(cluster, "waiting", "STRICT");
    let outside = Namespace::new(cluster, "going");
    shop.run(&[Pod::web("web").on("node2")]);
    outside.run(&[Pod::idle("stranger").on("node1")]);
    let [web, _] = shop.addresses("web");
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"nowhere": "yes"}}}}}).to_string();
    warren.kube(&["patch", "daemonset", "warren-agent", "--type=merge", "-p", &nowhere]);
    warren.kube(&["wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=warren-agent", "--timeout=60s"]);
    outside.run(&[Pod::idle("another").on("node2")]);
    assert!(!reaches(&outside, "stranger", &web) && !reaches(&outside, "another", &web));
    shop.create(Pod::idle("late").on("node2").object());
    eventually("kubelet is told why it does not start", || {
        let events = shop.kube(&["get", "events", "--field-selector=involvedObject.name=late", "-o", "json"]);
        if events.contains("FailedCreatePodSandBox") && events.contains("warren") { Ok(()) } else { Err(events) }
    });
    assert_eq!(shop.get(&["pod", "late"])["status"]["phase"], "Pending");
    let back = json!({"spec": {"template": {"spec": {"nodeSelector": {"nowhere": null}}}}}).to_string();
    warren.kube(&["patch", "daemonset", "warren-agent", "--type=merge", "-p", &back]);
    warren.kube(&["rollout", "status", "daemonset/warren-agent", "--timeout=90s"]);
    shop.ready("late");
    comes_to_reach(true, &shop, "late", &web);
    assert!(!reaches(&outside, "stranger", &web));
}

pub(crate) fn a_rebooted_node_lets_nobody_in_before_its_agent_serves(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = member_namespace(cluster, "rebooting", "STRICT");
    let outside = Namespace::new(cluster, "knocking");
    shop.run(&[Pod::web("web").on("node2"), Pod::idle("client").on("node1")]);
    outside.run(&[Pod::idle("stranger").on("node1")]);
    let [web, _] = shop.addresses("web");
    comes_to_reach(true, &shop, "client", &web);
    let knocking = fetches(&outside, "stranger", &web);
    cluster.run(&["node-reboot", "node2"]);
    eventually("the pod runs again", || {
        let status = shop.get(&["pod", "web"])["status"]["containerStatuses"][0].clone();
        if status["restartCount"] == 1 && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    // Its address may be another one now.
    let [now, _] = shop.addresses("web");
    warren.enrolled("node2", "rebooting/web");
    comes_to_reach(true, &shop, "client", &now);
    assert!(!reaches(&outside, "stranger", &now));
    let (through, _) = ended(&outside, "stranger", knocking);
    assert_eq!(through, 0);
}

pub(crate) fn labels_come_and_go_without_a_failed_connection(cluster: &Cluster) {
    let warren = Warren::install(cluster);
    let shop = Namespace::new(cluster, "flipping");
    shop.run(&[Pod::web("web").on("node2"), Pod::idle("client").on("node1")]);
    let [web, _] = shop.addresses("web");
    let load = fetches(&shop, "client", &web);
    for _ in 0..25 {
        cluster.kube(&["label", "namespace", "flipping", "warren.dev/mode=ambient"]);
        cluster.kube(&["label", "namespace", "flipping", "warren.dev/mode-"]);
    }
    cluster.kube(&["label", "namespace", "flipping", "warren.dev/mode=ambient"]);
    warren.enrolled("node1", "flipping/client");
    warren.enrolled("node2", "flipping/web");
    assert!(reaches(&shop, "client", &web));
    let (good, failed) = ended(&shop, "client", load);
    assert!(failed == 0 && good > 10, "{failed} of {} failed", good + failed);
    for node in ["node1", "node2"] {
        assert_eq!(warren.status(node)["findings"].as_array().map(Vec::len), Some(0), "{node}");
    }
}
