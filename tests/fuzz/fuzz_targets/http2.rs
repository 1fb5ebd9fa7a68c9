//! HTTP/2 from a hostile peer, at either end: nothing breaks, what happens does not depend on how the octets are cut,
//! and what is answered is itself good HTTP/2.
#![no_main]

use arbitrary::Arbitrary;
use http::{HeaderMap, Method, Request, StatusCode};
use libfuzzer_sys::fuzz_target;
use warren_core::http2::{Config, Connection, Event, Http2Error, PREFACE, Role};

const CONFIG: Config = Config {
    stream_window: 70_000,
    connection_window: 200_000,
    max_frame_size: 32_768,
    max_header_list: 4096,
    max_streams: 8,
};

#[derive(Debug, Arbitrary)]
struct Meeting {
    at_server: bool,
    cuts: Vec<u8>,
    frames: Vec<Frame>,
}

#[derive(Debug, Arbitrary)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u8,
    payload: Vec<u8>,
    lie_about_length: Option<u16>,
}

impl Frame {
    fn write(&self, out: &mut Vec<u8>) {
        let length = self.lie_about_length.map_or(self.payload.len(), usize::from) as u32;
        out.extend_from_slice(&length.to_be_bytes()[1..]);
        out.extend_from_slice(&[self.kind % 11, self.flags, 0, 0, 0, self.stream % 16]);
        out.extend_from_slice(&self.payload);
    }
}

fn end(at_server: bool) -> Connection {
    if at_server {
        return Connection::server(CONFIG);
    }
    let mut client = Connection::client(CONFIG);
    let request = Request::builder().method(Method::CONNECT).uri("10.0.0.1:80").body(()).unwrap();
    for _ in 0..3 {
        client.open(&request);
    }
    client
}

/// Gives the octets to one end, and does what an owner would. Answers what happened, DATA joined, and the frames sent.
fn meet(mut end: Connection, pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>, Option<Http2Error>) {
    let (mut log, mut sent): (Vec<String>, Vec<u8>) = Default::default();
    let mut data: Option<(u32, usize)> = None;
    for piece in pieces {
        let mut octets = *piece;
        loop {
            let event = match end.poll(&mut octets) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    log.extend(data.take().map(|data| format!("{data:?}")));
                    end.fail(&error);
                    sent.extend(end.take_control().unwrap_or_default());
                    return (log, sent, Some(error));
                }
            };
            if let Event::Data { stream, bytes } = event {
                assert!(!bytes.is_empty());
                end.consumed(stream, bytes.len());
                data = match data {
                    Some((same, length)) if same == stream => Some((stream, length + bytes.len())),
                    before => {
                        log.extend(before.map(|data| format!("{data:?}")));
                        Some((stream, bytes.len()))
                    }
                };
                continue;
            }
            log.extend(data.take().map(|data| format!("{data:?}")));
            log.push(format!("{event:?}"));
            if let Event::Request { stream, .. } = event {
                let status = if stream % 4 == 1 { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
                assert!(end.respond(stream, status, &HeaderMap::new(), status != StatusCode::OK));
                if let Some(room) = end.room(stream) {
                    let length = room.min(100).min(end.max_data());
                    sent.extend(end.take_control().unwrap_or_default());
                    sent.extend(end.data_head(stream, length));
                    sent.extend(vec![0; length]);
                    end.end(stream);
                }
            }
        }
    }
    log.extend(data.take().map(|data| format!("{data:?}")));
    sent.extend(end.take_control().unwrap_or_default());
    (log, sent, None)
}

fuzz_target!(|meeting: Meeting| {
    let mut octets = if meeting.at_server { PREFACE.to_vec() } else { Vec::new() };
    octets.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    for frame in &meeting.frames {
        frame.write(&mut octets);
    }
    let (whole, sent, error) = meet(end(meeting.at_server), &[&octets]);
    let mut pieces = Vec::new();
    let mut rest = &octets[..];
    for cut in &meeting.cuts {
        let (piece, after) = rest.split_at(rest.len().min(usize::from(*cut)));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    let (in_pieces, sent_in_pieces, same_error) = meet(end(meeting.at_server), &pieces);
    assert_eq!((&whole, error), (&in_pieces, same_error));
    assert_eq!(sent, sent_in_pieces);
    // The other role understands every frame that was sent; frames on streams that it never opened are its only
    // complaint.
    let mut other = if meeting.at_server { Connection::client(CONFIG) } else { Connection::server(CONFIG) };
    assert_eq!(other.role(), if meeting.at_server { Role::Client } else { Role::Server });
    let mut sent = &sent[..];
    let understood = loop {
        match other.poll(&mut sent) {
            Ok(None) => break Ok(()),
            Ok(Some(_)) => {}
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = understood {
        assert!(error.reason.contains("idle stream"), "{error}");
    }
});
