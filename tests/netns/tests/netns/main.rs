//! Warren end to end: real agents, real sockets, network namespaces as nodes and pods, a capture on the wire.
//!
//! Every test makes its own world and removes it; two worlds exist at once. Root is needed, and `ip`, `nsenter`,
//! `setpriv`, `prlimit`, `curl`, `ping`, `getent` and `bpftool`.

mod world;
