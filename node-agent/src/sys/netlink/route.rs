use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use warren_ebpf_abi::LOOPBACK_IFINDEX;

use super::{IpFamily, RouteSocket, absent_is_fine};

impl RouteSocket {
    /// Makes `local default dev lo [src SOURCE]` the default of a table.
    pub(crate) fn set_local_default(&self, family: IpFamily, table: u32, source: Option<IpAddr>) -> io::Result<()> {
        let message = local_default(family, table, source);
        self.0.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes what [`Self::set_local_default`] made, if it is there.
    pub(crate) fn remove_local_default(&self, family: IpFamily, table: u32) -> io::Result<()> {
        let message = local_default(family, table, None);
        absent_is_fine(self.0.change(RouteNetlinkMessage::DelRoute(message), 0))
    }

    /// Whether exactly the route of [`Self::set_local_default`] stands in a table, and nothing else.
    pub(crate) fn has_only_local_default(
        &self,
        family: IpFamily,
        table: u32,
        source: Option<IpAddr>,
    ) -> io::Result<bool> {
        let standing = self.routes(family, table)?;
        Ok(matches!(standing.as_slice(), [route] if is_local_default(route, source)))
    }

    /// Removes every route of a table but that of [`Self::set_local_default`].
    pub(crate) fn remove_others(&self, family: IpFamily, table: u32, source: Option<IpAddr>) -> io::Result<()> {
        for route in self.routes(family, table)? {
            if !is_local_default(&route, source) {
                absent_is_fine(self.0.change(RouteNetlinkMessage::DelRoute(route), 0))?;
            }
        }
        Ok(())
    }

    fn routes(&self, family: IpFamily, table: u32) -> io::Result<Vec<RouteMessage>> {
        let mut request = RouteMessage::default();
        request.header.address_family = family.code();
        let found = self.0.dump(RouteNetlinkMessage::GetRoute(request))?;
        let is_in_table = |message: RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewRoute(route) => {
                route.attributes.contains(&RouteAttribute::Table(table)).then_some(route)
            }
            _ => None,
        };
        Ok(found.into_iter().filter_map(is_in_table).collect())
    }
}

fn local_default(family: IpFamily, table: u32, source: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family.code();
    message.header.table = u8::try_from(table).unwrap_or_default();
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Oif(LOOPBACK_IFINDEX));
    if let Some(source) = source {
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
    }
    message
}

fn is_local_default(route: &RouteMessage, source: Option<IpAddr>) -> bool {
    let prefers = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => Some(address.clone()),
        _ => None,
    });
    route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0
        && route.attributes.contains(&RouteAttribute::Oif(LOOPBACK_IFINDEX))
        && prefers == source.map(RouteAddress::from)
}
