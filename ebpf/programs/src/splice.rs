//! The programs that carry the bytes of admitted connections from socket to socket, past TCP.
//!
//! They are an object of their own: a kernel that cannot do this right runs without them.
#![no_std]
#![no_main]

#[expect(dead_code, reason = "the node's programs need more of it")]
mod address;
mod license;
#[expect(dead_code, reason = "the node's programs need more of it")]
mod socket;
mod splice_ends;
mod splice_keep;
mod splice_maps;
mod splice_option;
mod splice_peek;
mod splice_send;
mod splice_take;
#[expect(dead_code, reason = "the node's programs need more of it")]
mod storage;
