//! Objects that a test makes, and which go with it.

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, said, succeeded};

/// A namespace with pods of one test.
pub(crate) struct Namespace<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
}

/// A pod to be made.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    name: String,
    node: Option<String>,
    image: String,
    command: Vec<String>,
    arguments: Vec<String>,
}

impl Pod {
    /// One that waits.
    pub(crate) fn idle(name: &str) -> Self {
        Self::new(name, "warren.local/busybox:1").command(&["sleep", "2147483647"])
    }

    /// One that answers HTTP on port 8080 with its own name, over both families.
    pub(crate) fn web(name: &str) -> Self {
        let script = "hostname > /www/index.html; exec httpd -f -p '[::]:8080' -h /www";
        Self::new(name, "warren.local/busybox:1").command(&["sh", "-c", script])
    }

    /// One that runs an image as it is.
    pub(crate) fn new(name: &str, image: &str) -> Self {
        Self { name: name.into(), node: None, image: image.into(), command: Vec::new(), arguments: Vec::new() }
    }

    /// On a node, whatever the scheduler would say.
    pub(crate) fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Another command than the image's.
    pub(crate) fn command(mut self, words: &[&str]) -> Self {
        self.command = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Arguments of the image's command.
    pub(crate) fn arguments(mut self, words: &[&str]) -> Self {
        self.arguments = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The same under another name.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub(crate) fn object(&self) -> Value {
        let mut container = json!({"name": "main", "image": self.image, "imagePullPolicy": "Never"});
        if !self.command.is_empty() {
            container["command"] = json!(self.command);
        }
        if !self.arguments.is_empty() {
            container["args"] = json!(self.arguments);
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "labels": {"app": self.name}},
            "spec": {
                "nodeName": self.node, "containers": [container],
                // Nobody waits for half a minute for a shell that does not hear SIGTERM.
                "terminationGracePeriodSeconds": 0,
                "tolerations": [{"operator": "Exists"}],
            },
        })
    }
}

impl<'a> Namespace<'a> {
    /// Makes one.
    #[track_caller]
    pub(crate) fn new(cluster: &'a Cluster, name: &str) -> Self {
        cluster.kube(&["create", "namespace", name]);
        Self { cluster, name: name.to_owned() }
    }

    /// Runs kubectl in it.
    #[track_caller]
    pub(crate) fn kube(&self, arguments: &[&str]) -> String {
        self.cluster.kube(&[&["--namespace", &self.name], arguments].concat())
    }

    /// An object or a list of it.
    #[track_caller]
    pub(crate) fn get(&self, arguments: &[&str]) -> Value {
        self.cluster.get(&[&["--namespace", &self.name], arguments].concat())
    }

    /// Makes objects in it.
    #[track_caller]
    pub(crate) fn create(&self, mut object: Value) {
        object["metadata"]["namespace"] = json!(self.name);
        self.cluster.apply(&object.to_string());
    }

    /// Makes pods and waits until all are ready.
    #[track_caller]
    pub(crate) fn run(&self, pods: &[Pod]) {
        self.wait_for_account();
        pods.iter().for_each(|pod| self.create(pod.object()));
        for pod in pods {
            self.ready(&pod.name);
        }
    }

    /// Makes a pod and waits until it has ended well.
    #[track_caller]
    pub(crate) fn complete(&self, pod: &Pod) {
        let mut object = pod.object();
        object["spec"]["restartPolicy"] = json!("Never");
        self.wait_for_account();
        self.create(object);
        eventually(&format!("pod {} has ended", pod.name), || {
            let object = self.get(&["pod", &pod.name]);
            if object["status"]["phase"] == "Succeeded" { Ok(()) } else { Err(object["status"].to_string()) }
        });
    }

    /// The account that pods run under appears a moment after their namespace.
    #[track_caller]
    fn wait_for_account(&self) {
        eventually("the namespace has its account", || {
            let found = self.cluster.kubectl(&["--namespace", &self.name, "get", "sa", "default"]).output();
            let found = found.map_err(|error| error.to_string())?;
            if found.status.success() { Ok(()) } else { Err(said(&found)) }
        });
    }

    /// Waits until a pod is ready.
    #[track_caller]
    pub(crate) fn ready(&self, pod: &str) {
        eventually(&format!("pod {pod} is ready"), || {
            let object = self.get(&["pod", pod]);
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready =
                conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            if ready { Ok(()) } else { Err(object["status"].to_string()) }
        });
    }

    /// A pod's addresses, IPv4 first.
    #[track_caller]
    pub(crate) fn addresses(&self, pod: &str) -> [String; 2] {
        let object = self.get(&["pod", pod]);
        let ip = |at: usize| object["status"]["podIPs"][at]["ip"].as_str().expect("two addresses").to_owned();
        [ip(0), ip(1)]
    }

    /// Makes a Service of both families for the pod of that name.
    #[track_caller]
    pub(crate) fn service(&self, pod: &str, port: u16) -> [String; 2] {
        self.create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": pod},
            "spec": {
                "ipFamilyPolicy": "RequireDualStack", "selector": {"app": pod},
                "ports": [{"port": port, "targetPort": 8080}],
            },
        }));
        let service = self.get(&["service", pod]);
        let ip = |at: usize| service["spec"]["clusterIPs"][at].as_str().expect("two addresses").to_owned();
        [ip(0), ip(1)]
    }

    /// Runs a command in a pod, which must succeed.
    #[track_caller]
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> String {
        let head = ["--namespace", &self.name, "exec", pod, "--"];
        succeeded(&mut self.cluster.kubectl(&[&head, command].concat()))
    }

    /// What a pod gets when it asks for a URL, once it gets anything.
    #[track_caller]
    pub(crate) fn fetch(&self, pod: &str, url: &str) -> String {
        let head = ["--namespace", &self.name, "exec", pod, "--", "timeout", "3", "wget", "-qO-", url];
        eventually(&format!("{pod} fetches {url}"), || {
            let output = self.cluster.kubectl(&head).output().map_err(|error| error.to_string())?;
            if output.status.success() {
                Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
            } else {
                Err(said(&output))
            }
        })
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]).output();
    }
}

/// A URL's host of an address.
pub(crate) fn host(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}
