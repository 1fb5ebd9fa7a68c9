//! When what may fail: each change opens a window over the connections it
//! concerns, and says what may happen to them meanwhile.

use std::time::{Duration, Instant};

use super::lab::{Node, Pair};

/// How long a connection may go on after its denial is in force everywhere.
pub(super) const CUT_WITHIN: Duration = Duration::from_secs(5);
/// A window is forgotten this long after its end: longer than any attempt lasts.
const FORGET: Duration = Duration::from_secs(300);

/// Whose connections a window is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those of one caller to one server.
    Pair(Pair),
    /// Those from and to one pod, by its place.
    Pod(usize),
    /// Those that pass through one agent.
    Node(Node),
}

impl Scope {
    fn holds(self, pair: Pair) -> bool {
        match self {
            Self::Pair(own) => own == pair,
            Self::Pod(pod) => pair.touches(pod),
            Self::Node(node) => pair.passes(node),
        }
    }
}

/// What may happen in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// A pod is away: its connections may break and fail.
    Away,
    /// An agent is away. What was begun before it had gone may break; what is
    /// begun later waits for the next agent, and may not.
    Restart { gone: Option<Instant> },
    /// Connections may be refused; in between, once both agents know, they must be.
    Denied { from: Option<Instant>, until: Option<Instant> },
}

#[derive(Debug, Clone, Copy)]
struct Window {
    scope: Scope,
    rule: Rule,
    opened: Instant,
    closed: Option<Instant>,
}

/// A window's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WindowId(usize);

/// An attempt's first and last moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: Instant,
    pub(super) end: Instant,
}

/// Why a failure is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Excuse {
    /// The pod at one end was away.
    PodAway,
    /// An agent between them was stopped or killed.
    AgentAway,
    /// Policy forbade it.
    Denied,
}

/// All windows, in the order in which they opened.
#[derive(Debug, Default)]
pub(super) struct Calendar {
    windows: Vec<(usize, Window)>,
    next: usize,
}

impl Calendar {
    /// A pod goes away.
    pub(super) fn pod_away(&mut self, pod: usize) -> WindowId {
        self.open(Scope::Pod(pod), Rule::Away)
    }

    /// An agent is about to be stopped.
    pub(super) fn restart(&mut self, node: Node) -> WindowId {
        self.open(Scope::Node(node), Rule::Restart { gone: None })
    }

    /// Its process is no more.
    pub(super) fn gone(&mut self, id: WindowId) {
        self.change(id, |window| window.rule = Rule::Restart { gone: Some(Instant::now()) });
    }

    /// A pair is about to be denied.
    pub(super) fn deny(&mut self, pair: Pair) -> WindowId {
        self.open(Scope::Pair(pair), Rule::Denied { from: None, until: None })
    }

    /// Both agents enforce the denial.
    pub(super) fn denied(&mut self, id: WindowId) {
        self.change(id, |window| window.rule = Rule::Denied { from: Some(Instant::now()), until: None });
    }

    /// The denial is about to be taken back.
    pub(super) fn allow(&mut self, id: WindowId) {
        self.change(id, |window| {
            if let Rule::Denied { from, .. } = window.rule {
                window.rule = Rule::Denied { from, until: Some(Instant::now()) };
            }
        });
    }

    /// What is begun from now on must succeed again.
    pub(super) fn close(&mut self, id: WindowId) {
        let now = Instant::now();
        self.change(id, |window| window.closed = Some(now));
        self.windows.retain(|(_, window)| window.closed.is_none_or(|closed| now - closed < FORGET));
    }

    fn open(&mut self, scope: Scope, rule: Rule) -> WindowId {
        let id = self.next;
        self.next += 1;
        self.windows.push((id, Window { scope, rule, opened: Instant::now(), closed: None }));
        WindowId(id)
    }

    fn change(&mut self, id: WindowId, how: impl FnOnce(&mut Window)) {
        if let Some((_, window)) = self.windows.iter_mut().find(|(number, _)| *number == id.0) {
            how(window);
        }
    }

    fn over(&self, pair: Pair, span: Span) -> impl Iterator<Item = &Window> {
        self.windows.iter().map(|(_, window)| window).filter(move |window| {
            window.scope.holds(pair)
                && span.end >= window.opened
                && window.closed.is_none_or(|closed| span.start <= closed)
        })
    }

