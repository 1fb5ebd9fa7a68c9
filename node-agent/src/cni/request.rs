//! What the runtime says in the environment: which command, for which pod, in which network namespace.

use std::path::PathBuf;

use super::error::{CniError, Code};

/// The command of `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// A pod as kubelet's runtime names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodName {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Missing in old runtimes.
    pub(super) uid: Option<String>,
}

/// What the runtime asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) verb: Verb,
    pub(super) container_id: String,
    /// May be missing in DEL.
    pub(super) netns: Option<PathBuf>,
    pub(super) interface: String,
    /// `None` where it is not Kubernetes that asks.
    pub(super) pod: Option<PodName>,
}

impl Request {
    /// Reads the environment through `get`.
    pub(super) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let given = |name: &str| get(name).filter(|value| !value.is_empty());
        let wrong =
            |details: String| CniError::new(Code::Environment, "the environment is not a CNI runtime's", details);
        let need = |name: &str| given(name).ok_or_else(|| wrong(format!("{name} is not set")));
        let verb = match need("CNI_COMMAND")?.as_str() {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            other => return Err(wrong(format!("CNI_COMMAND {other:?} is not known"))),
        };
        let of_pod = matches!(verb, Verb::Add | Verb::Check | Verb::Del);
        let netns = given("CNI_NETNS").map(PathBuf::from);
        if matches!(verb, Verb::Add | Verb::Check) && netns.as_ref().is_none_or(|path| !path.is_absolute()) {
            return Err(wrong("CNI_NETNS is not an absolute path".to_owned()));
        }
        Ok(Self {
            verb,
            container_id: if of_pod { need("CNI_CONTAINERID")? } else { String::new() },
            netns,
            interface: if of_pod { need("CNI_IFNAME")? } else { String::new() },
            pod: pod(&given("CNI_ARGS").unwrap_or_default()),
        })
    }
}

fn pod(args: &str) -> Option<PodName> {
    let value = |wanted: &str| {
        let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, value)| *key == wanted && !value.is_empty()).map(|(_, value)| value.to_owned()).next()
    };
    Some(PodName { namespace: value("K8S_POD_NAMESPACE")?, name: value("K8S_POD_NAME")?, uid: value("K8S_POD_UID") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1"),
    ];

    fn read(over: &[(&str, &str)]) -> Result<Request, CniError> {
        Request::read(|name| {
            let all = over.iter().chain(&ADD);
            all.into_iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_kubelets_add() {
        let request = read(&[]).unwrap();
        assert_eq!(request.verb, Verb::Add);
        let pod = PodName { namespace: "shop".into(), name: "web".into(), uid: Some("u1".into()) };
        assert_eq!(request.pod, Some(pod));
    }

    #[test]
    fn what_is_missing_is_named() {
        for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            let error = read(&[(name, "")]).unwrap_err();
            assert_eq!(error.code, Code::Environment);
            assert!(error.details.contains(name), "{error}");
        }
        assert!(read(&[("CNI_COMMAND", "UPDATE")]).is_err());
        assert!(read(&[("CNI_NETNS", "relative")]).is_err());
    }

    #[test]
    fn del_needs_no_namespace_and_status_no_pod() {
        assert_eq!(read(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")]).unwrap().netns, None);
        let bare = [
            ("CNI_COMMAND", "STATUS"),
            ("CNI_CONTAINERID", ""),
            ("CNI_NETNS", ""),
            ("CNI_IFNAME", ""),
            ("CNI_ARGS", ""),
        ];
        assert_eq!(read(&bare).unwrap().verb, Verb::Status);
    }

    #[test]
    fn who_is_not_kubernetes_names_no_pod() {
        assert_eq!(read(&[("CNI_ARGS", "K8S_POD_NAME=web")]).unwrap().pod, None);
        assert_eq!(read(&[("CNI_ARGS", "")]).unwrap().pod, None);
    }
}
