//! The counters of a connection's label set, found again without spelling the labels out: two dozen texts would
//! otherwise be copied and hashed four times for each connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use warren_core::audit::Direction;
use warren_core::identity::SpiffeId;

use super::facts::{ConnectionFacts, ServiceFacts, WorkloadFacts};
use super::metrics::TcpCounters;

/// Pairs of workloads that are kept at hand.
const MOST_KNOWN: usize = 4096;

/// Workloads by their place in memory, which is theirs as long as [`Known`] holds them.
type Pair = (usize, usize);

/// What two connections must have in common to be counted together, and the counters.
struct Known {
    /// The workloads, so that nothing else gets their place.
    _held: [Option<Arc<WorkloadFacts>>; 2],
    direction: Direction,
    service: Option<ServiceFacts>,
    proven: Option<(SpiffeId, SpiffeId, bool)>,
    counters: Arc<TcpCounters>,
}

/// Counters that were looked up before.
#[derive(Default)]
pub(super) struct Counted(Mutex<HashMap<Pair, Vec<Known>>>);

impl Counted {
    /// The counters of a connection; `proven` holds the identities, and whether TLS proved them. Those that are not known
    /// come from `find`.
    pub(super) fn of(
        &self,
        facts: &ConnectionFacts,
        proven: Option<(&SpiffeId, &SpiffeId, bool)>,
        find: impl FnOnce() -> TcpCounters,
    ) -> Arc<TcpCounters> {
        let Some(pair) = pair(facts) else { return Arc::new(find()) };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all.get(&pair).and_then(|known| known.iter().find(|known| known.counts(facts, proven))) {
            return Arc::clone(&found.counters);
        }
        if all.len() >= MOST_KNOWN {
            all.clear();
        }
        let counters = Arc::new(find());
        all.entry(pair).or_default().push(Known {
            _held: [facts.source.clone(), facts.destination.clone()],
            direction: facts.direction,
            service: facts.service.clone(),
            proven: proven.map(|(source, destination, tls)| (source.clone(), destination.clone(), tls)),
            counters: Arc::clone(&counters),
        });
        counters
    }
}

impl Known {
    fn counts(&self, facts: &ConnectionFacts, proven: Option<(&SpiffeId, &SpiffeId, bool)>) -> bool {
        let own = self.proven.as_ref().map(|(source, destination, tls)| (source, destination, *tls));
        self.direction == facts.direction && own == proven && self.service == facts.service
    }
}

/// Where both workloads are. Only pods of the world have facts that other connections share.
fn pair(facts: &ConnectionFacts) -> Option<Pair> {
    let place = |of: &Option<Arc<WorkloadFacts>>| match of {
        None => Some(0),
        Some(facts) => (!facts.pod.is_empty()).then_some(Arc::as_ptr(facts) as usize),
    };
    Some((place(&facts.source)?, place(&facts.destination)?))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::telemetry::facts::ConnectionName;

    fn connection(number: u64) -> ConnectionName {
        ConnectionName { node: "node".into(), number }
    }

    fn pod(name: &str) -> Option<Arc<WorkloadFacts>> {
        Some(Arc::new(WorkloadFacts { pod: name.into(), ..WorkloadFacts::default() }))
    }

    #[test]
    fn what_differs_in_a_label_is_counted_apart() {
        let counted = Counted::default();
        let looked = Cell::new(0);
        let look = |facts: &ConnectionFacts, proven: Option<(&SpiffeId, &SpiffeId, bool)>| {
            let find = || {
                looked.set(looked.get() + 1);
                TcpCounters::default()
            };
            counted.of(facts, proven, find);
            looked.get()
        };
        let any = "10.0.0.1:1".parse().unwrap();
        let facts = ConnectionFacts {
            connection_id: connection(1),
            direction: Direction::Inbound,
            source: pod("a"),
            destination: pod("b"),
            src_addr: any,
            dst_addr: any,
            service: None,
        };
        assert_eq!(look(&facts, None), 1);
        assert_eq!(look(&ConnectionFacts { connection_id: connection(2), ..facts.clone() }, None), 1);
        assert_eq!(look(&ConnectionFacts { direction: Direction::Outbound, ..facts.clone() }, None), 2);
        assert_eq!(look(&ConnectionFacts { source: pod("a"), ..facts.clone() }, None), 3, "another version of the pod");
        let service = ServiceFacts { namespace: "n".into(), name: "s".into(), hostname: "s.n".into() };
        assert_eq!(look(&ConnectionFacts { service: Some(service), ..facts.clone() }, None), 4);
        let [one, two] = ["one", "two"].map(crate::testing::id);
        for (proven, expected) in
            [((&one, &two, true), 5), ((&one, &two, false), 6), ((&one, &one, true), 7), ((&one, &two, true), 7)]
        {
            assert_eq!(look(&facts, Some(proven)), expected);
        }
        let stranger = Some(Arc::new(WorkloadFacts::default()));
        for expected in [8, 9] {
            assert_eq!(look(&ConnectionFacts { source: stranger.clone(), ..facts.clone() }, None), expected);
        }
    }
}
