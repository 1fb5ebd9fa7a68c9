//! Experiments with the kernel: each makes its own network namespaces, a node and pods in them, and needs root.

mod away;
mod bed;
mod enrolment;
mod escapes;
mod leftovers;
mod splice;
mod traffic;
