use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use warren_core::tunnel::Baggage;

use super::*;
use crate::limits::Limits;
use crate::live::{Cancel, LiveRegistry};
use crate::testing::*;

/// App – copy – HBONE – copy – app, all on loopback.
struct Line {
    client: TcpStream,
    server: TcpStream,
    client_end: JoinHandle<CopyOutcome>,
    server_end: JoinHandle<CopyOutcome>,
}

async fn line(limits: Limits) -> Line {
    line_with(limits, Cancel::never()).await
}

async fn line_with(limits: Limits, cancel: Cancel) -> Line {
    let ca = test_ca();
    let (server, at_server) = tcp_pair().await;
    let (client, at_client) = tcp_pair().await;
    reset_on_close(&at_server);
    reset_on_close(&at_client);
    let (ends, mut end) = mpsc::unbounded_channel();
    let at_server = RefCell::new(Some(at_server));
    let server_limits = limits.clone();
    let handle = move |stream: crate::hbone::InboundStream| {
        let stream = stream.accept(&Baggage::default()).unwrap();
        let (app, limits) = (Rc::new(at_server.borrow_mut().take().unwrap()), server_limits.clone());
        let task = spawn_local(async move {
            let bytes = Arc::default();
            copy(&app, &stream, &limits, &Cancel::never(), &bytes).await
        });
        ends.send(task).unwrap();
    };
    let (address, _) = serve(ca.snapshot(&id("server")), limits.clone(), handle).await;
    let pooled = Rc::new(Client::new(&ca, &limits, address));
    let stream = pooled.open(&at_client).await.unwrap();
    let client_end = spawn_local(async move {
        let _pool = pooled;
        let bytes = Arc::default();
        copy(&Rc::new(at_client), &stream, &limits, &cancel, &bytes).await
    });
    let server_end = end.recv().await.unwrap();
    Line { client, server, client_end, server_end }
}

fn pattern(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed).collect()
}

async fn send_and_end(mut to: impl AsyncWriteExt + Unpin, data: Vec<u8>) {
    to.write_all(&data).await.unwrap();
    to.shutdown().await.unwrap();
}

async fn receive(mut from: impl AsyncReadExt + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).await.unwrap();
    all
}

#[test]
fn bytes_are_exact_both_ways() {
    on_worker(async {
        for size in [1, 100, 16 * 1024, 65_537, 1_000_003, 8 * 1024 * 1024] {
            let mut line = line(Limits::default()).await;
            let (up, down) = (pattern(size, 1), pattern(size, 2));
            let (client_read, client_write) = line.client.split();
            let (server_read, server_write) = line.server.split();
            let (_, _, at_server, at_client) = tokio::join!(
                send_and_end(client_write, up.clone()),
                send_and_end(server_write, down.clone()),
                receive(server_read),
                receive(client_read),
            );
            assert!(at_server == up && at_client == down, "{size} bytes differ");
            let (client, server) = (line.client_end.await.unwrap(), line.server_end.await.unwrap());
            let n = size as u64;
            assert_eq!(client, CopyOutcome { to_app: n, to_tunnel: n, end: CopyEnd::Clean });
            assert_eq!(server, CopyOutcome { to_app: n, to_tunnel: n, end: CopyEnd::Clean });
        }
    });
}

#[test]
fn half_close_leaves_the_other_direction_open() {
    on_worker(async {
        let mut line = line(Limits::default()).await;
        line.client.write_all(b"request").await.unwrap();
        line.client.shutdown().await.unwrap();
        let mut request = Vec::new();
        line.server.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        tokio::time::sleep(Duration::from_millis(50)).await;
        line.server.write_all(b"late answer").await.unwrap();
        line.server.shutdown().await.unwrap();
        assert_eq!(receive(&mut line.client).await, b"late answer");
        assert_eq!(line.client_end.await.unwrap().end, CopyEnd::Clean);
        assert_eq!(line.server_end.await.unwrap().end, CopyEnd::Clean);
    });
}

