//! Warren's decisions, free of I/O, clocks and randomness.
//!
//! Everything here is a function of its arguments: who a name is
//! ([`identity`], [`san`]), what the mesh looks like ([`world`]), who may
//! connect to whom ([`policy`]), where a connection goes ([`route`]), what the
//! head of a tunnel says ([`tunnel`]), how tunnels share one connection
//! ([`http2`]), which tunnel may be shared ([`pool`]), which pods to take in
//! ([`enrolment`]), and the shape of the evidence ([`audit`]).
#![forbid(unsafe_code)]

pub mod addr;
pub mod audit;
pub mod enrolment;
pub mod http2;
pub mod identity;
pub mod issuance;
pub mod policy;
pub mod pool;
pub mod route;
pub mod san;
pub mod tunnel;
pub mod world;
