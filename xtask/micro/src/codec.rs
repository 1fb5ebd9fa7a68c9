//! HTTP/2 as HBONE has it: frames and heads, both ends in one process.

use std::hint::black_box;

use anyhow::{Result, ensure};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use warren_core::http2::{Config, Connection, Decoder, ErrorCode, Event, Http2Error, StreamId, encoder};

use crate::measure::{Case, Row, Timing};

/// How its rows begin.
pub const ROW: &str = "codec";

/// Warren's own (see ARCHITECTURE.md).
const CONFIG: Config = Config {
    stream_window: 1 << 20,
    connection_window: 100 << 20,
    max_frame_size: 1 << 16,
    max_header_list: 16_384,
    max_streams: 100,
};
/// Operations in one call.
const AT_ONCE: usize = 64;
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const FORWARDED: &str = "for=10.1.0.2";

/// Frames and heads.
pub fn measure(timing: Timing) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for case in cases()? {
        rows.extend(crate::measure::measure(vec![case], timing));
    }
    Ok(rows)
}

/// Every case.
pub fn cases() -> Result<Vec<Case<'static>>> {
    Ok(vec![data(64)?, data(16 << 10)?, data(64 << 10)?, stream()?, encoding(), decoding()?])
}

/// A DATA frame: its head made by the sender, taken in by the receiver, its credit given back.
fn data(size: usize) -> Result<Case<'static>> {
    let mut pair = Pair::new()?;
    let stream = pair.open()?;
    let payload = vec![0x5a; size];
    Ok(Case::new(format!("{ROW}-data-{size}"), AT_ONCE, move || {
        for _ in 0..AT_ONCE {
            let head = pair.client.data_head(stream, payload.len());
            let taken = receive(&mut pair.server, &head) + receive(&mut pair.server, &payload);
            pair.server.consumed(stream, black_box(taken));
            pair.answer();
        }
    }))
}

/// A stream: CONNECT, 200, reset.
fn stream() -> Result<Case<'static>> {
    let mut pair = Pair::new()?;
    pair.open()?;
    Ok(Case::new(format!("{ROW}-stream"), AT_ONCE, move || {
        for _ in 0..AT_ONCE {
            if let Ok(stream) = pair.open() {
                pair.client.reset(stream, ErrorCode::CANCEL);
                pair.ask();
            }
        }
    }))
}

/// The block of a CONNECT request.
fn encoding() -> Case<'static> {
    let mut block = Vec::with_capacity(512);
    Case::new(format!("{ROW}-hpack-encode"), AT_ONCE, move || {
        for _ in 0..AT_ONCE {
            block.clear();
            write(black_box(&mut block));
        }
    })
}

/// The fields of such a block.
fn decoding() -> Result<Case<'static>> {
    let mut block = Vec::new();
    write(&mut block);
    let mut decoder = Decoder::new(4096);
    let mut fields = 0;
    decoder.decode(&block, |_, _| fields += 1)?;
    ensure!(fields == 4, "{fields} fields");
    Ok(Case::new(format!("{ROW}-hpack-decode"), AT_ONCE, move || {
        for _ in 0..AT_ONCE {
            let _ = decoder.decode(black_box(&block), |name, value| {
                black_box((name, value));
            });
        }
    }))
}

fn write(block: &mut Vec<u8>) {
    encoder::connect_method(block);
    encoder::authority(block, "10.244.17.201:8080");
    encoder::field(block, b"traceparent", TRACEPARENT.as_bytes());
    encoder::field(block, b"forwarded", FORWARDED.as_bytes());
}

/// Both ends of a connection.
struct Pair {
    client: Connection,
    server: Connection,
    request: Request<()>,
}

impl Pair {
    fn new() -> Result<Self> {
        let mut request = Request::builder().method(Method::CONNECT).uri("10.244.17.201:8080").body(())?;
        request.headers_mut().insert("traceparent", HeaderValue::from_static(TRACEPARENT));
        request.headers_mut().insert("forwarded", HeaderValue::from_static(FORWARDED));
        let mut pair = Self { client: Connection::client(CONFIG), server: Connection::server(CONFIG), request };
        for _ in 0..2 {
            pair.ask();
            pair.answer();
        }
        ensure!(pair.client.has_met_peer() && pair.server.has_met_peer(), "the ends have not met");
        Ok(pair)
    }

    /// A stream that was answered.
    fn open(&mut self) -> Result<StreamId> {
        let stream = self.client.open(&self.request);
        self.ask();
        let stream = stream.filter(|stream| self.server.respond(*stream, StatusCode::OK, &HeaderMap::new(), false));
        self.answer();
        stream.ok_or_else(|| anyhow::anyhow!("no stream"))
    }

    /// What the client has to say.
    fn ask(&mut self) {
        if let Some(octets) = self.client.take_control() {
            receive(&mut self.server, &octets);
        }
    }

    /// What the server has to say.
    fn answer(&mut self) {
        if let Some(octets) = self.server.take_control() {
            receive(&mut self.client, &octets);
        }
    }
}

/// Takes octets in; gives the number of those that were payload.
fn receive(end: &mut Connection, octets: &[u8]) -> usize {
    try_receive(end, octets).unwrap_or(0)
}

fn try_receive(end: &mut Connection, mut octets: &[u8]) -> Result<usize, Http2Error> {
    let mut payload = 0;
    while let Some(event) = end.poll(&mut octets)? {
        if let Event::Data { bytes, .. } = black_box(event) {
            payload += bytes.len();
        }
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_streams_go_through_however_many() {
        let mut pair = Pair::new().unwrap();
        let stream = pair.open().unwrap();
        for _ in 0..10_000 {
            let head = pair.client.data_head(stream, 1000);
            assert_eq!(receive(&mut pair.server, &head) + receive(&mut pair.server, &[7; 1000]), 1000);
            pair.server.consumed(stream, 1000);
            pair.answer();
            assert!(pair.client.room(stream).unwrap() > 400_000);
        }
        for _ in 0..10_000 {
            let stream = pair.open().unwrap();
            pair.client.reset(stream, ErrorCode::CANCEL);
            pair.ask();
        }
        assert_eq!((pair.client.streams(), pair.server.streams()), (1, 1));
    }
}
