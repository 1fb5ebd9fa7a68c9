//! Carries a handshake of rustls over a socket, in buffers of ours: what comes behind its end is not lost in a library.

use std::io;
use std::time::Duration;

use rustls::client::ClientConnectionData;
use rustls::server::ServerConnectionData;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CommonState, Error, client::UnbufferedClientConnection, server::UnbufferedServerConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::failure::{HandshakeFailure, classify_tls};

/// A first read; certificates fit.
const READ: usize = 8 * 1024;
/// No handshake is longer.
const MOST: usize = 256 * 1024;
/// How long a refused peer is listened to, so that our alert is not overtaken by a reset.
const LINGER: Duration = Duration::from_millis(500);

/// A handshake that went well.
pub(super) struct Handshake<C> {
    pub(super) tcp: TcpStream,
    pub(super) connection: C,
    /// Application data that came with its end.
    pub(super) plaintext: Vec<u8>,
    /// What came behind it and is no whole record.
    pub(super) ciphertext: Vec<u8>,
}

/// Both roles of a connection, which rustls has as two types.
pub(super) trait Unbuffered {
    type Data;

    fn state(&self) -> &CommonState;

    fn process<'c, 'i>(&'c mut self, octets: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn state(&self) -> &CommonState {
        self
    }

    fn process<'c, 'i>(&'c mut self, octets: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(octets)
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn state(&self) -> &CommonState {
        self
    }

    fn process<'c, 'i>(&'c mut self, octets: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(octets)
    }
}

/// What has to happen before the handshake can go on.
enum Need {
    /// Send what was encoded.
    Write,
    /// Receive more.
    Read,
    /// Nothing: it is done.
    Done,
}

/// The octets on their way in and out.
#[derive(Default)]
struct Octets {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    plaintext: Vec<u8>,
}

/// Shakes hands. A failure is told to the peer before it is returned.
pub(super) async fn drive<C: Unbuffered>(
    mut connection: C,
    mut tcp: TcpStream,
) -> Result<Handshake<C>, HandshakeFailure> {
    let mut octets = Octets::default();
    loop {
        match octets.process(&mut connection) {
            Ok(Need::Write) => send(&mut tcp, &mut octets.outgoing).await.map_err(|e| broken(&e))?,
            Ok(Need::Read) => {
                let room = octets.incoming.len() + READ;
                octets.incoming.reserve(READ);
                let read = tcp.read_buf(&mut octets.incoming).await.map_err(|e| broken(&e))?;
                if read == 0 {
                    return Err(HandshakeFailure::Io("the peer closed the connection during the handshake".into()));
                }
                if room > MOST {
                    return Err(HandshakeFailure::NotTls);
                }
            }
            Ok(Need::Done) => {
                send(&mut tcp, &mut octets.outgoing).await.map_err(|e| broken(&e))?;
                let Octets { incoming, plaintext, .. } = octets;
                return Ok(Handshake { tcp, connection, plaintext, ciphertext: incoming });
            }
            Err(error) => {
                octets.alert(&mut connection);
                refuse(tcp, octets.outgoing);
                return Err(classify_tls(&error));
            }
        }
    }
}

fn broken(error: &io::Error) -> HandshakeFailure {
    HandshakeFailure::Io(error.to_string())
}

async fn send(tcp: &mut TcpStream, outgoing: &mut Vec<u8>) -> io::Result<()> {
    if !outgoing.is_empty() {
        tcp.write_all(outgoing).await?;
        outgoing.clear();
    }
    Ok(())
}

/// Sends the alert and listens until the peer has had time to read it: closing at once, with octets unread, would reset
/// the connection, and the reset throw the alert away.
fn refuse(mut tcp: TcpStream, alert: Vec<u8>) {
    if alert.is_empty() {
        return;
    }
    tokio::task::spawn_local(async move {
        let told = async {
            tcp.write_all(&alert).await?;
            tcp.shutdown().await?;
            let mut rest = [0; 1024];
            while tcp.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        // Whether it was heard is the peer's affair.
        let _ = tokio::time::timeout(LINGER, told).await;
    });
}

impl Octets {
    /// Lets rustls go on until it needs the network.
    fn process<C: Unbuffered>(&mut self, connection: &mut C) -> Result<Need, Error> {
        loop {
            let UnbufferedStatus { mut discard, state } = connection.process(&mut self.incoming);
            let mut need = None;
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.incoming.drain(..discard);
                    return Err(error);
                }
            };
            match state {
                ConnectionState::EncodeTlsData(data) => encode(data, &mut self.outgoing)?,
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    need = Some(Need::Write);
                }
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        self.plaintext.extend_from_slice(record.payload);
                    }
                }
                ConnectionState::BlockedHandshake => need = Some(Need::Read),
                ConnectionState::WriteTraffic(_) => need = Some(Need::Done),
                _ => return Err(Error::General("the peer ended the connection during the handshake".into())),
            }
            self.incoming.drain(..discard);
            match need {
                // A server may write before it has seen who the client is; that is not the end.
                Some(Need::Done) if connection.state().is_handshaking() => return Ok(Need::Read),
                Some(need) => return Ok(need),
                None => {}
            }
        }
    }

    /// Encodes what rustls has to say about its failure.
    fn alert<C: Unbuffered>(&mut self, connection: &mut C) {
        // The first thing that it says after a failure is the alert; asked once more, it repeats the failure.
        if let Ok(ConnectionState::EncodeTlsData(data)) = connection.process(&mut self.incoming).state
            && encode(data, &mut self.outgoing).is_err()
        {
            self.outgoing.clear();
        }
    }
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), Error> {
    let begin = out.len();
    out.resize(begin + READ, 0);
    let length = match data.encode(&mut out[begin..]) {
        Ok(length) => length,
        Err(EncodeError::InsufficientSize(needed)) => {
            out.resize(begin + needed.required_size, 0);
            data.encode(&mut out[begin..]).map_err(|e| Error::General(e.to_string()))?
        }
        Err(error) => return Err(Error::General(error.to_string())),
    };
    out.truncate(begin + length);
    Ok(())
}