async fn expect_reset(socket: &mut TcpStream) {
    let error = socket.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_by_the_client_reaches_the_server_as_a_reset() {
    on_worker(async {
        let mut line = line(Limits::default()).await;
        line.client.write_all(b"x").await.unwrap();
        line.server.read_exact(&mut [0]).await.unwrap();
        reset(line.client);
        expect_reset(&mut line.server).await;
        assert_eq!(line.client_end.await.unwrap().end, CopyEnd::AppReset);
        assert_eq!(line.server_end.await.unwrap().end, CopyEnd::TunnelReset);
    });
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_a_reset() {
    on_worker(async {
        let mut line = line(Limits::default()).await;
        line.client.write_all(b"x").await.unwrap();
        line.server.read_exact(&mut [0]).await.unwrap();
        reset(line.server);
        expect_reset(&mut line.client).await;
        assert_eq!(line.client_end.await.unwrap().end, CopyEnd::TunnelReset);
        assert_eq!(line.server_end.await.unwrap().end, CopyEnd::AppReset);
    });
}

#[test]
fn a_reset_after_half_close_is_still_a_reset() {
    on_worker(async {
        let mut line = line(Limits::default()).await;
        line.client.write_all(b"x").await.unwrap();
        line.client.shutdown().await.unwrap();
        line.server.read_exact(&mut [0]).await.unwrap();
        reset(line.server);
        expect_reset(&mut line.client).await;
        assert_eq!(line.client_end.await.unwrap().end, CopyEnd::TunnelReset);
    });
}

#[test]
fn a_reset_is_noticed_behind_an_application_that_does_not_read() {
    on_worker(async {
        let mut line = line(Limits::default()).await;
        line.client.shutdown().await.unwrap();
        // More than the kernel's buffers hold: the copy is stuck in a write.
        let chunk = vec![7; 1 << 16];
        while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), line.server.write(&chunk)).await {
            written.unwrap();
        }
        reset(line.server);
        let outcome = tokio::time::timeout(Duration::from_secs(5), line.client_end).await;
        assert_eq!(outcome.expect("noticed").unwrap().end, CopyEnd::TunnelReset);
    });
}

#[test]
fn a_slow_reader_holds_the_sender_back() {
    on_worker(async {
        let limits = Limits { stream_window: 256 * 1024, connection_window: 512 * 1024, ..Limits::default() };
        let mut line = line(limits).await;
        // The server never reads: what the client can write is bounded by
        // windows and kernel buffers, not by its patience.
        let chunk = vec![7; 64 * 1024];
        let mut written = 0;
        loop {
            let write = line.client.write(&chunk);
            match tokio::time::timeout(Duration::from_millis(500), write).await {
                Ok(n) => written += n.unwrap(),
                Err(_) => break,
            }
            assert!(written < 64 * 1024 * 1024, "nothing holds the sender back");
        }
        // Then it does, and nothing is lost.
        let (mut client_read, mut client_write) = line.client.split();
        let reader = async {
            let mut total = 0;
            let mut buffer = vec![0; 1 << 16];
            loop {
                let n = line.server.read(&mut buffer).await.unwrap();
                if n == 0 {
                    break total;
                }
                assert!(buffer[..n].iter().all(|byte| *byte == 7));
                total += n;
            }
        };
        let (ended, total) = tokio::join!(client_write.shutdown(), reader);
        ended.unwrap();
        assert_eq!(total, written);
        line.server.shutdown().await.unwrap();
        assert_eq!(client_read.read(&mut [0]).await.unwrap(), 0);
    });
}

#[test]
fn small_messages_to_a_slow_reader_arrive_exactly() {
    on_worker(async {
        let mut line = line(Limits::default()).await;
        const MESSAGES: usize = 20_000;
        for _ in 0..MESSAGES {
            line.client.write_all(&[9; 64]).await.unwrap();
            // One frame each.
            tokio::task::yield_now().await;
        }
        line.client.shutdown().await.unwrap();
        line.server.shutdown().await.unwrap();
        let got = receive(&mut line.server).await;
        assert!(got.len() == MESSAGES * 64 && got.iter().all(|byte| *byte == 9));
        assert_eq!(line.client_end.await.unwrap().end, CopyEnd::Clean);
    });
}

#[test]
fn a_cancelled_connection_is_reset_at_both_ends() {
    on_worker(async {
        let live = LiveRegistry::default();
        let (guard, cancel) = live.register(());
        let mut line = line_with(Limits::default(), cancel).await;
        line.client.write_all(b"x").await.unwrap();
        line.server.read_exact(&mut [0]).await.unwrap();
        let reason = CancelReason::PolicyChanged { policy: None, reason: "test".into() };
        live.cancel(guard.id(), reason.clone());
        expect_reset(&mut line.client).await;
        expect_reset(&mut line.server).await;
        assert_eq!(line.client_end.await.unwrap().end, CopyEnd::Cancelled(reason));
    });
}

#[test]
fn plain_copies_behave_alike() {
    on_worker(async {
        let (mut client, app) = tcp_pair().await;
        let (mut server, other) = tcp_pair().await;
        let task = spawn_local(async move {
            let bytes = ByteCounts::default();
            copy_plain(app, other, &Limits::default(), &Cancel::never(), &bytes).await
        });
        let data = pattern(3_000_001, 5);
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let (_, _, up, down) = tokio::join!(
            send_and_end(client_write, data.clone()),
            send_and_end(server_write, data.clone()),
            receive(server_read),
            receive(client_read),
        );
        assert!(up == data && down == data);
        let outcome = task.await.unwrap();
        assert_eq!((outcome.end, outcome.to_app), (CopyEnd::Clean, 3_000_001));

        let (client, app) = tcp_pair().await;
        let (mut server, other) = tcp_pair().await;
        let task = spawn_local(async move {
            let bytes = ByteCounts::default();
            copy_plain(app, other, &Limits::default(), &Cancel::never(), &bytes).await
        });
        reset(client);
        expect_reset(&mut server).await;
        assert_eq!(task.await.unwrap().end, CopyEnd::AppReset);
    });
}
