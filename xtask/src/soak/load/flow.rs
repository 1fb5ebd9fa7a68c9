//! Bytes of a connection: sent by the pattern, received and compared with it.

use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use warren_load::pattern::Position;
use warren_load::wire::{StreamReader, Trailer};

use super::super::ledger::Ledger;
use super::trouble::Trouble;

/// One read or write of a stream.
const CHUNK: usize = 16 * 1024;

/// How fast one end sends or receives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// As fast as it goes.
    Unbound,
    /// So many KiB a second.
    Rate(u32),
    /// A pause after each read.
    Pause(Duration),
}

impl Pace {
    /// 0 is unbound.
    pub(super) fn of(rate: u32) -> Self {
        if rate == 0 { Self::Unbound } else { Self::Rate(rate) }
    }
}

/// Sends one message.
pub(super) async fn send(to: &mut (impl AsyncWrite + Unpin), at: &mut Position, size: usize) -> Result<(), Trouble> {
    let mut left = size;
    while left > 0 {
        let part = at.next(left);
        to.write_all(part).await?;
        at.advance(part.len());
        left -= part.len();
    }
    Ok(())
}

/// Receives one message and compares it. `false`: the other end has ended
/// before the message began.
pub(super) async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    at: &mut Position,
    size: usize,
    ledger: &Ledger,
) -> Result<bool, Trouble> {
    let mut buffer = [0; 4096];
    let mut left = size;
    while left > 0 {
        let room = left.min(buffer.len());
        let length = from.read(&mut buffer[..room]).await?;
        if length == 0 {
            return if left == size { Ok(false) } else { Err(Trouble::Early) };
        }
        at.check(&buffer[..length])?;
        ledger.received(length);
        left -= length;
    }
    Ok(true)
}

/// Sends a stream with its trailer, and ends the half. A stream that is
/// told to stop is shorter.
pub(super) async fn send_stream(
    to: &mut (impl AsyncWrite + Unpin),
    mut at: Position,
    length: u64,
    pace: Pace,
    stopped: impl Fn() -> bool,
) -> Result<(), Trouble> {
    let begun = Instant::now();
    while at.passed() < length && !stopped() {
        let left = usize::try_from(length - at.passed()).unwrap_or(CHUNK);
        send(to, &mut at, left.min(CHUNK)).await?;
        if let Pace::Rate(kib) = pace {
            sleep_until(begun + Duration::from_millis(at.passed() * 1000 / 1024 / u64::from(kib))).await;
        }
    }
    to.write_all(&Trailer { sent: at.passed(), received: 0 }.encode()).await?;
    Ok(to.shutdown().await?)
}

/// Receives a stream to its trailer and its end, and compares every byte.
pub(super) async fn receive_stream(
    from: &mut (impl AsyncRead + Unpin),
    at: Position,
    pace: Pace,
    ledger: &Ledger,
) -> Result<(), Trouble> {
    let mut reader = StreamReader::new(at);
    let mut buffer = vec![0; CHUNK];
    let mut whole = false;
    loop {
        let length = from.read(&mut buffer).await?;
        match (length, whole) {
            (0, true) => return Ok(()),
            (0, false) => return Err(Trouble::Early),
            (_, true) => return Err(Trouble::Wrong("bytes behind the end".into())),
            (_, false) => whole = reader.feed(&buffer[..length])?.is_some(),
        }
        ledger.received(length);
        if let Pace::Pause(pause) = pace {
            sleep(pause).await;
        }
    }
}

/// Ends a connection by a reset.
pub(super) fn reset(stream: TcpStream) -> Result<(), Trouble> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}
