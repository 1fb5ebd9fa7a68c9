//! Any list of URI SANs of a certificate: one identity, taken as it stands, or a reason.
//!
//! The names come as the X.509 parser hands them over; that parser is a library with fuzzers of its own, and building
//! it here would cost more than all the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_core::identity::SpiffeId;
use warren_core::san::spiffe_id_from_uri_sans;

const GOOD: &str = "spiffe://mesh.test/ns/a/sa/b";

fuzz_target!(|names: Vec<&str>| {
    match spiffe_id_from_uri_sans(names.iter().copied()) {
        Ok(id) => assert_eq!(names, [id.as_str()], "exactly one name, taken as it stands"),
        Err(reason) => {
            assert!(!reason.to_string().is_empty());
            assert!(names.len() != 1 || names[0].parse::<SpiffeId>().is_err(), "refused without a cause: {reason}");
        }
    }
    // No company makes a certificate with two names acceptable, wherever the good one stands.
    for name in names {
        assert!(spiffe_id_from_uri_sans([GOOD, name]).is_err());
        assert!(spiffe_id_from_uri_sans([name, GOOD]).is_err());
    }
});
