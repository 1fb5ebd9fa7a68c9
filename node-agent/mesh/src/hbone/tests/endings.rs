//! Tunnels that end: retries, drain, silence, rotation.

use super::*;

/// What a misbehaving server does to its first stream.
enum Mischief {
    Refuse(h2::Reason),
    GoAway,
}

/// The first connection misbehaves, later ones echo their first bytes.
async fn retry_case(mischief: Mischief) -> (Result<Vec<u8>, TunnelError>, usize) {
    let ca = test_ca();
    let limits = Limits::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let snapshot = ca.snapshot(&id("server"));
    let count = Rc::new(Cell::new(0));
    let counter = count.clone();
    spawn_local(async move {
        let mut first = raw_server(&listener, &snapshot).await;
        counter.set(1);
        match mischief {
            Mischief::Refuse(reason) => {
                let (_request, mut respond) = first.accept().await.unwrap().unwrap();
                respond.send_reset(reason);
                spawn_local(async move { while first.accept().await.is_some() {} });
            }
            Mischief::GoAway => {
                // Nothing was accepted: the last stream id is 0.
                first.abrupt_shutdown(h2::Reason::NO_ERROR);
                spawn_local(async move { while first.accept().await.is_some() {} });
            }
        }
        let mut second = raw_server(&listener, &snapshot).await;
        counter.set(2);
        let (request, mut respond) = second.accept().await.unwrap().unwrap();
        spawn_local(async move { while second.accept().await.is_some() {} });
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        let bytes = request.into_body().data().await.unwrap().unwrap();
        send.send_data(bytes, false).unwrap();
        std::future::pending::<()>().await;
    });
    let client = Client::new(&ca, &limits, address);
    let (mut app, at_client) = tcp_pair().await;
    app.write_all(b"only once").await.unwrap();
    let echoed = match timeout(SOON, client.open(&at_client)).await.expect("no hang") {
        Ok(stream) => Ok(stream.next_bytes().await.unwrap()),
        Err(error) => Err(error),
    };
    (echoed, count.get())
}

#[test]
fn what_was_certainly_not_processed_is_tried_once_more_with_its_bytes() {
    on_worker(async {
        let (echoed, connections) = retry_case(Mischief::Refuse(h2::Reason::REFUSED_STREAM)).await;
        assert_eq!((echoed.unwrap(), connections), (b"only once".to_vec(), 2));
        let (echoed, connections) = retry_case(Mischief::GoAway).await;
        assert_eq!((echoed.unwrap(), connections), (b"only once".to_vec(), 2));
    });
}

#[test]
fn what_may_have_been_processed_is_not_tried_again() {
    on_worker(async {
        let (outcome, connections) = retry_case(Mischief::Refuse(h2::Reason::INTERNAL_ERROR)).await;
        assert_eq!((outcome.is_err(), connections), (true, 1));
    });
}

#[test]
fn a_drained_server_finishes_its_streams_and_takes_no_new_ones() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let snapshot = ca.snapshot(&id("server"));
        let drains = Rc::new(RefCell::new(Vec::new()));
        let (handles, server_limits) = (drains.clone(), limits.clone());
        let over = Rc::new(Cell::new(0));
        let ended = over.clone();
        spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let mut server = accept(tcp, &snapshot, &server_limits).await.unwrap();
                handles.borrow_mut().push(server.drain());
                let ended = ended.clone();
                spawn_local(async move {
                    while let Some(Ok(stream)) = server.next().await {
                        let stream = stream.accept(&Baggage::default()).unwrap();
                        spawn_local(async move {
                            while let Some(bytes) = stream.next_bytes().await {
                                stream.send_bytes(&bytes);
                            }
                            stream.end();
                            stream.gone().await;
                        });
                    }
                    ended.set(ended.get() + 1);
                });
            }
        });
        let client = Client::new(&ca, &limits, address);
        let (_app, at_client) = tcp_pair().await;
        let old = client.open(&at_client).await.unwrap();
        drains.borrow()[0].drain();
        sleep(Duration::from_millis(100)).await;
        // The old stream goes on; a new one meets a new connection.
        old.send_bytes(b"still");
        assert_eq!(old.next_bytes().await.unwrap(), b"still");
        let (_app, at_client) = tcp_pair().await;
        let _new = client.open(&at_client).await.unwrap();
        assert_eq!((drains.borrow().len(), over.get()), (2, 0));
        old.end();
        assert_eq!(old.next_bytes().await, None);
        drop(old);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(over.get(), 1, "the drained connection is over");
    });
}

