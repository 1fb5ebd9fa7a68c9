//! What an operator can see: status, audit events, handshake records, metrics; and that renewal disturbs nobody.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Duration;

use warren_test_support::client::{assert_echo, assert_refused, connect, exchange, ping_pong};
use warren_test_support::command::{self, warren_bin};
use warren_test_support::lab::TRUST_DOMAIN;
use warren_test_support::{Agent, eventually};

use crate::fixture::Pair;

/// Requests over both families, one after the other, until told to stop.
struct Load<'scope> {
    stop: &'scope AtomicBool,
    workers: Vec<std::thread::ScopedJoinHandle<'scope, (u32, Vec<String>)>>,
}

impl<'scope> Load<'scope> {
    fn start<'env>(scope: &'scope Scope<'scope, 'env>, pair: &'env Pair, stop: &'env AtomicBool) -> Self {
        let worker = |to| {
            scope.spawn(move || {
                let (mut done, mut failures) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match exchange(&pair.client.ns, to, b"request") {
                        Ok(answer) if answer == b"request" => done += 1,
                        other => failures.push(format!("{other:?}")),
                    }
                }
                (done, failures)
            })
        };
        Self { stop, workers: vec![worker(pair.server.at(8080)), worker(pair.server.at6(8080))] }
    }

    /// Ends it; none of many requests may have failed.
    #[track_caller]
    fn assert_unharmed(self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            let (done, failures) = worker.join().unwrap();
            assert_eq!(failures, Vec::<String>::new());
            assert!(done > 50, "only {done} requests");
        }
    }
}

fn serial(agent: &Agent, pod: &str) -> Option<String> {
    agent.pod(pod)["svid"]["serial"].as_str().map(str::to_owned)
}

#[test]
fn svids_rotate_under_load_without_a_failed_request() {
    let pair = Pair::with(&[("--leaf-ttl", "4s")], |_| {});
    let _echo = pair.echo(8080);
    let first = (serial(&pair.near, "client"), serial(&pair.far, "server"));
    assert!(first.0.is_some() && first.1.is_some(), "{first:?}");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = Load::start(scope, &pair, &stop);
        let mut seen = BTreeSet::from([first.0.clone()]);
        eventually("three renewals", Duration::from_secs(25), || {
            seen.insert(serial(&pair.near, "client"));
            (seen.len() >= 4).then_some(())
        });
        load.assert_unharmed();
    });
    assert_ne!(serial(&pair.far, "server"), first.1);
}

#[test]
fn roots_are_exchanged_under_load_without_a_failed_request() {
    let pair = Pair::with(&[("--leaf-ttl", "4s")], |_| {});
    let _echo = pair.echo(8080);
    let dir = pair.lab.dir().join("ca");
    let ca = |arguments: &[&str]| {
        let mut command = std::process::Command::new(warren_bin());
        let output = command::output(command.arg("ca").args(arguments).arg("--ca-dir").arg(&dir));
        assert!(output.status.success(), "ca {arguments:?}: {}", command::text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let roots =
        || ca(&["list"]).lines().skip(1).filter_map(|l| l.split_whitespace().next().map(str::to_owned)).collect();
    let before: BTreeSet<String> = roots();
    let serials = |agent: &Agent| -> BTreeSet<String> {
        let status = agent.status();
        let issuers = status["issuers"].as_array().unwrap().iter().filter(|issuer| issuer["kind"] == "root");
        issuers.filter_map(|issuer| issuer["serial"].as_str().map(str::to_owned)).collect()
    };
    let old = serials(&pair.near);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = Load::start(scope, &pair, &stop);
        ca(&["add-root"]);
        let all: BTreeSet<String> = roots();
        let new = all.difference(&before).next().expect("a second root").clone();
        for agent in [&pair.near, &pair.far] {
            agent.wait_status("both roots are trusted", |_| serials(agent).len() == 2);
        }
        ca(&["activate", &new]);
        let (near, far) = (serial(&pair.near, "client"), serial(&pair.far, "server"));
        eventually("leaves are signed anew, twice", Duration::from_secs(25), || {
            (serial(&pair.near, "client") != near && serial(&pair.far, "server") != far).then_some(())
        });
        // Every leaf of the old root has expired by then.
        std::thread::sleep(Duration::from_secs(5));
        ca(&["remove-root", before.iter().next().unwrap()]);
        for agent in [&pair.near, &pair.far] {
            agent.wait_status("only the new root is trusted", |_| {
                let now = serials(agent);
                now.len() == 1 && now.is_disjoint(&old)
            });
        }
        load.assert_unharmed();
    });
    assert_echo(&pair.client.ns, pair.server.at(8080), b"under the new root");
}

