//! Warren and ztunnel as peers of each other, in both directions: what one writes, the other must read.
//!
//! Nothing of ztunnel is part of this tree. Three variables name it; where one is not set every test is skipped, and
//! says how to get the peer:
//!
//! * `WARREN_ZTUNNEL`: the proxy, built with its feature `testing`, whose `FAKE_CA` signs without a control plane
//! * `WARREN_ZTUNNEL_INPODSERVER`: its example program that hands it a pod
//! * `WARREN_ZTUNNEL_SOURCE`: its source tree, for the root that `FAKE_CA` signs with and for its redirect rules
//!
//! Root is needed, and `ip`, `nsenter`, `setpriv`, `iptables-restore`, `ip6tables-restore`, `curl` and `python3`.

#![forbid(unsafe_code)]
// Helpers of tests are tests: what goes wrong in them is a failure to be shown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bytes;
mod mesh;
mod peer;
mod programs;
mod refusals;
mod restarts;
mod storms;
mod time;
mod ztunnel;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::peer::{NoPeer, Peer};

/// A test by its name.
type Test = (&'static str, fn(&Peer));

/// Names a test by its path.
macro_rules! tests {
    ($($module:ident :: $name:ident,)*) => {
        [$((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn(&Peer)),)*]
    };
}

const TESTS: [Test; 27] = tests![
    bytes::every_size_and_family_arrives_exactly_from_the_clients_own_address,
    bytes::each_end_may_end_its_half_first,
    bytes::a_reset_of_one_application_ends_the_other,
    bytes::many_connections_share_few_tunnels,
    bytes::more_connections_than_a_tunnel_has_streams,
    bytes::a_server_may_speak_first,
    bytes::bytes_sent_before_the_tunnel_is_open_arrive_once_and_whole,
    bytes::a_slow_reader_stops_its_writer_and_loses_nothing,
    programs::curl_fetches_from_a_http_server,
    refusals::warrens_policy_ends_ztunnels_client,
    refusals::ztunnels_policy_resets_warrens_client,
    refusals::ztunnel_refuses_a_warren_pod_that_is_not_whom_it_expects,
    refusals::warren_refuses_a_ztunnel_pod_that_is_not_whom_it_expects,
    refusals::each_side_refuses_a_foreign_trust_domain_under_the_same_root,
    refusals::an_application_that_does_not_listen_is_a_refusal,
    refusals::plaintext_follows_peer_authentication,
    restarts::ztunnel_is_upgraded_under_warrens_connections,
    restarts::killed_ztunnel_ends_connections_and_the_next_one_after_it_succeeds,
    restarts::stopped_warren_is_replaced_and_ztunnels_next_connections_succeed,
    restarts::killed_warren_is_replaced_and_ztunnels_next_connections_succeed,
    storms::clients_that_reset_at_once_do_not_hurt_their_neighbours,
    storms::what_is_broken_off_leaves_the_window_whole,
    storms::applications_that_do_not_read_do_not_stop_their_neighbours,
    storms::short_connections_one_after_the_other,
    storms::single_bytes_arrive_in_order,
    time::warrens_certificates_are_renewed_under_ztunnels_eyes,
    time::silent_connections_outlive_the_pings_of_both_sides,
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = match Peer::find() {
        Ok(peer) => TESTS.map(|(name, test)| with_peer(name, test, peer.clone())),
        Err(unset @ NoPeer::Unset(_)) => TESTS.map(|(name, _)| skipped(name, &unset, arguments.list)),
        Err(wrong @ NoPeer::Missing(..)) => TESTS.map(|(name, _)| failing(name, &wrong)),
    };
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn with_peer(name: &str, test: fn(&Peer), peer: Peer) -> Trial {
    Trial::test(name, move || {
        test(&peer);
        Ok(())
    })
}

/// A test that can only say why it is not run.
fn failing(name: &str, why: &NoPeer) -> Trial {
    let why = why.to_string();
    Trial::test(name, move || Err(why.into()))
}

fn skipped(name: &str, why: &NoPeer, quietly: bool) -> Trial {
    if !quietly {
        println!("skipped  {name}: {why}");
    }
    failing(name, why).with_ignored_flag(true)
}
