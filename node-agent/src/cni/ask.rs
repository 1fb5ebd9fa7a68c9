//! The plugin's question to the agent.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;

use super::protocol::{Answer, LONGEST};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// Nobody listens.
    #[error("the agent is away: {0}")]
    Away(#[source] io::Error),
    /// Somebody listens and does not answer in time.
    #[error("the agent did not answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    /// The connection broke.
    #[error("the agent did not answer: {0}")]
    Broken(String),
    /// The answer cannot be read.
    #[error("the agent's answer cannot be read: {0}")]
    Unreadable(String),
}

/// Asks, and waits for the answer until `limit`, connecting included.
pub(super) fn ask(socket: &Path, path: &str, message: &impl Serialize, limit: Duration) -> Result<Answer, NoAnswer> {
    let body = serde_json::to_vec(message).map_err(|error| NoAnswer::Broken(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| NoAnswer::Broken(error.to_string()))?;
    let answered = runtime.block_on(async { tokio::time::timeout(limit, post(socket, path, body)).await });
    answered.unwrap_or(Err(NoAnswer::Late(limit)))
}

async fn post(socket: &Path, path: &str, body: Vec<u8>) -> Result<Answer, NoAnswer> {
    let broken = |error: &dyn std::error::Error| NoAnswer::Broken(crate::exit::chain(error));
    let stream = UnixStream::connect(socket).await.map_err(NoAnswer::Away)?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, "warren")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(&error))?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    let body = body.map_err(|error| NoAnswer::Unreadable(error.to_string()))?.to_bytes();
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        return Err(NoAnswer::Unreadable(format!("{status}: {}; it may be of another version", text.trim())));
    }
    serde_json::from_slice(&body).map_err(|error| NoAnswer::Unreadable(error.to_string()))
}
