//! Micro-benchmarks of what Warren decides and encodes without I/O: judging a connection by policy, and HTTP/2.
//!
//! `cargo xtask bench micro` builds and runs them; as a library they let tests hold the same work against promises
//! that do not depend on time: what is decided, and that nothing is allocated.
#![forbid(unsafe_code)]

pub mod codec;
pub mod measure;
pub mod policy;
