use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use warren_core::identity::PodUid;

use super::ca_dir::{CaDir, CaError};
use super::embedded::{EmbeddedCa, EmbeddedCaConfig};
use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::telemetry::{Telemetry, TelemetryConfig};
use crate::testing::*;

const HOUR: Duration = Duration::from_secs(3600);

fn uid(text: &str) -> PodUid {
    PodUid::from(text)
}

#[test]
fn pods_of_one_account_share_no_key() {
    let ca = test_ca();
    let a = ca.ca.add_pod(&pod_ref("a"), &id("x")).current().unwrap();
    let b = ca.ca.add_pod(&pod_ref("b"), &id("x")).current().unwrap();
    assert_eq!(a.svid.id(), b.svid.id());
    let key = |s: &IdentitySnapshot| {
        let (_, cert) = x509_parser::parse_x509_certificate(&s.svid.chain()[0]).unwrap();
        cert.public_key().subject_public_key.data.to_vec()
    };
    assert_ne!(key(&a), key(&b));
    assert_ne!(a.svid.serial(), b.svid.serial());
}

#[test]
fn renewal_starts_from_half_life_and_keeps_the_identity() {
    let ca = test_ca();
    let pod = ca.ca.add_pod(&pod_ref("a"), &id("x"));
    let first = pod.current().unwrap();
    ca.clock.advance(HOUR.mul_f64(0.44));
    ca.ca.step();
    assert_eq!(pod.current().unwrap().svid.serial(), first.svid.serial());
    ca.clock.advance(HOUR.mul_f64(0.12));
    ca.ca.step();
    let second = pod.current().unwrap();
    assert_ne!(second.svid.serial(), first.svid.serial());
    assert!(second.generation > first.generation);
    assert_eq!(second.svid.id(), first.svid.id());
    let text = ca.telemetry.metrics_text();
    assert!(text.contains("certificate_issuance_success_total 1"), "{text}");
    assert!(text.contains("certificate_rotation_success_total 1"), "{text}");
}

#[test]
fn an_expired_svid_is_no_identity() {
    let ca = test_ca();
    let pod = ca.ca.add_pod(&pod_ref("a"), &id("x"));
    assert!(pod.current().is_ok());
    ca.clock.advance(2 * HOUR);
    assert!(matches!(pod.current(), Err(NoIdentity::Expired { .. })));
    assert_eq!(pod.status().remaining, Some(Duration::ZERO));
    ca.ca.step();
    assert!(pod.current().is_ok());
}

#[test]
fn a_removed_pod_loses_its_identity_at_once() {
    let ca = test_ca();
    let pod = ca.ca.add_pod(&pod_ref("a"), &id("x"));
    ca.ca.remove_pod(&uid("a"));
    assert_eq!(pod.current().unwrap_err(), NoIdentity::Withdrawn);
    // The same UID under another name starts anew.
    let pod = ca.ca.add_pod(&pod_ref("a"), &id("x"));
    let other = ca.ca.add_pod(&pod_ref("a"), &id("y"));
    assert_eq!(pod.current().unwrap_err(), NoIdentity::Withdrawn);
    assert_eq!(other.current().unwrap().svid.id(), &id("y"));
}

