//! What the other end did.

use http::request::Parts;
use http::{HeaderMap, StatusCode};

use super::error::ErrorCode;
use super::frame::StreamId;
use super::head::HeadError;

/// The head of a response.
pub type ResponseHead = (StatusCode, HeaderMap);

/// Something that the owner of a connection must know.
#[derive(Debug)]
pub enum Event<'a> {
    /// A new stream, at a server. It waits for [`Connection::respond`](super::Connection::respond).
    Request {
        /// The stream.
        stream: StreamId,
        /// Its head, as far as HTTP/2 judges it.
        head: Result<Box<Parts>, HeadError>,
        /// Nothing will follow.
        ended: bool,
    },
    /// The answer to a request, at a client.
    Response {
        /// The stream.
        stream: StreamId,
        /// The answer.
        head: Result<Box<ResponseHead>, HeadError>,
        /// Nothing will follow.
        ended: bool,
    },
    /// Payload. Give its credit back with [`Connection::consumed`](super::Connection::consumed) when it was taken.
    Data {
        /// The stream.
        stream: StreamId,
        /// Octets, in order.
        bytes: &'a [u8],
    },
    /// The peer ended its direction of a stream.
    Ended {
        /// The stream.
        stream: StreamId,
    },
    /// A stream is over in both directions, at once.
    Reset {
        /// The stream.
        stream: StreamId,
        /// The peer's code, or the one that we told it.
        code: ErrorCode,
        /// The peer did it.
        by_peer: bool,
    },
    /// More may be sent: on one stream, or on any.
    Room {
        /// The stream; `None` for all.
        stream: Option<StreamId>,
    },
    /// The peer takes no new streams, and those above `last` were not processed.
    GoingAway {
        /// Highest stream that it has processed or will.
        last: StreamId,
        /// Why.
        code: ErrorCode,
    },
    /// The answer to [`Connection::ping`](super::Connection::ping).
    Pong {
        /// As it was sent.
        payload: [u8; 8],
    },
}
