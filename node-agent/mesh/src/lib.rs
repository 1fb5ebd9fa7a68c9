//! Async I/O shared by the node agent and the waypoint.
#![forbid(unsafe_code)]
