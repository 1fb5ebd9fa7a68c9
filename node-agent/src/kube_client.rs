//! The way to the API server: a kubeconfig, or what kubelet gave this process's own pod.

use std::path::Path;
use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rand::Rng as _;
use tower::{BoxError, ServiceBuilder};

use crate::exit::chain;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection on which nothing comes for so long is probed.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Time between probes that nobody answers.
const PROBE: Duration = Duration::from_secs(5);
/// So many of them, and the connection is dead.
const PROBES: u32 = 3;
/// And so it is when something was sent that nobody acknowledges for so long.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// The server's name, certificate or credentials cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no way to the API server: {0}")]
pub(crate) struct NoWay(String);

/// Makes a client; nothing is asked yet. Tokens in files are read again as they are renewed.
pub(crate) async fn connect(kubeconfig: Option<&Path>) -> Result<Client, NoWay> {
    match kubeconfig {
        Some(path) => client(read(path).await?),
        None => client(Config::incluster_env().map_err(|error| NoWay(chain(&error)))?),
    }
}

/// The same for an operator: without a kubeconfig it is the one that kubectl would take.
pub(crate) async fn connect_as_kubectl(kubeconfig: Option<&Path>) -> Result<Client, NoWay> {
    match kubeconfig {
        Some(path) => client(read(path).await?),
        None => client(Config::infer().await.map_err(|error| NoWay(chain(&error)))?),
    }
}

async fn read(path: &Path) -> Result<Config, NoWay> {
    let wrong = |error: &dyn std::error::Error| NoWay(format!("{}: {}", path.display(), chain(error)));
    let file = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|error| wrong(&error))
}

/// What kube would make, on sockets that notice a peer that is gone without a word: a watch has nothing to send, so that
/// without keepalive only the silence of its bookmarks would tell.
fn client(config: Config) -> Result<Client, NoWay> {
    if let Some(proxy) = &config.proxy_url {
        return Err(NoWay(format!("by a proxy, {proxy}, the API server cannot be reached")));
    }
    // An error says that there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(PROBE));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let wrong = |error: kube::Error| NoWay(chain(&error));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp).map_err(wrong)?);
    connector.set_connect_timeout(Some(CONNECT));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(wrong)?)
        .layer(config.extra_headers_layer().map_err(wrong)?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// A pause between half and all of this one, so that agents do not come all at once.
pub(crate) fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Whether the API server said no with this HTTP status.
pub(crate) fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
