//! Reading a socket that is said to be readable, with one call.
//!
//! A read that does not fill its buffer has emptied the socket. tokio would only learn that from another call, which
//! finds nothing; here the readiness is cleared at once, and the next octets set it again (its epoll is edge-triggered).
//! The end of the stream is told apart by the kernel and stays ready.

use std::io::{self, IoSliceMut, Read};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Reads into one buffer; `Ok(0)` is the end, `WouldBlock` says that there is nothing.
pub(crate) fn read(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let room = buffer.len();
    once(tcp, room, || (&*SockRef::from(tcp)).read(buffer))
}

/// The same into several.
pub(crate) fn read_vectored(tcp: &TcpStream, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    if let [buffer] = buffers {
        return read(tcp, buffer);
    }
    let room = buffers.iter().map(|buffer| buffer.len()).sum();
    once(tcp, room, || (&*SockRef::from(tcp)).read_vectored(buffers))
}

fn once(tcp: &TcpStream, room: usize, read: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
    let mut got = None;
    let outcome = tcp.try_io(Interest::READABLE, || {
        let length = read()?;
        got = Some(length);
        if length > 0 && length < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match got {
        Some(length) => Ok(length),
        None => outcome.map(|()| 0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{on_worker, tcp_pair};

    #[test]
    fn what_comes_after_a_short_read_is_noticed_and_so_is_the_end() {
        on_worker(async {
            let (mut writer, reader) = tcp_pair().await;
            let mut buffer = [0; 64];
            for round in 0..100 {
                writer.write_all(b"hello").await.unwrap();
                reader.readable().await.unwrap();
                assert_eq!(read(&reader, &mut buffer).unwrap(), 5, "round {round}");
                let more = timeout(Duration::from_millis(1), reader.readable()).await;
                assert!(more.is_err(), "the readiness is cleared");
            }
            writer.write_all(b"bye").await.unwrap();
            writer.shutdown().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            reader.readable().await.unwrap();
            assert_eq!(read(&reader, &mut buffer).unwrap(), 3);
            timeout(Duration::from_secs(1), reader.readable()).await.expect("the end is noticed").unwrap();
            assert_eq!(read(&reader, &mut buffer).unwrap(), 0);
        });
    }

    #[test]
    fn a_full_buffer_leaves_the_rest_ready() {
        on_worker(async {
            let (mut writer, reader) = tcp_pair().await;
            writer.write_all(&[1; 100]).await.unwrap();
            reader.readable().await.unwrap();
            let mut buffer = [0; 50];
            let (first, second) = buffer.split_at_mut(20);
            let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
            assert_eq!(read_vectored(&reader, &mut slices).unwrap(), 50);
            reader.readable().await.unwrap();
            assert_eq!(read(&reader, &mut [0; 50]).unwrap(), 50);
        });
    }
}
