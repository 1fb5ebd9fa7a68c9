//! Spliced connections: order, ends, memory, and the torture of them.

mod count;
mod lab;
mod scene;
mod speed;
mod torture;

use crate::capture::cgroup;
use crate::capture::splice::self_test;

#[test]
fn this_kernel_passes_the_self_test() {
    self_test(&cgroup::open(&cgroup::root().unwrap()).unwrap()).unwrap();
}
