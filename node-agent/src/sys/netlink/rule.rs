use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{IpFamily, RouteSocket, absent_is_fine, present_is_fine};

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// Looks a table up.
    Table(u32),
    /// Answers "unreachable".
    Unreachable,
}

/// A routing rule that looks at nothing but the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    /// Its place: lower is looked at earlier.
    pub(crate) priority: u32,
    /// Value and mask of the mark it matches; `None` matches every packet.
    pub(crate) mark: Option<(u32, u32)>,
    /// What it does.
    pub(crate) action: Action,
}

impl RouteSocket {
    /// The rules of a family that look at nothing but the mark, in their order.
    pub(crate) fn rules(&self, family: IpFamily) -> io::Result<Vec<Rule>> {
        let mut request = RuleMessage::default();
        request.header.family = family.code();
        let found = self.0.dump(RouteNetlinkMessage::GetRule(request))?;
        let mut rules: Vec<Rule> = found.iter().filter_map(|message| parse(message, family)).collect();
        rules.sort();
        Ok(rules)
    }

    /// Adds a rule; one that is there already stays.
    pub(crate) fn add_rule(&self, family: IpFamily, rule: Rule) -> io::Result<()> {
        let request = RouteNetlinkMessage::NewRule(rule.message(family));
        present_is_fine(self.0.change(request, NLM_F_CREATE | NLM_F_EXCL))
    }

    /// Removes a rule, if it is there.
    pub(crate) fn remove_rule(&self, family: IpFamily, rule: Rule) -> io::Result<()> {
        absent_is_fine(self.0.change(RouteNetlinkMessage::DelRule(rule.message(family)), 0))
    }
}

impl Rule {
    fn message(self, family: IpFamily) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family.code();
        message.attributes.push(RuleAttribute::Priority(self.priority));
        match self.action {
            Action::Table(table) => {
                message.header.action = RuleAction::ToTable;
                message.header.table = u8::try_from(table).unwrap_or_default();
                message.attributes.push(RuleAttribute::Table(table));
            }
            Action::Unreachable => message.header.action = RuleAction::Unreachable,
        }
        if let Some((value, mask)) = self.mark {
            message.attributes.push(RuleAttribute::FwMark(value));
            message.attributes.push(RuleAttribute::FwMask(mask));
        }
        message
    }
}

fn parse(message: &RouteNetlinkMessage, family: IpFamily) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    if message.header.family != family.code() {
        return None;
    }
    let (mut priority, mut value, mut mask) = (0, None, u32::MAX);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::FwMark(mark) => value = Some(*mark),
            RuleAttribute::FwMask(bits) => mask = *bits,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            // It looks at something else as well, so it is none of ours.
            _ => return None,
        }
    }
    let action = match message.header.action {
        RuleAction::ToTable => Action::Table(table),
        RuleAction::Unreachable => Action::Unreachable,
        _ => return None,
    };
    Some(Rule { priority, mark: value.map(|value| (value, mask)), action })
}