#[test]
fn every_connection_leaves_its_audit_event_and_handshake_record() {
    let pair = Pair::with(&[], |lab| {
        let rule = "[{to: [{operation: {ports: [\"8081\"]}}]}]";
        lab.manifest.set_policy("no-8081", "server", "DENY", rule);
    });
    let (_echo, _denied) = (pair.echo(8080), pair.echo(8081));
    assert_echo(&pair.client.ns, pair.server.at(8080), b"12345");
    assert_refused(&pair.client.ns, pair.server.at(8081), b"12345");
    for (agent, direction) in [(&pair.near, "outbound"), (&pair.far, "inbound")] {
        let event = agent.wait_audit("the connection", |event| {
            event["event"] == "connection" && event["decision"] == "ALLOW" && event["bytes_sent"] == 5
        });
        assert_eq!(event["direction"], direction);
        assert_eq!(event["source_identity"], pair.client.identity());
        assert_eq!(event["destination_identity"], pair.server.identity());
        assert_eq!((&event["mtls"], &event["bytes_received"]), (&true.into(), &5.into()));
        assert_eq!((&event["cluster"], &event["region"]), (&"lab".into(), &"bench".into()));
        assert_eq!(event["node"], agent.node());
        assert!(
            event["timestamp"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')),
            "{event:#}"
        );
        assert_eq!(event["trace_id"].as_str().map(str::len), Some(32), "{event:#}");
        assert_eq!((&event["source"]["pod"], &event["destination"]["pod"]), (&"client".into(), &"server".into()));
        let handshake = agent.wait_audit("the handshake", |event| event["event"] == "mtls_handshake");
        assert_eq!((&handshake["result"], &handshake["tls_version"]), (&"success".into(), &"1.3".into()));
        assert!(handshake["connection_id"].is_string() && handshake["duration_ms"].is_number());
    }
    let ours = pair.near.wait_audit("allowed", |event| event["event"] == "connection" && event["decision"] == "ALLOW");
    let theirs = pair.far.wait_audit("allowed", |event| event["event"] == "connection" && event["decision"] == "ALLOW");
    assert_eq!(ours["trace_id"], theirs["trace_id"], "one connection, one trace");
    let denied = pair.far.wait_audit("the denial", |event| event["decision"] == "DENY");
    assert_eq!((&denied["policy"], &denied["response_flags"]), (&"prod/no-8081".into(), &"DENY".into()));
    assert!(denied["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    pair.near.wait_audit("the source's side of it", |event| event["response_code"] == 401);
}

#[test]
fn metrics_tell_connections_denials_handshakes_and_expiry() {
    let mut stranger = None;
    let pair = Pair::with(&[], |lab| {
        stranger = Some(lab.stranger(1, "stranger"));
        lab.manifest.set_policy("no-8081", "server", "DENY", "[{to: [{operation: {ports: [\"8081\"]}}]}]");
    });
    let (_echo, _denied) = (pair.echo(8080), pair.echo(8081));
    assert_echo(&pair.client.ns, pair.server.at(8080), b"12345");
    assert_refused(&pair.client.ns, pair.server.at(8081), b"12345");
    assert_echo(&stranger.unwrap().ns, pair.server.at(8080), b"plaintext");
    let client = format!("source_principal=\"{}\"", pair.client.identity());
    for (agent, reporter) in [(&pair.near, "reporter=\"source\""), (&pair.far, "reporter=\"destination\"")] {
        let labels = [reporter, &client, "connection_security_policy=\"mutual_tls\"", "request_protocol=\"tcp\""];
        let limit = Duration::from_secs(10);
        let closed = || (agent.metric("istio_tcp_connections_closed_total", &labels) >= 1.0).then_some(());
        eventually("the connection is counted as closed", limit, closed);
        assert!(agent.metric("istio_tcp_connections_opened_total", &labels) >= 1.0);
        assert!(agent.metric("istio_tcp_sent_bytes_total", &labels) >= 5.0);
        assert!(agent.metric("istio_tcp_received_bytes_total", &labels) >= 5.0);
        assert!(agent.metric("mtls_handshake_success_total", &[]) >= 1.0);
        assert!(agent.metric("mtls_handshake_duration_seconds_count", &[]) >= 1.0);
        let page = agent.metrics();
        assert!(page.contains("certificate_expiration_seconds{") && page.contains("kind=\""), "{page}");
        assert!(page.contains("# HELP") && page.trim_end().ends_with("# EOF"), "OpenMetrics text");
    }
    let flags = ["response_flags=\"DENY\""];
    eventually("the denial is counted", Duration::from_secs(10), || {
        (pair.far.metric("istio_tcp_connections_failed_total", &flags) >= 1.0).then_some(())
    });
    eventually("plaintext is seen", Duration::from_secs(10), || {
        let page = pair.far.metrics();
        page.lines()
            .any(|line| line.contains("plaintext") && !line.starts_with('#') && !line.ends_with(" 0"))
            .then_some(())
    });
}

#[test]
fn status_tells_pods_identities_expiry_and_connections() {
    let pair = Pair::with(&[], |lab| lab.manifest.set_mtls(Some("server"), "STRICT"));
    let _echo = pair.echo(8080);
    let mut open = connect(&pair.client.ns, pair.server.at(8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"x").unwrap(), b"x");
    let status = pair.far.status();
    assert_eq!((&status["version"], &status["ready"]), (&1.into(), &true.into()));
    assert_eq!((&status["node"], &status["trust_domain"]), (&pair.far.node().into(), &TRUST_DOMAIN.into()));
    let server = pair.far.pod("server");
    assert_eq!(
        (&server["state"], &server["mode"], &server["error"]),
        (&"enrolled".into(), &"STRICT".into(), &serde_json::Value::Null)
    );
    assert_eq!(server["identity"], pair.server.identity());
    assert!(
        server["svid"]["remaining_seconds"].as_i64().is_some_and(|left| (80_000..=86_400).contains(&left)),
        "{server:#}"
    );
    assert_eq!(server["connections"], 1);
    let connection = &status["connections"][0];
    assert_eq!((&connection["direction"], &connection["transport"]), (&"inbound".into(), &"mtls".into()));
    assert_eq!(connection["source_identity"], pair.client.identity());
    let kinds: Vec<&str> = status["issuers"].as_array().unwrap().iter().filter_map(|i| i["kind"].as_str()).collect();
    assert!(kinds.contains(&"root") && kinds.contains(&"intermediate"), "{kinds:?}");

    let human = pair.far.status_command(&[]);
    let text = String::from_utf8_lossy(&human.stdout);
    assert!(human.status.success());
    for word in ["server", "STRICT", "enrolled", &pair.server.identity()] {
        assert!(text.contains(word), "no {word} in\n{text}");
    }
    pair.far.http("/healthz/ready").expect("200 when ready");
}

#[test]
fn commands_that_cannot_succeed_say_so_by_their_exit_code() {
    let bin = warren_bin();
    let code = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&bin);
        command::output(command.args(arguments)).status.code()
    };
    assert_eq!(code(&["no-such-command"]), Some(2));
    assert_eq!(code(&["status", "--socket", "/run/warren-test/no-such.sock"]), Some(6));
    assert_eq!(code(&["ca", "list", "--ca-dir", "/run/warren-test/no-such-ca"]), Some(4));
    let agent = ["agent", "--node", "x", "--ca-dir", "/tmp", "--world", "/run/warren-test/no-such.yaml", "--run-dir"];
    let dir = std::env::temp_dir().join(format!("wt-exit-{}", std::process::id()));
    assert_eq!(code(&[&agent[..], &[dir.to_str().unwrap()]].concat()), Some(3));
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn what_others_must_not_read_or_write_they_cannot() {
    let pair = Pair::start();
    let mode = |path: &Path| {
        let metadata = std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode(&pair.near.run_dir().join("agent.sock")) & 0o077, 0, "the status socket is root's");
    assert_eq!(mode(&Path::new("/sys/fs/bpf/warren").join(pair.near.node())) & 0o077, 0, "pins are root's");
    let mut keys = 0;
    let mut directories = vec![pair.lab.dir().join("ca")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if std::fs::read_to_string(&path).is_ok_and(|text| text.contains("PRIVATE KEY")) {
                keys += 1;
                assert_eq!(mode(&path), 0o600, "{}", path.display());
            }
        }
    }
    assert_eq!(keys, 1, "of the root alone: SVID keys and intermediates stay in memory");
    for entry in std::fs::read_dir(pair.near.run_dir()).unwrap().map(Result::unwrap) {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        assert!(!text.contains("PRIVATE KEY"), "a key in {}", entry.path().display());
    }
}
