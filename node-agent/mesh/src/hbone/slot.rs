//! What a connection keeps of one stream between the driver, which reads the tunnel, and the stream's own line.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use tokio::net::TcpStream;
use warren_core::http2::{ErrorCode, ResponseHead};

use super::error::TunnelError;
use crate::copy::ByteCounts;

/// How the peer's direction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    /// More may come.
    Open,
    /// END_STREAM.
    Ended,
    /// RST_STREAM, from either side.
    Reset { code: ErrorCode, by_peer: bool },
    /// Above the last stream of a GOAWAY.
    Unprocessed(ErrorCode),
}

/// The application's end, once the line has one.
pub(super) struct Attached {
    pub(super) app: Rc<TcpStream>,
    pub(super) bytes: Arc<ByteCounts>,
}

/// One stream.
pub(super) struct Slot {
    pub(super) receiving: Receiving,
    pub(super) response: Option<Result<Box<ResponseHead>, TunnelError>>,
    pub(super) attached: Option<Attached>,
    /// Received, and not yet taken by the application. The stream's window bounds it.
    pub(super) backlog: VecDeque<u8>,
    /// To be sent before anything else; waits for the peer's window.
    pub(super) unsent: VecDeque<u8>,
    /// The application's socket broke while the driver wrote to it.
    pub(super) app_broken: Option<io::Error>,
    task: Option<Waker>,
}

impl Slot {
    pub(super) fn new(receiving: Receiving) -> Self {
        Self {
            receiving,
            response: None,
            attached: None,
            backlog: VecDeque::new(),
            unsent: VecDeque::new(),
            app_broken: None,
            task: None,
        }
    }

    /// The line's task is woken when something of the stream changes.
    pub(super) fn watch(&mut self, cx: &Context<'_>) {
        match &mut self.task {
            Some(task) => task.clone_from(cx.waker()),
            None => self.task = Some(cx.waker().clone()),
        }
    }

    pub(super) fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// Takes octets off the front of the backlog; an empty one keeps no memory.
    pub(super) fn advance(&mut self, octets: usize) {
        self.backlog.drain(..octets);
        if self.backlog.is_empty() {
            self.backlog = VecDeque::new();
        }
    }
}
