//! The head of a tunnel request: any method, authority and header values. What is accepted can be sent on, and is then
//! read as the same.
#![no_main]

use arbitrary::Arbitrary;
use http::{HeaderValue, Method, Request};
use libfuzzer_sys::fuzz_target;
use warren_core::tunnel::ConnectRequest;

#[derive(Debug, Arbitrary)]
struct Head<'a> {
    other_method: bool,
    uri: &'a str,
    baggage: Vec<&'a [u8]>,
    forwarded: Vec<&'a [u8]>,
    traceparent: Vec<&'a [u8]>,
    random: [u8; 24],
}

fuzz_target!(|head: Head<'_>| {
    let method = if head.other_method { Method::POST } else { Method::CONNECT };
    let mut builder = Request::builder().method(method).uri(head.uri);
    let lines = [("baggage", &head.baggage), ("forwarded", &head.forwarded), ("traceparent", &head.traceparent)];
    for (name, values) in lines {
        for value in values.iter().filter_map(|bytes| HeaderValue::from_bytes(bytes).ok()) {
            builder = builder.header(name, value);
        }
    }
    let Ok(request) = builder.body(()) else { return };
    let read = match ConnectRequest::from_http(&request.into_parts().0, head.random) {
        Ok(read) => read,
        Err(reason) => return assert_eq!(reason.status(), 400),
    };
    assert!(!head.other_method);
    let again = resent(&read);
    assert_eq!(again.authority, read.authority);
    assert_eq!(again.traceparent, read.traceparent);
    // Values that the header has no way to say are left out, once and for all.
    assert_eq!(resent(&again).baggage, again.baggage);
});

fn resent(request: &ConnectRequest) -> ConnectRequest {
    let sent = request.to_http().expect("what was accepted can be sent");
    ConnectRequest::from_http(&sent.into_parts().0, [0; 24]).expect("what we send can be read")
}
