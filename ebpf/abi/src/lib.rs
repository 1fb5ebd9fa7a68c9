//! The contract between the kernel programs and the daemon: map keys, values, constants.
#![no_std]
