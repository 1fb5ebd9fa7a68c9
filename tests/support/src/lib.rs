//! A simulated world for Warren's tests: nodes and pods as network namespaces, real `warren agent` processes,
//! captures of what crosses the wire, applications that behave well or badly, and hand-made HBONE peers.
//!
//! Everything a test makes carries the process id in its name and is removed by drop guards; what a killed run
//! left behind is removed when the next run starts. Root is needed.
#![forbid(unsafe_code)]
// A test that cannot build its world has nothing to report but a panic with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod agent;
pub mod api_server;
pub mod apps;
pub mod capture;
pub mod client;
pub mod command;
pub mod controller;
pub mod fake_api;
pub mod hbone;
pub mod lab;
pub mod manifest;
pub mod netns;
pub mod packet;
pub mod pki;
pub mod pod_process;
pub mod spy;
pub mod stale;
pub mod wait;

pub use agent::Agent;
pub use apps::Server;
pub use capture::Capture;
pub use lab::{Lab, Pod};
pub use netns::NetNs;
pub use spy::Spy;
pub use wait::eventually;
