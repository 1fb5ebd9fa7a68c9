//! The headers of a CONNECT request: `baggage`, `forwarded`, `traceparent`
//! (hbone.md §7.2). They serve telemetry; none of them feeds a decision.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use http::{HeaderMap, HeaderValue};

use crate::world::model::{MeshConfig, Pod, Workload, WorkloadKind};

/// Name of the header that describes a workload.
pub const BAGGAGE: &str = "baggage";
/// Name of the header that carries the source address and the service meant.
pub const FORWARDED: &str = "forwarded";
/// Name of the W3C trace context header.
pub const TRACEPARENT: &str = "traceparent";

/// A workload as the peer describes it, or as we describe ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<String>,
    /// `k8s.namespace.name`.
    pub namespace: Option<String>,
    /// `k8s.<kind>.name`.
    pub workload: Option<Workload>,
    /// `service.name`, Istio's canonical name.
    pub service_name: Option<String>,
    /// `service.version`, Istio's canonical revision.
    pub service_version: Option<String>,
    /// `cloud.region`.
    pub region: Option<String>,
    /// `cloud.availability_zone`.
    pub zone: Option<String>,
}

impl Baggage {
    /// The description of a pod of this mesh.
    pub fn of(pod: &Pod, mesh: &MeshConfig) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            cluster: some(&mesh.cluster),
            namespace: some(&pod.namespace),
            workload: Some(pod.workload.clone()),
            service_name: some(&pod.canonical_name),
            service_version: some(&pod.canonical_revision),
            region: some(&mesh.region),
            zone: None,
        }
    }

    /// The header value; `None` when there is nothing to say.
    pub fn to_header(&self) -> Option<HeaderValue> {
        let text = self.to_string();
        if text.is_empty() { None } else { HeaderValue::from_str(&text).ok() }
    }

    /// Reads all `baggage` lines. Unknown keys, empty values and lines that
    /// are not ASCII are passed over: a peer's telemetry never fails a
    /// connection.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut baggage = Self::default();
        let lines = headers.get_all(BAGGAGE).into_iter().filter_map(|v| v.to_str().ok());
        for member in lines.flat_map(|line| line.split(',')) {
            let mut parts = member.split('=');
            if let (Some(key), Some(value)) = (parts.next(), parts.next()) {
                baggage.set(key.trim(), value.trim());
            }
        }
        baggage
    }

    fn set(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        let kind = match key {
            "k8s.deployment.name" => WorkloadKind::Deployment,
            "k8s.cronjob.name" => WorkloadKind::CronJob,
            "k8s.job.name" => WorkloadKind::Job,
            "k8s.pod.name" => WorkloadKind::Pod,
            _ => {
                if let Some(field) = self.field_mut(key) {
                    *field = Some(value.to_owned());
                }
                return;
            }
        };
        self.workload = Some(Workload { kind, name: value.into() });
    }

    fn field_mut(&mut self, key: &str) -> Option<&mut Option<String>> {
        Some(match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service_name,
            "service.version" => &mut self.service_version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => return None,
        })
    }
}

/// The header has no escaping: a value that would break its grammar, or that
/// the peer would read differently, is left out.
fn sendable(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b'='))
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.workload.as_ref().map_or("pod", |w| w.kind.as_str());
        let members = [
            ("k8s.cluster.name", self.cluster.as_deref()),
            ("k8s.namespace.name", self.namespace.as_deref()),
            (&format!("k8s.{kind}.name"), self.workload.as_ref().map(|w| w.name.as_str())),
            ("service.name", self.service_name.as_deref()),
            ("service.version", self.service_version.as_deref()),
            ("cloud.region", self.region.as_deref()),
            ("cloud.availability_zone", self.zone.as_deref()),
        ];
        let mut separator = "";
        for (key, value) in members {
            if let Some(value) = value.filter(|v| sendable(v)) {
                write!(f, "{separator}{key}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// The `forwarded` header: who connected, and to which service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The application's own address, if given and understood.
    pub client: Option<SocketAddr>,
    /// Host name of the service meant, if known.
    pub host: Option<String>,
}

impl Forwarded {
    /// The header value; `None` when there is nothing to say.
    pub fn to_header(&self) -> Option<HeaderValue> {
        let text = self.to_string();
        if text.is_empty() { None } else { HeaderValue::from_str(&text).ok() }
    }

    /// Reads the first `forwarded` line; `None` when it is absent or says
    /// nothing that we know.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let line = headers.get(FORWARDED)?.to_str().ok()?;
        let mut forwarded = Self { client: None, host: None };
        for part in line.split(';') {
            let Some((key, value)) = part.split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches('"');
            match key.trim() {
                "for" => forwarded.client = value.parse().ok(),
                "host" if !value.is_empty() => forwarded.host = Some(value.to_owned()),
                _ => {}
            }
        }
        (forwarded.client.is_some() || forwarded.host.is_some()).then_some(forwarded)
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
            separator = ";";
        }
        let quotable = |h: &&String| h.bytes().all(|b| b.is_ascii_graphic() && !b"\";,".contains(&b));
        if let Some(host) = self.host.as_ref().filter(quotable) {
            write!(f, "{separator}host={host}")?;
        }
        Ok(())
    }
}

/// W3C trace context, version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

/// A W3C trace id; shown as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The text is not a version-00 `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct TraceParentError;

