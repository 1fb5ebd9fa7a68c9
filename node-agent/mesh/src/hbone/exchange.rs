//! One CONNECT exchange on one connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::time::Duration;

use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::timeout;
use warren_core::http2::ResponseHead;
use warren_core::tunnel::ConnectRequest;

use super::early::{EarlyData, EarlyEvent};
use super::error::TunnelError;
use super::stream::{HboneStream, StreamHandle};
use super::tunnel::{StreamGuard, Tunnel};
use crate::limits::Limits;

/// Sends CONNECT and the early bytes, and waits for the 200.
pub(super) async fn exchange(
    tunnel: &Tunnel,
    guard: StreamGuard,
    request: &ConnectRequest,
    limits: &Limits,
    app: &TcpStream,
    early: &mut EarlyData,
) -> Result<HboneStream, TunnelError> {
    let head = request.to_http().map_err(|e| TunnelError::Request(e.to_string()))?;
    let handle = tunnel.open(&head)?;
    // A replay may need more window than the peer has given yet: it waits inside the stream, and it is bounded by the
    // early data limit.
    for bytes in early.kept() {
        handle.send(bytes)?;
    }
    let answer = match timeout(limits.connect_response_timeout, answered(&handle, app, early)).await {
        Err(_) => return Err(TunnelError::ResponseTimeout),
        Ok(Err(TunnelError::AppReset)) => {
            tokio::task::spawn_local(give_up(handle, limits.reset_linger, guard));
            return Err(TunnelError::AppReset);
        }
        Ok(answer) => answer?,
    };
    let (status, _) = *answer;
    if status != StatusCode::OK {
        return Err(TunnelError::Refused(status));
    }
    Ok(HboneStream {
        handle,
        peer: tunnel.peer.clone(),
        early_sent: early.len(),
        app_ended: early.ended(),
        sends_much: Cell::default(),
        _guard: Some(guard),
    })
}

/// Waits for the response while the application may send, end or reset.
async fn answered(
    handle: &StreamHandle,
    app: &TcpStream,
    early: &mut EarlyData,
) -> Result<Box<ResponseHead>, TunnelError> {
    loop {
        tokio::select! {
            biased;
            answer = poll_fn(|cx| handle.poll_response(cx)) => return answer,
            event = early.next(app) => match event {
                // If the stream is gone, the response says why.
                Ok(EarlyEvent::Bytes(bytes)) => { let _ = handle.send(&bytes); }
                Ok(EarlyEvent::Ended) => {}
                Err(_) => return Err(TunnelError::AppReset),
            }
        }
    }
}

/// Ends a stream that nobody wants any more, once the peer has looked at it.
async fn give_up(handle: StreamHandle, linger: Duration, guard: StreamGuard) {
    let _ = timeout(linger, poll_fn(|cx| handle.poll_response(cx))).await;
    drop((handle, guard));
}
