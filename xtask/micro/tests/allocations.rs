//! Promises that do not depend on time.

use warren_micro::codec;
use warren_micro::policy::{Kind, World};

#[test]
fn no_decision_allocates_whatever_the_number_of_policies() {
    for kind in Kind::ALL {
        for size in [10, 100, 1000] {
            let world = World::new(kind, size).unwrap();
            assert_eq!(world.allowed("allowed".into()).allocations(), 0.0, "{kind:?}, {size} policies, allowed");
            assert_eq!(world.denied("denied".into()).allocations(), 0.0, "{kind:?}, {size} policies, denied");
        }
    }
}

#[test]
fn payload_is_framed_and_unframed_without_allocation() {
    // The credit that a receiver gives back, once for half a window of payload, is a frame in a buffer of its own.
    for (row, most) in [("codec-data-64", 0.02), ("codec-data-65536", 0.25), ("codec-hpack-encode", 0.0)] {
        let mut cases = codec::cases().unwrap();
        let allocations = cases.iter_mut().find(|case| case.row == row).unwrap().allocations();
        assert!(allocations <= most, "{row}: {allocations}");
    }
}
