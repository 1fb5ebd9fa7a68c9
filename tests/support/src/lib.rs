//! A simulated world for Warren's tests.
#![forbid(unsafe_code)]
