//! HTTP/2 PING: tells a dead peer from a silent one (hbone.md §6).

use std::time::Duration;

use h2::{Ping, PingPong};

/// Pings for ever; returns when an answer failed to come in time.
pub(super) async fn until_dead(mut pings: PingPong, interval: Duration, limit: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(limit, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection ended; its own future says so.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}
