//! The client's first bytes, sent before the peer answered CONNECT and kept
//! until it has (optimistic data).

use std::io;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::buffers::Buffer;
use crate::limits::Limits;
use crate::ready;

/// What the application did while the answer was awaited.
pub(super) enum EarlyEvent {
    /// It sent bytes; send them along.
    Bytes(Bytes),
    /// It ended its direction.
    Ended,
}

/// Early bytes of one connection, over all attempts.
pub(super) struct EarlyData {
    kept: Vec<Bytes>,
    room: usize,
    ended: bool,
}

impl EarlyData {
    pub(super) fn new(limits: &Limits, peer_allows: bool) -> Self {
        let room = if limits.early_data && peer_allows { limits.early_data_limit } else { 0 };
        Self { kept: Vec::new(), room, ended: false }
    }

    /// Bytes taken from the application so far, oldest first.
    pub(super) fn kept(&self) -> &[Bytes] {
        &self.kept
    }

    /// Number of bytes taken.
    pub(super) fn len(&self) -> u64 {
        self.kept.iter().map(|chunk| chunk.len() as u64).sum()
    }

    /// Whether the application ended its direction.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Waits for what the application does next. With no room left (or early
    /// data switched off) its bytes stay in the kernel, and only a reset is
    /// noticed, as an error.
    pub(super) async fn next(&mut self, app: &TcpStream) -> io::Result<EarlyEvent> {
        if self.room == 0 || self.ended {
            return reset(app).await;
        }
        loop {
            app.readable().await?;
            let mut buffer = Buffer::take();
            let limit = self.room.min(buffer.len());
            match ready::read(app, &mut buffer[..limit]) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(EarlyEvent::Ended);
                }
                Ok(read) => {
                    self.room -= read;
                    let bytes = Bytes::copy_from_slice(&buffer[..read]);
                    self.kept.push(bytes.clone());
                    return Ok(EarlyEvent::Bytes(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits for a reset by the application, without reading.
async fn reset(app: &TcpStream) -> io::Result<EarlyEvent> {
    app.ready(Interest::ERROR).await?;
    Err(app.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
}
