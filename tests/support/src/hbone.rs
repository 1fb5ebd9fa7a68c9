//! HBONE peers made by hand, so that the product is not tested against itself: rustls and h2, nothing of Warren.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::IO_LIMIT;
use crate::netns::NetNs;
use crate::pki::{Authority, Credentials};

/// What one CONNECT of ours came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The response status.
    pub status: u16,
    /// What came back on the stream after the payload was sent and our half ended.
    pub body: Vec<u8>,
    /// The response's `baggage`.
    pub baggage: Option<String>,
}

/// One request of ours.
#[derive(Debug, Clone)]
pub struct Ask {
    /// `:method`; CONNECT for a tunnel.
    pub method: http::Method,
    /// `:authority`.
    pub authority: String,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// Bytes for the application.
    pub payload: Vec<u8>,
}

impl Ask {
    /// A well-formed CONNECT.
    pub fn connect(authority: &str, payload: &[u8]) -> Self {
        Self {
            method: http::Method::CONNECT,
            authority: authority.to_owned(),
            headers: Vec::new(),
            payload: payload.to_vec(),
        }
    }
}

/// Opens one tunnel connection from inside `ns` and sends the requests one after the other.
///
/// # Errors
/// The handshake's or the connection's, as the client saw it.
pub fn dial(ns: &NetNs, to: SocketAddr, credentials: Credentials, asks: &[Ask]) -> io::Result<Vec<Answer>> {
    with_connection(ns, to, client_config(credentials), async |mut send| {
        let mut answers = Vec::new();
        for ask in asks {
            answers.push(ask_one(&mut send, ask).await?);
        }
        Ok(answers)
    })
}

/// Connects, shakes hands, and does `work` on the HTTP/2 connection.
fn with_connection<T>(
    ns: &NetNs,
    to: SocketAddr,
    config: ClientConfig,
    work: impl AsyncFnOnce(h2::client::SendRequest<Bytes>) -> io::Result<T>,
) -> io::Result<T> {
    let stream = ns.run(|| TcpStream::connect_timeout(&to, IO_LIMIT))?;
    stream.set_nonblocking(true)?;
    let all = async {
        let tcp = tokio::net::TcpStream::from_std(stream)?;
        let name = ServerName::from(std::net::IpAddr::from([0, 0, 0, 0]));
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let (send, connection) = h2::client::handshake(tls).await.map_err(io::Error::other)?;
        let driver = tokio::spawn(connection);
        let outcome = work(send).await;
        driver.abort();
        outcome
    };
    runtime().block_on(async { tokio::time::timeout(IO_LIMIT, all).await })?
}

async fn ask_one(send: &mut h2::client::SendRequest<Bytes>, ask: &Ask) -> io::Result<Answer> {
    futures_ready(send).await?;
    let uri =
        if ask.method == http::Method::CONNECT { ask.authority.clone() } else { format!("https://{}/", ask.authority) };
    let mut request = http::Request::builder().method(ask.method.clone()).uri(uri);
    for (name, value) in &ask.headers {
        request = request.header(*name, value);
    }
    let request = request.body(()).map_err(io::Error::other)?;
    let (response, mut body) = send.send_request(request, false).map_err(io::Error::other)?;
    // A refusal may reset our half before it is sent: the status is what counts then.
    let _ = body.send_data(Bytes::from(ask.payload.clone()), true);
    let response = response.await.map_err(io::Error::other)?;
    let status = response.status().as_u16();
    let baggage = response.headers().get("baggage").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut received = response.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(chunk)) = received.data().await {
        let _ = received.flow_control().release_capacity(chunk.len());
        bytes.extend_from_slice(&chunk);
    }
    Ok(Answer { status, body: bytes, baggage })
}

async fn futures_ready(send: &mut h2::client::SendRequest<Bytes>) -> io::Result<()> {
    std::future::poll_fn(|context| send.poll_ready(context)).await.map_err(io::Error::other)
}

/// Which odd TLS a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// No client certificate.
    NoCertificate,
    /// ALPN `http/1.1`.
    OtherProtocol,
    /// No ALPN at all.
    NoProtocol,
}

/// Tries to get a tunnel connection with odd TLS, and to be answered on it.
///
/// # Errors
/// The handshake's or the connection's: what is hoped for.
pub fn dial_oddly(
    ns: &NetNs,
    to: SocketAddr,
    credentials: Credentials,
    oddity: Oddity,
    ask: &Ask,
) -> io::Result<Answer> {
    let mut config = client_config(credentials);
    match oddity {
        Oddity::NoCertificate => config = anonymous_config(),
        Oddity::OtherProtocol => config.alpn_protocols = vec![b"http/1.1".to_vec()],
        Oddity::NoProtocol => config.alpn_protocols.clear(),
    }
    with_connection(ns, to, config, async |mut send| ask_one(&mut send, ask).await)
}

