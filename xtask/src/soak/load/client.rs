//! A pod's clients: each kind of connection, again and again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use warren_load::pattern::Position;

use super::super::lab::{PORT, Pair, SERVICE_PORT};
use super::super::ledger::{End, Kind, Ledger};
use super::flow::{self, Pace};
use super::trouble::Trouble;
use super::wire::{Ending, Job, Opening};
use super::{Profile, Switch};

/// Whoever is refused does not come back at once.
const AFTER_FAILURE: Duration = Duration::from_millis(50);
/// While the load pauses.
const PAUSED: Duration = Duration::from_millis(50);
/// Between two connections of the rarer kinds.
const BETWEEN: Duration = Duration::from_millis(100);
/// Longer than an agent's restart with what the kernel's retransmission adds;
/// added to what a connection is planned to last.
const PATIENCE: Duration = Duration::from_secs(30);
const IDLE_MESSAGE: u32 = 64;

/// One client: makes connections of one kind, one after the other.
pub(super) struct Client {
    pair: Pair,
    kind: Kind,
    ledger: Arc<Ledger>,
    switch: Arc<Switch>,
    profile: Profile,
    rng: StdRng,
}

/// An open connection, and where both directions of it are.
struct Open {
    stream: TcpStream,
    up: Position,
    down: Position,
}

impl Client {
    pub(super) fn new(pair: Pair, kind: Kind, ledger: Arc<Ledger>, switch: Arc<Switch>, seed: u64) -> Self {
        let profile = switch.profile();
        Self { pair, kind, ledger, switch, profile, rng: StdRng::seed_from_u64(seed) }
    }

    /// Goes on until its pod ends.
    pub(super) async fn run(mut self) {
        let ledger = Arc::clone(&self.ledger);
        let limit = PATIENCE + self.profile.longest;
        loop {
            if !self.switch.is_on() {
                sleep(PAUSED).await;
                continue;
            }
            let attempt = ledger.begin(self.pair, self.kind);
            let end = match timeout(limit, self.connection()).await {
                Ok(Ok(())) => End::Well,
                Ok(Err(trouble)) => trouble.into(),
                Err(_) => End::Broken(format!("not done after {} s", limit.as_secs())),
            };
            match (attempt.finish(end), self.kind) {
                (false, _) => sleep(AFTER_FAILURE).await,
                (true, Kind::Short) => {}
                (true, _) => sleep(BETWEEN).await,
            }
        }
    }

    async fn connection(&mut self) -> Result<(), Trouble> {
        match self.kind {
            Kind::Short => self.short().await,
            Kind::Stream => self.stream().await,
            Kind::SlowReader => self.slow_reader().await,
            Kind::HalfClose => self.half_close().await,
            Kind::Reset if self.rng.random_bool(0.5) => self.reset_by_client().await,
            Kind::Reset => self.reset_by_server().await,
            Kind::Idle => self.idle().await,
        }
    }

    /// By service or by pod, over IPv4 or IPv6.
    fn target(&mut self) -> SocketAddr {
        let server = self.pair.server();
        let family = usize::from(self.rng.random_bool(0.5));
        if self.rng.random_bool(0.5) {
            SocketAddr::new(server.service_addresses()[family], SERVICE_PORT)
        } else {
            SocketAddr::new(server.addresses()[family], PORT)
        }
    }

    async fn open(&mut self, job: Job) -> Result<Open, Trouble> {
        let from = u8::try_from(self.pair.from).unwrap_or_default();
        let opening = Opening { from, seed: self.rng.random(), job };
        let target = self.target();
        let told = |error| Trouble::Broken(format!("connect to {target}: {error}"));
        let mut stream = TcpStream::connect(target).await.map_err(told)?;
        stream.set_nodelay(true)?;
        stream.write_all(&opening.encode()).await?;
        Ok(Open { stream, up: opening.upward(), down: opening.downward() })
    }

    /// Opens a stream of so many KiB from the server; the client's length is its own matter.
    async fn open_stream(&mut self, kib: u32, rate: u32, afterwards: bool) -> Result<Open, Trouble> {
        self.open(Job::Stream { kib, rate, afterwards }).await
    }

    async fn short(&mut self) -> Result<(), Trouble> {
        let size = 1 << self.rng.random_range(3..13);
        let by_server = self.rng.random_bool(0.5);
        let ending = if by_server { Ending::ServerCloses } else { Ending::Client };
        let mut open = self.open(Job::Echo { size, ending }).await?;
        open.round_trip(size, &self.ledger).await?;
        if by_server {
            return open.end().await;
        }
        if self.rng.random_bool(0.2) { flow::reset(open.stream) } else { Ok(()) }
    }

