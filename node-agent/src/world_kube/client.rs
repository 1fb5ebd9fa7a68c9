//! The way to the API server: configuration, requests, and answers of bounded size.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use tokio::time::timeout;

use super::error::WatchError;
use super::kinds::Watched;
use crate::kube_client;

/// How long the beginning of an answer, or the rest of a small one, may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);
/// Longest line of a watch: the API server itself takes no object of more than 3 MiB.
const MAX_LINE: usize = 16 << 20;
/// Largest page of a list.
const MAX_PAGE: usize = 256 << 20;

/// Requests to the API server, with credentials that are read again from where they stand.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
}

impl Api {
    /// Reads where the API server is and how to identify: a kubeconfig, or what kubelet gave the agent's own pod.
    pub(crate) async fn connect(kubeconfig: Option<&PathBuf>) -> Result<Self, WatchError> {
        let client = kube_client::connect(kubeconfig.map(PathBuf::as_path)).await;
        let client = client.map_err(|error| WatchError::Config(error.to_string()))?;
        Ok(Self { client })
    }

    /// Asks for something that is answered in lines.
    pub(crate) async fn lines(&self, watched: Watched, query: &str) -> Result<Lines, WatchError> {
        let response = self.get(&format!("{}?{query}", watched.path())).await?;
        let response = accepted(response, watched).await?;
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), searched: 0 })
    }

    /// Asks for a page of a list.
    pub(crate) async fn page(&self, watched: Watched, query: &str) -> Result<Bytes, WatchError> {
        let response = self.get(&format!("{}?{query}", watched.path())).await?;
        whole(accepted(response, watched).await?).await
    }

    /// Whether the server itself says that it has no such resource: a 404 alone may come from anything in between.
    pub(crate) async fn lacks(&self, watched: Watched) -> Result<bool, WatchError> {
        if watched.group.is_empty() {
            return Ok(false);
        }
        let response = self.get("/apis").await?;
        let groups: Value = json(whole(accepted(response, watched).await?).await?.as_ref())?;
        if groups.get("kind").and_then(Value::as_str) != Some("APIGroupList") {
            return Err(WatchError::Nonsense("no APIGroupList at /apis".to_owned()));
        }
        let named = |list: Option<&Value>, name: &str| {
            list.and_then(Value::as_array).is_some_and(|all| all.iter().any(|one| one["name"] == name))
        };
        if !named(groups.get("groups"), watched.group) {
            return Ok(true);
        }
        let response = self.get(&watched.group_path()).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(true);
        }
        let resources: Value = json(whole(accepted(response, watched).await?).await?.as_ref())?;
        if resources.get("kind").and_then(Value::as_str) != Some("APIResourceList") {
            return Err(WatchError::Nonsense(format!("no APIResourceList at {}", watched.group_path())));
        }
        Ok(!named(resources.get("resources"), watched.plural))
    }

    async fn get(&self, path: &str) -> Result<Response<Body>, WatchError> {
        let request = Request::get(path).header(http::header::ACCEPT, "application/json").body(Body::empty());
        let request = request.map_err(|error| WatchError::Nonsense(error.to_string()))?;
        match timeout(ANSWER, self.client.send(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(WatchError::Reach(crate::exit::chain(&error))),
            Err(_) => Err(WatchError::Silent(ANSWER)),
        }
    }
}

fn json(body: &[u8]) -> Result<Value, WatchError> {
    serde_json::from_slice(body).map_err(|error| WatchError::Nonsense(error.to_string()))
}

async fn accepted(response: Response<Body>, watched: Watched) -> Result<Response<Body>, WatchError> {
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::UNAUTHORIZED => Err(WatchError::Unauthorized),
        StatusCode::FORBIDDEN => Err(WatchError::Forbidden(watched.plural)),
        StatusCode::GONE => Err(WatchError::Gone),
        StatusCode::NOT_FOUND => Err(WatchError::NotFound(watched.plural)),
        status => {
            let body = whole(response).await.unwrap_or_default();
            let message = String::from_utf8_lossy(&body).chars().take(200).collect();
            Err(WatchError::Status { status: status.as_u16(), message })
        }
    }
}

async fn whole(response: Response<Body>) -> Result<Bytes, WatchError> {
    let body = http_body_util::Limited::new(response.into_body(), MAX_PAGE);
    match timeout(ANSWER * 2, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(WatchError::Reach(error.to_string())),
        Err(_) => Err(WatchError::Silent(ANSWER * 2)),
    }
}

/// The lines of an answer, one after another.
pub(crate) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// So much of the buffer is known to hold no end of line.
    searched: usize,
}

impl Lines {
    /// The next line that is not empty; `None` at the end. Silence for longer than `limit` is an error.
    pub(crate) async fn next(&mut self, limit: Duration) -> Result<Option<Bytes>, WatchError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                if line.len() > 1 {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(WatchError::Nonsense(format!("a line of more than {MAX_LINE} bytes")));
            }
            match timeout(limit, self.body.frame()).await {
                Err(_) => return Err(WatchError::Silent(limit)),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                // A last line without an end is hardly an event; its reader decides.
                Ok(None) => {
                    self.searched = 0;
                    return Ok(Some(self.buffer.split().freeze()));
                }
                Ok(Some(Err(error))) => return Err(WatchError::Reach(crate::exit::chain(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
