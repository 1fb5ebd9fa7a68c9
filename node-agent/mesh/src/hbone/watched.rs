//! The TLS stream under HTTP/2, watched for failures that come late.
//!
//! In TLS 1.3 the client is done before the server has judged its certificate:
//! the refusal arrives as an alert on a later read, and h2 keeps only its
//! text. This wrapper keeps the reason.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls::{HandshakeFailure, TlsStream, classify_io};

/// Where a late failure is left.
pub(super) type LateFailure = Rc<RefCell<Option<HandshakeFailure>>>;

pub(super) struct Watched {
    stream: TlsStream,
    failure: LateFailure,
}

impl Watched {
    pub(super) fn new(stream: TlsStream) -> (Self, LateFailure) {
        let failure = LateFailure::default();
        (Self { stream, failure: Rc::clone(&failure) }, failure)
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result {
            let failure = classify_io(error);
            if !matches!(failure, HandshakeFailure::Io(_)) {
                self.failure.borrow_mut().get_or_insert(failure);
            }
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.note(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
