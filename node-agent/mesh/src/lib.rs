//! Warren's async I/O, shared by the node agent and the waypoint: SVID sources,
//! TLS, HBONE, the copy loop, and the records of what happened.
//!
//! Nothing here decides; decisions are warren-core's. Data path types belong to
//! one worker (a current-thread runtime with a `LocalSet`) and need not be
//! `Send`; identity, telemetry and the registry of live connections are shared
//! between threads.
#![forbid(unsafe_code)]

mod buffers;
pub mod clock;
pub mod copy;
pub mod hbone;
pub mod identity;
pub mod limits;
pub mod live;
mod ready;
pub mod telemetry;
pub mod tls;

#[cfg(test)]
mod testing;
