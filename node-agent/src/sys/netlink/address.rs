use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};

use super::RouteSocket;

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    /// The address.
    pub(crate) ip: IpAddr,
    /// Index of the interface that has it.
    pub(crate) interface: u32,
    /// Whether duplicate address detection is still running: it cannot be used yet.
    pub(crate) tentative: bool,
}

impl RouteSocket {
    /// All addresses of the namespace.
    pub(crate) fn addresses(&self) -> io::Result<Vec<Address>> {
        let found = self.0.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(found.iter().filter_map(address).collect())
    }
}

fn address(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let mut tentative = message.header.flags.contains(AddressHeaderFlags::Tentative);
    let (mut address, mut local) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            // On a point-to-point link this is our end, and the other attribute the peer's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(flags) => {
                // An optimistic address may be used while detection runs.
                tentative = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
            }
            _ => {}
        }
    }
    let interface = message.header.index;
    local.or(address).map(|ip| Address { ip, interface, tentative })
}
