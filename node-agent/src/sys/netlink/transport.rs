use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Bytes of the length field with which every message begins.
const LENGTH_FIELD: usize = 4;

/// A blocking netlink socket: one request, all its answers.
#[derive(Debug)]
pub(crate) struct Transport<M> {
    socket: Socket,
    messages: PhantomData<M>,
}

impl<M> Transport<M>
where
    M: NetlinkDeserializable + Debug,
{
    /// Opens a socket of a netlink protocol in the namespace this thread is in.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, messages: PhantomData })
    }

    /// Asks for a list.
    pub(crate) fn dump(&self, request: impl NetlinkSerializable + Debug) -> io::Result<Vec<M>> {
        self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        while !self.receive(&mut found)? {}
        Ok(found)
    }

    /// Asks for one thing.
    pub(crate) fn ask(&self, request: impl NetlinkSerializable + Debug) -> io::Result<Vec<M>> {
        self.send(request, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut found = Vec::new();
        while !self.receive(&mut found)? {}
        Ok(found)
    }

    /// Asks for a change and waits until it is done.
    pub(crate) fn change(&self, request: impl NetlinkSerializable + Debug, flags: u16) -> io::Result<()> {
        self.send(request, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        let mut found = Vec::new();
        while !self.receive(&mut found)? {}
        Ok(())
    }

    fn send<R: NetlinkSerializable + Debug>(&self, request: R, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("netlink took a part of the request")) }
    }

    /// Takes one datagram of answers; true after the last one.
    fn receive(&self, found: &mut Vec<M>) -> io::Result<bool> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some(length) = message_length(rest) {
            let message = NetlinkMessage::<M>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                NetlinkPayload::Error(error) => {
                    return if error.code.is_some() { Err(error.to_io()) } else { Ok(true) };
                }
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Overrun(_) => return Err(io::Error::other("netlink lost answers")),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(LENGTH_FIELD)..).unwrap_or_default();
        }
        Ok(false)
    }
}

fn message_length(bytes: &[u8]) -> Option<usize> {
    let field: [u8; LENGTH_FIELD] = bytes.get(..LENGTH_FIELD)?.try_into().ok()?;
    let length = u32::from_ne_bytes(field) as usize;
    (length >= LENGTH_FIELD && length <= bytes.len()).then_some(length)
}
