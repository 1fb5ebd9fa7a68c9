//! One dial at a time per key; the others wait for its outcome.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::watch;

use crate::hbone::TunnelError;

#[derive(Clone)]
enum Phase {
    Up,
    /// Over: look into the pool again, or fail as the dialler did.
    Down(Option<TunnelError>),
}

/// A dial under way.
pub(super) struct Flight(RefCell<watch::Sender<Phase>>);

impl Default for Flight {
    fn default() -> Self {
        Self(RefCell::new(watch::channel(Phase::Up).0))
    }
}

impl Flight {
    /// Waits for the outcome. A failure is shared: otherwise each of many
    /// waiting connections would sit through the same time-out in turn.
    pub(super) async fn landed(&self) -> Result<(), TunnelError> {
        let mut phase = self.0.borrow().subscribe();
        loop {
            if let Phase::Down(outcome) = phase.borrow_and_update().clone() {
                return outcome.map_or(Ok(()), Err);
            }
            if phase.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The dialler's end. Dropped without landing (its connection went away), the
/// others try by themselves.
pub(super) struct Landing {
    flight: Rc<Flight>,
    remove: Option<Box<dyn FnOnce()>>,
}

impl Landing {
    pub(super) fn new(flight: Rc<Flight>, remove: impl FnOnce() + 'static) -> Self {
        Self { flight, remove: Some(Box::new(remove)) }
    }

    /// Tells those who wait.
    pub(super) fn land(mut self, error: Option<TunnelError>) {
        self.end(error);
    }

    fn end(&mut self, error: Option<TunnelError>) {
        if let Some(remove) = self.remove.take() {
            remove();
            self.flight.0.borrow().send_replace(Phase::Down(error));
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.end(None);
    }
}
