//! Warren's decisions, free of I/O, clocks and randomness.
#![forbid(unsafe_code)]
