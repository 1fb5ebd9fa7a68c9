//! TCP ↔ CONNECT stream (hbone.md §13), with resets passed on as resets.
//!
//! Memory is bounded in both directions: towards the tunnel nothing is read
//! from the application before HTTP/2 and the tunnel's socket have room for it,
//! and towards the application flow-control credit is returned only for bytes
//! that TCP has taken.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use warren_core::http2::ErrorCode;

use super::{ByteCounts, CopyEnd, CopyOutcome, clean_on_close, end_writing, is_reset};
use crate::hbone::{DeliveryEnd, HboneStream, StreamEnd};
use crate::limits::Limits;
use crate::live::Cancel;

/// Copies until both directions have ended, one side is reset, or `cancel`
/// fires. Consumes both; `bytes` may be read meanwhile. `app` is expected to
/// reset its connection when closed ([`reset_on_close`](super::reset_on_close)),
/// until it has ended cleanly.
pub async fn copy(
    app: TcpStream,
    tunnel: HboneStream,
    limits: &Limits,
    cancel: &Cancel,
    bytes: &Arc<ByteCounts>,
) -> CopyOutcome {
    bytes.add_to_tunnel(usize::try_from(tunnel.early_sent()).unwrap_or(usize::MAX));
    let app = Rc::new(app);
    tunnel.attach(app.clone(), bytes.clone());
    let end = {
        let up_done = Notify::new();
        let up = up(&app, &tunnel, bytes, &up_done);
        let down = down(&app, &tunnel);
        tokio::select! {
            biased;
            end = both(up, &up_done, down, limits) => end,
            reason = cancel.cancelled() => CopyEnd::Cancelled(reason),
        }
    };
    if end == CopyEnd::Clean {
        clean_on_close(&app);
    } else {
        tunnel.reset(ErrorCode::CANCEL);
    }
    drop(tunnel);
    CopyOutcome { to_app: bytes.to_app(), to_tunnel: bytes.to_tunnel(), end }
}

/// Runs both directions to their own end; a failure of one ends both. Bytes
/// that arrived before the peer's reset still reach an application that reads
/// in reasonable time, as they would from the kernel.
async fn both(
    up: impl Future<Output = CopyEnd>,
    up_done: &Notify,
    down: impl Future<Output = Result<(), CopyEnd>>,
    limits: &Limits,
) -> CopyEnd {
    tokio::pin!(up, down);
    tokio::select! {
        biased;
        failure = &mut up => {
            if failure == CopyEnd::TunnelReset {
                let _ = timeout(limits.reset_flush, down).await;
            }
            failure
        }
        down_end = &mut down => match down_end {
            Err(end) => end,
            Ok(()) => tokio::select! {
                failure = &mut up => failure,
                () = up_done.notified() => CopyEnd::Clean,
            },
        },
    }
}

/// Application → tunnel. Tells `done` when the application's bytes are all
/// handed over, and goes on watching for resets: the other direction may be
/// stuck in a write to an application that does not read.
async fn up(app: &TcpStream, tunnel: &HboneStream, bytes: &ByteCounts, done: &Notify) -> CopyEnd {
    if let Err(end) = until_end(app, tunnel, bytes).await {
        return end;
    }
    tunnel.end();
    done.notify_one();
    tokio::select! {
        end = poll_fn(|cx| tunnel.poll_stopped(cx)) => match end {
            // The peer wants no more, and there is no more.
            StreamEnd::Reset(ErrorCode::NO_ERROR) => std::future::pending().await,
            end => broken(&end),
        },
        _ = app.ready(Interest::ERROR) => CopyEnd::AppReset,
    }
}

async fn until_end(app: &TcpStream, tunnel: &HboneStream, bytes: &ByteCounts) -> Result<(), CopyEnd> {
    if tunnel.app_ended {
        // What was read early may still wait for the peer's window; the end comes behind it.
        return room(app, tunnel).await.map(drop);
    }
    loop {
        // Room is asked for only when there is something to send.
        readable(app, tunnel).await?;
        let room = room(app, tunnel).await?;
        match tunnel.read_from(app, room).map_err(|end| broken(&end))? {
            Ok(0) => return Ok(()),
            Ok(length) => bytes.add_to_tunnel(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(app_error(&error)),
        }
    }
}

/// Waits for bytes of the application, or for the end of the stream.
async fn readable(app: &TcpStream, tunnel: &HboneStream) -> Result<(), CopyEnd> {
    poll_fn(|cx| {
        if let Poll::Ready(ready) = app.poll_read_ready(cx) {
            return Poll::Ready(ready.map_err(|error| app_error(&error)));
        }
        tunnel.poll_stopped(cx).map(|end| Err(broken(&end)))
    })
    .await
}

/// Waits for room in the stream, its connection and its socket; notices
/// meanwhile if the application resets.
async fn room(app: &TcpStream, tunnel: &HboneStream) -> Result<usize, CopyEnd> {
    tokio::select! {
        biased;
        room = poll_fn(|cx| tunnel.poll_room(cx)) => room.map_err(|end| broken(&end)),
        _ = app.ready(Interest::ERROR) => Err(CopyEnd::AppReset),
    }
}

/// Tunnel → application: what the tunnel's driver could not write at once, and the end.
async fn down(app: &TcpStream, tunnel: &HboneStream) -> Result<(), CopyEnd> {
    match poll_fn(|cx| tunnel.poll_deliver(app, cx)).await {
        Ok(()) => {}
        Err(DeliveryEnd::App(error)) => return Err(app_error(&error)),
        Err(DeliveryEnd::Stream(end)) => return Err(broken(&end)),
    }
    match end_writing(app) {
        // The application has closed already: nobody misses the FIN.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        outcome => outcome.map_err(|e| app_error(&e)),
    }
}

fn app_error(error: &io::Error) -> CopyEnd {
    if is_reset(error) { CopyEnd::AppReset } else { CopyEnd::Error(error.to_string()) }
}

fn broken(end: &StreamEnd) -> CopyEnd {
    match end {
        StreamEnd::Reset(_) => CopyEnd::TunnelReset,
        StreamEnd::Broken(error) => CopyEnd::Error(format!("the tunnel broke: {error}")),
    }
}
