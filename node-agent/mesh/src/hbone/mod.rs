//! HBONE over TCP: TLS, HTTP/2, one plain CONNECT stream per connection
//! (hbone.md). Everything here runs on one current-thread runtime inside a
//! `LocalSet` and need not be `Send`.

mod early;
mod error;
mod exchange;
mod keepalive;
pub mod pool;
pub mod server;
mod stream;
mod tunnel;
mod watched;

#[cfg(test)]
mod tests;

pub use error::TunnelError;
pub use pool::{Open, Pool};
pub use server::{DrainHandle, HboneServer, InboundStream, accept};
pub use stream::HboneStream;
