use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use warren_core::tunnel::TraceParent;

use super::*;
use crate::copy::{CopyEnd, CopyOutcome};
use crate::live::CancelReason;
use crate::testing::*;
use crate::tls::{HandshakeFailure, PeerFacts};

struct Evidence {
    telemetry: Arc<Telemetry>,
    file: PathBuf,
    _dir: TempDir,
}

fn evidence() -> Evidence {
    let dir = TempDir::new();
    let file = dir.path().join("audit.log");
    let config = TelemetryConfig { audit: AuditTarget::File(file.clone()), ..TelemetryConfig::quiet("node-1") };
    Evidence { telemetry: Telemetry::new(config).unwrap(), file, _dir: dir }
}

impl Evidence {
    fn events(&self) -> Vec<Value> {
        assert!(self.telemetry.audit().flush(Duration::from_secs(5)));
        let text = fs::read_to_string(&self.file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn metrics(&self) -> String {
        self.telemetry.metrics_text()
    }
}

fn workload(sa: &str) -> Arc<WorkloadFacts> {
    Arc::new(WorkloadFacts {
        pod: format!("{sa}-1"),
        namespace: "ns".into(),
        service_account: sa.into(),
        workload: sa.into(),
        canonical_service: sa.into(),
        canonical_revision: "v1".into(),
        app: sa.into(),
        version: "v1".into(),
        cluster: "Kubernetes".into(),
        identity: Some(id(sa)),
    })
}

fn inbound(telemetry: &Arc<Telemetry>) -> ConnectionRecord {
    inbound_from(telemetry, workload("client"))
}

fn inbound_from(telemetry: &Arc<Telemetry>, source: Arc<WorkloadFacts>) -> ConnectionRecord {
    let facts = ConnectionFacts {
        connection_id: telemetry.connection_id(),
        direction: Direction::Inbound,
        source: Some(source),
        destination: Some(workload("server")),
        src_addr: "10.0.0.1:40000".parse().unwrap(),
        dst_addr: "10.0.0.2:15008".parse().unwrap(),
        service: None,
    };
    ConnectionRecord::open(telemetry, facts)
}

fn with_mtls(record: &mut ConnectionRecord) {
    let peer = Arc::new(PeerFacts::for_test(&id("client")));
    record.set_mtls(&id("client"), &id("server"), &peer);
    record.set_route("tunnel");
}

fn clean(to_app: u64, to_tunnel: u64) -> CopyOutcome {
    CopyOutcome { to_app, to_tunnel, end: CopyEnd::Clean }
}

fn line<'a>(metrics: &'a str, name: &str) -> &'a str {
    let found = metrics.lines().find(|line| line.starts_with(&format!("{name}{{")));
    found.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
}

#[test]
fn a_finished_connection_leaves_one_event_and_consistent_counters() {
    let evidence = evidence();
    let mut record = inbound(&evidence.telemetry);
    with_mtls(&mut record);
    record.set_policy("ns/allow-client");
    let traceparent: TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse().unwrap();
    record.set_trace_id(traceparent.trace_id());
    record.set_response_code(200);
    record.established();
    record.bytes().set(10, 0);
    let metrics = evidence.metrics();
    assert!(metrics.contains("warren_open_connections 1"), "{metrics}");
    assert!(line(&metrics, "istio_tcp_received_bytes_total").ends_with(" 10"), "bytes of live connections count");
    record.bytes().set(100, 20);
    record.finish(&clean(100, 20));

    let events = evidence.events();
    assert_eq!(events.len(), 1);
    let event = &events[0];
    for (key, value) in [
        ("event", "connection"),
        ("source_identity", id("client").as_str()),
        ("destination_identity", id("server").as_str()),
        ("policy", "ns/allow-client"),
        ("decision", "ALLOW"),
        ("route", "tunnel"),
        ("trust_domain", "td"),
        ("response_flags", "-"),
        ("node", "node-1"),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c"),
    ] {
        assert_eq!(event[key], value, "{key}");
    }
    assert_eq!(event["mtls"], true);
    assert_eq!((&event["bytes_sent"], &event["bytes_received"]), (&100.into(), &20.into()));

    let metrics = evidence.metrics();
    assert!(metrics.contains("warren_open_connections 0"));
    for (name, value) in [
        ("istio_tcp_connections_opened_total", "1"),
        ("istio_tcp_connections_closed_total", "1"),
        ("istio_tcp_received_bytes_total", "100"),
        ("istio_tcp_sent_bytes_total", "20"),
    ] {
        let line = line(&metrics, name);
        assert!(line.ends_with(&format!(" {value}")), "{line}");
        for label in [
            "reporter=\"destination\"",
            "source_workload=\"client\"",
            "source_principal=\"spiffe://td/ns/ns/sa/client\"",
            "destination_principal=\"spiffe://td/ns/ns/sa/server\"",
            "destination_service=\"unknown\"",
            "request_protocol=\"tcp\"",
            "response_flags=\"-\"",
            "connection_security_policy=\"mutual_tls\"",
        ] {
            assert!(line.contains(label), "{label} in {line}");
        }
    }
    assert!(!metrics.contains("istio_tcp_connections_failed_total{"));
}

