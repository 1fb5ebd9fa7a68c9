//! A cluster goes as if it had never been, however it ends.

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, succeeded};

/// A cluster of one test, which goes with it.
struct Own(Cluster);

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.xtask(["down"]).output();
    }
}

/// Starts one, and after a while sends it a signal.
fn start_and_signal(cluster: &Cluster, after: Duration, signal: Signal) -> Child {
    let mut command = cluster.xtask(["up", "--nodes", "1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(after);
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    child
}

pub(crate) fn another_cluster_beside_this_one_comes_and_goes(cluster: &Cluster) {
    let nodes = cluster.nodes().len();
    let other = Own(cluster.beside("b"));
    other.0.run(&["up", "--nodes", "1"]);
    assert_eq!(other.0.nodes(), ["node1"]);
    let again = other.0.xtask(["up"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "a cluster that is up is not made again");
    assert_eq!(cluster.nodes().len(), nodes);
    for _ in 0..2 {
        other.0.run(&["down"]);
        assert_eq!(other.0.traces(), Vec::<String>::new());
    }
    assert_eq!(cluster.nodes().len(), nodes);
}

pub(crate) fn an_interrupted_start_leaves_nothing(cluster: &Cluster) {
    for milliseconds in [300, 1500, 4000] {
        let other = Own(cluster.beside("i"));
        let child = start_and_signal(&other.0, Duration::from_millis(milliseconds), Signal::SIGINT);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "after {milliseconds} ms: {said}");
        assert_eq!(other.0.traces(), Vec::<String>::new(), "after {milliseconds} ms");
    }
}

pub(crate) fn what_a_killed_start_left_is_taken_down(cluster: &Cluster) {
    for milliseconds in [700, 4000] {
        let other = Own(cluster.beside("k"));
        start_and_signal(&other.0, Duration::from_millis(milliseconds), Signal::SIGKILL).wait().unwrap();
        assert_ne!(other.0.traces(), Vec::<String>::new(), "nothing was there to be left");
        succeeded(&mut other.0.xtask(["down"]));
        assert_eq!(other.0.traces(), Vec::<String>::new(), "after {milliseconds} ms");
    }
}
