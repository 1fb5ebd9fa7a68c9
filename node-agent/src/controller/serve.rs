//! The controllers' listener: TLS, HTTP/2, one request for each SVID.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::issuer::Issuer;
use super::refusal::Refusal;
use crate::ca_protocol::{MAX_BODY, Refused, SVID_PATH, SvidRequest};

/// Connections that are open at the same time: agents have one each.
const CONNECTIONS: usize = 8192;
/// Requests that are answered at the same time on one connection.
const STREAMS: u32 = 64;
/// Until a client has shaken hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long one request may take, the API server's answers included.
const ANSWER: Duration = Duration::from_secs(20);
/// A client that is silent is asked, and left if it does not answer.
const PING: Duration = Duration::from_secs(30);

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, tls: TlsAcceptor, issuer: Arc<Issuer>) {
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = open.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (tls, issuer) = (tls.clone(), issuer.clone());
                tokio::spawn(async move {
                    connection(stream, tls, issuer).await;
                    drop(permit);
                });
            }
            // Out of descriptors, most likely: trying again at once would spin.
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, issuer: Arc<Issuer>) {
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a client did not shake hands"),
        Err(_) => return tracing::debug!("a client did not shake hands in time"),
    };
    let service = service_fn(move |request| {
        let issuer = issuer.clone();
        async move { Ok::<_, Infallible>(respond(request, &issuer).await) }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(32 * 1024)
        .keep_alive_interval(PING)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an agent's connection ended");
    }
}

async fn respond(request: Request<Incoming>, issuer: &Issuer) -> Response<Full<Bytes>> {
    if request.uri().path() != SVID_PATH {
        return json(StatusCode::NOT_FOUND, b"{}".to_vec());
    }
    if request.method() != Method::POST {
        return json(StatusCode::METHOD_NOT_ALLOWED, b"{}".to_vec());
    }
    let answer = match timeout(ANSWER, ask(request, issuer)).await {
        Ok(answer) => answer,
        Err(_) => Err(Refusal::ApiServer("it took too long".to_owned())),
    };
    match answer {
        Ok(body) => json(StatusCode::OK, body),
        Err(refusal) => {
            let said = Refused { reason: refusal.reason().to_owned(), message: refusal.to_string() };
            json(refusal.status(), serde_json::to_vec(&said).unwrap_or_default())
        }
    }
}

async fn ask(request: Request<Incoming>, issuer: &Issuer) -> Result<Vec<u8>, Refusal> {
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    let unreadable = |error: &dyn std::fmt::Display| Refusal::Request(format!("the request cannot be read: {error}"));
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map_err(|error| unreadable(&error))?;
    let wanted: SvidRequest = serde_json::from_slice(&body.to_bytes()).map_err(|error| unreadable(&error))?;
    let answer = issuer.answer(&token, &wanted).await?;
    serde_json::to_vec(&answer).map_err(|error| Refusal::NotReady(error.to_string()))
}

fn json(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
