//! What tests of other modules need of TLS.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_core::identity::SpiffeId;

use super::config;
use super::failure::HandshakeFailure;
use super::handshake::Secured;
use super::record::{Opened, Opener, RECORD_HEAD, RECORD_TAIL, Sealer};
use super::secrets::{Secrets, Suite, Traffic};
use super::verify::Verdict;
use crate::identity::IdentitySnapshot;

/// Our configuration, for rustls alone.
pub(crate) fn client_config(snapshot: &IdentitySnapshot, expected: &[SpiffeId]) -> Arc<ClientConfig> {
    config::client(snapshot, expected, &Verdict::default(), Arc::new(Secrets::default())).unwrap()
}

/// Our configuration, for rustls alone.
pub(crate) fn server_config(snapshot: &IdentitySnapshot) -> Arc<ServerConfig> {
    config::server(snapshot, &Verdict::default(), Arc::new(Secrets::default())).unwrap()
}

impl Secured {
    /// Sends a record.
    pub(crate) async fn send(&mut self, octets: &[u8]) -> Result<(), HandshakeFailure> {
        let mut record = vec![0; RECORD_HEAD + octets.len() + RECORD_TAIL];
        record[RECORD_HEAD..][..octets.len()].copy_from_slice(octets);
        self.sealer.seal(&mut record).unwrap();
        self.tcp.write_all(&record).await.map_err(|e| HandshakeFailure::Io(e.to_string()))
    }

    /// The next application data.
    pub(crate) async fn receive(&mut self) -> Result<Vec<u8>, HandshakeFailure> {
        if !self.plaintext.is_empty() {
            return Ok(std::mem::take(&mut self.plaintext));
        }
        let io = |text: &dyn std::fmt::Display| HandshakeFailure::Io(text.to_string());
        loop {
            while let Some(end) = Opener::first_record(&self.ciphertext).map_err(|e| io(&e))? {
                let mut record: Vec<u8> = self.ciphertext.drain(..end).collect();
                match self.opener.open(&mut record).map_err(|e| e.late_failure().unwrap_or_else(|| io(&e)))? {
                    Opened::Data(octets) => return Ok(octets.to_vec()),
                    Opened::Nothing => {}
                    Opened::Closed => return Err(io(&"closed")),
                }
            }
            if self.tcp.read_buf(&mut self.ciphertext).await.map_err(|e| io(&e))? == 0 {
                return Err(io(&"end of file"));
            }
        }
    }

    /// Changes our keys and says so.
    pub(crate) async fn update_keys(&mut self) {
        let record = self.sealer.update_keys().unwrap();
        self.tcp.write_all(&record).await.unwrap();
    }
}

/// Both ends of one direction that no handshake made.
pub(crate) fn direction() -> (Sealer, Opener) {
    let traffic = || Traffic::for_test(Suite::Aes128);
    (Sealer::new(traffic()).unwrap(), Opener::new(traffic()).unwrap())
}
