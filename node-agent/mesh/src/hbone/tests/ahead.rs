//! Tunnels that are dialled before a connection wants one.

use super::*;
use crate::testing;

/// A server whose connections can be told to go away, and can be counted.
struct Peer {
    address: std::net::SocketAddr,
    drains: Rc<RefCell<Vec<DrainHandle>>>,
}

impl Peer {
    async fn start(ca: &TestCa, limits: &Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drains = Rc::new(RefCell::new(Vec::new()));
        let (known, snapshot, limits) = (drains.clone(), ca.snapshot(&id("server")), limits.clone());
        spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let server = accept(tcp, &snapshot, &limits).await.unwrap();
                known.borrow_mut().push(server.drain());
                spawn_local(async move { testing::run(server, &hold).await });
            }
        });
        Self { address, drains }
    }

    fn connections(&self) -> usize {
        self.drains.borrow().len()
    }

    /// GOAWAY on the newest connection.
    fn goes_away(&self) {
        self.drains.borrow().last().unwrap().drain();
    }

    async fn has(&self, connections: usize) {
        let all = async {
            while self.connections() < connections {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, all).await.unwrap_or_else(|_| panic!("{} of {connections} connections", self.connections()));
    }
}

/// Opens and ends so many connections, one after the other.
async fn serve_some(client: &Client, connections: usize) {
    for _ in 0..connections {
        let (_app, at_client) = tcp_pair().await;
        client.open(&at_client).await.unwrap();
    }
}

fn counted(ca: &TestCa, outcome: &str) -> u64 {
    let name = format!("warren_tunnels_ahead_total{{outcome=\"{outcome}\"}} ");
    let text = ca.telemetry.metrics_text();
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

/// Long enough for a dial on loopback that should not be made.
async fn a_while() {
    sleep(Duration::from_millis(200)).await;
}

#[test]
fn a_peer_that_goes_away_is_dialled_before_the_next_connection() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let peer = Peer::start(&ca, &limits).await;
        let client = Client::new(&ca, &limits, peer.address);
        serve_some(&client, 2).await;
        assert_eq!(peer.connections(), 1);
        peer.goes_away();
        peer.has(2).await;
        a_while().await;
        assert_eq!((client.pool.connections(), counted(&ca, "dialled"), counted(&ca, "used")), (1, 1, 0));
        serve_some(&client, 3).await;
        assert_eq!((client.dials.count.get(), counted(&ca, "used")), (2, 1), "the next ones dial nothing");
    });
}

#[test]
fn what_does_not_recur_or_was_not_used_lately_is_not_dialled() {
    on_worker(async {
        let ca = test_ca();
        for (connections, pool_warm, idle) in [(1, 60_000, 0), (3, 100, 200), (3, 0, 0)] {
            let limits = Limits { pool_warm: Duration::from_millis(pool_warm), ..Limits::default() };
            let peer = Peer::start(&ca, &limits).await;
            let client = Client::new(&ca, &limits, peer.address);
            serve_some(&client, connections).await;
            sleep(Duration::from_millis(idle)).await;
            peer.goes_away();
            a_while().await;
            let seen = (client.dials.count.get(), client.pool.connections());
            assert_eq!(seen, (1, 0), "{connections} connections, {pool_warm} ms");
        }
    });
}

#[test]
fn the_pool_that_is_stopped_or_dropped_dials_nothing() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let peer = Peer::start(&ca, &limits).await;
        let client = Client::new(&ca, &limits, peer.address);
        serve_some(&client, 2).await;
        client.pool.stop_dialling_ahead();
        peer.goes_away();
        a_while().await;
        assert_eq!(client.dials.count.get(), 1);
        serve_some(&client, 1).await;
        assert_eq!(client.dials.count.get(), 2, "connections still do");
        let dials = client.dials.clone();
        drop(client);
        a_while().await;
        assert_eq!((dials.count.get(), Rc::strong_count(&dials)), (2, 1), "nothing of the pool is left");
    });
}

