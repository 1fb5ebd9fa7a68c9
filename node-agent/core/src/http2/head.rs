//! Heads of requests and responses, as the `http` crate has them (RFC 9113 §8.3, §8.5).

use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};

use super::hpack::{Decoder, HpackError, encoder};

/// What a field costs besides its octets (RFC 9113 §6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// Why a head is malformed: the stream is refused, the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The list is longer than we said we take.
    #[error("the header list is too long")]
    TooLong,
    /// A rule of RFC 9113 §8.3 is broken.
    #[error("{0}")]
    Malformed(&'static str),
}

/// The block of a CONNECT request: `:method`, `:authority` and the headers of `request`, nothing else.
pub(super) fn write_connect(request: &Request<()>, block: &mut Vec<u8>) {
    encoder::connect_method(block);
    encoder::authority(block, request.uri().authority().map_or("", |authority| authority.as_str()));
    write_headers(request.headers(), block);
}

/// The block of a response.
pub(super) fn write_response(status: StatusCode, headers: &HeaderMap, block: &mut Vec<u8>) {
    encoder::status(block, status.as_u16());
    write_headers(headers, block);
}

fn write_headers(headers: &HeaderMap, block: &mut Vec<u8>) {
    for (name, value) in headers {
        encoder::field(block, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// The pseudo-headers and headers of one block.
#[derive(Default)]
struct Fields {
    method: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    scheme: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    status: Option<Vec<u8>>,
    headers: HeaderMap,
    size: usize,
    wrong: Option<HeadError>,
}

impl Fields {
    fn read(decoder: &mut Decoder, block: &[u8], limit: usize) -> Result<Self, HpackError> {
        let mut fields = Self::default();
        decoder.decode(block, |name, value| fields.take(name, value, limit))?;
        Ok(fields)
    }

    /// Takes one field in. After the first fault the rest is only decoded, for the sake of the table.
    fn take(&mut self, name: &[u8], value: &[u8], limit: usize) {
        if self.wrong.is_some() {
            return;
        }
        self.size += name.len() + value.len() + FIELD_OVERHEAD;
        let taken = if self.size > limit {
            Err(HeadError::TooLong)
        } else if name.starts_with(b":") {
            self.take_pseudo(name, value)
        } else {
            self.take_header(name, value)
        };
        self.wrong = taken.err();
    }

    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        if !self.headers.is_empty() {
            return Err(HeadError::Malformed("a pseudo-header after a header"));
        }
        let slot = match name {
            b":method" => &mut self.method,
            b":authority" => &mut self.authority,
            b":scheme" => &mut self.scheme,
            b":path" => &mut self.path,
            b":status" => &mut self.status,
            // Among them :protocol: extended CONNECT is not enabled in our SETTINGS.
            _ => return Err(HeadError::Malformed("an unknown pseudo-header")),
        };
        if slot.replace(value.to_vec()).is_some() {
            return Err(HeadError::Malformed("a pseudo-header twice"));
        }
        Ok(())
    }

    fn take_header(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        if name.iter().any(u8::is_ascii_uppercase) {
            return Err(HeadError::Malformed("an upper-case header name"));
        }
        let name = HeaderName::from_bytes(name).map_err(|_| HeadError::Malformed("a header name that is none"))?;
        if is_of_the_connection(name.as_str()) {
            return Err(HeadError::Malformed("a header of HTTP/1 connections"));
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| HeadError::Malformed("a header value that is none"))?;
        self.headers.append(name, value);
        Ok(())
    }
}

/// Headers that HTTP/2 must not carry (RFC 9113 §8.2.2).
fn is_of_the_connection(name: &str) -> bool {
    matches!(name, "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade")
}

/// Reads a request. What it asks for is judged by [`ConnectRequest`](crate::tunnel::ConnectRequest); here stands only
/// what HTTP/2 itself demands.
pub(super) fn read_request(
    decoder: &mut Decoder,
    block: &[u8],
    limit: usize,
) -> Result<Result<Parts, HeadError>, HpackError> {
    Ok(request(Fields::read(decoder, block, limit)?))
}

fn request(fields: Fields) -> Result<Parts, HeadError> {
    let malformed = |_| HeadError::Malformed("the request's target is none");
    if let Some(wrong) = fields.wrong {
        return Err(wrong);
    }
    if fields.status.is_some() {
        return Err(HeadError::Malformed(":status in a request"));
    }
    let method = fields.method.ok_or(HeadError::Malformed("no :method"))?;
    let method = Method::from_bytes(&method).map_err(|_| HeadError::Malformed("the :method is none"))?;
    let mut target = Uri::builder();
    let whole = fields.scheme.is_some() && fields.path.is_some();
    if let Some(authority) = &fields.authority {
        target = target.authority(&authority[..]);
    }
    if let Some(scheme) = &fields.scheme {
        target = target.scheme(&scheme[..]);
    }
    if let Some(path) = &fields.path {
        target = target.path_and_query(&path[..]);
    }
    let target = match target.build() {
        Ok(target) => target,
        // `Uri` knows scheme and path together only. Half of them breaks the rules anyway, for CONNECT and for others.
        Err(_) if !whole && (fields.scheme.is_some() || fields.path.is_some()) => {
            return Err(HeadError::Malformed(":scheme or :path without the other"));
        }
        Err(error) => return Err(malformed(error)),
    };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = fields.headers;
    Ok(request.into_parts().0)
}

/// Reads a response.
pub(super) fn read_response(
    decoder: &mut Decoder,
    block: &[u8],
    limit: usize,
) -> Result<Result<(StatusCode, HeaderMap), HeadError>, HpackError> {
    Ok(response(Fields::read(decoder, block, limit)?))
}

fn response(fields: Fields) -> Result<(StatusCode, HeaderMap), HeadError> {
    if let Some(wrong) = fields.wrong {
        return Err(wrong);
    }
    let status = fields.status.ok_or(HeadError::Malformed("no :status"))?;
    let status = StatusCode::from_bytes(&status).map_err(|_| HeadError::Malformed("the :status is none"))?;
    Ok((status, fields.headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            encoder::field(&mut block, name.as_bytes(), value.as_bytes());
        }
        block
    }

    fn read(fields: &[(&str, &str)]) -> Result<Parts, HeadError> {
        read_request(&mut Decoder::new(0), &block(fields), 1000).unwrap()
    }

    #[test]
    fn a_connect_request_is_read_as_it_was_written() {
        let mut request = Request::builder().method(Method::CONNECT).uri("[fd00::1]:80").body(()).unwrap();
        request.headers_mut().insert("baggage", HeaderValue::from_static("a=b"));
        let mut block = Vec::new();
        write_connect(&request, &mut block);
        let parts = read_request(&mut Decoder::new(0), &block, 1000).unwrap().unwrap();
        assert_eq!((parts.method, parts.uri.to_string()), (Method::CONNECT, "[fd00::1]:80".to_owned()));
        assert_eq!(parts.headers["baggage"], "a=b");
    }

    #[test]
    fn other_requests_are_read_too_so_that_they_can_be_refused() {
        let get = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/x")];
        assert_eq!(read(&get).unwrap().uri.to_string(), "https://a/x");
    }

    #[test]
    fn what_breaks_the_rules_is_refused_by_name() {
        for fields in [
            &[("a", "b"), (":method", "CONNECT")][..],
            &[(":method", "CONNECT"), (":method", "CONNECT")],
            &[(":method", "CONNECT"), (":protocol", "websocket")],
            &[(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")],
            &[(":authority", "a:1")],
            &[(":method", "CONNECT"), (":authority", "a:1"), ("Upper", "x")],
            &[(":method", "CONNECT"), (":authority", "a:1"), ("connection", "close")],
            &[(":method", "CONNECT"), (":authority", "a:1"), ("x", "a\r\nb")],
            &[(":method", "CONNECT"), (":authority", "a b")],
            &[(":method", "CONNECT"), (":status", "200")],
        ] {
            assert!(matches!(read(fields), Err(HeadError::Malformed(_))), "{fields:?}");
        }
        let long = "x".repeat(2000);
        assert_eq!(read(&[(":method", "CONNECT"), ("a", &long)]).unwrap_err(), HeadError::TooLong);
    }

    #[test]
    fn responses() {
        let mut block = Vec::new();
        write_response(StatusCode::UNAUTHORIZED, &HeaderMap::new(), &mut block);
        let (status, headers) = read_response(&mut Decoder::new(0), &block, 1000).unwrap().unwrap();
        assert_eq!((status, headers.len()), (StatusCode::UNAUTHORIZED, 0));
        let mut bare = Vec::new();
        write_headers(&HeaderMap::new(), &mut bare);
        assert!(read_response(&mut Decoder::new(0), &bare, 1000).unwrap().is_err());
    }
}