#[test]
fn a_dead_peer_is_noticed_by_both_sides() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits {
            ping_interval: Duration::from_millis(50),
            ping_timeout: Duration::from_millis(100),
            ..Limits::default()
        };
        // Client side: the server goes silent after the handshake.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let snapshot = ca.snapshot(&id("server"));
        spawn_local(async move {
            let connection = raw_server(&listener, &snapshot).await;
            std::future::pending::<()>().await;
            drop(connection);
        });
        let client = Client::new(&ca, &limits, address);
        let (_app, at_client) = tcp_pair().await;
        let error = timeout(SOON, client.open(&at_client)).await.expect("noticed").err().unwrap();
        assert!(matches!(error, TunnelError::PeerDead), "{error}");
        assert_eq!(client.pool.connections(), 0);

        // Server side: the client goes silent.
        let (tcp, at_server) = tcp_pair().await;
        let (client, server) = (ca.snapshot(&id("client")), ca.snapshot(&id("server")));
        let expected = [id("server")];
        let (connected, accepted) =
            tokio::join!(silent_client(tcp, &client, &expected), accept(at_server, &server, &limits));
        let mut server = accepted.unwrap();
        let event = timeout(SOON, server.next()).await.expect("noticed").unwrap();
        assert!(matches!(event, Err(TunnelError::PeerDead)));
        assert!(server.next().await.is_none());
        drop(connected);
    });
}

async fn silent_client(
    tcp: TcpStream,
    snapshot: &crate::identity::IdentitySnapshot,
    expected: &[SpiffeId],
) -> impl Sized {
    h2::client::handshake(other_client(tcp, snapshot, expected).await).await.unwrap()
}

#[test]
fn rotation_under_load_fails_nothing() {
    on_worker(async {
        let ca = test_ca();
        let limits = Limits::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server_pod = ca.ca.add_pod(&pod_ref("server"), &id("server"));
        let server_limits = limits.clone();
        spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let snapshot = server_pod.current().unwrap();
                let limits = server_limits.clone();
                spawn_local(async move {
                    let server = accept(tcp, &snapshot, &limits).await.unwrap();
                    run(server, &|stream: InboundStream| {
                        stream.accept(&Baggage::default()).unwrap().end();
                    })
                    .await;
                });
            }
        });
        let mut client = Client::new(&ca, &limits, address);
        let serial = client.snapshot.svid.serial().to_owned();
        for round in 0..60 {
            if round % 20 == 10 {
                ca.clock.advance(Duration::from_secs(2100));
                ca.ca.step();
            }
            client.snapshot = ca.snapshot(&id("client"));
            let (_app, at_client) = tcp_pair().await;
            client.open(&at_client).await.unwrap();
        }
        assert_ne!(client.snapshot.svid.serial(), serial);
    });
}

#[test]
fn a_reset_that_a_write_has_met_is_no_end_for_the_next_read() {
    on_worker(async {
        let ca = test_ca();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let snapshot = ca.snapshot(&id("server"));
        let is_reset = Rc::new(Notify::new());
        let go = is_reset.clone();
        spawn_local(async move {
            let mut connection = raw_server(&listener, &snapshot).await;
            let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            spawn_local(async move {
                go.notified().await;
                send.send_data(Bytes::from_static(b"too late"), false).unwrap();
                std::future::pending::<()>().await;
            });
            while connection.accept().await.is_some() {}
        });
        let client = Client::new(&ca, &Limits::default(), address);
        let (app, at_client) = tcp_pair().await;
        let stream = client.open(&at_client).await.unwrap();
        let at_client = Rc::new(at_client);
        stream.attach(at_client.clone(), Arc::default());
        copy::reset(app);
        at_client.readable().await.unwrap();
        is_reset.notify_one();
        sleep(Duration::from_millis(50)).await;
        let read = stream.read_from(&at_client, 1000).unwrap();
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_server_that_is_given_up_with_requests_nobody_took_lets_its_socket_go() {
    on_worker(async {
        let ca = test_ca();
        let (tcp, at_server) = tcp_pair().await;
        let (client, server) = (ca.snapshot(&id("client")), ca.snapshot(&id("server")));
        let expected = [id("server")];
        let limits = Limits::default();
        let (client, server) = tokio::join!(other_client(tcp, &client, &expected), accept(at_server, &server, &limits));
        let (requests, connection) = h2::client::handshake(client).await.unwrap();
        let closed = spawn_local(connection);
        let mut requests = requests.ready().await.unwrap();
        let request = connect_request("10.0.0.1:80").to_http().unwrap();
        let _stream = requests.send_request(request, false).unwrap();
        sleep(Duration::from_millis(50)).await;
        drop(server);
        timeout(SOON, closed).await.expect("the peer sees the end").unwrap().unwrap_err();
    });
}