#[test]
fn the_last_stream_but_one_has_the_next_tunnel_dialled() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { pool_streams_per_connection: 4, ..Limits::default() };
        let peer = Peer::start(&ca, &limits).await;
        let client = Client::new(&ca, &limits, peer.address);
        let mut open = Vec::new();
        for streams in 1..=4 {
            let (app, at_client) = tcp_pair().await;
            open.push((client.open(&at_client).await.unwrap(), app));
            a_while().await;
            assert_eq!(peer.connections(), if streams < 3 { 1 } else { 2 }, "{streams} streams");
        }
        serve_some(&client, 1).await;
        assert_eq!((client.dials.count.get(), counted(&ca, "used")), (2, 1));
    });
}

#[test]
fn a_heavy_stream_has_another_tunnel_dialled_for_the_others() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let peer = Peer::start(&ca, &limits).await;
        let client = Client::new(&ca, &limits, peer.address);
        serve_some(&client, 1).await;
        let (_app, at_client) = tcp_pair().await;
        let heavy = client.open(&at_client).await.unwrap();
        a_while().await;
        assert_eq!(peer.connections(), 1);
        for _ in 0..3 {
            heavy.is_heavy_now();
            a_while().await;
        }
        assert_eq!(peer.connections(), 2, "one, however long it is heavy");
        heavy.is_heavy_now();
        serve_some(&client, 2).await;
        assert_eq!((client.dials.count.get(), counted(&ca, "used")), (2, 1));
    });
}

#[test]
fn an_svid_that_expires_has_its_successor_dialled_once_there_is_one() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let peer = Peer::start(&ca, &limits).await;
        let mut client = Client::new(&ca, &limits, peer.address);
        // Dialled 2 s before the end: a successor is wanted from 0.2 s before it.
        let left = client.snapshot.remaining() - Duration::from_secs(2);
        ca.clock.advance(left);
        serve_some(&client, 2).await;
        ca.clock.advance(Duration::from_millis(1_900));
        sleep(Duration::from_millis(2_000)).await;
        assert_eq!(client.dials.count.get(), 1, "the same SVID again would not help");
        ca.ca.step();
        let renewed = ca.snapshot(&id("client"));
        assert!(renewed.svid.not_after() > client.snapshot.svid.not_after());
        client.renew(renewed);
        client.pool.identity_changed();
        let succeeded = async {
            while counted(&ca, "dialled") == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, succeeded).await.expect("the successor is dialled");
        assert_eq!(client.pool.connections(), 1, "the old one takes no new streams");
        serve_some(&client, 2).await;
        assert_eq!((client.dials.count.get(), counted(&ca, "used")), (2, 1));
    });
}

#[test]
fn tries_that_fail_become_rarer_and_end() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { pool_warm: Duration::from_millis(2_500), ..Limits::default() };
        let peer = Peer::start(&ca, &limits).await;
        let client = Client::new(&ca, &limits, peer.address);
        // It has a tunnel, and the next dial finds nobody.
        serve_some(&client, 2).await;
        client.dials.refuse.set(true);
        peer.goes_away();
        sleep(Duration::from_millis(300)).await;
        assert_eq!(client.dials.count.get(), 2, "one try at once");
        sleep(Duration::from_millis(2_500)).await;
        let tries = client.dials.count.get() - 1;
        assert!((2..=4).contains(&tries), "{tries} tries in 2.5 s");
        sleep(Duration::from_millis(2_000)).await;
        assert_eq!(client.dials.count.get() - 1, tries, "nobody used it lately");
        assert_eq!(counted(&ca, "failed"), tries as u64);
        // Which costs connections nothing.
        client.dials.refuse.set(false);
        serve_some(&client, 1).await;
    });
}

