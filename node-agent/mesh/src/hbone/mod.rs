//! HBONE over TCP: TLS, HTTP/2, one plain CONNECT stream per connection
//! (hbone.md). Everything here runs on one current-thread runtime inside a
//! `LocalSet` and need not be `Send`.
//!
//! A [`session`](session::Session) is one connection. Its driver reads the
//! network and writes to the applications; the lines of its streams read the
//! applications and write to the network. No byte changes hands between tasks.

mod driver;
mod early;
mod error;
mod exchange;
mod gather;
mod keepalive;
mod output;
pub mod pool;
pub mod server;
mod session;
mod slot;
mod stream;
mod tunnel;

#[cfg(test)]
mod tests;

pub use error::TunnelError;
pub use pool::{Connecting, Dialler, Occasion, Open, Pool};
pub use server::{DrainHandle, HboneServer, InboundStream, accept};
pub use stream::HboneStream;
pub(crate) use stream::{DeliveryEnd, StreamEnd};
