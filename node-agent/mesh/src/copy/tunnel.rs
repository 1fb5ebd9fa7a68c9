//! TCP ↔ CONNECT stream (hbone.md §13), with resets passed on as resets.
//!
//! Memory is bounded in both directions: towards the tunnel nothing is read
//! from the application before HTTP/2 and the tunnel's socket have room for it,
//! and towards the application flow-control credit is returned only for bytes
//! that TCP has taken.
//!
//! Ten thousand connections may wait here and do nothing. So what waits only now and then (for room, for a reset after
//! the application's end) is boxed while it does, instead of having its place in every connection's task.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;
use warren_core::http2::ErrorCode;

use super::{ByteCounts, CopyEnd, CopyOutcome, clean_on_close, end_writing, is_reset};
use crate::hbone::{DeliveryEnd, HboneStream, StreamEnd};
use crate::limits::Limits;
use crate::live::Cancel;

/// Copies until both directions have ended, one side is reset, or `cancel`
/// fires; close both then. `bytes` may be read meanwhile. `app` is expected to
/// reset its connection when closed ([`reset_on_close`](super::reset_on_close)),
/// until it has ended cleanly.
pub async fn copy(
    app: &Rc<TcpStream>,
    tunnel: &HboneStream,
    limits: &Limits,
    cancel: &Cancel,
    bytes: &Arc<ByteCounts>,
) -> CopyOutcome {
    bytes.add_to_tunnel(usize::try_from(tunnel.early_sent()).unwrap_or(usize::MAX));
    tunnel.attach(app.clone(), bytes.clone());
    let end = both(app, tunnel, limits, cancel, bytes).await;
    if end == CopyEnd::Clean {
        clean_on_close(app);
    } else {
        tunnel.reset(ErrorCode::CANCEL);
    }
    CopyOutcome { to_app: bytes.to_app(), to_tunnel: bytes.to_tunnel(), end }
}

/// Runs both directions to their own end; a failure of one ends both. Bytes
/// that arrived before the peer's reset still reach an application that reads
/// in reasonable time, as they would from the kernel.
async fn both(app: &TcpStream, tunnel: &HboneStream, limits: &Limits, cancel: &Cancel, bytes: &ByteCounts) -> CopyEnd {
    let (up_done, mut down_done) = (Cell::new(false), false);
    let mut up = pin!(up(app, tunnel, bytes, &up_done));
    let mut down = pin!(down(app, tunnel));
    let mut cancelled = pin!(cancel.cancelled());
    let end = poll_fn(|cx| {
        if let Poll::Ready(failure) = up.as_mut().poll(cx) {
            return Poll::Ready(failure);
        }
        if !down_done && let Poll::Ready(outcome) = down.as_mut().poll(cx) {
            down_done = true;
            if let Err(end) = outcome {
                return Poll::Ready(end);
            }
        }
        if down_done && up_done.get() {
            return Poll::Ready(CopyEnd::Clean);
        }
        cancelled.as_mut().poll(cx).map(CopyEnd::Cancelled)
    })
    .await;
    if end != CopyEnd::TunnelReset || down_done {
        return end;
    }
    let flushed = poll_fn(|cx| {
        if down.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        cancelled.as_mut().poll(cx).map(Some)
    });
    match Box::pin(timeout(limits.reset_flush, flushed)).await {
        Ok(Some(reason)) => CopyEnd::Cancelled(reason),
        Ok(None) | Err(_) => end,
    }
}

/// Application → tunnel. Tells `done` when the application's bytes are all
/// handed over, and goes on watching for resets: the other direction may be
/// stuck in a write to an application that does not read.
async fn up(app: &TcpStream, tunnel: &HboneStream, bytes: &ByteCounts, done: &Cell<bool>) -> CopyEnd {
    if let Err(end) = until_end(app, tunnel, bytes).await {
        return end;
    }
    tunnel.end();
    done.set(true);
    Box::pin(until_reset(app, tunnel)).await
}

/// After the application's end: until it is reset, or the stream is.
async fn until_reset(app: &TcpStream, tunnel: &HboneStream) -> CopyEnd {
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
    if let Poll::Ready(room) = poll_fn(|cx| Poll::Ready(tunnel.poll_room(cx))).await {
        return room.map_err(|end| broken(&end));
    }
    Box::pin(async {
        tokio::select! {
            biased;
            room = poll_fn(|cx| tunnel.poll_room(cx)) => room.map_err(|end| broken(&end)),
            _ = app.ready(Interest::ERROR) => Err(CopyEnd::AppReset),
        }
    })
    .await
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
