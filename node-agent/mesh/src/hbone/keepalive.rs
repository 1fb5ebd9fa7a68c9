//! HTTP/2 PING: tells a dead peer from a silent one (hbone.md §6).

use std::time::Duration;

use super::session::Session;

/// Pings for ever; returns when an answer failed to come in time.
pub(super) async fn until_dead(session: &Session, interval: Duration, limit: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        session.ping();
        if tokio::time::timeout(limit, session.pongs.notified()).await.is_err() {
            return;
        }
    }
}
