//! Traffic secrets of TLS 1.3 and the keys made of them (RFC 8446 §7).
//!
//! rustls does the handshake; the records after it are ours ([`super::record`]). Its key log hands the secrets over,
//! its secret extraction the keys made of them, and the two must agree: what is derived here is thus checked against
//! rustls in every handshake.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384, Prk};
use rustls::{ConnectionTrafficSecrets, KeyLog};
use zeroize::Zeroizing;

/// Octets of an AES-GCM nonce.
pub(super) const NONCE: usize = 12;

/// A cipher suite, as far as records are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suite {
    /// TLS_AES_128_GCM_SHA256.
    Aes128,
    /// TLS_AES_256_GCM_SHA384.
    Aes256,
}

impl Suite {
    fn aead(self) -> &'static Algorithm {
        match self {
            Self::Aes128 => &AES_128_GCM,
            Self::Aes256 => &AES_256_GCM,
        }
    }

    fn hash(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128 => HKDF_SHA256,
            Self::Aes256 => HKDF_SHA384,
        }
    }

    fn hash_length(self) -> usize {
        match self {
            Self::Aes128 => 32,
            Self::Aes256 => 48,
        }
    }
}

/// One direction of a connection: all that another process would need to go on with it.
#[derive(Clone)]
pub(super) struct Traffic {
    pub(super) suite: Suite,
    secret: Zeroizing<Vec<u8>>,
    /// Records protected with the keys of `secret` so far.
    pub(super) sequence: u64,
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Traffic({:?}, sequence {})", self.suite, self.sequence)
    }
}

/// A key could not be made. The cryptographic library says no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a traffic key could not be derived")]
pub(super) struct KeyError;

/// The keys of one traffic secret.
pub(super) struct Keys {
    pub(super) aead: LessSafeKey,
    pub(super) iv: [u8; NONCE],
}

impl Traffic {
    /// The direction with this secret, if rustls made the same keys of it.
    pub(super) fn verified(
        secret: &[u8],
        (sequence, extracted): &(u64, ConnectionTrafficSecrets),
    ) -> Result<Self, KeyError> {
        let (suite, key, iv) = match extracted {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256, key, iv),
            _ => return Err(KeyError),
        };
        let traffic = Self { suite, secret: Zeroizing::new(secret.to_vec()), sequence: *sequence };
        let ours = traffic.expand(b"key", suite.aead().key_len())?;
        let same = ours[..] == *key.as_ref() && traffic.expand(b"iv", NONCE)?[..] == *iv.as_ref();
        if same { Ok(traffic) } else { Err(KeyError) }
    }

    pub(super) fn keys(&self) -> Result<Keys, KeyError> {
        let key = self.expand(b"key", self.suite.aead().key_len())?;
        let unbound = UnboundKey::new(self.suite.aead(), &key).map_err(|_| KeyError)?;
        let mut iv = [0; NONCE];
        iv.copy_from_slice(&self.expand(b"iv", NONCE)?);
        Ok(Keys { aead: LessSafeKey::new(unbound), iv })
    }

    /// The next generation after a KeyUpdate (RFC 8446 §7.2).
    pub(super) fn next(&self) -> Result<Self, KeyError> {
        let secret = self.expand(b"traffic upd", self.suite.hash_length())?;
        Ok(Self { suite: self.suite, secret, sequence: 0 })
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
    fn expand(&self, label: &[u8], length: usize) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        const PREFIX: &[u8] = b"tls13 ";
        let head = [0, length as u8, (PREFIX.len() + label.len()) as u8];
        let info = [&head[..], PREFIX, label, &[0]];
        let prk = Prk::new_less_safe(self.suite.hash(), &self.secret);
        let okm = prk.expand(&info, Length(length)).map_err(|_| KeyError)?;
        let mut out = Zeroizing::new(vec![0; length]);
        okm.fill(&mut out).map_err(|_| KeyError)?;
        Ok(out)
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Takes the two application traffic secrets of one handshake, and nothing else.
#[derive(Default)]
pub(super) struct Secrets(Mutex<Pair>);

#[derive(Default)]
struct Pair {
    client: Zeroizing<Vec<u8>>,
    server: Zeroizing<Vec<u8>>,
}

impl Secrets {
    /// The secret with which the client sends, then the one with which the server does.
    pub(super) fn take(&self) -> (Zeroizing<Vec<u8>>, Zeroizing<Vec<u8>>) {
        let Pair { client, server } = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        (client, server)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

const CLIENT_TRAFFIC: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_TRAFFIC: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut pair = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match label {
            CLIENT_TRAFFIC => pair.client = Zeroizing::new(secret.to_vec()),
            SERVER_TRAFFIC => pair.server = Zeroizing::new(secret.to_vec()),
            _ => {}
        }
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT_TRAFFIC | SERVER_TRAFFIC)
    }
}

#[cfg(test)]
impl Traffic {
    /// A direction that no handshake made.
    pub(super) fn for_test(suite: Suite) -> Self {
        Self { suite, secret: Zeroizing::new(vec![7; suite.hash_length()]), sequence: 0 }
    }
}
