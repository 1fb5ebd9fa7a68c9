//! Two ends talk, and one end meets a peer that breaks the rules.

use http::{HeaderMap, Method, Request, StatusCode};

use super::frame::{FrameHead, flag, kind};
use super::*;

const CONFIG: Config = Config {
    stream_window: 100_000,
    connection_window: 200_000,
    max_frame_size: 16_384,
    max_header_list: 16_384,
    max_streams: 10,
};

/// What happened, without the borrowed parts.
#[derive(Debug, PartialEq)]
enum Seen {
    Request(StreamId, Result<String, HeadError>, bool),
    Response(StreamId, Result<u16, HeadError>),
    Data(StreamId, Vec<u8>),
    Ended(StreamId),
    Reset(StreamId, ErrorCode, bool),
    Room(Option<StreamId>),
    GoingAway(StreamId, ErrorCode),
    Pong,
}

fn receive(end: &mut Connection, mut octets: &[u8]) -> Result<Vec<Seen>, Http2Error> {
    let mut seen = Vec::new();
    while let Some(event) = end.poll(&mut octets)? {
        seen.push(match event {
            Event::Request { stream, head, ended } => Seen::Request(stream, head.map(|p| p.uri.to_string()), ended),
            Event::Response { stream, head, .. } => Seen::Response(stream, head.map(|head| head.0.as_u16())),
            Event::Data { stream, bytes } => Seen::Data(stream, bytes.to_vec()),
            Event::Ended { stream } => Seen::Ended(stream),
            Event::Reset { stream, code, by_peer } => Seen::Reset(stream, code, by_peer),
            Event::Room { stream } => Seen::Room(stream),
            Event::GoingAway { last, code } => Seen::GoingAway(last, code),
            Event::Pong { .. } => Seen::Pong,
        });
    }
    Ok(seen)
}

fn pass(from: &mut Connection, to: &mut Connection) -> Vec<Seen> {
    let octets = from.take_control().unwrap_or_default();
    receive(to, &octets).unwrap()
}

fn connect() -> Request<()> {
    Request::builder().method(Method::CONNECT).uri("10.0.0.1:80").body(()).unwrap()
}

/// Both ends with their SETTINGS exchanged.
fn met() -> (Connection, Connection) {
    let (mut client, mut server) = (Connection::client(CONFIG), Connection::server(CONFIG));
    for _ in 0..2 {
        pass(&mut client, &mut server);
        pass(&mut server, &mut client);
    }
    assert!(!client.has_control() && !server.has_control());
    (client, server)
}

