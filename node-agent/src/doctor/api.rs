//! Questions to the API server.

use std::time::{Duration, SystemTime};

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::Value;
use tokio::time::timeout;

use crate::exit::chain;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);
/// Longest answer.
const MAX_ANSWER: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// It cannot be reached.
    #[error("the API server cannot be asked: {0}")]
    Away(String),
    /// It may not be asked.
    #[error("no right to read {0}")]
    Forbidden(String),
    /// It says something else.
    #[error("the API server answers {0}")]
    Other(StatusCode),
}

/// A cluster.
pub(crate) struct Cluster {
    client: kube::Client,
}

/// An answer, and by which clock.
pub(super) struct Answer {
    pub(super) value: Value,
    pub(super) date: Option<SystemTime>,
}

impl Cluster {
    /// A cluster, by a client for it.
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client }
    }

    /// An object or a list; `None` if there is none.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, NoAnswer> {
        Ok(self.ask(Request::get(path), Vec::new(), path).await?.map(|answer| answer.value))
    }

    /// The objects of a kind; none if the cluster lacks the kind.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<Value>, NoAnswer> {
        let list = self.get(path).await?;
        Ok(list.and_then(|mut list| list["items"].as_array_mut().map(std::mem::take)).unwrap_or_default())
    }

    /// Posts a review, which changes nothing, and gives back what comes of it.
    pub(super) async fn review(&self, path: &str, review: &Value) -> Result<Value, NoAnswer> {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let answer = self.ask(request, review.to_string().into_bytes(), path).await?;
        answer.map(|answer| answer.value).ok_or(NoAnswer::Other(StatusCode::NOT_FOUND))
    }

    /// The server's version.
    pub(super) async fn version(&self) -> Result<Answer, NoAnswer> {
        let path = "/version";
        let answer = self.ask(Request::get(path), Vec::new(), path).await?;
        answer.ok_or(NoAnswer::Other(StatusCode::NOT_FOUND))
    }

    async fn ask(
        &self,
        request: http::request::Builder,
        body: Vec<u8>,
        path: &str,
    ) -> Result<Option<Answer>, NoAnswer> {
        let away = |error: &dyn std::error::Error| NoAnswer::Away(chain(error));
        let request = request.header(header::ACCEPT, "application/json").body(Body::from(body));
        let request = request.map_err(|error| away(&error))?;
        let asked = timeout(ANSWER, async {
            let response = self.client.send(request).await.map_err(|error| away(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            Ok((head, body.map_err(|error| NoAnswer::Away(error.to_string()))?.to_bytes()))
        });
        let (head, body) = asked.await.unwrap_or_else(|_| Err(NoAnswer::Away("it does not answer".to_owned())))?;
        match head.status {
            status if status.is_success() => {
                let value = serde_json::from_slice(&body).map_err(|error| away(&error))?;
                let date = head.headers.get(header::DATE).and_then(|date| date.to_str().ok());
                Ok(Some(Answer { value, date: date.and_then(http_date) }))
            }
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Err(NoAnswer::Forbidden(path.to_owned())),
            status => Err(NoAnswer::Other(status)),
        }
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_whitespace().collect();
    let &[_, day, month, year, time, "GMT"] = words.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_header_is_a_time() {
        let time = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(humantime::format_rfc3339_seconds(time).to_string(), "1994-11-06T08:49:37Z");
        assert_eq!(http_date("yesterday"), None);
    }
}
