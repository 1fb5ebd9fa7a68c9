//! What is known of one stream.

use super::window::{ReceiveWindow, SendWindow};

/// One stream as long as it is not closed in both directions.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) send_window: SendWindow,
    pub(super) receive_window: ReceiveWindow,
    /// We may send DATA; before that a server owes its response.
    pub(super) sending: Half,
    /// The peer may send DATA; before that it owes its head.
    pub(super) receiving: Half,
}

/// One direction of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// The head is due.
    Head,
    /// DATA.
    Open,
    /// END_STREAM has been seen.
    Ended,
}

impl Stream {
    pub(super) fn is_over(&self) -> bool {
        self.sending == Half::Ended && self.receiving == Half::Ended
    }
}