#[test]
fn a_connection_waits_for_a_dial_ahead_and_tries_itself_if_that_fails() {
    on_worker(async {
        let ca = test_ca();
        for fails in [false, true] {
            let limits = Limits { tcp_connect_timeout: Duration::from_millis(500), ..Limits::default() };
            let peer = Peer::start(&ca, &limits).await;
            let client = Client::new(&ca, &limits, peer.address);
            serve_some(&client, 2).await;
            client.dials.stuck.set(true);
            peer.goes_away();
            sleep(Duration::from_millis(100)).await;
            assert_eq!(client.dials.count.get(), 2, "a dial ahead is under way");
            let release = async {
                sleep(Duration::from_millis(100)).await;
                client.dials.stuck.set(false);
                if !fails {
                    client.dials.go.notify_one();
                }
            };
            let (_app, at_client) = tcp_pair().await;
            let (opened, ()) = tokio::join!(timeout(SOON, client.open(&at_client)), release);
            opened.expect("no hang").expect("served");
            assert_eq!(client.dials.count.get(), if fails { 3 } else { 2 });
        }
    });
}

#[test]
fn a_dial_ahead_takes_no_slot_that_a_connection_waits_for() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { inflight_handshakes: 2, ..Limits::default() };
        let (peer, other) = (Peer::start(&ca, &limits).await, Peer::start(&ca, &limits).await);
        let mut client = Client::new(&ca, &limits, peer.address);
        serve_some(&client, 2).await;
        client.dials.stuck.set(true);
        peer.goes_away();
        a_while().await;
        assert_eq!(client.dials.count.get(), 2, "a dial ahead is under way");
        client.dials.stuck.set(false);
        client.server = other.address;
        timeout(SOON, serve_some(&client, 1)).await.expect("another peer's tunnel does not wait for it");
    });
}

#[test]
fn a_peer_that_refuses_our_certificate_afterwards_is_not_dialled_without_end() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let peer = Peer::start(&ca, &limits).await;
        let client = Client::new(&ca, &limits, peer.address);
        serve_some(&client, 2).await;
        // From now on a server that takes us for a stranger is at the address.
        let stranger = ca_of("other");
        let server = testing::serve(
            Arc::new(crate::identity::IdentitySnapshot::new(
                ca.snapshot(&id("server")).svid.clone(),
                stranger.snapshot(&SpiffeId::new(&td("other"), "ns", "x").unwrap()).bundle.clone(),
                1,
                ca.clock.clone(),
            )),
            limits.clone(),
            hold,
        );
        let (strange, seen) = server.await;
        client.dials.instead.set(Some(strange));
        peer.goes_away();
        sleep(Duration::from_millis(300)).await;
        assert_eq!(seen.get(), 1, "one try at once");
        assert_eq!((counted(&ca, "refused"), client.pool.connections()), (1, 0));
        sleep(Duration::from_millis(1_000)).await;
        assert!((2..=3).contains(&seen.get()), "{} tries in 1.3 s", seen.get());
    });
}

#[test]
fn a_peer_whose_root_is_trusted_no_longer_leaves_the_pool_at_once() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let peer = Peer::start(&ca, &limits).await;
        let mut client = Client::new(&ca, &limits, peer.address);
        serve_some(&client, 2).await;
        let dir = crate::identity::ca_dir::CaDir::open(&ca.dir.path().join("ca")).unwrap();
        let old = dir.list().unwrap().remove(0);
        let new = dir.add_root(std::time::SystemTime::now()).unwrap();
        ca.ca.step();
        client.renew(ca.snapshot(&id("client")));
        client.pool.identity_changed();
        a_while().await;
        assert_eq!((client.pool.connections(), client.dials.count.get()), (1, 1), "more roots change nothing");
        dir.activate(&new.id).unwrap();
        dir.remove_root(&old.id).unwrap();
        ca.ca.step();
        client.renew(ca.snapshot(&id("client")));
        client.pool.identity_changed();
        a_while().await;
        // The test's server still shows its old SVID: the successor that is dialled is not accepted either.
        assert_eq!((client.pool.connections(), client.dials.count.get(), counted(&ca, "failed")), (0, 2, 1));
    });
}