#[test]
fn a_denial_says_who_and_why() {
    let evidence = evidence();
    let mut record = inbound(&evidence.telemetry);
    with_mtls(&mut record);
    record.set_response_code(401);
    record.deny("source principal not allowed", Some("ns/default-deny".into()));
    let events = evidence.events();
    let event = &events[0];
    assert_eq!(event["decision"], "DENY");
    assert_eq!(event["reason"], "source principal not allowed");
    assert_eq!(event["policy"], "ns/default-deny");
    assert_eq!(event["response_code"], 401);
    assert!(event.get("bytes_sent").is_none(), "nothing flowed");
    let metrics = evidence.metrics();
    assert!(line(&metrics, "istio_tcp_connections_failed_total").contains("response_flags=\"DENY\""));
    assert!(line(&metrics, "warren_unauthorized_connections_total").contains("policy=\"ns/default-deny\""));
}

#[test]
fn a_connection_ended_by_a_policy_change_is_a_denial() {
    let evidence = evidence();
    let mut record = inbound(&evidence.telemetry);
    with_mtls(&mut record);
    record.set_policy("ns/allow");
    record.established();
    let reason = CancelReason::PolicyChanged { policy: Some("ns/strict".into()), reason: "plaintext".into() };
    record.finish(&CopyOutcome { to_app: 1, to_tunnel: 1, end: CopyEnd::Cancelled(reason) });
    let event = &evidence.events()[0];
    assert_eq!((&event["decision"], &event["policy"]), (&"DENY".into(), &"ns/strict".into()));
    assert!(evidence.metrics().contains("warren_open_connections 0"));
}

#[test]
fn an_unproven_source_is_not_named_as_identity() {
    let evidence = evidence();
    let record = inbound(&evidence.telemetry);
    record.fail(ResponseFlag::TlsFailure, "no");
    let event = &evidence.events()[0];
    assert_eq!(event["source_identity"], Value::Null);
    assert_eq!(event["mtls"], false);
    assert_eq!(event["decision"], "DENY", "nothing permitted it");
    let metrics = evidence.metrics();
    assert!(line(&metrics, "istio_tcp_connections_failed_total").contains("connection_security_policy=\"unknown\""));
}

#[test]
fn a_forgotten_record_is_an_abort() {
    let evidence = evidence();
    let mut record = inbound(&evidence.telemetry);
    record.established();
    drop(record);
    let events = evidence.events();
    assert_eq!((events.len(), &events[0]["response_flags"]), (1, &"ABORTED".into()));
    assert!(evidence.metrics().contains("warren_open_connections 0"));
}

#[test]
fn handshakes_are_recorded_with_the_seeds_words() {
    let evidence = evidence();
    let parties = Parties {
        connection_id: "c1".into(),
        source_workload: Some("client".into()),
        destination_workload: Some("server".into()),
    };
    let peer = PeerFacts::for_test(&id("server"));
    let (own, expected) = (id("client"), [id("server")]);
    let took = Duration::from_millis(12);
    evidence.telemetry.handshake(&HandshakeFacts::outbound(&parties, &own, &expected, Ok(&peer), took));
    let failure = HandshakeFailure::IdentityMismatch { expected: expected.to_vec(), presented: id("imposter") };
    evidence.telemetry.handshake(&HandshakeFacts::outbound(&parties, &own, &expected, Err(&failure), took));
    let events = evidence.events();
    assert_eq!(events[0]["event"], "mtls_handshake");
    assert_eq!(events[0]["result"], "success");
    assert_eq!(events[0]["tls_version"], "1.3");
    assert_eq!(events[0]["duration_ms"], 12);
    assert_eq!(events[1]["failure_reason"], "identity_mismatch");
    let detail = events[1]["detail"].as_str().unwrap();
    assert!(detail.contains("sa/imposter") && detail.contains("sa/server"), "both names: {detail}");
    let metrics = evidence.metrics();
    assert!(metrics.contains("mtls_handshake_success_total 1"), "{metrics}");
    assert!(metrics.contains("mtls_handshake_failure_total{reason=\"identity_mismatch\"} 1"));
    assert!(metrics.contains("mtls_handshake_duration_seconds_count 2"));
}