/// One open stream, answered.
fn open() -> (Connection, Connection, StreamId) {
    let (mut client, mut server) = met();
    let stream = client.open(&connect()).unwrap();
    assert_eq!(pass(&mut client, &mut server), [Seen::Request(stream, Ok("10.0.0.1:80".into()), false)]);
    assert!(server.respond(stream, StatusCode::OK, &HeaderMap::new(), false));
    assert_eq!(pass(&mut server, &mut client), [Seen::Response(stream, Ok(200))]);
    (client, server, stream)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = FrameHead { length: payload.len(), kind, flags, stream }.bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn send(from: &mut Connection, to: &mut Connection, stream: StreamId, bytes: &[u8]) -> Vec<Seen> {
    let mut octets = from.data_head(stream, bytes.len()).to_vec();
    octets.extend_from_slice(bytes);
    receive(to, &octets).unwrap()
}

#[test]
fn a_stream_lives_through_both_half_closes() {
    let (mut client, mut server, stream) = open();
    assert_eq!(send(&mut client, &mut server, stream, b"ping"), [Seen::Data(stream, b"ping".to_vec())]);
    client.end(stream);
    assert_eq!(pass(&mut client, &mut server), [Seen::Ended(stream)]);
    assert_eq!(client.room(stream), None);
    assert_eq!(send(&mut server, &mut client, stream, b"pong"), [Seen::Data(stream, b"pong".to_vec())]);
    server.end(stream);
    assert_eq!(pass(&mut server, &mut client), [Seen::Ended(stream)]);
    assert_eq!((client.streams(), server.streams()), (0, 0));
}

#[test]
fn windows_bound_what_is_sent_and_credit_reopens_them() {
    let (mut client, mut server, stream) = open();
    assert_eq!(client.room(stream), Some(100_000));
    let mut sent = 0;
    while let Some(room @ 1..) = client.room(stream) {
        let piece = vec![0; room.min(client.max_data())];
        sent += piece.len();
        assert_eq!(send(&mut client, &mut server, stream, &piece).len(), 1);
    }
    assert_eq!(sent, 100_000);
    let over = frame(kind::DATA, 0, stream, b"x");
    assert_eq!(
        receive(&mut server.clone(), &over).unwrap(),
        [Seen::Reset(stream, ErrorCode::FLOW_CONTROL_ERROR, false)]
    );
    server.consumed(stream, 49_999);
    assert!(!server.has_control());
    server.consumed(stream, 1);
    assert_eq!(pass(&mut server, &mut client), [Seen::Room(Some(stream))]);
    assert_eq!(client.room(stream), Some(50_000));
    server.consumed(stream, 50_000);
    assert_eq!(pass(&mut server, &mut client), [Seen::Room(Some(stream)), Seen::Room(None)]);
}

#[test]
fn octets_of_a_stream_that_is_gone_do_not_eat_the_connections_window() {
    let (mut client, mut server, stream) = open();
    server.reset(stream, ErrorCode::CANCEL);
    let mut taken = 0;
    for _ in 0..20 {
        // The client has not heard of it yet.
        let mut octets = frame(kind::DATA, 0, stream, &[0; 10_000]);
        octets.truncate(octets.len());
        assert_eq!(receive(&mut server, &octets).unwrap(), []);
        taken += 10_000;
    }
    assert_eq!(taken, 200_000);
    let told = pass(&mut server, &mut client);
    assert_eq!(told[0], Seen::Reset(stream, ErrorCode::CANCEL, true));
    assert_eq!(told.iter().filter(|seen| **seen == Seen::Room(None)).count(), 2);
}

#[test]
fn padding_costs_window_and_is_credited_at_once() {
    let (_client, mut server, stream) = open();
    for _ in 0..100 {
        let mut padded = vec![255];
        padded.extend_from_slice(&[0; 255]);
        let seen = receive(&mut server, &frame(kind::DATA, flag::PADDED, stream, &padded)).unwrap();
        assert_eq!(seen, []);
    }
    assert!(server.streams() == 1);
}

#[test]
fn a_response_that_ends_the_stream_refuses_it() {
    let (mut client, mut server) = met();
    let stream = client.open(&connect()).unwrap();
    pass(&mut client, &mut server);
    assert!(server.respond(stream, StatusCode::UNAUTHORIZED, &HeaderMap::new(), true));
    assert!(!server.respond(stream, StatusCode::OK, &HeaderMap::new(), true));
    assert_eq!(
        pass(&mut server, &mut client),
        [Seen::Response(stream, Ok(401)), Seen::Reset(stream, ErrorCode::NO_ERROR, true)]
    );
    assert_eq!((client.streams(), server.streams()), (0, 0));
}

#[test]
fn resets_pass_and_late_frames_are_ignored() {
    let (mut client, mut server, stream) = open();
    client.reset(stream, ErrorCode::CANCEL);
    assert_eq!(pass(&mut client, &mut server), [Seen::Reset(stream, ErrorCode::CANCEL, true)]);
    for late in [frame(kind::RST_STREAM, 0, stream, &[0; 4]), frame(kind::WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1])] {
        assert_eq!(receive(&mut server, &late).unwrap(), []);
    }
}

