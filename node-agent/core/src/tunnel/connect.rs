//! The CONNECT head, built and read strictly (hbone.md §7): `:method` and
//! `:authority`, nothing else in the pseudo-headers.

use http::header::HeaderName;
use http::request::Parts;
use http::{Method, Request, StatusCode, Uri, Version};

use super::authority::{Authority, AuthorityError};
use super::headers::{BAGGAGE, Baggage, FORWARDED, Forwarded, TRACEPARENT, TraceParent};

/// One CONNECT request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// What is asked for.
    pub authority: Authority,
    /// The source workload by its own account; for telemetry only.
    pub baggage: Baggage,
    /// The source address and service by its own account; for telemetry only.
    pub forwarded: Option<Forwarded>,
    /// Joins the logs of both ends.
    pub traceparent: TraceParent,
}

/// Why a request is not a CONNECT request of HBONE. The answer is 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Another method.
    #[error("the method is not CONNECT")]
    Method,
    /// A `:scheme`, which plain CONNECT must not have (RFC 9113 §8.5).
    #[error("CONNECT with :scheme")]
    Scheme,
    /// A `:path`, which plain CONNECT must not have (RFC 9113 §8.5).
    #[error("CONNECT with :path")]
    Path,
    /// No `:authority`.
    #[error("CONNECT without :authority")]
    NoAuthority,
    /// The `:authority` is neither an address nor host and port.
    #[error(":authority: {0}")]
    Authority(#[from] AuthorityError),
}

impl ConnectError {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }
}

impl ConnectRequest {
    /// The request to send.
    pub fn to_http(&self) -> Result<Request<()>, http::Error> {
        let uri = Uri::try_from(self.authority.to_string())?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        let forwarded = self.forwarded.as_ref().and_then(Forwarded::to_header);
        let values = [(BAGGAGE, self.baggage.to_header()), (FORWARDED, forwarded)];
        for (name, value) in values {
            if let Some(value) = value {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers.insert(TRACEPARENT, self.traceparent.to_string().try_into()?);
        Ok(request)
    }

    /// Reads a received head. `new_trace` is 24 random bytes, used when the
    /// peer sent no usable `traceparent`. Extended CONNECT (`:protocol`) never
    /// gets here: it is not enabled in our SETTINGS, so the HTTP/2 library
    /// refuses it.
    pub fn from_http(parts: &Parts, new_trace: [u8; 24]) -> Result<Self, ConnectError> {
        if parts.method != Method::CONNECT {
            return Err(ConnectError::Method);
        }
        if parts.uri.scheme().is_some() {
            return Err(ConnectError::Scheme);
        }
        if parts.uri.path_and_query().is_some() {
            return Err(ConnectError::Path);
        }
        let authority = parts.uri.authority().ok_or(ConnectError::NoAuthority)?;
        Ok(Self {
            authority: authority.as_str().parse()?,
            baggage: Baggage::from_headers(&parts.headers),
            forwarded: Forwarded::from_headers(&parts.headers),
            traceparent: TraceParent::from_headers(&parts.headers)
                .unwrap_or_else(|| TraceParent::from_random(new_trace)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: Method, uri: &str) -> Parts {
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        request.into_parts().0
    }

    fn request(authority: &str) -> ConnectRequest {
        ConnectRequest {
            authority: authority.parse().unwrap(),
            baggage: Baggage { namespace: Some("case".into()), ..Baggage::default() },
            forwarded: Some(Forwarded {
                client: Some("10.0.0.1:4711".parse().unwrap()),
                host: Some("s.n.svc.cluster.local".into()),
            }),
            traceparent: TraceParent::from_random([7; 24]),
        }
    }

    #[test]
    fn what_is_built_is_read_back() {
        for authority in ["10.0.0.2:8080", "[fd00::2]:8080", "s.n.svc.cluster.local:80"] {
            let request = request(authority);
            let (parts, ()) = request.to_http().unwrap().into_parts();
            assert_eq!(parts.uri.to_string(), authority);
            assert_eq!(ConnectRequest::from_http(&parts, [0; 24]), Ok(request));
        }
    }

    #[test]
    fn only_plain_connect_passes() {
        let read = |parts| ConnectRequest::from_http(&parts, [0; 24]).map(|_| ());
        assert_eq!(read(parts(Method::GET, "10.0.0.1:80")), Err(ConnectError::Method));
        let full = parts(Method::CONNECT, "https://10.0.0.1:80/x");
        assert_eq!(read(full), Err(ConnectError::Scheme));
        assert_eq!(read(parts(Method::CONNECT, "/x")), Err(ConnectError::Path));
        assert_eq!(read(parts(Method::CONNECT, "10.0.0.1")), Err(ConnectError::Authority(AuthorityError::NoPort)));
        assert_eq!(read(parts(Method::CONNECT, "10.0.0.1:80")), Ok(()));
    }

    #[test]
    fn a_missing_or_malformed_trace_is_made_anew() {
        let mut parts = parts(Method::CONNECT, "10.0.0.1:80");
        let new = TraceParent::from_random([9; 24]);
        assert_eq!(ConnectRequest::from_http(&parts, [9; 24]).unwrap().traceparent, new);
        parts.headers.insert(TRACEPARENT, "00-zz-zz-00".parse().unwrap());
        assert_eq!(ConnectRequest::from_http(&parts, [9; 24]).unwrap().traceparent, new);
    }
}
