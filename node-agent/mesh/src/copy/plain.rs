//! TCP ↔ TCP, for routes without a tunnel, with the same semantics.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::buffer::ReadBuffer;
use super::{ByteCounts, CopyEnd, CopyOutcome, clean_on_close, is_reset, reset_on_close};
use crate::limits::Limits;
use crate::live::Cancel;

/// Which socket failed.
enum Broken {
    App(io::Error),
    Other(io::Error),
}

/// Copies between the application's socket and another until both directions
/// have ended, one is reset, or `cancel` fires.
pub async fn copy_plain(
    mut app: TcpStream,
    mut other: TcpStream,
    limits: &Limits,
    cancel: &Cancel,
    bytes: &ByteCounts,
) -> CopyOutcome {
    reset_on_close(&app);
    reset_on_close(&other);
    let end = {
        let (app_read, app_write) = app.split();
        let (other_read, other_write) = other.split();
        let up = async {
            let count = |n| bytes.add_to_tunnel(n);
            let moved = direction(app_read, other_write, limits, count).await;
            moved.map_err(|e| e.into_broken(Broken::App, Broken::Other))
        };
        let down = async {
            let count = |n| bytes.add_to_app(n);
            let moved = direction(other_read, app_write, limits, count).await;
            moved.map_err(|e| e.into_broken(Broken::Other, Broken::App))
        };
        tokio::select! {
            both = async { tokio::try_join!(up, down) } => match both {
                Ok(_) => CopyEnd::Clean,
                Err(broken) => broken.end(),
            },
            reason = cancel.cancelled() => CopyEnd::Cancelled(reason),
        }
    };
    if end == CopyEnd::Clean {
        clean_on_close(&app);
        clean_on_close(&other);
    }
    CopyOutcome { to_app: bytes.to_app(), to_tunnel: bytes.to_tunnel(), end }
}

impl Broken {
    fn end(self) -> CopyEnd {
        match self {
            Self::App(error) if is_reset(&error) => CopyEnd::AppReset,
            Self::Other(error) if is_reset(&error) => CopyEnd::TunnelReset,
            Self::App(error) | Self::Other(error) => CopyEnd::Error(error.to_string()),
        }
    }
}

/// An error of one direction, by its side.
enum Moved {
    Reading(io::Error),
    Writing(io::Error),
}

impl Moved {
    fn into_broken(self, reader: fn(io::Error) -> Broken, writer: fn(io::Error) -> Broken) -> Broken {
        match self {
            Self::Reading(error) => reader(error),
            Self::Writing(error) => writer(error),
        }
    }
}

async fn direction(
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    limits: &Limits,
    count: impl Fn(usize),
) -> Result<(), Moved> {
    let mut buffer = ReadBuffer::new(limits.read_size);
    loop {
        from.readable().await.map_err(Moved::Reading)?;
        match buffer.try_read(&from, limits.read_size) {
            Ok(Some(mut chunk)) => {
                let length = chunk.len();
                to.write_all_buf(&mut chunk).await.map_err(Moved::Writing)?;
                count(length);
            }
            Ok(None) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Moved::Reading(error)),
        }
    }
    match to.shutdown().await {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        outcome => outcome.map_err(Moved::Writing),
    }
}