    async fn stream(&mut self) -> Result<(), Trouble> {
        let Profile { longest, rate, .. } = self.profile;
        let longest = u32::try_from(longest.as_secs()).unwrap_or(u32::MAX).max(1);
        let kib = rate * self.rng.random_range(1..=longest);
        let length = u64::from(self.rng.random_range(1..=kib)) * 1024 + self.rng.random_range(0..1024);
        let mut open = self.open_stream(kib, rate, false).await?;
        let (mut read, mut write) = open.stream.split();
        let stopped = || !self.switch.is_on();
        let send = flow::send_stream(&mut write, open.up, length, Pace::of(rate), stopped);
        let receive = flow::receive_stream(&mut read, open.down, Pace::Unbound, &self.ledger);
        tokio::try_join!(send, receive).map(drop)
    }

    async fn slow_reader(&mut self) -> Result<(), Trouble> {
        let pause = Duration::from_millis(self.rng.random_range(5..25));
        let mut open = self.open_stream(self.profile.unread, 0, false).await?;
        let (mut read, mut write) = open.stream.split();
        flow::send_stream(&mut write, open.up, 0, Pace::Unbound, || false).await?;
        flow::receive_stream(&mut read, open.down, Pace::Pause(pause), &self.ledger).await
    }

    async fn half_close(&mut self) -> Result<(), Trouble> {
        let kib = self.rng.random_range(0..256);
        let length = self.rng.random_range(0..256 * 1024);
        let mut open = self.open_stream(kib, 0, true).await?;
        let (mut read, mut write) = open.stream.split();
        flow::send_stream(&mut write, open.up, length, Pace::Unbound, || false).await?;
        flow::receive_stream(&mut read, open.down, Pace::Unbound, &self.ledger).await
    }

    /// The server must not take it for the end of the stream: it tells the ledger if it does.
    async fn reset_by_client(&mut self) -> Result<(), Trouble> {
        let (first, size) = (self.rng.random_range(1..10_000), self.rng.random_range(1..200_000));
        let mut open = self.open_stream(64, 0, false).await?;
        // What the server says first shows that the connection has reached it.
        if !flow::receive(&mut open.stream, &mut open.down, first, &self.ledger).await? {
            return Err(Trouble::Early);
        }
        flow::send(&mut open.stream, &mut open.up, size).await?;
        flow::reset(open.stream)
    }

    async fn reset_by_server(&mut self) -> Result<(), Trouble> {
        let size = self.rng.random_range(1..10_000);
        let mut open = self.open(Job::Echo { size, ending: Ending::ServerResets }).await?;
        open.round_trip(size, &self.ledger).await?;
        flow::send(&mut open.stream, &mut open.up, 1).await?;
        match open.stream.read(&mut [0]).await {
            Err(_) => Ok(()),
            // Its pod was deleted, or the reset looks like a clean end.
            Ok(0) => Err(Trouble::Early),
            Ok(_) => Err(Trouble::Wrong("bytes instead of a reset".into())),
        }
    }

    async fn idle(&mut self) -> Result<(), Trouble> {
        let mut open = self.open(Job::Echo { size: IDLE_MESSAGE, ending: Ending::Client }).await?;
        let until = Instant::now() + self.profile.longest.mul_f32(self.rng.random_range(0.3..1.0));
        loop {
            open.round_trip(IDLE_MESSAGE, &self.ledger).await?;
            if Instant::now() >= until || !self.switch.is_on() {
                return Ok(());
            }
            let silence = Duration::from_millis(self.rng.random_range(500..3000));
            if let Ok(end) = timeout(silence, open.end()).await {
                return end.and(Err(Trouble::Early));
            }
        }
    }
}

impl Open {
    /// One message and its answer.
    async fn round_trip(&mut self, size: u32, ledger: &Ledger) -> Result<(), Trouble> {
        flow::send(&mut self.stream, &mut self.up, size as usize).await?;
        let answered = flow::receive(&mut self.stream, &mut self.down, size as usize, ledger).await?;
        if answered { Ok(()) } else { Err(Trouble::Early) }
    }

    /// The server's clean end, and nothing before it.
    async fn end(&mut self) -> Result<(), Trouble> {
        match self.stream.read(&mut [0]).await? {
            0 => Ok(()),
            _ => Err(Trouble::Wrong("bytes that nobody asked for".into())),
        }
    }
}
