//! How many SVIDs a node may ask for: enough for a node that starts with all its pods, too few to be of use to who has
//! taken it over and wants to keep the controllers busy.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// SVIDs that a node may ask for at once.
const BURST: f64 = 600.0;
/// SVIDs a second that it may ask for in the long run.
const PER_SECOND: f64 = 20.0;
/// A node that asked for nothing so long is forgotten.
const FORGET: Duration = Duration::from_secs(600);

struct Bucket {
    left: f64,
    at: Instant,
}

/// What each node has left.
#[derive(Default)]
pub(crate) struct Rates {
    nodes: HashMap<String, Bucket>,
}

impl Rates {
    /// Whether a node may have one more now.
    pub(crate) fn take(&mut self, node: &str, now: Instant) -> bool {
        if !self.nodes.contains_key(node) {
            self.nodes.retain(|_, bucket| now.duration_since(bucket.at) < FORGET);
        }
        let bucket = self.nodes.entry(node.to_owned()).or_insert(Bucket { left: BURST, at: now });
        let gained = now.duration_since(bucket.at).as_secs_f64() * PER_SECOND;
        bucket.left = (bucket.left + gained).min(BURST);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_burst_and_then_its_rate() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let burst = (0..1000).filter(|_| rates.take("a", start)).count();
        assert_eq!(burst, 600);
        assert!(rates.take("b", start), "another node has its own");
        let later = start + Duration::from_secs(2);
        assert_eq!((0..100).filter(|_| rates.take("a", later)).count(), 40);
    }

    #[test]
    fn nodes_that_are_gone_are_forgotten() {
        let mut rates = Rates::default();
        let start = Instant::now();
        rates.take("a", start);
        rates.take("b", start + FORGET);
        assert_eq!(rates.nodes.len(), 1);
    }
}
