//! The `:authority` of a CONNECT request: an address, or a host with a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::addr::canonical;

/// Longest DNS name in text form, without the root dot.
const MAX_HOST: usize = 253;
/// Longest DNS label.
const MAX_LABEL: usize = 63;

/// What a CONNECT request asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address, canonical.
    Addr(SocketAddr),
    /// A host name, lower case, with a port.
    Host {
        /// The DNS name.
        host: String,
        /// The service port.
        port: u16,
    },
}

impl Authority {
    /// The port, whichever form it is.
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

/// Why a text is no authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// No `:port` at the end.
    #[error("no port")]
    NoPort,
    /// The port is not a decimal number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// The brackets do not hold an IPv6 address.
    #[error("the brackets do not hold an IPv6 address")]
    Ipv6,
    /// The host is neither an address nor a DNS name.
    #[error("the host is neither an address nor a DNS name")]
    Host,
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::NoPort)?;
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(AuthorityError::Ipv6)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| AuthorityError::Ipv6)?;
            let addr = SocketAddr::new(canonical(IpAddr::V6(ip)), parse_port(port)?);
            return Ok(Self::Addr(addr));
        }
        let port = parse_port(port)?;
        if let Ok(ip) = host.parse() {
            return Ok(Self::Addr(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        check_host(host)?;
        Ok(Self::Host { host: host.to_ascii_lowercase(), port })
    }
}

fn parse_port(text: &str) -> Result<u16, AuthorityError> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(AuthorityError::Port),
    }
}

/// A DNS name whose last label is not a number, because `10.0.0.256` must not
/// pass for a name.
fn check_host(host: &str) -> Result<(), AuthorityError> {
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let last = host.rsplit('.').next().unwrap_or(host);
    if host.len() > MAX_HOST || !host.split('.').all(label_ok) || numeric(last) {
        return Err(AuthorityError::Host);
    }
    Ok(())
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(SocketAddr::V6(addr)) => write!(f, "[{}]:{}", addr.ip(), addr.port()),
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addr(text: &str) -> Authority {
        Authority::Addr(text.parse().unwrap())
    }

    #[test]
    fn addresses_and_names() {
        assert_eq!("10.0.0.1:80".parse(), Ok(addr("10.0.0.1:80")));
        assert_eq!("[fd00::1]:65535".parse(), Ok(addr("[fd00::1]:65535")));
        assert_eq!("[::ffff:10.0.0.1]:80".parse(), Ok(addr("10.0.0.1:80")));
        let name = Authority::Host { host: "a.b.svc.cluster.local".into(), port: 80 };
        assert_eq!("A.b.svc.cluster.local:80".parse(), Ok(name));
    }

    #[test]
    fn refusals() {
        use AuthorityError::{Host, Ipv6, NoPort, Port};
        let cases = [
            ("", NoPort),
            ("10.0.0.1", NoPort),
            ("10.0.0.1:", Port),
            ("10.0.0.1:0", Port),
            ("10.0.0.1:+80", Port),
            ("10.0.0.1:65536", Port),
            ("10.0.0.1: 80", Port),
            ("[fd00::1]", Ipv6),
            ("[fd00::1%eth0]:80", Ipv6),
            ("[10.0.0.1]:80", Ipv6),
            ("[fd00::1:80", Ipv6),
            ("fd00::1:80", Host),
            (":80", Host),
            ("10.0.0.256:80", Host),
            ("user@host:80", Host),
            ("host/path:80", Host),
            ("a..b:80", Host),
            ("a b:80", Host),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Authority>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn addresses_print_and_parse(ip: IpAddr, port in 1u16..) {
            let authority = Authority::Addr(SocketAddr::new(canonical(ip), port));
            prop_assert_eq!(authority.to_string().parse(), Ok(authority));
        }

        #[test]
        fn whatever_parses_prints_and_parses_to_the_same(text in "[\\[\\]a-zA-Z0-9.:_-]{0,40}(:[0-9]{1,5})?") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse(), Ok(authority));
            }
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<Authority>();
        }
    }
}
