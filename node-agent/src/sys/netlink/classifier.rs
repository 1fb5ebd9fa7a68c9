use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::{RouteSocket, present_is_fine};

/// Kind of the queueing discipline that only carries classifiers.
const CLSACT: &str = "clsact";
/// `ETH_P_ALL` in network order.
const EVERY_PROTOCOL: u32 = 0x0003_u16.to_be() as u32;

/// Which packets of an interface a classifier sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Those that arrive.
    Ingress,
    /// Those that leave.
    Egress,
}

/// A place for one classifier at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the interface.
    pub(crate) interface: u32,
    /// Which packets.
    pub(crate) direction: Direction,
    /// Lower is looked at earlier.
    pub(crate) priority: u16,
    /// Number among those of the same priority.
    pub(crate) handle: u16,
}

/// An eBPF classifier that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Classifier {
    /// Where.
    pub(crate) place: Place,
    /// The kernel's number for its program.
    pub(crate) program: Option<u32>,
}

impl RouteSocket {
    /// Whether classifiers can be put at an interface already.
    pub(crate) fn has_clsact(&self, interface: u32) -> io::Result<bool> {
        let found = self.0.dump(RouteNetlinkMessage::GetQueueDiscipline(message(interface)))?;
        let is_clsact = TcAttribute::Kind(CLSACT.into());
        Ok(found.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(discipline) => {
                discipline.header.index == index(interface) && discipline.attributes.contains(&is_clsact)
            }
            _ => false,
        }))
    }

    /// Makes it possible to put classifiers at an interface.
    pub(crate) fn add_clsact(&self, interface: u32) -> io::Result<()> {
        let request = RouteNetlinkMessage::NewQueueDiscipline(clsact(interface));
        present_is_fine(self.0.change(request, NLM_F_CREATE | NLM_F_EXCL))
    }

    /// Undoes [`Self::add_clsact`], with every classifier that stands.
    pub(crate) fn remove_clsact(&self, interface: u32) -> io::Result<()> {
        self.0.change(RouteNetlinkMessage::DelQueueDiscipline(clsact(interface)), 0)
    }

    /// Puts a program at a place, in one step with the removal of what stood there.
    pub(crate) fn set_classifier(&self, place: Place, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let options = vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ];
        let mut message = place.message();
        message.attributes.push(TcAttribute::Options(options));
        self.0.change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE)
    }

    /// Removes what stands at a place.
    pub(crate) fn remove_classifier(&self, place: Place) -> io::Result<()> {
        self.0.change(RouteNetlinkMessage::DelTrafficFilter(place.message()), 0)
    }

    /// What stands at an interface: eBPF classifiers, and how many of another kind.
    pub(crate) fn classifiers(&self, interface: u32, direction: Direction) -> io::Result<(Vec<Classifier>, usize)> {
        let mut request = message(interface);
        request.header.parent = parent(direction);
        let answers = self.0.dump(RouteNetlinkMessage::GetTrafficFilter(request))?;
        let filters = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) if filter.header.handle != TcHandle::UNSPEC => Some(filter),
            _ => None,
        });
        let (mut found, mut others) = (Vec::new(), 0);
        for filter in filters {
            match classifier(filter, interface, direction) {
                Some(classifier) => found.push(classifier),
                None => others += 1,
            }
        }
        Ok((found, others))
    }
}

impl Place {
    fn message(self) -> TcMessage {
        let mut message = message(self.interface);
        message.header.parent = parent(self.direction);
        message.header.handle = TcHandle::from(u32::from(self.handle));
        message.header.info = u32::from(self.priority) << 16 | EVERY_PROTOCOL;
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
        message
    }
}

fn message(interface: u32) -> TcMessage {
    TcMessage::with_index(index(interface))
}

fn index(interface: u32) -> i32 {
    interface.cast_signed()
}

fn clsact(interface: u32) -> TcMessage {
    let mut message = message(interface);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes.push(TcAttribute::Kind(CLSACT.into()));
    message
}

fn parent(direction: Direction) -> TcHandle {
    let minor = match direction {
        Direction::Ingress => TcHandle::MIN_INGRESS,
        Direction::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: TcHandle::CLSACT.major, minor }
}

fn classifier(filter: &TcMessage, interface: u32, direction: Direction) -> Option<Classifier> {
    if !filter.attributes.contains(&TcAttribute::Kind(TcFilterBpf::KIND.into())) {
        return None;
    }
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let program = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    let priority = (filter.header.info >> 16) as u16;
    let handle = filter.header.handle.minor;
    Some(Classifier { place: Place { interface, direction, priority, handle }, program })
}