#[tokio::test]
async fn waiting_ends_with_the_svid_or_the_limit() {
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let writer = pod_identity(&uid("a"), &id("x"), clock.clone());
    let reader = writer.reader();
    let none = reader.wait(Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(none, NoIdentity::NotIssued { last_error: None });
    writer.failed("the issuer is away");
    let none = reader.wait(Duration::from_millis(20)).await.unwrap_err();
    assert!(none.to_string().contains("the issuer is away"), "{none}");

    let snapshot = test_ca().snapshot(&id("x"));
    let waiting = tokio::spawn(async move { reader.wait(Duration::from_secs(5)).await });
    tokio::task::yield_now().await;
    let (svid, bundle) = (snapshot.svid.clone(), snapshot.bundle.clone());
    writer.publish(IdentitySnapshot::new(svid, bundle, 1, clock));
    assert!(waiting.await.unwrap().is_ok());
}

#[test]
fn agents_share_a_root_and_not_an_intermediate() {
    let dir = Rc::new(TempDir::new());
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let (a, b) = (ca_in(&dir, &clock, "td"), ca_in(&dir, &clock, "td"));
    let (a, b) = (a.snapshot(&id("a")), b.snapshot(&id("b")));
    assert_eq!(a.bundle.roots(), b.bundle.roots());
    assert_ne!(a.svid.chain()[1], b.svid.chain()[1]);
}

#[test]
fn many_agents_may_create_the_directory_at_once() {
    let dir = TempDir::new();
    let path = dir.path().join("ca");
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || {
                let ca = CaDir::init(&path, &td("td"), SystemTime::now()).unwrap();
                ca.list().unwrap()
            })
        })
        .collect();
    let lists: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(lists.iter().all(|list| list.len() == 1 && *list == lists[0]));
}

