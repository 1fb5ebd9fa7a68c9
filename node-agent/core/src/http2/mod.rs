//! HTTP/2 as HBONE needs it (RFC 9113): plain CONNECT streams, and nothing else that two ends must not share.
//!
//! No I/O, no clock, no task: [`Connection`] is plain data. Octets that arrive are given to [`Connection::poll`], which
//! answers with [`Event`]s; octets to be sent are frames in [`Connection::take_control`], and DATA, whose head
//! [`Connection::data_head`] makes so that the payload can be read straight into its place behind it.
//!
//! It replaces a general library on the data path because there every byte was copied twice more and every message
//! woke a task more than needed (ARCHITECTURE.md, Decisions).

mod connection;
mod error;
mod event;
mod frame;
mod head;
mod hpack;
mod input;
mod received;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod window;

pub use connection::{Connection, Role};
pub use error::{ErrorCode, Http2Error};
pub use event::{Event, ResponseHead};
pub use frame::{FRAME_HEAD, PREFACE, StreamId};
pub use head::HeadError;
pub use hpack::{Decoder, HpackError, encoder};
pub use settings::Config;
