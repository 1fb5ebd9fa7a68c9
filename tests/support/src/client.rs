//! Clients, and what they find out.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::netns::NetNs;

/// No read or write of a test may hang longer.
pub const IO_LIMIT: Duration = Duration::from_secs(20);

/// Connects from inside a namespace, with time-outs set.
pub fn connect(ns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = ns.run(|| TcpStream::connect_timeout(&to, IO_LIMIT))?;
    prepare(stream)
}

/// Sets the time-outs of a stream that was made some other way.
pub fn prepare(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    Ok(stream)
}

/// Connects, sends `payload`, ends its half and reads the rest.
pub fn exchange(ns: &NetNs, to: SocketAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    finish_exchange(connect(ns, to)?, payload)
}

/// Sends `payload` on an open stream, ends its half and reads the rest.
pub fn finish_exchange(mut stream: TcpStream, payload: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(payload)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Sends `payload` on an open stream and waits for as many bytes to come back.
pub fn ping_pong(stream: &mut TcpStream, payload: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(payload)?;
    let mut answer = vec![0; payload.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// Asserts that an echo server answered what it was sent.
#[track_caller]
pub fn assert_echo(ns: &NetNs, to: SocketAddr, payload: &[u8]) {
    match exchange(ns, to, payload) {
        Ok(answer) => assert_eq!(answer, payload, "echo of {to}"),
        Err(e) => panic!("{to}: {e}"),
    }
}

/// Asserts that an exchange was refused: by a reset or a refusal, soon, and without a byte of an answer.
#[track_caller]
pub fn assert_refused(ns: &NetNs, to: SocketAddr, payload: &[u8]) -> io::Error {
    let start = Instant::now();
    let error = match exchange(ns, to, payload) {
        Ok(answer) => panic!("{to} answered {} bytes and a clean end, instead of a reset", answer.len()),
        Err(error) => error,
    };
    assert!(is_reset(&error), "{to}: {error}, instead of a reset");
    assert!(start.elapsed() < Duration::from_secs(8), "refused only after {:?}", start.elapsed());
    error
}

/// Whether a peer, or the kernel in its name, said no.
pub fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Waits for the end of an open stream that should be cut: gives the error, or `None` for a clean end.
#[track_caller]
pub fn wait_cut(stream: &mut TcpStream, limit: Duration) -> Option<io::Error> {
    stream.set_read_timeout(Some(limit)).expect("time-out");
    let mut byte = [0; 1];
    match stream.read(&mut byte) {
        Ok(0) => None,
        Ok(_) => panic!("data instead of an end"),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => panic!("still open after {limit:?}"),
        Err(e) => Some(e),
    }
}

/// Fills `buffer` with the bytes that stand at `offset` of an endless, position-dependent pattern.
pub fn pattern(offset: u64, buffer: &mut [u8]) {
    for (at, byte) in (offset..).zip(buffer) {
        // Any lost, repeated or swapped block changes some byte: each word holds its own index, stirred.
        let word = (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        *byte = word.to_le_bytes()[(at % 8) as usize];
    }
}

/// Writes `length` bytes of the pattern.
pub fn send_pattern(stream: &mut impl Write, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut sent = 0;
    while sent < length {
        let chunk = buffer.len().min((length - sent) as usize);
        pattern(sent, &mut buffer[..chunk]);
        stream.write_all(&buffer[..chunk])?;
        sent += chunk as u64;
    }
    Ok(())
}

/// Reads to the end of the stream and checks every byte against the pattern; gives the number of bytes.
pub fn check_pattern(stream: &mut impl Read) -> io::Result<u64> {
    let (mut buffer, mut expected) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut got = 0;
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(got);
        }
        pattern(got, &mut expected[..n]);
        if buffer[..n] != expected[..n] {
            return Err(io::Error::other(format!("bytes differ within {n} after {got}")));
        }
        got += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_is_the_same_however_it_is_cut() {
        let mut whole = vec![0; 1000];
        pattern(0, &mut whole);
        let mut part = vec![0; 77];
        pattern(333, &mut part);
        assert_eq!(whole[333..410], part[..]);
        assert!(check_pattern(&mut &whole[..]).is_ok());
        whole.swap(10, 500);
        assert!(check_pattern(&mut &whole[..]).is_err());
    }
}
