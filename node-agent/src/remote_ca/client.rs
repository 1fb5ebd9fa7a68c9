//! One connection to one controller, found by its Service's endpoints: no name is resolved.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use rand::seq::SliceRandom;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use warren_core::identity::SpiffeId;
use warren_mesh::clock::SystemClock;
use warren_mesh::identity::{NewKey, PodRef, Svid, TrustBundle};
use warren_mesh::tls::service_client;

use super::error::RemoteError;
use crate::ca_protocol::{CONTROLLER, MAX_BODY, PORT, Refused, SVID_PATH, SvidAnswer, SvidRequest};
use crate::exit::chain;

/// How long TCP and TLS may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a controller may take to answer.
const ANSWER: Duration = Duration::from_secs(25);
/// A controller that is silent is asked, and left if it does not answer.
const PING: Duration = Duration::from_secs(15);

type Sender = http2::SendRequest<Full<Bytes>>;

/// How controllers are reached.
pub(crate) struct ControllerClient {
    pub(crate) api: kube::Client,
    /// Warren's own namespace.
    pub(crate) namespace: String,
    /// The identity that every controller has.
    pub(crate) controller: SpiffeId,
    /// The agent's token for controllers; kubelet renews the file.
    pub(crate) token: PathBuf,
    connection: Mutex<Option<(SocketAddr, Sender)>>,
}

impl ControllerClient {
    /// Nothing is connected yet.
    pub(crate) fn new(api: kube::Client, namespace: String, controller: SpiffeId, token: PathBuf) -> Self {
        Self { api, namespace, controller, token, connection: Mutex::default() }
    }

    /// Makes a key, and has an SVID signed for it. What the controller gives must name the pod's identity, as it is
    /// known here.
    pub(crate) async fn svid(
        &self,
        pod: &PodRef,
        id: &SpiffeId,
        bundle: &Arc<TrustBundle>,
    ) -> Result<Svid, RemoteError> {
        let key = NewKey::generate()?;
        let body = SvidRequest {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            uid: pod.uid.to_string(),
            request: key.request()?,
        };
        let body = serde_json::to_vec(&body).map_err(|error| RemoteError::Answer(error.to_string()))?;
        let answer = self.ask(body.into(), bundle).await?;
        let chain = CertificateDer::pem_slice_iter(answer.chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| RemoteError::Answer(error.to_string()))?;
        key.svid(id, chain).map_err(|error| RemoteError::Answer(error.to_string()))
    }

    async fn ask(&self, body: Bytes, bundle: &Arc<TrustBundle>) -> Result<SvidAnswer, RemoteError> {
        let token = std::fs::read_to_string(&self.token)
            .map_err(|error| RemoteError::Token { path: self.token.display().to_string(), error })?;
        let (address, mut sender) = self.sender(bundle).await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{address}{SVID_PATH}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body));
        let request = request.map_err(|error| RemoteError::Answer(error.to_string()))?;
        let answered = timeout(ANSWER, async {
            let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|e| e.to_string())?;
            Ok::<_, String>((status, body.to_bytes()))
        });
        let answered = answered.await.unwrap_or_else(|_| Err("it does not answer".to_owned()));
        let answer = match answered {
            Err(error) => Err(RemoteError::Unreachable { address, error }),
            Ok((StatusCode::OK, body)) => {
                serde_json::from_slice(&body).map_err(|error| RemoteError::Answer(error.to_string()))
            }
            Ok((status, body)) => Err(refused(status, &body)),
        };
        if answer.as_ref().is_err_and(RemoteError::is_of_this_controller) {
            self.leave(address).await;
        }
        answer
    }

    /// The open connection, or one to a controller that is ready.
    async fn sender(&self, bundle: &Arc<TrustBundle>) -> Result<(SocketAddr, Sender), RemoteError> {
        let mut connection = self.connection.lock().await;
        if let Some((address, sender)) = &*connection
            && !sender.is_closed()
        {
            return Ok((*address, sender.clone()));
        }
        *connection = None;
        let mut last = RemoteError::NoController(format!("{}/{CONTROLLER}", self.namespace));
        for address in self.addresses().await? {
            match timeout(CONNECT, self.connect(address, bundle)).await {
                Ok(Ok(sender)) => {
                    *connection = Some((address, sender.clone()));
                    return Ok((address, sender));
                }
                Ok(Err(error)) => last = RemoteError::Unreachable { address, error },
                Err(_) => last = RemoteError::Unreachable { address, error: "it does not answer".to_owned() },
            }
        }
        Err(last)
    }

    async fn connect(&self, address: SocketAddr, bundle: &Arc<TrustBundle>) -> Result<Sender, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let config = service_client(Arc::clone(bundle), self.controller.clone(), Arc::new(SystemClock))
            .map_err(|error| error.to_string())?;
        // Never sent: the controller is known by its SPIFFE ID only.
        let name = ServerName::from(address.ip());
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| error.to_string())?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(CONNECT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| chain(&error))?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the connection to a controller ended");
            }
        });
        Ok(sender)
    }

    /// Ready controllers, in random order: agents spread over them.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, RemoteError> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.api.clone(), &self.namespace);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={CONTROLLER}"));
        let listed = slices.list(&of_service).await.map_err(|error| RemoteError::ApiServer {
            what: "reading the EndpointSlices of warren-controller",
            error: chain(&error),
        })?;
        let mut addresses: Vec<SocketAddr> = listed.items.iter().flat_map(ready).collect();
        addresses.sort();
        addresses.dedup();
        addresses.shuffle(&mut rand::rng());
        Ok(addresses)
    }

    async fn leave(&self, address: SocketAddr) {
        let mut connection = self.connection.lock().await;
        if connection.as_ref().is_some_and(|(at, _)| *at == address) {
            *connection = None;
        }
    }
}

fn ready(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let ports = slice.ports.iter().flatten();
    let port = ports.filter(|port| port.name.as_deref() == Some("svid")).find_map(|port| port.port);
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
    let is_ready = |conditions: Option<bool>| conditions != Some(false);
    slice
        .endpoints
        .iter()
        .filter(|one| is_ready(one.conditions.as_ref().and_then(|conditions| conditions.ready)))
        .flat_map(|one| &one.addresses)
        .filter_map(|address| Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port)))
        .collect()
}

fn refused(status: StatusCode, body: &[u8]) -> RemoteError {
    let said: Refused = serde_json::from_slice(body).unwrap_or(Refused {
        reason: "unknown".to_owned(),
        message: format!("HTTP status {status}; it may be of another version"),
    });
    RemoteError::Refused { status: status.as_u16(), reason: said.reason, message: said.message }
}
