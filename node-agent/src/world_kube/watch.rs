//! One kind's watch: list, then changes, for ever.
//!
//! Whatever goes wrong, what was told before stays in the store: only a complete list, or an event, takes anything out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::Rng as _;
use tokio::sync::mpsc::Sender;
use warren_core::world::{Kind, Projected};

use super::client::{ANSWER, Api, Lines};
use super::error::WatchError;
use super::event::{Event, event, page};
use super::health::{Health, Standing};
use super::kinds::Watched;
use crate::kube_client::jitter;

/// First pause after a failure; it doubles up to [`PAUSE_MOST`], and each is drawn between half and all of it.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// How often a kind that the cluster lacks is asked for.
const MISSING_LOOK: Duration = Duration::from_secs(10);
/// Longest silence of a watch. The server sends a bookmark every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// How long the server lets a watch go on, in seconds; drawn from this range, so that agents do not come all at once.
const WATCH_SECONDS: std::ops::Range<u64> = 240..360;
/// Objects a page.
const PAGE: usize = 500;

/// What is said of a kind that went away while nobody could tell of its objects.
const KEPT: &str = "the cluster no longer has the kind; what it said of it last stays in force until the kind comes back \
                    or the agent restarts";

/// What a watch tells the collector.
#[derive(Debug)]
pub(crate) enum Told {
    /// All objects of the kind follow.
    Begin(Kind),
    /// An object.
    Put(Box<Projected>),
    /// An object is gone.
    Delete(Kind, Box<Projected>),
    /// That were all.
    End(Kind),
}

/// The watch of one kind.
pub(crate) struct Watch {
    watched: Watched,
    kubeconfig: Option<PathBuf>,
    health: Health,
    told: Sender<Told>,
    api: Option<Api>,
    /// What has been told; `None` before the first list and when everything is to be listed anew.
    version: Option<String>,
    /// The server sends lists as streams, as far as is known.
    streams: bool,
    synced: bool,
    /// The server has told of the kind, so that objects of it may be in force.
    listed: bool,
}

impl Watch {
    pub(crate) fn new(watched: Watched, kubeconfig: Option<PathBuf>, health: Health, told: Sender<Told>) -> Self {
        Self {
            watched,
            kubeconfig,
            health,
            told,
            api: None,
            version: None,
            streams: true,
            synced: false,
            listed: false,
        }
    }

    /// Watches until nobody listens any more.
    pub(crate) async fn run(mut self) {
        let mut pause = PAUSE_FIRST;
        loop {
            let began = Instant::now();
            let failed = match self.once().await {
                // The server ends every watch in time; the next one begins where it was.
                Ok(()) => None,
                Err(WatchError::Closed) => return,
                Err(WatchError::NotFound(_)) if self.watched.optional => match self.missing().await {
                    Ok(()) => {
                        tokio::time::sleep(jitter(MISSING_LOOK)).await;
                        continue;
                    }
                    Err(error) => Some(error),
                },
                Err(error) => Some(error),
            };
            if began.elapsed() > PAUSE_MOST {
                pause = PAUSE_FIRST;
            }
            if let Some(error) = failed {
                self.failed(&error);
            }
            tokio::time::sleep(jitter(pause)).await;
            pause = (pause * 2).min(PAUSE_MOST);
        }
    }

    /// Lists, if need be, and watches until the end of one watch.
    async fn once(&mut self) -> Result<(), WatchError> {
        let api = match &self.api {
            Some(api) => api.clone(),
            None => self.api.insert(Api::connect(self.kubeconfig.as_ref()).await?).clone(),
        };
        let seconds = rand::rng().random_range(WATCH_SECONDS);
        let common = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}");
        let lines = match &self.version {
            Some(version) => api.lines(self.watched, &format!("{common}&resourceVersion={version}")).await?,
            None if self.streams => {
                let query = format!("{common}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
                match api.lines(self.watched, &query).await {
                    // What a server says that does not know these parameters, or has them switched off.
                    Err(WatchError::Status { status: 400 | 422, .. }) => return Err(WatchError::NoStreaming),
                    lines => self.list_by_stream(lines?).await?,
                }
            }
            None => {
                let version = self.list_by_pages(&api).await?;
                api.lines(self.watched, &format!("{common}&resourceVersion={version}")).await?
            }
        };
        self.follow(lines).await
    }

    async fn list_by_stream(&mut self, mut lines: Lines) -> Result<Lines, WatchError> {
        self.listing();
        self.tell(Told::Begin(self.watched.kind)).await?;
        let mut told_nothing = true;
        loop {
            let line = match lines.next(ANSWER).await {
                // One that ignores the parameters begins an ordinary watch: it says nothing, or only changes.
                Ok(None) | Err(WatchError::Silent(_)) if told_nothing => return Err(WatchError::NoStreaming),
                Ok(None) => return Err(WatchError::Reach("it ended a list before its end".to_owned())),
                line => line?.unwrap_or_default(),
            };
            told_nothing = false;
            if self.take(event(self.watched.kind, &line)?).await? {
                break;
            }
        }
        self.complete().await?;
        Ok(lines)
    }