/// Opens `count` streams on one connection and resets each at once; gives how many could be opened.
///
/// # Errors
/// The handshake's; a connection that the server closes meanwhile is no error.
pub fn flood(ns: &NetNs, to: SocketAddr, credentials: Credentials, authority: &str, count: usize) -> io::Result<usize> {
    with_connection(ns, to, client_config(credentials), async |mut send| {
        for opened in 0..count {
            if futures_ready(&mut send).await.is_err() {
                return Ok(opened);
            }
            let request = http::Request::builder().method(http::Method::CONNECT).uri(authority).body(());
            let Ok((_, mut body)) = send.send_request(request.map_err(io::Error::other)?, false) else {
                return Ok(opened);
            };
            body.send_reset(h2::Reason::CANCEL);
            tokio::task::yield_now().await;
        }
        Ok(count)
    })
}

/// A tunnel server that echoes; what it was asked is kept.
#[derive(Debug)]
pub struct TunnelServer {
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A CONNECT that arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `:method`
    pub method: String,
    /// `:authority`
    pub authority: String,
    /// All header lines.
    pub headers: Vec<(String, String)>,
    /// The client's chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether the ClientHello named a server.
    pub sni: bool,
    /// Bytes that came before the answer, where the server held it back.
    pub early: Vec<u8>,
}

/// How a hand-made server answers.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// 200, then echo.
    Echo,
    /// This status, and the end.
    Status(u16),
    /// Nothing for this long, then 200 and echo.
    Hold(Duration),
}

impl TunnelServer {
    /// Listens inside `ns` with these credentials; clients must present a chain to `authority`.
    #[track_caller]
    pub fn start(ns: &NetNs, at: SocketAddr, authority: &Authority, own: Credentials, manner: Manner) -> Self {
        let listener = ns.run(|| TcpListener::bind(at)).unwrap_or_else(|e| panic!("listen on {at}: {e}"));
        listener.set_nonblocking(true).expect("listener");
        let config = Arc::new(server_config(authority, own));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let log = asked.clone();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! {
                    () = serve(listener, config, log, manner) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { asked, stop: Some(stop), thread: Some(thread) }
    }

    /// Every CONNECT so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TunnelServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, config: Arc<ServerConfig>, asked: Arc<Mutex<Vec<Asked>>>, manner: Manner) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let (acceptor, asked) = (TlsAcceptor::from(config.clone()), asked.clone());
        tokio::spawn(async move {
            // A handshake that fails is what some tests are about; the product reports it.
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let session = tls.get_ref().1;
            let chain = session.peer_certificates().map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect());
            let (chain, sni): (Vec<_>, bool) = (chain.unwrap_or_default(), session.server_name().is_some());
            let Ok(mut connection) = h2::server::handshake(tls).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let (head, body) = request.into_parts();
                let index = {
                    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                    asked.push(note(&head, &chain, sni));
                    asked.len() - 1
                };
                let asked = asked.clone();
                tokio::spawn(async move {
                    let mut body = body;
                    let early = hold(&mut body, manner).await;
                    asked.lock().unwrap_or_else(PoisonError::into_inner)[index].early.clone_from(&early);
                    answer(body, respond, manner, early).await;
                });
            }
        });
    }
}

fn note(head: &http::request::Parts, chain: &[CertificateDer<'static>], sni: bool) -> Asked {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Asked {
        method: head.method.to_string(),
        authority: head.uri.authority().map(ToString::to_string).unwrap_or_default(),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        chain: chain.to_vec(),
        sni,
        early: Vec::new(),
    }
}

/// Reads what comes while the answer is held back.
async fn hold(body: &mut h2::RecvStream, manner: Manner) -> Vec<u8> {
    let Manner::Hold(time) = manner else { return Vec::new() };
    let mut early = Vec::new();
    let _ = tokio::time::timeout(time, async {
        while let Some(Ok(chunk)) = body.data().await {
            let _ = body.flow_control().release_capacity(chunk.len());
            early.extend_from_slice(&chunk);
        }
        // The client has said all: wait all the same.
        std::future::pending::<()>().await;
    })
    .await;
    early
}

async fn answer(
    mut body: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
    manner: Manner,
    early: Vec<u8>,
) {
    let (status, end) = match manner {
        Manner::Echo | Manner::Hold(_) => (200, false),
        Manner::Status(status) => (status, true),
    };
    let response = http::Response::builder().status(status).body(()).expect("response");
    let Ok(mut send) = respond.send_response(response, end) else { return };
    if end {
        return;
    }
    let _ = send.send_data(Bytes::from(early), false);
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
        if send.send_data(chunk, false).is_err() {
            return;
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn client_config(credentials: Credentials) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13]);
    let verifier = Arc::new(AnyServer(provider()));
    let builder = builder.expect("TLS 1.3").dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_client_auth_cert(credentials.chain, credentials.key).expect("credentials");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config
}

fn anonymous_config() -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13]);
    let verifier = Arc::new(AnyServer(provider()));
    let builder = builder.expect("TLS 1.3").dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn server_config(authority: &Authority, own: Credentials) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).expect("root");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().expect("verifier");
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.expect("TLS 1.3").with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(own.chain, own.key).expect("credentials");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Our clients attack the server; whom they talk to is not their concern.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Waits a little for a server to have been asked.
#[track_caller]
pub fn wait_asked(server: &TunnelServer, count: usize) -> Vec<Asked> {
    crate::eventually("the hand-made server is asked", Duration::from_secs(10), || {
        let asked = server.asked();
        (asked.len() >= count).then_some(asked)
    })
}
