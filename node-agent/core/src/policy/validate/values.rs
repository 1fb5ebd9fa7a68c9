//! Which grammar the values of a field or of a `when` key have.

use super::super::matcher::{parse_ip_block, parse_port};
use super::super::object::{Operation, Source};
use super::paths;

pub(super) const MAX_SERVICE_ACCOUNTS: usize = 16;
const MAX_SERVICE_ACCOUNT_LEN: usize = 320;

/// What a value must look like. None may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grammar {
    Text,
    IpBlock,
    Port,
    ServiceAccount,
    Path,
}

impl Grammar {
    pub(super) fn check(self, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Err("empty value".to_owned());
        }
        match self {
            Self::Text => Ok(()),
            Self::IpBlock => match parse_ip_block(value) {
                Some(_) => Ok(()),
                None => Err(format!("{value:?} is neither an IP address nor a CIDR")),
            },
            Self::Port => match parse_port(value) {
                Some(_) => Ok(()),
                None => Err(format!("{value:?} is not a port from 1 to 65535")),
            },
            Self::ServiceAccount => check_service_account(value),
            Self::Path => paths::check(value),
        }
    }
}

fn check_service_account(value: &str) -> Result<(), String> {
    if value.len() > MAX_SERVICE_ACCOUNT_LEN {
        return Err(format!("longer than {MAX_SERVICE_ACCOUNT_LEN} bytes"));
    }
    if value.contains('*') {
        return Err(format!("{value:?}: service accounts are exact, without *"));
    }
    let parts: Vec<_> = value.split('/').collect();
    if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
        return Err(format!("{value:?} is neither NAMESPACE/NAME nor NAME"));
    }
    Ok(())
}

/// Every list of a source, under its name in the object.
pub(super) fn source_lists(source: &Source) -> [(&'static str, &[String]); 14] {
    [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ]
}

/// Every list of an operation, under its name in the object.
pub(super) fn operation_lists(operation: &Operation) -> [(&'static str, &[String]); 8] {
    [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ]
}

pub(super) fn of_field(name: &str) -> Grammar {
    match name {
        "ipBlocks" | "notIpBlocks" | "remoteIpBlocks" | "notRemoteIpBlocks" => Grammar::IpBlock,
        "ports" | "notPorts" => Grammar::Port,
        "serviceAccounts" | "notServiceAccounts" => Grammar::ServiceAccount,
        "paths" | "notPaths" => Grammar::Path,
        _ => Grammar::Text,
    }
}

/// `None` for a key that does not exist.
pub(super) fn of_key(key: &str) -> Option<Grammar> {
    let with_argument = |prefix: &str| {
        key.strip_prefix(prefix)
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|rest| rest.len() > 1 && rest.starts_with('['))
    };
    Some(match key {
        "source.ip" | "remote.ip" | "destination.ip" => Grammar::IpBlock,
        "destination.port" => Grammar::Port,
        "source.serviceAccount" => Grammar::ServiceAccount,
        "source.namespace"
        | "source.principal"
        | "source.trustDomain"
        | "connection.sni"
        | "request.auth.principal"
        | "request.auth.audiences"
        | "request.auth.presenter" => Grammar::Text,
        _ if with_argument("request.headers") || with_argument("request.auth.claims") => Grammar::Text,
        _ if is_filter_metadata(key) => Grammar::Text,
        _ => return None,
    })
}

/// `experimental.envoy.filters.FILTER[KEY]`, or without `[KEY]`.
fn is_filter_metadata(key: &str) -> bool {
    key.strip_prefix("experimental.envoy.filters.").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('['))
}

/// Source fields and `when` keys that L4 enforces.
pub(super) fn seen_at_l4(name: &str) -> bool {
    let name = name.strip_prefix("not").unwrap_or(name);
    matches!(
        name,
        "principals"
            | "Principals"
            | "namespaces"
            | "Namespaces"
            | "serviceAccounts"
            | "ServiceAccounts"
            | "trustDomains"
            | "TrustDomains"
            | "ipBlocks"
            | "IpBlocks"
            | "ports"
            | "Ports"
            | "source.principal"
            | "source.namespace"
            | "source.serviceAccount"
            | "source.trustDomain"
            | "source.ip"
            | "destination.ip"
            | "destination.port"
    )
}

/// Source fields that CUSTOM may not use.
pub(super) fn forbidden_in_custom(name: &str) -> bool {
    !matches!(name, "ipBlocks" | "notIpBlocks" | "remoteIpBlocks" | "notRemoteIpBlocks")
}

/// `when` keys that CUSTOM may not use.
pub(super) fn key_forbidden_in_custom(key: &str) -> bool {
    key.starts_with("request.auth.")
        || matches!(key, "source.namespace" | "source.principal" | "source.serviceAccount" | "source.trustDomain")
}

pub(super) fn is_service_accounts(name: &str) -> bool {
    matches!(name, "serviceAccounts" | "notServiceAccounts")
}
