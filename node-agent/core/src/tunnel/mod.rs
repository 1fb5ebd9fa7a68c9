//! The head of a tunnel: what a CONNECT request says (hbone.md §7) and where
//! it leads at the destination (§9). No I/O.

pub mod authority;
pub mod connect;
pub mod headers;
pub mod target;

pub use authority::{Authority, AuthorityError};
pub use connect::{ConnectError, ConnectRequest};
pub use headers::{Baggage, Forwarded, TraceId, TraceParent};
pub use target::{TargetError, inbound_target};