    /// What excuses that an attempt failed.
    pub(super) fn excuse(&self, pair: Pair, span: Span) -> Option<Excuse> {
        self.over(pair, span).find_map(|window| match window.rule {
            Rule::Away => Some(Excuse::PodAway),
            Rule::Restart { gone } => gone.is_none_or(|gone| span.start < gone).then_some(Excuse::AgentAway),
            Rule::Denied { .. } => Some(Excuse::Denied),
        })
    }

    /// Whether a pod at one end was away at some moment of it.
    pub(super) fn pod_was_away(&self, pair: Pair, span: Span) -> bool {
        self.over(pair, span).any(|window| window.rule == Rule::Away)
    }

    /// What is wrong with an attempt that was denied at some moment of it.
    pub(super) fn denial_fault(&self, pair: Pair, span: Span, went_well: bool) -> Option<&'static str> {
        self.over(pair, span).find_map(|window| {
            let Rule::Denied { from: Some(from), until } = window.rule else { return None };
            let until = until.unwrap_or(span.end).min(span.end);
            if went_well && span.start >= from && span.end <= until {
                return Some("succeeded while it was denied");
            }
            let denied = until.checked_duration_since(span.start.max(from)).unwrap_or_default();
            (denied > CUT_WITHIN).then_some("went on while it was denied")
        })
    }

    /// Whether an attempt was begun while an agent between its ends was gone.
    pub(super) fn begun_in_absence(&self, pair: Pair, span: Span) -> bool {
        self.over(pair, span)
            .any(|window| matches!(window.rule, Rule::Restart { gone: Some(gone) } if span.start >= gone))
    }
}

#[cfg(test)]
mod tests {
    use super::super::lab::{NODES, PAIRS};
    use super::*;

    const PAIR: Pair = PAIRS[0];

    fn wait() {
        std::thread::sleep(Duration::from_millis(2));
    }

    fn since(start: Instant) -> Span {
        Span { start, end: Instant::now() }
    }

    #[test]
    fn a_restart_excuses_what_was_begun_before_and_not_what_came_later() {
        let mut calendar = Calendar::default();
        let before = Instant::now();
        wait();
        let window = calendar.restart(NODES[0]);
        assert_eq!(calendar.excuse(PAIR, since(before)), Some(Excuse::AgentAway));
        calendar.gone(window);
        wait();
        let within = Instant::now();
        wait();
        assert_eq!(calendar.excuse(PAIR, since(within)), None, "it has to wait");
        assert!(calendar.begun_in_absence(PAIR, since(within)));
        assert_eq!(calendar.excuse(PAIR, since(before)), Some(Excuse::AgentAway));
        let elsewhere = PAIRS.into_iter().find(|pair| !pair.passes(NODES[0])).unwrap();
        assert_eq!(calendar.excuse(elsewhere, since(before)), None);
    }

    #[test]
    fn what_is_denied_must_fail_and_only_then() {
        let mut calendar = Calendar::default();
        let before = Instant::now();
        wait();
        let window = calendar.deny(PAIR);
        let grey = since(Instant::now());
        assert_eq!(calendar.denial_fault(PAIR, grey, true), None, "agents may not know yet");
        assert_eq!(calendar.excuse(PAIR, grey), Some(Excuse::Denied));
        wait();
        calendar.denied(window);
        wait();
        let within = since(Instant::now());
        assert!(calendar.denial_fault(PAIR, within, true).is_some());
        assert!(calendar.denial_fault(PAIR, within, false).is_none());
        assert!(calendar.denial_fault(PAIRS[1], within, true).is_none(), "another pair");
        let long = Span { start: before, end: Instant::now() + CUT_WITHIN * 2 };
        assert!(calendar.denial_fault(PAIR, long, false).is_some(), "an open connection that is not cut");
        calendar.allow(window);
        wait();
        calendar.close(window);
        wait();
        let after = since(Instant::now());
        assert_eq!(calendar.denial_fault(PAIR, after, true), None);
        assert_eq!(calendar.excuse(PAIR, after), None);
        assert!(calendar.denial_fault(PAIR, within, true).is_some(), "told late");
    }

    #[test]
    fn a_pod_that_is_away_excuses_its_own_connections() {
        let mut calendar = Calendar::default();
        let window = calendar.pod_away(PAIR.to);
        let span = since(Instant::now());
        assert_eq!(calendar.excuse(PAIR, span), Some(Excuse::PodAway));
        assert!(calendar.pod_was_away(PAIR, span));
        assert_eq!(calendar.excuse(PAIRS.into_iter().find(|pair| !pair.touches(PAIR.to)).unwrap(), span), None);
        wait();
        calendar.close(window);
        wait();
        assert_eq!(calendar.excuse(PAIR, since(Instant::now())), None);
    }
}
