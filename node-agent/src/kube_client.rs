//! The way to the API server: a kubeconfig, or what kubelet gave this process's own pod.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rand::Rng as _;

use crate::exit::chain;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

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

fn client(mut config: Config) -> Result<Client, NoWay> {
    config.connect_timeout = Some(CONNECT);
    config.default_retry = false;
    Client::try_from(config).map_err(|error| NoWay(chain(&error)))
}

/// A pause between half and all of this one, so that agents do not come all at once.
pub(crate) fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Whether the API server said no with this HTTP status.
pub(crate) fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