#[test]
fn more_streams_than_allowed_are_refused_and_may_be_tried_elsewhere() {
    let (mut client, mut server) = met();
    assert_eq!(client.peer_max_streams(), 10);
    let opened: Vec<_> = std::iter::from_fn(|| client.open(&connect())).collect();
    assert_eq!(opened.len(), 10);
    client.peer.max_streams = 11;
    let refused = client.open(&connect()).unwrap();
    assert_eq!(pass(&mut client, &mut server).len(), 10);
    assert_eq!(pass(&mut server, &mut client), [Seen::Reset(refused, ErrorCode::REFUSED_STREAM, true)]);
}

#[test]
fn a_drain_takes_what_was_under_way_and_nothing_later() {
    let (mut client, mut server, old) = open();
    server.drain();
    let crossing = client.open(&connect()).unwrap();
    assert_eq!(pass(&mut client, &mut server), [Seen::Request(crossing, Ok("10.0.0.1:80".into()), false)]);
    assert_eq!(pass(&mut server, &mut client), [Seen::GoingAway(0x7fff_ffff, ErrorCode::NO_ERROR)]);
    assert!(!client.may_open());
    assert_eq!(pass(&mut client, &mut server), [Seen::Pong]);
    assert_eq!(pass(&mut server, &mut client), [Seen::GoingAway(crossing, ErrorCode::NO_ERROR)]);
    assert!(!server.is_drained());
    server.reset(old, ErrorCode::CANCEL);
    server.reset(crossing, ErrorCode::CANCEL);
    assert!(server.is_drained());
}

#[test]
fn streams_above_a_goaway_are_forgotten_by_the_client() {
    let (mut client, _server, old) = open();
    let lost = client.open(&connect()).unwrap();
    let mut payload = old.to_be_bytes().to_vec();
    payload.extend_from_slice(&[0; 4]);
    let seen = receive(&mut client, &frame(kind::GOAWAY, 0, 0, &payload)).unwrap();
    assert_eq!(seen, [Seen::GoingAway(old, ErrorCode::NO_ERROR)]);
    assert_eq!((client.room(old), client.room(lost)), (Some(100_000), None));
}

#[test]
fn a_change_of_the_initial_window_moves_open_streams() {
    let (mut client, _server, stream) = open();
    client.data_head(stream, 60_000);
    let seen = receive(&mut client, &frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0xc3, 0x50])).unwrap();
    assert_eq!(seen, [Seen::Room(None)]);
    assert_eq!(client.room(stream), Some(0), "50,000 less 60,000");
    receive(&mut client, &frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0x86, 0xa0])).unwrap();
    assert_eq!(client.room(stream), Some(40_000));
}

#[test]
fn trailers_end_a_stream() {
    let (mut client, _server, stream) = open();
    let mut block = Vec::new();
    encoder::field(&mut block, b"x", b"y");
    let trailers = frame(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, stream, &block);
    assert_eq!(receive(&mut client, &trailers).unwrap(), [Seen::Ended(stream)]);
}

#[test]
fn an_announcement_is_not_the_answer() {
    let (mut client, _server) = met();
    let stream = client.open(&connect()).unwrap();
    let response = |code| {
        let mut block = Vec::new();
        encoder::status(&mut block, code);
        frame(kind::HEADERS, flag::END_HEADERS, stream, &block)
    };
    assert_eq!(receive(&mut client, &response(103)).unwrap(), []);
    assert_eq!(receive(&mut client, &response(200)).unwrap(), [Seen::Response(stream, Ok(200))]);
}

#[test]
fn malformed_heads_cost_the_stream_only() {
    let (_client, mut server) = met();
    let mut block = Vec::new();
    encoder::field(&mut block, b"Upper", b"");
    let request = frame(kind::HEADERS, flag::END_HEADERS, 1, &block);
    let seen = receive(&mut server, &request).unwrap();
    assert!(matches!(seen[..], [Seen::Request(1, Err(HeadError::Malformed(_)), false)]), "{seen:?}");
    block.clear();
    encoder::connect_method(&mut block);
    encoder::field(&mut block, b"long", &[b'x'; 17_000]);
    let mut octets = frame(kind::HEADERS, 0, 3, &block[..10_000]);
    octets.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 3, &block[10_000..]));
    assert_eq!(receive(&mut server, &octets).unwrap(), [Seen::Request(3, Err(HeadError::TooLong), false)]);
}