#[test]
fn certificate_expiry_counts_down_at_every_scrape() {
    let ca = test_ca();
    ca.snapshot(&id("server"));
    let seconds = |kind: &str| -> f64 {
        let text = ca.telemetry.metrics_text();
        let prefix = format!("certificate_expiration_seconds{{kind=\"{kind}\"");
        let line = text.lines().find(|line| line.starts_with(&prefix)).unwrap_or_else(|| panic!("{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let before = seconds("leaf");
    assert!(before > 3590.0 && before <= 3601.0, "{before}");
    assert!(seconds("root") > seconds("intermediate") && seconds("intermediate") > before);
    ca.clock.advance(Duration::from_secs(4000));
    assert!((before - seconds("leaf") - 4000.0).abs() < 1.0, "negative when over");
}

#[test]
fn the_audit_file_is_private_and_survives_rotation() {
    let evidence = evidence();
    let mode = fs::metadata(&evidence.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    inbound(&evidence.telemetry).fail(ResponseFlag::NoRoute, "one");
    assert_eq!(evidence.events().len(), 1);
    let rotated = evidence.file.with_extension("1");
    fs::rename(&evidence.file, &rotated).unwrap();
    inbound(&evidence.telemetry).fail(ResponseFlag::NoRoute, "two");
    let events = evidence.events();
    assert_eq!((events.len(), &events[0]["reason"]), (1, &"two".into()));
}

#[test]
fn a_full_disk_loses_events_but_says_so_and_recovers() {
    // /dev/full fails every write with ENOSPC.
    let dir = TempDir::new();
    let file = dir.path().join("audit.log");
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    let config = TelemetryConfig { audit: AuditTarget::File(file.clone()), ..TelemetryConfig::quiet("n") };
    let telemetry = Telemetry::new(config).unwrap();
    inbound(&telemetry).fail(ResponseFlag::NoRoute, "lost");
    assert!(telemetry.audit().flush(Duration::from_secs(5)));
    let metrics = telemetry.metrics_text();
    assert!(metrics.contains("warren_audit_events_dropped_total{reason=\"write_failed\"} 1"), "{metrics}");
    fs::remove_file(&file).unwrap();
    inbound(&telemetry).fail(ResponseFlag::NoRoute, "kept");
    assert!(telemetry.audit().flush(Duration::from_secs(5)));
    let text = fs::read_to_string(&file).unwrap();
    let event: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(event["reason"], "kept");
}

#[test]
fn a_full_queue_drops_and_counts_without_blocking() {
    // A pipe that nobody reads stops the writer thread.
    let dir = TempDir::new();
    let fifo = dir.path().join("audit.fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let config = TelemetryConfig { audit: AuditTarget::File(fifo), queue: 4, ..TelemetryConfig::quiet("n") };
    let telemetry = Telemetry::new(config).unwrap();
    for _ in 0..500 {
        inbound(&telemetry).fail(ResponseFlag::NoRoute, "x".repeat(1000));
    }
    let metrics = telemetry.metrics_text();
    let dropped = metrics
        .lines()
        .find_map(|line| line.strip_prefix("warren_audit_events_dropped_total{reason=\"queue_full\"} "))
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(dropped.parse::<u64>().unwrap() > 300, "{dropped}");
    // Let the writer finish: somebody reads after all.
    std::thread::spawn(move || std::io::copy(&mut &reader, &mut std::io::sink()));
    drop(telemetry);
}

#[test]
fn label_sets_are_bounded() {
    let evidence = evidence();
    for n in 0..5000 {
        let source = WorkloadFacts { workload: format!("w{n}"), ..WorkloadFacts::clone(&workload("client")) };
        let record = inbound_from(&evidence.telemetry, Arc::new(source));
        record.fail(ResponseFlag::Connect, "x");
    }
    let metrics = evidence.metrics();
    let series = metrics.lines().filter(|line| line.starts_with("istio_tcp_connections_failed_total{")).count();
    assert!(series <= 4097, "{series}");
    assert!(metrics.contains("source_workload=\"other\""));
    assert!(metrics.contains("warren_metric_series_overflow_total 904"), "{}", line_of(&metrics, "overflow"));
}

fn line_of<'a>(metrics: &'a str, part: &str) -> &'a str {
    metrics.lines().find(|line| line.contains(part) && !line.starts_with('#')).unwrap_or("")
}

#[test]
fn the_agents_own_gauges_and_memory_are_there() {
    let evidence = evidence();
    evidence.telemetry.metrics().gauge("warren_worker_busy_percent", "How busy").set(12.5);
    evidence.telemetry.metrics().plaintext_seen("legacy", "server", "ns", 8080, "pass");
    let metrics = evidence.metrics();
    assert!(metrics.contains("warren_worker_busy_percent 12.5"), "{metrics}");
    assert!(line_of(&metrics, "warren_resident_memory_bytes").rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 0);
    assert!(line(&metrics, "warren_plaintext_inbound_total").contains("destination_port=\"8080\""));
}