    async fn list_by_pages(&mut self, api: &Api) -> Result<String, WatchError> {
        self.listing();
        self.tell(Told::Begin(self.watched.kind)).await?;
        let mut next = String::new();
        loop {
            let from = if next.is_empty() { String::new() } else { format!("&continue={next}") };
            let body = api.page(self.watched, &format!("limit={PAGE}{from}")).await?;
            let page = page(self.watched.kind, &body)?;
            self.heard();
            for object in page.items {
                self.tell(Told::Put(Box::new(object))).await?;
            }
            if page.next.is_empty() {
                self.version = Some(page.version.clone());
                self.complete().await?;
                return Ok(page.version);
            }
            next = escaped(&page.next);
        }
    }

    async fn follow(&mut self, mut lines: Lines) -> Result<(), WatchError> {
        self.listed = true;
        self.health.set(self.watched, |one| {
            one.standing = Standing::Watching;
            one.error = None;
        });
        while let Some(line) = lines.next(SILENCE).await? {
            self.take(event(self.watched.kind, &line)?).await?;
        }
        Ok(())
    }

    /// Passes an event on; says whether it ends a list.
    async fn take(&mut self, event: Event) -> Result<bool, WatchError> {
        self.heard();
        let kind = self.watched.kind;
        match event {
            Event::Put(object) => {
                self.seen(&object);
                self.tell(Told::Put(object)).await?;
            }
            Event::Delete(object) => {
                self.seen(&object);
                self.tell(Told::Delete(kind, object)).await?;
            }
            Event::Bookmark { version, ends_list } => {
                if ends_list || self.version.is_some() {
                    self.version = Some(version).filter(|version| !version.is_empty());
                }
                return Ok(ends_list);
            }
            Event::Error(error) => return Err(error),
        }
        Ok(false)
    }

    /// While a list is being told, its objects' versions are in no order: only its end tells where to go on.
    fn seen(&mut self, object: &Projected) {
        if self.version.is_some()
            && let Some(version) = object.resource_version()
        {
            self.version = Some(version.to_owned());
        }
    }

    async fn complete(&mut self) -> Result<(), WatchError> {
        self.tell(Told::End(self.watched.kind)).await?;
        self.synced = true;
        Ok(())
    }

    /// The server has no such kind. At the start that means that there is no object of it. Later its objects stay: if
    /// someone took the kind away, its objects went one by one before, and a watch told of it, unless it was down. Then
    /// they stay as well, and it is said: without them there would be more clear text and fewer refusals, whichever
    /// kind it is.
    async fn missing(&mut self) -> Result<(), WatchError> {
        let Some(api) = self.api.clone() else { return Ok(()) };
        if !api.lacks(self.watched).await? {
            return Err(WatchError::NotFound(self.watched.plural));
        }
        self.heard();
        let mut is_new = false;
        self.health.set(self.watched, |one| {
            is_new = one.standing != Standing::Missing;
            one.standing = Standing::Missing;
            one.error = self.listed.then(|| KEPT.to_owned());
        });
        if is_new && self.listed {
            tracing::warn!(kind = self.watched.kind.as_str(), "{KEPT}");
        } else if is_new {
            tracing::warn!(
                kind = self.watched.kind.as_str(),
                "the cluster has no such kind: none is enforced until it comes; it is asked for from time to time"
            );
        }
        self.version = None;
        if !self.synced {
            self.tell(Told::Begin(self.watched.kind)).await?;
            self.complete().await?;
        }
        Ok(())
    }

    fn failed(&mut self, error: &WatchError) {
        match error {
            // After nonsense nobody knows what has been told; and a server that came back from a backup has not got to
            // the version yet that was seen last.
            WatchError::Gone | WatchError::Nonsense(_) => self.version = None,
            WatchError::Status { message, .. } if message.contains("Too large resource version") => self.version = None,
            WatchError::NoStreaming => self.streams = false,
            // Certificates and tokens may have been replaced, and a server may have come back as another.
            WatchError::Unauthorized | WatchError::Reach(_) | WatchError::Silent(_) => self.api = None,
            _ => {}
        }
        let text = error.to_string();
        let mut is_new = false;
        self.health.set(self.watched, |one| {
            is_new = one.error.as_ref() != Some(&text);
            one.standing = Standing::Connecting;
            one.error = Some(text.clone());
        });
        if is_new {
            tracing::warn!(
                kind = self.watched.kind.as_str(),
                error = text,
                "watch interrupted; the last good world serves"
            );
        }
    }

    fn listing(&self) {
        self.health.set(self.watched, |one| one.standing = Standing::Listing);
    }

    fn heard(&self) {
        self.health.set(self.watched, |one| one.heard = Instant::now());
    }

    async fn tell(&self, told: Told) -> Result<(), WatchError> {
        self.told.send(told).await.map_err(|_| WatchError::Closed)
    }
}

/// A page's token as part of a query.
fn escaped(token: &str) -> String {
    let mut text = String::with_capacity(token.len());
    for byte in token.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_escaped_and_pauses_vary_within_bounds() {
        assert_eq!(escaped("a+b/c=="), "a%2Bb%2Fc%3D%3D");
        for _ in 0..100 {
            let pause = jitter(PAUSE_FIRST);
            assert!((PAUSE_FIRST / 2..=PAUSE_FIRST).contains(&pause));
        }
    }
}