#[test]
fn what_breaks_the_connection() {
    let endless: Vec<u8> = (0..200).flat_map(|_| frame(kind::CONTINUATION, 0, 5, b"")).collect();
    let cases = [
        ("HEADERS on stream 0", frame(kind::HEADERS, 4, 0, &[])),
        ("even stream", frame(kind::HEADERS, 4, 2, &[0x88])),
        ("DATA on an idle stream", frame(kind::DATA, 0, 9, b"x")),
        ("RST_STREAM on an idle stream", frame(kind::RST_STREAM, 0, 9, &[0; 4])),
        ("WINDOW_UPDATE on an idle stream", frame(kind::WINDOW_UPDATE, 0, 9, &[0, 0, 0, 1])),
        ("WINDOW_UPDATE of nothing", frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("WINDOW_UPDATE beyond 2^31-1", frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("short PING", frame(kind::PING, 0, 0, &[0; 7])),
        ("PING on a stream", frame(kind::PING, 0, 1, &[0; 8])),
        ("short GOAWAY", frame(kind::GOAWAY, 0, 0, &[0; 7])),
        ("SETTINGS on a stream", frame(kind::SETTINGS, 0, 1, &[])),
        ("SETTINGS of a broken length", frame(kind::SETTINGS, 0, 0, &[0; 5])),
        ("ACK with a payload", frame(kind::SETTINGS, 1, 0, &[0; 6])),
        ("too large an initial window", frame(kind::SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("too small a frame size", frame(kind::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("PUSH_PROMISE", frame(kind::PUSH_PROMISE, 4, 1, &[0; 4])),
        ("CONTINUATION of nothing", frame(kind::CONTINUATION, 4, 1, &[])),
        ("bad HPACK", frame(kind::HEADERS, 4, 5, &[0xff, 0x7f])),
        ("interrupted block", [frame(kind::HEADERS, 0, 5, &[]), frame(kind::PING, 0, 0, &[0; 8])].concat()),
        ("endless block", [frame(kind::HEADERS, 0, 5, &[]), endless].concat()),
        ("empty frames", [frame(kind::HEADERS, 4, 5, &[0x82]), frame(kind::DATA, 0, 5, b"").repeat(2000)].concat()),
        ("pings unread", frame(kind::PING, 0, 0, &[0; 8]).repeat(20_000)),
    ];
    for (what, octets) in cases {
        let (_client, mut server) = met();
        assert!(receive(&mut server, &octets).is_err(), "{what}");
    }
    let mut stranger = Connection::server(CONFIG);
    let octets = [PREFACE.to_vec(), frame(kind::PING, 0, 0, &[0; 8])].concat();
    assert!(receive(&mut stranger, &octets).is_err(), "the first frame is not SETTINGS");
}

#[test]
fn streams_opened_only_to_be_reset_end_the_connection_but_answered_ones_do_not_count() {
    let mut block = Vec::new();
    encoder::connect_method(&mut block);
    let one = |stream: u32| frame(kind::HEADERS, flag::END_HEADERS, stream, &block);
    let reset = |stream: u32| frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    let (_client, mut server) = met();
    let storm = (0..).map(|n| 2 * n + 1).find(|stream| {
        receive(&mut server, &one(*stream)).unwrap();
        receive(&mut server, &reset(*stream)).is_err()
    });
    assert!(storm.is_some_and(|stream| (1000..3000).contains(&stream)));
    let (_client, mut server) = met();
    for stream in (1..6001).step_by(2) {
        receive(&mut server, &one(stream)).unwrap();
        assert!(server.respond(stream, StatusCode::OK, &HeaderMap::new(), false));
        receive(&mut server, &reset(stream)).unwrap();
        server.take_control();
    }
}
