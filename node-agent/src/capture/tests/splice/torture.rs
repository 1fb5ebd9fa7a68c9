//! The torture: very many connections, each with a script of its own.
//!
//! `WARREN_SPLICE_CONNECTIONS` says how many; a few thousand unless told. Take a release build for a million.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::lab::{Connection, Dialler, Lab};
use super::scene::{Kind, Scene};

/// Connections at a time.
const AT_A_TIME: u64 = 32;

#[derive(Default)]
struct Tally {
    connections: BTreeMap<Kind, u64>,
    spliced: u64,
    bytes: u64,
}

#[test]
fn splice_torture() {
    let count = std::env::var("WARREN_SPLICE_CONNECTIONS").ok().map_or(5_000, |text| text.parse().unwrap());
    let lab = Lab::new();
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let started = Instant::now();
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_A_TIME)
            .map(|lane| {
                scope.spawn({
                    let (lab, next, failed) = (&lab, &next, &failed);
                    move || run(lab, 7000 + lane as u16, count, next, failed)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = Tally::default();
    for tally in tallies {
        for (kind, count) in tally.connections {
            *all.connections.entry(kind).or_default() += count;
        }
        all.spliced += tally.spliced;
        all.bytes += tally.bytes;
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{:?}: {} connections had {} bytes spliced, {seconds:.0} s", all.connections, all.spliced, all.bytes);
    assert!(!failed.load(Ordering::Relaxed), "see above");
    assert!(all.spliced > count / 2, "too few connections were spliced to say anything");
}

fn run(lab: &Lab, port: u16, count: u64, next: &AtomicU64, failed: &AtomicBool) -> Tally {
    let listener = lab.listen(port);
    let mut dialler = lab.dialler(&listener);
    let mut tally = Tally::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count || failed.load(Ordering::Relaxed) {
            return tally;
        }
        let scene = Scene::new(number);
        if let Err(reason) = play(&mut dialler, &listener, scene, &mut tally) {
            eprintln!("connection {number}, {scene:?}: {reason}");
            failed.store(true, Ordering::Relaxed);
        }
    }
}

fn play(dialler: &mut Dialler<'_>, listener: &TcpListener, scene: Scene, tally: &mut Tally) -> Result<(), String> {
    let Connection { client, server, from, cookies } = dialler.dial(listener, true);
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(move || guard(|| scene.server(server)));
        let own = guard(|| scene.client(client));
        (own, other.join().unwrap())
    });
    dialler.forget(from);
    *tally.connections.entry(scene.kind).or_default() += 1;
    let bytes: u64 = cookies.into_iter().map(|cookie| dialler.take_end(cookie).sent).sum();
    tally.spliced += u64::from(bytes > 0);
    tally.bytes += bytes;
    first.map_err(|reason| format!("client: {reason}"))?;
    second.map_err(|reason| format!("server: {reason}"))
}

fn guard(action: impl FnOnce() -> std::io::Result<()>) -> Result<(), String> {
    match std::panic::catch_unwind(AssertUnwindSafe(action)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".into())),
    }
}
