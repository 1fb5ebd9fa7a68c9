//! One CONNECT exchange on one connection.

use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::timeout;
use warren_core::tunnel::{Baggage, ConnectRequest};

use super::early::{EarlyData, EarlyEvent};
use super::error::TunnelError;
use super::stream::HboneStream;
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
    let limit = limits.connect_response_timeout;
    let mut guard = Some(guard);
    let attempt = async {
        let ready = tunnel.requests().ready().await;
        let mut requests = ready.map_err(|e| TunnelError::before_stream(&e))?;
        let opened = requests.send_request(head, false);
        let (mut response, mut send) = opened.map_err(|e| TunnelError::before_stream(&e))?;
        // A replay needs no window: what does not fit waits inside h2, and it is
        // bounded by the early data limit.
        for bytes in early.kept() {
            let _ = send.send_data(bytes.clone(), false);
        }
        match answered(&mut response, &mut send, app, early).await {
            Err(TunnelError::AppReset) => {
                tokio::task::spawn_local(give_up(response, send, limits.reset_linger, guard.take()));
                Err(TunnelError::AppReset)
            }
            answer => Ok((answer?, send)),
        }
    };
    let outcome = timeout(limit, attempt).await;
    let (response, send) = match outcome {
        Err(_) => return Err(TunnelError::ResponseTimeout),
        Ok(Err(error)) => return Err(tunnel.explain(error)),
        Ok(Ok(opened)) => opened,
    };
    if response.status() != StatusCode::OK {
        return Err(TunnelError::Refused(response.status()));
    }
    let peer_baggage = Baggage::from_headers(response.headers());
    Ok(HboneStream {
        send,
        recv: response.into_body(),
        peer: tunnel.peer.clone(),
        peer_baggage,
        early_sent: early.len(),
        app_ended: early.ended(),
        guard,
    })
}

/// Waits for the response while the application may send, end or reset.
async fn answered(
    response: &mut ResponseFuture,
    send: &mut SendStream<Bytes>,
    app: &TcpStream,
    early: &mut EarlyData,
) -> Result<http::Response<h2::RecvStream>, TunnelError> {
    loop {
        tokio::select! {
            biased;
            answer = &mut *response => {
                return answer.map_err(|e| TunnelError::http2(&e));
            }
            event = early.next(app) => match event {
                // If the stream is gone, the response future says why.
                Ok(EarlyEvent::Bytes(bytes)) => { let _ = send.send_data(bytes, false); }
                Ok(EarlyEvent::Ended) => {}
                Err(_) => return Err(TunnelError::AppReset),
            }
        }
    }
}

/// Ends a stream that nobody wants any more, once the peer has looked at it.
async fn give_up(response: ResponseFuture, mut send: SendStream<Bytes>, linger: Duration, guard: Option<StreamGuard>) {
    let _ = timeout(linger, response).await;
    send.send_reset(h2::Reason::CANCEL);
    drop(guard);
}
