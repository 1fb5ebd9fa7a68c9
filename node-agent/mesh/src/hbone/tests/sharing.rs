//! When connections share a tunnel, and when a tunnel leaves the pool.

use super::*;

#[test]
fn connections_at_once_share_one_dial() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let (address, connections) = serve(ca.snapshot(&id("server")), limits.clone(), hold).await;
        let client = Rc::new(Client::new(&ca, &limits, address));
        let mut open = Vec::new();
        for _ in 0..50 {
            let client = client.clone();
            open.push(spawn_local(async move {
                let (app, at_client) = tcp_pair().await;
                (client.open(&at_client).await.unwrap(), app)
            }));
        }
        let mut streams = Vec::new();
        for task in open {
            streams.push(task.await.unwrap());
        }
        assert_eq!(connections.get(), 1);
        assert_eq!(client.pool.connections(), 1);
    });
}

#[test]
fn a_heavy_stream_keeps_its_tunnel_for_itself_up_to_a_number_of_tunnels() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { pool_tunnels: 3, pool_warm: Duration::ZERO, ..Limits::default() };
        let (address, connections) = serve(ca.snapshot(&id("server")), limits.clone(), hold).await;
        let client = Client::new(&ca, &limits, address);
        let mut kept = Vec::new();
        for tunnels in [1, 2, 3, 3, 3] {
            let (app, at_client) = tcp_pair().await;
            let stream = client.open(&at_client).await.unwrap();
            assert_eq!(connections.get(), tunnels);
            stream.send_bytes(&[0; 100]);
            assert_eq!(connections.get(), tunnels, "little does not make it heavy");
            stream.is_heavy_now();
            kept.push((stream, app));
        }
        sleep(Duration::from_millis(300)).await;
        let (_app, at_client) = tcp_pair().await;
        let _light = client.open(&at_client).await.unwrap();
        assert_eq!(connections.get(), 3, "heaviness passes");
    });
}

#[test]
fn a_failed_dial_fails_all_who_waited_for_it_at_once() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { tcp_connect_timeout: Duration::from_millis(200), ..Limits::default() };
        let client = Rc::new(Client::new(&ca, &limits, "127.0.0.1:1".parse().unwrap()));
        client.dials.stuck.set(true);
        let started = tokio::time::Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..20 {
            let client = client.clone();
            tasks.push(spawn_local(async move {
                let (_app, at_client) = tcp_pair().await;
                client.open(&at_client).await.err().unwrap()
            }));
        }
        for task in tasks {
            assert!(matches!(task.await.unwrap(), TunnelError::DialTimeout));
        }
        assert!(started.elapsed() < Duration::from_millis(1000), "{:?}", started.elapsed());
        assert!(client.dials.count.get() <= 2, "{}", client.dials.count.get());
    });
}

#[test]
fn a_full_connection_leaves_the_pool_and_a_new_one_is_dialled() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { pool_streams_per_connection: 3, pool_warm: Duration::ZERO, ..Limits::default() };
        let (address, connections) = serve(ca.snapshot(&id("server")), limits.clone(), hold).await;
        let client = Client::new(&ca, &limits, address);
        let mut open = Vec::new();
        for _ in 0..7 {
            let (app, at_client) = tcp_pair().await;
            open.push((client.open(&at_client).await.unwrap(), app));
        }
        assert_eq!(connections.get(), 3);
    });
}

#[test]
fn the_peers_stream_limit_counts_too() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { server_max_streams: 2, pool_warm: Duration::ZERO, ..Limits::default() };
        let (address, connections) = serve(ca.snapshot(&id("server")), limits.clone(), hold).await;
        let client = Client::new(&ca, &limits, address);
        let mut open = Vec::new();
        for _ in 0..6 {
            let (app, at_client) = tcp_pair().await;
            open.push((client.open(&at_client).await.unwrap(), app));
        }
        assert_eq!(connections.get(), 3);
    });
}

#[test]
fn source_identities_never_share_a_connection() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let (address, connections) = serve(ca.snapshot(&id("server")), limits.clone(), hold).await;
        let mut client = Client::new(&ca, &limits, address);
        let mut open = Vec::new();
        for source in ["a", "b", "a", "b"] {
            client.snapshot = ca.snapshot(&id(source));
            let (app, at_client) = tcp_pair().await;
            open.push((client.open(&at_client).await.unwrap(), app));
        }
        assert_eq!(connections.get(), 2);
    });
}

#[test]
fn unused_connections_are_closed() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits { pool_unused: Duration::from_millis(100), ..Limits::default() };
        let (address, _) = serve(ca.snapshot(&id("server")), limits.clone(), hold).await;
        let client = Client::new(&ca, &limits, address);
        let (_app, at_client) = tcp_pair().await;
        let stream = client.open(&at_client).await.unwrap();
        sleep(Duration::from_millis(250)).await;
        assert_eq!(client.pool.connections(), 1, "in use");
        drop(stream);
        sleep(Duration::from_millis(250)).await;
        assert_eq!(client.pool.connections(), 0);
    });
}

#[test]
fn a_tunnel_is_not_used_beyond_its_svid_or_its_peers_root() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let (address, connections) = serve(ca.snapshot(&id("server")), limits.clone(), hold).await;
        let mut client = Client::new(&ca, &limits, address);
        let open = async |client: &Client| {
            let (app, at_client) = tcp_pair().await;
            (client.open(&at_client).await.unwrap(), app)
        };
        let _first = open(&client).await;
        // The root above the peer is replaced: its old certificate no longer
        // counts, so the next stream meets a new connection.
        let dir = crate::identity::ca_dir::CaDir::open(&ca.dir.path().join("ca")).unwrap();
        let old = dir.list().unwrap().remove(0);
        let new = dir.add_root(std::time::SystemTime::now()).unwrap();
        ca.ca.step();
        client.snapshot = ca.snapshot(&id("client"));
        let _second = open(&client).await;
        assert_eq!(connections.get(), 1, "more roots change nothing");
        dir.activate(&new.id).unwrap();
        dir.remove_root(&old.id).unwrap();
        ca.ca.step();
        client.snapshot = ca.snapshot(&id("client"));
        let (_app, at_client) = tcp_pair().await;
        // The test's server still shows its old SVID, which nobody trusts now.
        let error = client.open(&at_client).await.err().unwrap();
        assert!(matches!(error, TunnelError::Handshake(_)), "{error}");
        assert_eq!(connections.get(), 2);
    });
}