impl TraceParent {
    /// A new context from 24 random bytes, not sampled. All-zero ids are
    /// illegal, so a zero id gets its last bit set.
    pub fn from_random(random: [u8; 24]) -> Self {
        let mut trace_id = [0; 16];
        let mut span_id = [0; 8];
        trace_id.copy_from_slice(&random[..16]);
        span_id.copy_from_slice(&random[16..]);
        if trace_id == [0; 16] {
            trace_id[15] = 1;
        }
        if span_id == [0; 8] {
            span_id[7] = 1;
        }
        Self { trace_id, span_id, flags: 0 }
    }

    /// The trace id.
    pub fn trace_id(&self) -> TraceId {
        TraceId(self.trace_id)
    }

    /// Reads the header; `None` when absent or malformed.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        headers.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(TraceParentError);
        let (version, trace, span, flags) = (next()?, next()?, next()?, next()?);
        if version != "00" || parts.next().is_some() {
            return Err(TraceParentError);
        }
        let (trace_id, span_id) = (hex::<16>(trace)?, hex::<8>(span)?);
        if trace_id == [0; 16] || span_id == [0; 8] {
            return Err(TraceParentError);
        }
        let [flags] = hex::<1>(flags)?;
        Ok(Self { trace_id, span_id, flags })
    }
}

fn hex<const N: usize>(text: &str) -> Result<[u8; N], TraceParentError> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Ok(b - b'0'),
        b'a'..=b'f' => Ok(b - b'a' + 10),
        _ => Err(TraceParentError),
    };
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N {
        return Err(TraceParentError);
    }
    let mut out = [0; N];
    for (slot, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *slot = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(out)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-", self.trace_id())?;
        for byte in self.span_id {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "-{:02x}", self.flags)
    }
}

#[cfg(test)]
mod tests {
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;

    fn with(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn baggage_has_the_keys_in_the_order_of_the_spec() {
        let baggage = Baggage {
            cluster: Some("c".into()),
            namespace: Some("n".into()),
            workload: Some(Workload { kind: WorkloadKind::Deployment, name: "d".into() }),
            service_name: Some("s".into()),
            service_version: Some("v1".into()),
            region: Some("r".into()),
            zone: Some("z".into()),
        };
        assert_eq!(
            baggage.to_string(),
            "k8s.cluster.name=c,k8s.namespace.name=n,k8s.deployment.name=d,service.name=s,\
             service.version=v1,cloud.region=r,cloud.availability_zone=z"
        );
    }

    #[test]
    fn baggage_merges_lines_and_passes_over_what_it_does_not_know() {
        let headers = with(BAGGAGE, &["k8s.namespace.name=n,unknown=x,service.name=", "k8s.job.name=j=ignored", "ä=b"]);
        let want = Baggage {
            namespace: Some("n".into()),
            workload: Some(Workload { kind: WorkloadKind::Job, name: "j".into() }),
            ..Baggage::default()
        };
        assert_eq!(Baggage::from_headers(&headers), want);
    }

    #[test]
    fn values_that_break_the_grammar_are_not_sent() {
        let baggage = Baggage { cluster: Some("a,b".into()), ..Baggage::default() };
        assert_eq!(baggage.to_header(), None);
    }

    #[test]
    fn forwarded_reads_and_writes() {
        let forwarded = Forwarded { client: Some("[::1]:80".parse().unwrap()), host: Some("a.b".into()) };
        assert_eq!(forwarded.to_string(), "for=\"[::1]:80\";host=a.b");
        let headers = with(FORWARDED, &["for=\"[::1]:80\";host=\"a.b\";proto=x"]);
        assert_eq!(Forwarded::from_headers(&headers), Some(forwarded));
        assert_eq!(Forwarded::from_headers(&with(FORWARDED, &["host="])), None);
    }

    #[test]
    fn traceparent_refuses_what_is_malformed() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(good.parse::<TraceParent>().unwrap().to_string(), good);
        for bad in [
            "",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        ] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
        assert!(TraceParent::from_random([0; 24]).to_string().parse::<TraceParent>().is_ok());
    }

    fn workload() -> impl Strategy<Value = Workload> {
        let kinds = [WorkloadKind::Deployment, WorkloadKind::CronJob, WorkloadKind::Job, WorkloadKind::Pod];
        (proptest::sample::select(kinds.to_vec()), "[a-z0-9.-]{1,20}")
            .prop_map(|(kind, name)| Workload { kind, name: name.into() })
    }

    proptest! {
        #[test]
        fn baggage_round_trips(
            texts in prop::array::uniform6(of("[!-+\\--<>-~]{1,20}")),
            workload in of(workload()),
        ) {
            let [cluster, namespace, service_name, service_version, region, zone] = texts;
            let baggage =
                Baggage { cluster, namespace, workload, service_name, service_version, region, zone };
            let mut headers = HeaderMap::new();
            if let Some(value) = baggage.to_header() {
                headers.insert(BAGGAGE, value);
            }
            prop_assert_eq!(Baggage::from_headers(&headers), baggage);
        }

        #[test]
        fn traceparent_round_trips(random: [u8; 24]) {
            let context = TraceParent::from_random(random);
            prop_assert_eq!(context.to_string().parse(), Ok(context));
            prop_assert_eq!(context.to_string().len(), 55);
        }
    }
}