#[test]
fn the_root_key_is_for_its_owner_only() {
    let ca = test_ca();
    let root = CaDir::open(&ca.dir.path().join("ca")).unwrap().list().unwrap().remove(0);
    let key = ca.dir.path().join("ca/roots").join(root.id).join("key.pem");
    assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn roots_overlap_in_a_rotation() {
    let ca = test_ca();
    let pod = ca.ca.add_pod(&pod_ref("a"), &id("x"));
    let before = pod.current().unwrap();
    let dir = CaDir::open(&ca.dir.path().join("ca")).unwrap();
    let old = dir.list().unwrap().remove(0);

    let issuer = ca.ca.issuers().pop();

    // The new root is trusted first; nothing is signed under it yet.
    let new = dir.add_root(ca.clock.now()).unwrap();
    ca.ca.step();
    let trusted = pod.current().unwrap();
    assert_eq!(trusted.bundle.len(), 2);
    assert_eq!(trusted.svid.serial(), before.svid.serial());

    // Then it signs; the old one is still trusted.
    dir.activate(&new.id).unwrap();
    ca.ca.step();
    assert_eq!(ca.ca.issuers().last(), issuer.as_ref(), "other agents must read it first");
    ca.clock.advance(Duration::from_secs(4));
    ca.ca.step();
    assert_ne!(ca.ca.issuers().last(), issuer.as_ref());
    ca.clock.advance(Duration::from_secs(6));
    ca.ca.step();
    let renewed = pod.current().unwrap();
    assert_ne!(renewed.svid.serial(), before.svid.serial());
    assert_eq!(renewed.bundle.len(), 2);
    assert!(matches!(dir.remove_root(&new.id), Err(CaError::ActiveRoot(_))));

    // Then the old one goes.
    dir.remove_root(&old.id).unwrap();
    ca.ca.step();
    let after = pod.current().unwrap();
    assert_eq!(after.bundle.len(), 1);
    assert_eq!(after.svid.serial(), renewed.svid.serial());
    assert!(matches!(dir.remove_root(&old.id), Err(CaError::UnknownRoot(_))));
}

#[test]
fn svids_under_a_removed_root_are_replaced_at_once() {
    let ca = test_ca();
    let pod = ca.ca.add_pod(&pod_ref("a"), &id("x"));
    let before = pod.current().unwrap();
    let dir = CaDir::open(&ca.dir.path().join("ca")).unwrap();
    let old = dir.list().unwrap().remove(0);
    let new = dir.add_root(ca.clock.now()).unwrap();
    dir.activate(&new.id).unwrap();
    dir.remove_root(&old.id).unwrap();
    ca.ca.step();
    let after = pod.current().unwrap();
    assert_ne!(after.svid.serial(), before.svid.serial());
    assert_eq!(after.bundle.len(), 1);
}

#[test]
fn a_corrupt_file_is_named_and_the_last_good_roots_stay() {
    let ca = test_ca();
    let pod = ca.ca.add_pod(&pod_ref("a"), &id("x"));
    let path = ca.dir.path().join("ca");
    let dir = CaDir::open(&path).unwrap();
    let root = dir.list().unwrap().remove(0);
    let file = path.join("roots").join(&root.id).join("cert.pem");
    let good = fs::read(&file).unwrap();
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    let error = dir.list().unwrap_err().to_string();
    assert!(error.contains("cert.pem"), "{error}");
    ca.ca.step();
    assert_eq!(pod.current().unwrap().bundle.len(), 1);
    // Issuing goes on meanwhile.
    ca.clock.advance(HOUR.mul_f64(0.6));
    ca.ca.step();
    assert!(pod.status().last_error.is_none());

    fs::write(path.join("active"), "nobody\n").unwrap();
    fs::write(&file, good).unwrap();
    let error = dir.list().unwrap_err().to_string();
    assert!(error.contains("active") && error.contains("nobody"), "{error}");
    fs::write(path.join("version"), "warren-ca 9\n").unwrap();
    let error = CaDir::open(&path).unwrap_err().to_string();
    assert!(error.contains("version") && error.contains("warren-ca 9"), "{error}");
}

#[test]
fn a_directory_of_another_trust_domain_is_refused() {
    let ca = test_ca();
    let path = ca.dir.path().join("ca");
    let error = CaDir::init(&path, &td("other"), ca.clock.now()).unwrap_err();
    assert!(matches!(error, CaError::TrustDomain { .. }), "{error}");
    assert!(matches!(CaDir::open(ca.dir.path()), Err(CaError::Missing(_))));
}

#[test]
fn the_intermediate_is_renewed_before_it_expires() {
    let ca = test_ca();
    let first = ca.ca.issuers();
    ca.clock.advance(17 * 24 * HOUR);
    ca.ca.step();
    let second = ca.ca.issuers();
    assert_eq!(first[0], second[0], "the root stays");
    assert_ne!(first[1].serial, second[1].serial);
    assert!(second[1].not_after > first[1].not_after);
}

#[test]
fn leaves_of_seconds_are_renewed_by_the_ca_itself() {
    let dir = TempDir::new();
    let telemetry = Telemetry::new(TelemetryConfig::quiet("node")).unwrap();
    let config = EmbeddedCaConfig {
        leaf_ttl: Duration::from_secs(2),
        ..EmbeddedCaConfig::new(dir.path().into(), td("td"), "node")
    };
    let ca = Arc::new(EmbeddedCa::open(config, telemetry).unwrap());
    ca.start().unwrap();
    let pod = ca.add_pod(&pod_ref("a"), &id("x"));
    let first = pod.current().unwrap().svid.serial().to_owned();
    let mut serials = std::collections::BTreeSet::from([first]);
    let end = std::time::Instant::now() + Duration::from_millis(3500);
    while std::time::Instant::now() < end {
        serials.insert(pod.current().expect("never without identity").svid.serial().to_owned());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(serials.len() >= 3, "{serials:?}");
}

#[test]
fn an_svid_of_another_name_is_not_taken() {
    let snapshot = test_ca().snapshot(&id("x"));
    let key = rcgen::KeyPair::generate().unwrap();
    let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let chain = snapshot.svid.chain().to_vec();
    let error = Svid::new(&id("y"), chain.clone(), &der).unwrap_err();
    assert!(matches!(error, SvidError::OtherIdentity { .. }), "{error}");
    assert!(matches!(Svid::new(&id("x"), chain, &der), Err(SvidError::Key(_))));
    let text = format!("{:?}", snapshot.svid);
    assert!(text.contains(snapshot.svid.serial()) && !text.contains("key"), "{text}");
}
