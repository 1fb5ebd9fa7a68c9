use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::RouteSocket;

/// An interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its index.
    pub(crate) index: u32,
    /// Whether it is up.
    pub(crate) up: bool,
    /// Whether it is the loopback interface.
    pub(crate) loopback: bool,
    /// Whether it is one end of a veth pair.
    pub(crate) veth: bool,
    /// Index of the interface it is tied to, in that one's namespace; of a veth, its other end.
    pub(crate) tied_to: Option<u32>,
    /// This namespace's number of the namespace of that interface; `None` if it is this one.
    pub(crate) tied_in: Option<i32>,
}

impl RouteSocket {
    /// All interfaces of the namespace.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let found = self.0.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(found.iter().filter_map(link).collect())
    }

    /// The number by which the namespace knows another one; `None` if it has none.
    pub(crate) fn number_of(&self, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned()));
        let found = self.0.ask(RouteNetlinkMessage::GetNsId(message))?;
        Ok(found.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(message) => message.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(number) if *number >= 0 => Some(*number),
                _ => None,
            }),
            _ => None,
        }))
    }
}

fn link(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        veth: false,
        tied_to: None,
        tied_in: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => link.tied_to = Some(*index),
            LinkAttribute::LinkNetNsId(number) => link.tied_in = Some(*number),
            LinkAttribute::LinkInfo(info) => link.veth = info.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => {}
        }
    }
    Some(link)
}
