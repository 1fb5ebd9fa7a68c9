//! HPACK, header compression for HTTP/2 (RFC 7541): all of it for reading, for writing what CONNECT needs.

mod decoder;
pub mod encoder;
mod huffman;
mod table;

pub use decoder::{Decoder, HpackError};
