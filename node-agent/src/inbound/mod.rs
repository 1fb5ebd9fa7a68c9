//! The inbound line: a connection on its way to a pod's application.
//!
//! `Accepted → Authenticated → Requested → Permitted → Connected → copied` in a tunnel, and the same without the first
//! stages in clear. The application is connected by consuming a [`Permit`](warren_core::policy::Permit); there is no
//! other way to it.

mod dial_ports;
pub(crate) mod hbone;
pub(crate) mod permitted;
pub(crate) mod plaintext;

pub(crate) use dial_ports::DialPorts;
