//! One small HTTP/1.1 server and client: for the status socket (Unix) and for metrics and health (loopback TCP).

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// How long a client may take for its request's head.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers requests; what it gets is the path.
pub(crate) trait Pages: Clone + 'static {
    /// The answer to `GET path`; `None` is 404.
    fn page(&self, path: &str) -> Option<Page>;

    /// The answer to `POST path`, which does something; `None` is 404.
    fn action(&self, _path: &str) -> Option<Page> {
        None
    }
}

/// One answer.
pub(crate) struct Page {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// Its Content-Type.
    pub(crate) content_type: &'static str,
    /// The body.
    pub(crate) body: String,
}

impl Page {
    /// A plain answer of one line.
    pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// Serves `pages` on a TCP listener for ever.
pub(crate) async fn serve_tcp(listener: TcpListener, pages: impl Pages) {
    accept_loop(|| async { listener.accept().await.map(|(stream, _)| stream) }, pages).await;
}

/// Serves `pages` on a Unix listener for ever.
pub(crate) async fn serve_unix(listener: UnixListener, pages: impl Pages) {
    accept_loop(|| async { listener.accept().await.map(|(stream, _)| stream) }, pages).await;
}

async fn accept_loop<S, A, F>(mut accept: A, pages: impl Pages)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    A: FnMut() -> F,
    F: Future<Output = io::Result<S>>,
{
    loop {
        match accept().await {
            Ok(stream) => {
                tokio::task::spawn_local(serve_one(stream, pages.clone()));
            }
            // Out of descriptors, most likely: trying again at once would spin.
            Err(error) => {
                tracing::warn!(%error, "admin endpoint cannot accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn serve_one(stream: impl AsyncRead + AsyncWrite + Unpin, pages: impl Pages) {
    serve_connection(stream, |request| std::future::ready(answer(&request, &pages))).await;
}

/// Answers the requests of one connection, in turn, until it ends.
pub(crate) async fn serve_connection<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the agent's own endpoints ended");
    }
}

fn answer(request: &Request<Incoming>, pages: &impl Pages) -> Response<Full<Bytes>> {
    let found = match *request.method() {
        Method::GET => pages.page(request.uri().path()),
        Method::POST => pages.action(request.uri().path()),
        _ => Some(Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST\n")),
    };
    let page = found.unwrap_or_else(|| Page::text(StatusCode::NOT_FOUND, "no such page\n"));
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = page.status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(page.content_type));
    response
}

/// Why a page could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    /// Nobody listens on the socket, or we may not.
    #[error("cannot reach the agent: {0}")]
    Connect(#[source] io::Error),
    /// The path is none.
    #[error("what is asked for is no path: {0}")]
    Path(#[source] http::uri::InvalidUri),
    /// The connection broke.
    #[error("the agent did not answer: {0}")]
    Http(#[from] hyper::Error),
    /// An answer other than 200.
    #[error("the agent answered {0}: it may be of another version")]
    Status(StatusCode),
}

/// `GET path` over a Unix socket.
pub(crate) async fn get_unix(socket: &Path, path: &str) -> Result<Bytes, GetError> {
    ask_unix(socket, Method::GET, path).await
}

/// `POST path`, without a body, over a Unix socket.
pub(crate) async fn post_unix(socket: &Path, path: &str) -> Result<Bytes, GetError> {
    ask_unix(socket, Method::POST, path).await
}

async fn ask_unix(socket: &Path, method: Method, path: &str) -> Result<Bytes, GetError> {
    let stream = UnixStream::connect(socket).await.map_err(GetError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(GetError::Path)?;
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("warren"));
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(GetError::Status(response.status()));
    }
    Ok(response.into_body().collect().await?.to_bytes())
}
