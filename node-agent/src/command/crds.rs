//! `warren crds install`: the kinds that Warren reads, created where the cluster lacks them.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;

use crate::cli::{ApiArgs, CrdsAction};
use crate::exit::{Exit, Fatal, chain};
use crate::kube_client::connect_as_kubectl;

/// Definitions that this binary carries, by their files' names.
const CRDS: [(&str, &str); 3] = [
    ("meshnodes.yaml", include_str!("../../../deploy/crds/meshnodes.yaml")),
    ("authorizationpolicies.yaml", include_str!("../../../deploy/crds/authorizationpolicies.yaml")),
    ("peerauthentications.yaml", include_str!("../../../deploy/crds/peerauthentications.yaml")),
];
const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// How often an API server that does not answer is asked.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(2);

/// What became of one.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    Created,
    Exists,
}

/// Why one could not be created.
#[derive(Debug, thiserror::Error)]
enum CrdError {
    /// Worth another try.
    #[error("the API server cannot be asked: {0}")]
    Away(String),
    /// Not worth one.
    #[error("the API server says {status}: {message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its message.
        message: String,
    },
}

/// Carries out one action.
pub(crate) async fn run(action: CrdsAction) -> Result<(), Fatal> {
    let CrdsAction::Install(ApiArgs { kubeconfig }) = action;
    let client = connect_as_kubectl(kubeconfig.as_deref())
        .await
        .map_err(|error| Fatal::new(Exit::Usage, "--kubeconfig", &error))?;
    for (name, text) in CRDS {
        let done = create_patiently(&client, text).await.map_err(|error| Fatal::new(Exit::World, name, &error))?;
        println!(
            "warren: {name} {}",
            match done {
                Done::Created => "created",
                Done::Exists => "exists; left as it is",
            }
        );
    }
    Ok(())
}

async fn create_patiently(client: &kube::Client, text: &str) -> Result<Done, CrdError> {
    let mut tries = 1;
    loop {
        match create(client, text).await {
            Err(error @ CrdError::Away(_)) if tries < TRIES => {
                eprintln!("warren: {error}");
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn create(client: &kube::Client, text: &str) -> Result<Done, CrdError> {
    let away = |error: &dyn std::error::Error| CrdError::Away(chain(error));
    // The API server reads YAML as well; a definition passes through here as it stands in its file.
    let request = Request::post(PATH)
        .header(header::CONTENT_TYPE, "application/yaml")
        .header(header::ACCEPT, "application/json")
        .body(Body::from(text.as_bytes().to_vec()))
        .map_err(|error| away(&error))?;
    let response = client.send(request).await.map_err(|error| away(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| away(&error))?.to_bytes();
    let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = said["message"].as_str().unwrap_or("no message").to_owned();
    match status {
        StatusCode::CREATED => Ok(Done::Created),
        StatusCode::CONFLICT if said["reason"] == "AlreadyExists" => Ok(Done::Exists),
        StatusCode::TOO_MANY_REQUESTS => Err(CrdError::Away(message)),
        status if status.is_server_error() => Err(CrdError::Away(format!("{status}: {message}"))),
        status => Err(CrdError::Refused { status, message }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_published_definition_is_carried() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let carried = CRDS.iter().map(|(name, _)| (*name).to_owned());
        assert_eq!(files.collect::<BTreeSet<_>>(), carried.collect());
    }
}
