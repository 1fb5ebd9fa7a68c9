//! TCP ↔ CONNECT stream (hbone.md §13), with resets passed on as resets.
//!
//! Memory is bounded in both directions: towards the tunnel nothing is read
//! from the application before HTTP/2 has room for it, and towards the
//! application flow-control credit is returned only for bytes that TCP has
//! taken.

use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::backlog::Backlog;
use super::buffer::ReadBuffer;
use super::{ByteCounts, CopyEnd, CopyOutcome, clean_on_close, is_reset, reset_on_close};
use crate::hbone::HboneStream;
use crate::limits::Limits;
use crate::live::Cancel;

/// Copies until both directions have ended, one side is reset, or `cancel`
/// fires. Consumes both; `bytes` may be read meanwhile.
pub async fn copy(
    mut app: TcpStream,
    tunnel: HboneStream,
    limits: &Limits,
    cancel: &Cancel,
    bytes: &ByteCounts,
) -> CopyOutcome {
    let HboneStream { mut send, mut recv, early_sent, app_ended, guard, .. } = tunnel;
    bytes.add_to_tunnel(usize::try_from(early_sent).unwrap_or(usize::MAX));
    reset_on_close(&app);
    let end = {
        let (reader, writer) = app.split();
        let up_done = Notify::new();
        let up = up(reader, &mut send, app_ended, limits, bytes, &up_done);
        let down = down(&mut recv, writer, bytes);
        tokio::select! {
            end = both(up, &up_done, down, limits) => end,
            reason = cancel.cancelled() => CopyEnd::Cancelled(reason),
        }
    };
    if end == CopyEnd::Clean {
        clean_on_close(&app);
    } else {
        send.send_reset(Reason::CANCEL);
    }
    drop(guard);
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
async fn up(
    app: ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
    ended: bool,
    limits: &Limits,
    bytes: &ByteCounts,
    done: &Notify,
) -> CopyEnd {
    if !ended && let Err(end) = until_end(&app, send, limits, bytes).await {
        return end;
    }
    if let Err(error) = send.send_data(Bytes::new(), true) {
        return broken(&error);
    }
    done.notify_one();
    tokio::select! {
        reset = poll_fn(|cx| send.poll_reset(cx)) => match reset {
            // The peer wants no more, and there is no more.
            Ok(Reason::NO_ERROR) => std::future::pending().await,
            Ok(_) => CopyEnd::TunnelReset,
            Err(error) => broken(&error),
        },
        _ = app.ready(Interest::ERROR) => CopyEnd::AppReset,
    }
}

async fn until_end(
    app: &ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
    limits: &Limits,
    bytes: &ByteCounts,
) -> Result<(), CopyEnd> {
    let mut buffer = ReadBuffer::new(limits.read_size);
    loop {
        // Room is asked for only when there is something to send: reserved but
        // unused room would be taken from the connection's other streams.
        readable(app, send).await?;
        let room = capacity(app, send, buffer.wanted()).await?;
        match buffer.try_read(app, room) {
            Ok(Some(chunk)) => {
                let length = chunk.len();
                send.send_data(chunk, false).map_err(|e| broken(&e))?;
                bytes.add_to_tunnel(length);
                if length < room {
                    send.reserve_capacity(0);
                }
            }
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => send.reserve_capacity(0),
            Err(error) => return Err(app_error(&error)),
        }
    }
}

/// Waits for bytes of the application, or for the peer's reset.
async fn readable(app: &ReadHalf<'_>, send: &mut SendStream<Bytes>) -> Result<(), CopyEnd> {
    tokio::select! {
        biased;
        ready = app.readable() => ready.map_err(|e| app_error(&e)),
        _ = poll_fn(|cx| send.poll_reset(cx)) => Err(CopyEnd::TunnelReset),
    }
}

/// Waits for room in the stream, its connection and its send buffer; notices
/// meanwhile if the application resets.
async fn capacity(app: &ReadHalf<'_>, send: &mut SendStream<Bytes>, wanted: usize) -> Result<usize, CopyEnd> {
    send.reserve_capacity(wanted);
    loop {
        let room = send.capacity();
        if room > 0 {
            return Ok(room);
        }
        tokio::select! {
            more = poll_fn(|cx| send.poll_capacity(cx)) => match more {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(&error)),
                None => return Err(CopyEnd::TunnelReset),
            },
            _ = app.ready(Interest::ERROR) => return Err(CopyEnd::AppReset),
        }
    }
}

/// Tunnel → application.
async fn down(recv: &mut RecvStream, mut app: WriteHalf<'_>, bytes: &ByteCounts) -> Result<(), CopyEnd> {
    let mut backlog = Backlog::default();
    let mut open = true;
    while open || !backlog.is_empty() {
        // What has arrived comes first: many small frames make one write.
        tokio::select! {
            biased;
            chunk = recv.data(), if open && backlog.fits_one_write() => match chunk {
                Some(Ok(chunk)) => backlog.push(chunk),
                None => open = false,
                // The peer is done with the stream and found no fault with it.
                Some(Err(error)) if error.is_reset() && error.reason() == Some(Reason::NO_ERROR) => open = false,
                Some(Err(error)) => return Err(flushed(error, backlog, &mut app, bytes).await),
            },
            ready = app.writable(), if !backlog.is_empty() => {
                ready.map_err(|e| app_error(&e))?;
                match backlog.try_write(&app) {
                    Ok(written) => {
                        bytes.add_to_app(written);
                        // Fails only if the stream is over; the next read says so.
                        let _ = recv.flow_control().release_capacity(written);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(app_error(&error)),
                }
            }
        }
    }
    match app.shutdown().await {
        // The application has closed already: nobody misses the FIN.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        outcome => outcome.map_err(|e| app_error(&e)),
    }
}

/// The tunnel broke: what had arrived before still goes to an application that
/// takes it in reasonable time, as it would from the kernel.
async fn flushed(error: h2::Error, mut backlog: Backlog, app: &mut WriteHalf<'_>, bytes: &ByteCounts) -> CopyEnd {
    let flush = async {
        while !backlog.is_empty() && app.writable().await.is_ok() {
            match backlog.try_write(app) {
                Ok(written) => bytes.add_to_app(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    flush.await;
    broken(&error)
}

fn app_error(error: &io::Error) -> CopyEnd {
    if is_reset(error) { CopyEnd::AppReset } else { CopyEnd::Error(error.to_string()) }
}

fn broken(error: &h2::Error) -> CopyEnd {
    if error.is_reset() || error.is_go_away() {
        CopyEnd::TunnelReset
    } else if error.is_io() {
        CopyEnd::Error(format!("the tunnel broke: {error}"))
    } else {
        // What remains are uses of a stream that the peer has already reset.
        CopyEnd::TunnelReset
    }
}
