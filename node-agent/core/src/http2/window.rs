//! Flow control (RFC 9113 §5.2, §6.9).

use super::error::{ErrorCode, Http2Error};
use super::settings::MAX_WINDOW;

/// What may still be sent. It can be negative: the peer may shrink its initial window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub(super) fn new(size: u32) -> Self {
        Self(i64::from(size))
    }

    pub(super) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub(super) fn spend(&mut self, octets: usize) {
        self.0 -= octets as i64;
    }

    /// The peer's initial window changed.
    pub(super) fn shift(&mut self, by: i64) -> Result<(), Http2Error> {
        self.0 += by;
        self.check("an initial window beyond 2^31-1")
    }

    /// WINDOW_UPDATE.
    pub(super) fn grow(&mut self, more: u32) -> Result<(), Http2Error> {
        self.0 += i64::from(more);
        self.check("a window beyond 2^31-1")
    }

    fn check(self, reason: &'static str) -> Result<(), Http2Error> {
        if self.0 <= i64::from(MAX_WINDOW) {
            Ok(())
        } else {
            Err(Http2Error::new(ErrorCode::FLOW_CONTROL_ERROR, reason))
        }
    }
}

/// What the peer may still send, and what it is to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReceiveWindow {
    size: usize,
    available: usize,
    consumed: usize,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        Self { size: size as usize, available: size as usize, consumed: 0 }
    }

    /// DATA arrived. False if the peer was not allowed to send that much.
    #[must_use]
    pub(super) fn receive(&mut self, octets: usize) -> bool {
        match self.available.checked_sub(octets) {
            Some(left) => {
                self.available = left;
                true
            }
            None => false,
        }
    }

    /// DATA was taken by its reader. Answers what to tell the peer now: credit is returned when half of the window has
    /// been used, so that few frames do.
    #[must_use]
    pub(super) fn consume(&mut self, octets: usize) -> Option<u32> {
        self.consumed += octets;
        if self.consumed < self.size / 2 {
            return None;
        }
        let more = std::mem::take(&mut self.consumed);
        self.available += more;
        u32::try_from(more).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_comes_back_in_halves() {
        let mut window = ReceiveWindow::new(100);
        assert!(window.receive(100));
        assert!(!window.receive(1));
        assert_eq!(window.consume(49), None);
        assert_eq!(window.consume(1), Some(50));
        assert!(window.receive(50));
        assert!(!window.receive(1));
    }

    #[test]
    fn a_send_window_may_be_negative_but_not_too_large() {
        let mut window = SendWindow::new(10);
        window.spend(8);
        window.shift(-5).unwrap();
        assert_eq!(window.available(), 0);
        window.grow(4).unwrap();
        assert_eq!(window.available(), 1);
        assert!(window.grow(MAX_WINDOW).is_err());
    }
}
