//! What runs on a real Kubernetes cluster, and the cluster itself: made by `cargo xtask cluster` as anybody would make
//! it, so that what the tests stand on is what people use.
//!
//! A test is a function that takes the cluster and has a line in [`TESTS`]. The cluster is made for the first of them
//! and shared by all, in the order of the list; a test removes what it makes (`Namespace` does) and leaves every node
//! ready. Root is needed; `cargo xtask test --suite cluster` installs and builds the rest first.

#![forbid(unsafe_code)]
// Helpers of tests are tests: what goes wrong in them is a failure to be shown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod images;
mod install;
mod leftovers;
mod mesh;
mod network;
mod nodes;
mod objects;
mod rights;
mod warren;
mod workloads;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use crate::cluster::{Cluster, Shared};

/// A test by its name.
type Test = (&'static str, fn(&Cluster));

/// Names a test by its path.
macro_rules! tests {
    ($($module:ident :: $name:ident,)*) => {
        [$((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn(&Cluster)),)*]
    };
}

const TESTS: [Test; 28] = tests![
    nodes::are_ready_with_addresses_of_both_families,
    network::pods_of_two_nodes_reach_each_other_over_both_families,
    network::a_service_is_reached_by_its_addresses_from_every_node,
    network::names_of_services_and_pods_resolve,
    workloads::exec_carries_input_output_and_exit_code,
    workloads::logs_are_read_from_every_node,
    workloads::a_forwarded_port_leads_into_the_pod,
    images::an_archive_runs_under_the_name_it_was_given,
    images::servers_made_of_this_machines_programs_serve,
    images::warrens_own_is_one_static_program_and_the_same_each_time,
    install::one_apply_and_one_label_put_pods_in,
    install::agents_are_replaced_under_load_and_nothing_is_refused_or_in_clear,
    install::an_uninstall_leaves_policies_keys_and_clean_nodes,
    install::a_delete_in_a_hurry_cleans_the_nodes_too,
    install::without_proof_capture_stays_until_doctor_cleans_the_node,
    mesh::strict_pods_are_probed_and_nothing_else_of_the_host_gets_in,
    mesh::members_use_services_names_jobs_and_init_containers,
    mesh::without_their_agent_members_wait_and_others_do_not,
    mesh::a_rebooted_node_lets_nobody_in_before_its_agent_serves,
    mesh::labels_come_and_go_without_a_failed_connection,
    rights::without_any_verb_something_does_not_work,
    nodes::a_rebooted_node_runs_its_pods_again,
    nodes::a_node_that_is_cut_off_is_missed_and_comes_back,
    nodes::pods_go_on_without_the_control_plane,
    nodes::one_more_node_joins,
    leftovers::another_cluster_beside_this_one_comes_and_goes,
    leftovers::an_interrupted_start_leaves_nothing,
    leftovers::what_a_killed_start_left_is_taken_down,
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share one cluster and two cores.
    arguments.test_threads = Some(1);
    let shared = Arc::new(Shared::default());
    let trials = TESTS.map(|(name, test)| {
        let shared = Arc::clone(&shared);
        Trial::test(name, move || {
            test(shared.cluster()?);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.into());
    match shared.take_down() {
        Ok(()) => conclusion.exit_code(),
        Err(left) => {
            println!("the cluster is not gone: {left}");
            ExitCode::FAILURE
        }
    }
}
